"""Runs that take a second: the duplication task at length 16 and the smallest Reformer, dropout on."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.models.config import ReformerConfig
from reformer_lab.training.checkpoint import STATE, WEIGHTS
from reformer_lab.training.config import OptimizerConfig, RunConfig
from reformer_lab.training.tracking import read_events

TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes")


def tiny_model(**changes: Any) -> ReformerConfig:
    """A model of one LSH layer; dropout and rotations make every step depend on its draws."""
    fields = {"vocab_size": 12, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_head": 8,
              "max_length": 16, "num_hashes": 2, "chunk_length": 4, "dropout": 0.1}
    return ReformerConfig(**fields | changes)


def tiny_run(**changes: Any) -> RunConfig:
    """A run of eight steps with an evaluation in the middle."""
    fields = {"model": tiny_model(), "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
              "data": DuplicationConfig(length=16, num_symbols=10, vocab_size=12, eval_sequences=8),
              "steps": 8, "batch_size": 4, "eval_every": 4, "log_every": 3, "checkpoint_every": 2, "threads": 1}
    return RunConfig(**fields | changes)


def without_times(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, less what a clock or the machine's memory says."""
    return [{name: value for name, value in event.items() if name not in TIMES}
            for event in read_events(folder / "metrics.jsonl")]


def assert_same_bits(one: Path, other: Path) -> None:
    """Two run folders hold the same: files, lines of metrics, weights, optimiser states and counters, but for times."""
    assert without_times(one) == without_times(other)
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*"))
    assert sum(name.endswith(WEIGHTS) for name in names) == 3  # the newest two checkpoints, and the model
    for name in names:
        if name.endswith(WEIGHTS):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
        elif name.endswith(STATE):
            assert _state(one / name) == _state(other / name), name


def _state(path: Path) -> tuple[str, dict[str, Any]]:
    """What a checkpoint holds beside the weights, less times and places that depend on how long the times are written."""
    state = torch.load(path, weights_only=True)
    counters = {name: value for name, value in state["counters"].items() if name not in ("seconds", "metrics_position")}
    with io.BytesIO() as file:
        torch.save(state["optimizer"], file)
        return hashlib.sha256(file.getvalue()).hexdigest(), counters
