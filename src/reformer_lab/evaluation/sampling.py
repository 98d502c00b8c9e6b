"""Choosing the next token from logits: the most probable one, or a random one of some.

B texts, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_lab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a random token is drawn: first the temperature, then the k most probable, then the nucleus of these.

    >>> probabilities = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    >>> Sampling(top_p=0.6).probabilities(probabilities.log())
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]], dtype=torch.float64)
    """

    temperature: float = 1.0
    """Divides the logits: below 1 the probable tokens get more probable."""
    top_k: int | None = None
    """Only the k most probable tokens (and those as probable as the k-th). None: all."""
    top_p: float | None = None
    """Only the most probable tokens that together reach this probability (Holtzman et al., 2020). None: all."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise UserError(
                f"temperature={self.temperature}: must be a positive number; for the most probable token ask for greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: must be at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be in (0, 1], the probability that the kept tokens reach together")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (B, V), fp64, that tokens are drawn with."""
        logits = logits.double() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
            reached_before = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = probabilities.scatter(-1, order, ordered.masked_fill(reached_before, 0))
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return tokens (B,) drawn by one number of each row's generator (on the host)."""
        cumulative = self.probabilities(logits).cumsum(-1)
        numbers = torch.stack([torch.rand((), generator=one, dtype=torch.float64, device="cpu") for one in generators])
        # Below 1 by more than rounding, so that the last token of probability 0 is never reached.
        threshold = numbers.clamp(max=1 - 2**-40).to(logits.device)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
