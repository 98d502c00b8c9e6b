"""Invented results of the real declarations: nothing here was measured."""

from collections.abc import Callable, Mapping
from typing import Any

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale
from reformer_lab.reporting.records import Record

Events = list[dict[str, Any]]


def invent(experiment: Experiment, scale: Scale, events: Callable[[Arm], Events | None]) -> ExperimentResults:
    """Results in which each arm has the events that `events` returns for it; None: the arm is not there."""
    arms = experiment.arms(scale)
    records = {}
    for arm in arms:
        found = events(arm)
        if found is not None:
            header = {"arm": arm.id, "seed": arm.seed, "status": "finished", "config": arm.run.to_dict()}
            records[arm.id] = Record(header, tuple(found))
    return ExperimentResults(scale=scale, arms=tuple(arm.entry() for arm in arms), records=records)


def trained(bits: float, others: Mapping[str, float] | None = None) -> Events:
    """Events of a training run that ends with so many bits, under the names of `others` with others."""
    scores = {name: {"bits": value} for name, value in {"own": bits, **(others or {})}.items()}
    return [{"event": "eval", "step": 10, "name": "own", "bits": bits + 1},
            {"event": "eval", "step": 20, "name": "own", "bits": bits},
            {"event": "final", "step": 20, "parameters": 1000, "evaluations": scores}]
