"""Means over a split are made once, at the end."""

import math

import pytest
import torch

from reformer_lab.evaluation.metrics import Metrics, Tally


def test_total_over_total_not_a_mean_of_means() -> None:
    tally = Tally()
    tally.add(torch.tensor(1.0), None, torch.zeros(1, 9, dtype=torch.long))
    tally.add(torch.tensor(11.0), None, torch.zeros(1, 1, dtype=torch.long))
    metrics = tally.metrics()
    assert metrics.loss == 2.0  # a mean of means would say 6
    assert metrics.targets == 10
    assert metrics.bits == pytest.approx(2 / math.log(2))


def test_accuracy_counts_the_counted() -> None:
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    tally = Tally()
    tally.add(torch.tensor(1.0), logits, torch.tensor([[1, 1, -100, 1]]))
    assert tally.metrics().accuracy == pytest.approx(2 / 3)
    assert tally.metrics().targets == 3
    tally.add(torch.tensor(1.0), None, torch.tensor([[1]]))
    assert tally.metrics().accuracy is None  # not known for all of them


def test_a_batch_without_targets_adds_nothing() -> None:
    tally = Tally()
    tally.add(torch.tensor(math.nan), None, torch.tensor([[-100]]))
    tally.add(torch.tensor(2.0), None, torch.tensor([[1]]))
    assert tally.metrics() == Metrics(loss=2.0, accuracy=None, targets=1)


def test_record_fields() -> None:
    assert Metrics(loss=math.log(2), accuracy=0.5, targets=3).to_dict() == {
        "loss": math.log(2), "bits": 1.0, "accuracy": 0.5, "targets": 3}
