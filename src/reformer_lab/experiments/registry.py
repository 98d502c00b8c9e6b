"""Every experiment, and about how long each takes."""

import difflib
from collections.abc import Iterable

from reformer_lab.errors import UserError
from reformer_lab.experiments import (
    autopsy,
    depth,
    hash_rounds,
    images,
    memory,
    reversible,
    shared_qk,
    speed,
    table2,
    tuned,
    yardstick,
)
from reformer_lab.experiments.claim import Experiment, Scale

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (table2, shared_qk, reversible, hash_rounds, images, depth, tuned, speed, memory, yardstick, autopsy)
}
"""In the order of the report."""

MINUTES: dict[str, dict[Scale, float]] = {
    "table2": {"smoke": 0.3, "quick": 5, "small": 50, "gpu": 20, "paper": 120},
    "shared_qk": {"smoke": 0.2, "quick": 1, "small": 50, "gpu": 12, "paper": 14_000},
    "reversible": {"smoke": 0.2, "quick": 1.5, "small": 65, "gpu": 18, "paper": 23_000},
    "hash_rounds": {"smoke": 0.3, "quick": 3, "small": 80, "gpu": 25, "paper": 16_000},
    "images": {"smoke": 0.3, "small": 105, "gpu": 20, "paper": 40_000},
    "depth": {"smoke": 0.2, "quick": 2, "small": 40, "gpu": 20, "paper": 33_000},
    "speed": {"smoke": 0.2, "quick": 1.5, "small": 10, "gpu": 5, "paper": 5},
    "memory": {"smoke": 0.7, "quick": 2, "small": 8, "gpu": 5, "paper": 10},
    "tuned": {"smoke": 0.1, "gpu": 20, "paper": 6300},
    "yardstick": {"smoke": 0.5, "small": 150, "gpu": 25, "paper": 23_000},
    "autopsy": {"smoke": 1, "small": 150, "gpu": 60},
}
"""Expected minutes of an experiment run by itself: up to small on 2 CPU cores, then on one H200-class GPU. Those of gpu and
paper are reasoned from operations, not measured (docs/gpu.md); a scale without runs has none. Arms that experiments share
are run once, so that a suite takes less than the sum."""


def get_experiments(names: Iterable[str] | None = None) -> tuple[Experiment, ...]:
    """Return the experiments of these names in the order of the report; None: all of them.

    Raises UserError for an unknown name, with the nearest known one.
    """
    if names is None:
        return tuple(EXPERIMENTS.values())
    wanted = list(names)
    for name in wanted:
        if name not in EXPERIMENTS:
            near = difflib.get_close_matches(name, EXPERIMENTS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"unknown experiment {name!r}: {hint}known: {', '.join(EXPERIMENTS)}")
    if not wanted:
        raise UserError(f"no experiment was named; known: {', '.join(EXPERIMENTS)}")
    return tuple(experiment for name, experiment in EXPERIMENTS.items() if name in wanted)
