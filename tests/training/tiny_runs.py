"""Runs that take a second: the duplication task at length 16 and the smallest Reformer, dropout on."""

from pathlib import Path
from typing import Any

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.models.config import ReformerConfig
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
