"""A whole training step side by side."""

import math

import pytest
import torch

from reformer_lab.benchmarks import peers, train_step
from reformer_lab.benchmarks.attention import MACHINE_COLUMNS
from reformer_lab.benchmarks.train_step import (
    COLUMNS,
    CONTENDERS,
    MODEL,
    PIECES,
    bench_step,
    build,
    choose_contenders,
    model_at,
    preset_model,
)
from reformer_lab.errors import UserError
from reformer_lab.models.presets import get_preset

TINY = get_preset("cpu_tiny")
HERE = [name for name in CONTENDERS if name == "reformer-lab" or peers.why_not(name) is None]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", HERE)
def test_steps_train(name: str, precision: str) -> None:
    """The loss of the first step is that of guessing, and falls on the same tokens: gradients come through everywhere."""
    work = build({"kind": "step", "contender": name, "model": model_at(TINY, 256).to_dict(), "length": 256, "batch_size": 2,
                  "precision": precision, "device": "cpu"})
    losses = []
    for _ in range(30):
        work.run()
        losses.append(work.facts.pop("loss"))
    assert losses[0] == pytest.approx(math.log(258), rel=0.15)
    assert losses[-1] < losses[0] - 0.01
    assert work.facts["parameters"] > 10_000


@pytest.mark.skipif("transformers" not in HERE, reason="transformers is not installed; `make bench-environment`")
def test_transformers_has_our_size() -> None:
    job = {"kind": "step", "model": model_at(MODEL, 1024).to_dict(), "length": 1024, "batch_size": 1, "precision": "fp32",
           "device": "cpu"}
    ours, theirs = (build({**job, "contender": name}).facts["parameters"] for name in ("reformer-lab", "transformers"))
    assert ours == theirs


@pytest.mark.slow
def test_rows() -> None:
    (row,) = bench_step([64], ["reformer-lab"], config=TINY, name="cpu_tiny", batch_size=2, repeats=2)
    ratios = {"times_faster", "ratio_low", "ratio_high"}  # there is nobody to compare with
    assert set(row) | ratios | set(MACHINE_COLUMNS) | {"error"} == set(COLUMNS)
    assert row["status"] == "finished"
    assert row["tokens_per_second"] == pytest.approx(2 * 64 / row["median"])
    assert math.isfinite(row["loss"])
    assert row["peak_bytes"] > row["above_baseline_bytes"] > 0


def test_a_loss_that_is_not_finite_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step.peers, "language_model", lambda *_: (
        (model := torch.nn.Linear(1, 1)), lambda tokens: model(torch.tensor([math.nan])).sum()))
    monkeypatch.setattr(train_step.peers, "version", lambda name: "made up")
    work = build({"kind": "step", "contender": "transformers", "model": TINY.to_dict(), "length": 64, "batch_size": 1,
                  "precision": "fp32", "device": "cpu"})
    with pytest.raises(ValueError, match="the loss of the first step is nan"):
        work.run()


def test_the_model_fits_the_length() -> None:
    assert model_at(MODEL, 16384) == MODEL
    assert (model_at(MODEL, 4096).axial_shape, model_at(MODEL, 4096).max_length) == ((64, 64), 4096)
    assert model_at(MODEL, 32768).axial_shape == (128, 256)
    assert model_at(MODEL, 13).axial_shape == (1, 13)
    crime = get_preset("crime_and_punishment")
    assert model_at(crime, 524288) == crime
    assert model_at(get_preset("duplication"), 2048).max_length == 2048
    with pytest.raises(UserError, match="3 sides: give the length 12288"):
        model_at(get_preset("imagenet64"), 1024)


def test_models() -> None:
    assert preset_model(None, dict.fromkeys(PIECES)) == MODEL
    crime = get_preset("crime_and_punishment")
    for name in PIECES:
        assert preset_model("crime_and_punishment", {**dict.fromkeys(PIECES), name: 2}) == crime.replace(**{name: 2})
    with pytest.raises(UserError, match="unknown preset 'crime'"):
        preset_model("crime", {})


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "why_not", lambda name: None)
    assert choose_contenders(None) == (["reformer-lab", "transformers", "reformer-pytorch"], [])
    assert choose_contenders("cpu_small") == (["reformer-lab", "transformers"], [])
    monkeypatch.setattr(peers, "why_not", lambda name: "not installed")
    assert choose_contenders("cpu_small") == (["reformer-lab"], ["without transformers: not installed"])
    with pytest.raises(UserError, match="'transformers' cannot run: not installed"):
        choose_contenders(None, ["transformers"])
    with pytest.raises(UserError, match="'trax' does not exist"):
        choose_contenders(None, ["trax"])


def test_what_peers_do_not_have() -> None:
    with pytest.raises(UserError, match="measured with local and LSH layers"):
        peers.language_model("transformers", get_preset("duplication"), 1024)
