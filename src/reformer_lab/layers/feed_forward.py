"""The feed-forward layer, computed over pieces of the sequence (paper, section 3: chunking)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.ops.chunking import chunked_apply
from reformer_lab.ops.random import CallSeeds, Draws, dropout

# In place where the gradient needs the result alone: what comes in is this layer's own.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu_, "gelu": functional.gelu, "fast_gelu": partial(functional.gelu, approximate="tanh"),
}  # fmt: skip


class ChunkedFeedForward(nn.Module):
    """Dense, dropout, activation, dense, with the memory of `chunk_length` positions, forward and backward.

    With dropout 0 the result does not depend on `chunk_length`; with dropout each piece has draws of its own.

    >>> import torch
    >>> layer = ChunkedFeedForward(d_model=8, d_ff=64, chunk_length=16)
    >>> layer(torch.zeros(2, 100, 8)).shape
    torch.Size([2, 100, 8])
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: str = "relu", dropout: float = 0.0,
                 chunk_length: int | None = None, seed: int = 0):  # fmt: skip
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        self.dense_in = nn.Linear(d_model, d_ff)
        self.dense_out = nn.Linear(d_ff, d_model)
        self.activation, self.dropout, self.chunk_length = activation, dropout, chunk_length
        self._call_seeds = CallSeeds(seed)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, draws: Draws | None = None) -> Tensor:
        """Return (B, L, d_model) for x (B, L, d_model). The mask changes nothing: positions do not mix here."""
        if draws is None:
            draws = self._call_seeds.draws()

        def piece(index: int, x: Tensor) -> Tensor:
            hidden = self.dense_in(x)
            if self.training and self.dropout > 0:
                hidden = dropout(hidden, self.dropout, draws.generator(f"inner dropout {index}", x.device))
            return self.dense_out(ACTIVATIONS[self.activation](hidden))

        return chunked_apply(piece, x, self.chunk_length)
