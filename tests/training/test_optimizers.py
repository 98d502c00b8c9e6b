"""Schedules by their formulas, optimisers by their effect."""

import math

import pytest
import torch

from reformer_lab.training.config import OptimizerConfig
from reformer_lab.training.optimizers import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize("step", [1, 7, 1999, 2000, 2001, 100_000])
def test_warmup_rsqrt_is_the_papers(step: int) -> None:
    config = OptimizerConfig(schedule="warmup_rsqrt", learning_rate=0.03125, warmup_steps=2000)
    expected = 0.03125 * min(1, step / 2000) / math.sqrt(max(step, 2000))
    assert learning_rate(config, step, 100_000) == pytest.approx(expected, rel=1e-12)


def test_warmup_rsqrt_peaks_at_the_end_of_the_warmup() -> None:
    config = OptimizerConfig(schedule="warmup_rsqrt", learning_rate=1.0, warmup_steps=50)
    rates = [learning_rate(config, step, 200) for step in range(1, 201)]
    assert rates.index(max(rates)) == 49
    assert rates[199] == pytest.approx(rates[49] / 2)


def test_other_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        config = OptimizerConfig(schedule=schedule, learning_rate=2.0, warmup_steps=10)
        return [learning_rate(config, step, 110) for step in (1, 5, 10, 60, 110)]

    assert rates("constant") == [2.0] * 5
    assert rates("warmup_constant") == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    assert rates("warmup_cosine") == pytest.approx([0.2, 1.0, 2.0, 1.0155518, 0.0004837], abs=1e-6)


def test_no_warmup_is_no_division_by_zero() -> None:
    for schedule in ("warmup_constant", "warmup_rsqrt", "warmup_cosine"):
        config = OptimizerConfig(schedule=schedule, learning_rate=1.0, warmup_steps=0)
        assert 0 < learning_rate(config, 1, 10) <= 1


def test_adam_takes_the_step_of_its_formula() -> None:
    parameter = torch.nn.Linear(3, 1, bias=False)
    config = OptimizerConfig(betas=(0.9, 0.98), eps=1e-9, learning_rate=0.5)
    optimizer = build_optimizer(config, parameter)
    set_learning_rate(optimizer, 0.25)
    before = parameter.weight.detach().clone()
    parameter.weight.grad = torch.tensor([[1.0, -2.0, 3.0]])
    optimizer.step()
    # After one step the bias-corrected moments are g and g^2: the step is the rate times the sign.
    assert torch.allclose(before - parameter.weight, 0.25 * torch.tensor([[1.0, -1.0, 1.0]]), atol=1e-6)


def test_adafactor_steps_are_relative_to_the_parameter() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.constant_(layer.weight, 3.0)
    optimizer = build_optimizer(OptimizerConfig(name="adafactor"), layer)
    set_learning_rate(optimizer, 0.01)
    layer.weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert torch.allclose(layer.weight, torch.full((4, 4), 3.0 - 0.01 * 3.0), atol=1e-4)


def test_frozen_parameters_stay_out() -> None:
    layer = torch.nn.Linear(4, 4)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(), layer)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(4, 4)]
