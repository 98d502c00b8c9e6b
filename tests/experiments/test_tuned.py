"""C10: when the tuned model's run decides, and that it is the authors'."""

from typing import Any

import pytest
from invented import invent

from reformer_lab.experiments import tuned
from reformer_lab.experiments.claim import ExperimentResults, Scale
from reformer_lab.experiments.tuned import EXPERIMENT
from reformer_lab.models.presets import get_preset
from reformer_lab.training.config import RunConfig


def results(scale: Scale, bits: float, steps: int) -> ExperimentResults:
    final: dict[str, Any] = {"event": "final", "step": steps, "parameters": 1, "evaluations": {"own": {"bits": bits}}}
    return invent(EXPERIMENT, scale, lambda arm: [{"event": "eval", "step": steps, "name": "own", "bits": bits}, final])


@pytest.mark.parametrize(("scale", "bits", "steps", "outcome"), [
    ("paper", 1.05, 100_000, "supported"),
    ("paper", 1.30, 100_000, "contradicted"),
    ("gpu", 2.00, 1000, "inconclusive"),
    ("gpu", 1.15, 1000, "supported"),
    ("smoke", 1.00, 6, "inconclusive"),
])
def test_outcomes(scale: Scale, bits: float, steps: int, outcome: str) -> None:
    found = results(scale, bits, steps)
    (verdict,) = EXPERIMENT.verdicts(found)
    assert verdict.outcome == outcome
    assert verdict.n == 1
    assert f"{bits:.3f} bits per byte on the test split after {steps:,} steps" in verdict.summary
    assert ("not on enwik8" in verdict.summary) == (scale == "smoke")
    assert EXPERIMENT.show(found).figures[0].series


def test_without_a_run() -> None:
    (verdict,) = EXPERIMENT.verdicts(invent(EXPERIMENT, "gpu", lambda arm: None))
    assert verdict.outcome == "not run"


def test_the_authors_model_and_schedule() -> None:
    (arm,) = tuned.arms("paper")
    assert isinstance(arm.run, RunConfig)
    assert arm.run.model == get_preset("tuned_enwik8")
    assert (arm.run.steps, arm.run.batch_size, arm.run.final_split) == (100_000, 8, "test")
    optimizer = arm.run.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule, optimizer.warmup_steps, optimizer.betas) == (
        "adam", 0.03125, "warmup_rsqrt", 2000, (0.9, 0.98))
    (arm,) = tuned.arms("gpu")
    assert isinstance(arm.run, RunConfig)
    assert (arm.run.model, arm.run.precision) == (get_preset("tuned_enwik8"), "bf16")
