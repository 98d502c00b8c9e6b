"""Sums over a split, and the means that are made of them once, at the end.

A mean of batch means weighs the tokens of a short last batch more than others: bits per byte are total nats over total
bytes over ln 2 (PAPER section 4).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Target that is not counted, as everywhere in PyTorch."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Scores over all counted targets of a split."""

    loss: float
    """Nats per target."""
    accuracy: float | None
    """Share of targets that the most probable token equals. None when the model gave no logits (chunked loss)."""
    targets: int
    """Targets counted."""

    @property
    def bits(self) -> float:
        """Bits per target: per byte for a byte corpus, per dimension for an image."""
        return self.loss / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of a record."""
        return {"loss": self.loss, "bits": self.bits, "accuracy": self.accuracy, "targets": self.targets}


@dataclass(frozen=True)
class Score:
    """Sums over one batch."""

    nats: float = 0.0
    """Over its counted targets."""
    targets: int = 0
    """Targets counted."""
    right: int | None = 0
    """Targets that the most probable token equals. None without logits."""

    @classmethod
    def of(cls, loss: "Tensor", logits: "Tensor | None", targets: "Tensor") -> "Score":
        """Score a batch: mean loss () over the counted targets, logits (B, L, V) or None, targets (B, L)."""
        counted = targets != IGNORED
        number = int(counted.sum())
        if number == 0:
            return cls()  # the loss of no target is no number
        right = None if logits is None else int(((logits.argmax(-1) == targets) & counted).sum())
        return cls(float(loss) * number, number, right)


class Tally:
    """Adds up nats, right guesses and targets over batches, in double precision."""

    def __init__(self) -> None:
        self.nats = 0.0
        self.targets = 0
        self.right: int | None = 0

    def add(self, loss: "Tensor", logits: "Tensor | None", targets: "Tensor") -> None:
        """Add a batch: mean loss () over the counted targets, logits (B, L, V) or None, targets (B, L)."""
        self.add_score(Score.of(loss, logits, targets))

    def add_score(self, score: Score) -> None:
        """Add a batch that was scored already. One without targets changes nothing."""
        self.nats += score.nats
        self.targets += score.targets
        if score.right is None or self.right is None:
            self.right = None
        else:
            self.right += score.right

    def metrics(self) -> Metrics:
        """Return the means so far; the sums must not be empty."""
        assert self.targets > 0, "nothing was counted"
        accuracy = None if self.right is None else self.right / self.targets
        return Metrics(loss=self.nats / self.targets, accuracy=accuracy, targets=self.targets)
