"""Exact attention over all keys, with separate or with shared queries and keys; memory linear in the length.

B batch, H heads, L length, D width. torch's scaled_dot_product_attention does the work wherever it can express the rule;
what it cannot (a token that sees itself as a last resort, beside a padding mask; replayable dropout) is computed in
blocks of queries that the backward pass recomputes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.ops.chunking import recompute
from reformer_lab.ops.random import draw_seed
from reformer_lab.ops.softmax import (
    accumulation_dtype,
    check_attention_inputs,
    masked_attention,
    pair_keep_mask,
    unit_length,
)

QUERY_BLOCK = 512


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return softmax(scale q k^T) v (B, H, L, D_v) of q, k (B, H, L, D) and v (B, H, L, D_v); scale None: 1/sqrt(D).

    key_padding_mask (B, L), True = padding: neither seen nor seeing; its output is 0. dropout_p: on the weights, drawn from
    `generator` (None: one seeded with 0).
    """
    check_attention_inputs({"q": q, "k": k}, v, key_padding_mask, dropout_p)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if key_padding_mask is None and dropout_p == 0.0:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return _in_blocks(q, k * scale, v, causal, key_padding_mask, True, dropout_p, generator)


def shared_qk_attention(
    qk: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    key_scale: str = "unit",
    self_attention: str = "last_resort",
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return exact attention with shared queries and keys qk (B, H, L, D), v (B, H, L, D_v) (paper, section 2).

    self_attention "last_resort": unit keys, and a token sees itself only if it sees nothing else; this is LSH attention with
    one bucket and one chunk. "allowed": raw keys over sqrt(D) and no rule about itself, as in the authors' full attention
    at evaluation. The other arguments are those of `lsh_attention`.
    """
    check_attention_inputs({"qk": qk}, v, key_padding_mask, dropout_p)
    if self_attention == "allowed":
        return full_attention(qk, qk, v, causal=causal, key_padding_mask=key_padding_mask, dropout_p=dropout_p,
                              generator=generator)  # fmt: skip
    if self_attention != "last_resort":
        raise UserError(f"self_attention={self_attention!r}: must be 'last_resort' or 'allowed'")
    if key_scale not in ("unit", "unit_over_sqrt_d"):
        raise UserError(f"key_scale={key_scale!r}: must be 'unit' or 'unit_over_sqrt_d'")
    scale = 1.0 if key_scale == "unit" else qk.shape[-1] ** -0.5
    dtype = accumulation_dtype(qk.dtype)
    if key_padding_mask is not None:  # before the norm, whose gradient of a NaN is a NaN
        qk = qk.masked_fill(key_padding_mask[:, None, :, None], 0)
    with torch.autocast(qk.device.type, enabled=False):
        k = unit_length(qk.to(dtype)) * scale
    if causal and key_padding_mask is None and dropout_p == 0.0:
        # Queries 1.. against keys ..L-2: then causal attention is attention to the tokens strictly before.
        later = functional.scaled_dot_product_attention(
            qk[:, :, 1:], k[:, :, :-1].to(qk.dtype), v[:, :, :-1], is_causal=True, scale=1.0
        )
        return torch.cat([v[:, :, :1], later], dim=2)
    return _in_blocks(qk, k, v, causal, key_padding_mask, False, dropout_p, generator)


def _in_blocks(
    q_BHLD: Tensor,
    k_BHLD: Tensor,
    v_BHLD: Tensor,
    causal: bool,
    padding_BL: Tensor | None,
    self_allowed: bool,
    dropout_p: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Attend in blocks of queries; with `self_allowed` False a token sees itself only where it sees nothing else."""
    batch, heads, length, _ = q_BHLD.shape
    dtype, out_dtype = accumulation_dtype(q_BHLD.dtype), v_BHLD.dtype
    if padding_BL is not None:
        hidden = padding_BL[:, None, :, None]
        q_BHLD, k_BHLD, v_BHLD = (x.masked_fill(hidden, 0) for x in (q_BHLD, k_BHLD, v_BHLD))
    seed = 0
    if dropout_p > 0:
        seed = draw_seed(torch.Generator().manual_seed(0) if generator is None else generator)
    position = torch.arange(length, device=q_BHLD.device)

    def block(q: Tensor, k: Tensor, v: Tensor, query_at: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            query_at = query_at[:, None]
            visible = position <= query_at if causal else torch.ones_like(position <= query_at)
            if not self_allowed:
                visible = visible & (position != query_at)
            if padding_BL is not None:
                visible = visible & ~padding_BL[:, None, None, :]
            if not self_allowed:
                visible = visible | (~visible.any(-1, keepdim=True) & (position == query_at))
            if padding_BL is not None:
                visible = visible & ~padding_BL[:, None, query_at[:, 0], None]
            keep = pair_keep_mask(seed, batch, heads, query_at, position, dropout_p)
            logits = q.to(dtype) @ k.to(dtype).transpose(-1, -2)
            return masked_attention(logits, v.to(dtype), visible, keep, dropout_p)[0].to(out_dtype)

    blocks = zip(q_BHLD.split(QUERY_BLOCK, dim=2), position.split(QUERY_BLOCK), strict=True)
    return torch.cat([recompute(block, q, k_BHLD, v_BHLD, query_at) for q, query_at in blocks], dim=2)
