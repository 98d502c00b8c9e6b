"""What stands in the place of folder and log in the processes that do not write: all but the first."""

from pathlib import Path
from types import TracebackType
from typing import Self

from reformer_lab.training.config import RunConfig
from reformer_lab.training.tracking import Event


class SeenFolder:
    """A run folder that another process writes to: its paths, no lock."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def claim(self, fingerprint: str) -> None:
        """Do nothing."""

    def final(self) -> Event | None:
        """The first process knows."""
        return None


class NoLog:
    """A log of metrics that keeps nothing."""

    def append(self, event: Event) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def position(self) -> int:
        """Nothing is written."""
        return 0

    def close(self) -> None:
        """Do nothing."""
