"""Softmax over the visible keys, for the attention functions that hold their scores: rows with no key give 0."""

import math

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.random import keep_pairs


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp32 for half precisions, and the dtype itself for fp32 and fp64."""
    return torch.promote_types(dtype, torch.float32)


def check_attention_inputs(v: Tensor, dropout_p: float) -> None:
    """Raise a UserError that names an empty input or a dropout that is no probability below 1."""
    if v.dim() != 4 or 0 in v.shape:
        raise UserError(f"v of shape {tuple(v.shape)}: expected (batch, heads, length, width), each at least 1")
    if not 0 <= dropout_p < 1:
        raise UserError(f"dropout_p={dropout_p}: must be in [0, 1)")


def masked_attention(
    logits: Tensor, v: Tensor, visible: Tensor, keep: Tensor | None = None, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the attention output (..., M, D_v) and the logsumexp (..., M) over visible keys.

    logits (..., M, N), v (..., N, D_v), `visible` boolean and broadcastable to the logits. `keep`: the weights that
    dropout keeps. A row with no visible key gives output 0 and logsumexp -inf, with finite gradients.
    """
    hidden = ~visible.expand_as(logits)
    empty = hidden.all(-1, keepdim=True)
    # Rows with nothing to see take a softmax over harmless zeros and are erased afterwards: -inf rows give NaN.
    logits = logits.masked_fill(hidden, -math.inf).masked_fill(empty, 0.0)
    maximum = logits.detach().amax(-1, keepdim=True)
    weights = (logits - maximum).exp()
    total = weights.sum(-1, keepdim=True)
    logsumexp = maximum + total.log()
    # Over the total, not exp(logits - logsumexp): that would cost digits when the logits are large.
    weights = (weights / total).masked_fill(empty, 0.0)
    if keep is not None:
        weights = weights * keep * (1 / (1 - dropout_p))
    return weights @ v, logsumexp.masked_fill(empty, -math.inf).squeeze(-1)


def pair_keep_mask(
    seed: int, batch: int, heads: int, query_position: Tensor, key_position: Tensor, dropout_p: float
) -> Tensor | None:
    """Return `keep_pairs` for every example and head: (B, H) + the broadcast shape of the positions; None without dropout."""
    if dropout_p == 0.0:
        return None
    extra = max(query_position.dim(), key_position.dim())
    row = torch.arange(batch * heads, device=query_position.device).view(batch, heads, *[1] * extra)
    return keep_pairs(seed, row, query_position, key_position, dropout_p)


def unit_length(x: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return x / |x| along the last dimension, its mean square enlarged by `epsilon`; a zero vector stays zero.

    With epsilon 0 the zero vector gets no gradient.
    """
    squared = x.square().sum(-1, keepdim=True) + epsilon * x.shape[-1]
    zero = squared == 0
    return x * squared.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)
