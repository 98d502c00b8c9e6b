"""Softmax over the visible keys, for the attention functions that hold their scores: rows with no key give 0."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.random import keep_pairs


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp32 for half precisions, and the dtype itself for fp32 and fp64."""
    return torch.promote_types(dtype, torch.float32)


def check_attention_inputs(vectors: Mapping[str, Tensor], v: Tensor, key_padding_mask: Tensor | None, dropout_p: float) -> None:
    """Raise a UserError that names what an attention function cannot take.

    `vectors`: queries and keys (B, H, L, D) by name; v (B, H, L, D_v); all of one type, on one device, and none empty.
    key_padding_mask: (B, L) bool, or None. dropout_p: a probability below 1.
    """
    shape = next(iter(vectors.values())).shape
    if len(shape) != 4 or v.dim() != 4 or v.shape[:3] != shape[:3] or any(x.shape != shape for x in vectors.values()):
        raise UserError(f"{_listed(vectors, v)}: expected (batch, heads, length, width), alike but for the width of v")
    if 0 in shape or 0 in v.shape:
        raise UserError(f"{_listed(vectors, v)}: every size, the length too, must be at least 1")
    if not v.is_floating_point() or any(x.dtype != v.dtype or x.device != v.device for x in vectors.values()):
        kinds = ", ".join(f"{name} is {x.dtype} on {x.device}" for name, x in {**vectors, "v": v}.items())
        raise UserError(f"{kinds}: all must have one floating-point type and one device")
    expected = (v.shape[0], v.shape[2])
    if key_padding_mask is not None and (key_padding_mask.shape != expected or key_padding_mask.dtype != torch.bool):
        raise UserError(f"key_padding_mask of shape {tuple(key_padding_mask.shape)}, {key_padding_mask.dtype}: expected "
                        f"{expected}, torch.bool, True = padding")
    if not 0 <= dropout_p < 1:
        raise UserError(f"dropout_p={dropout_p}: must be in [0, 1)")


def _listed(vectors: Mapping[str, Tensor], v: Tensor) -> str:
    return ", ".join(f"{name} {tuple(x.shape)}" for name, x in {**vectors, "v": v}.items())


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
