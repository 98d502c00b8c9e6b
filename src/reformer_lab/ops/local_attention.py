"""Local attention: each chunk of positions attends to itself and to its neighbours, with no wrap-around.

B batch, H heads, L length, D width, C chunks of M positions, W chunks in a window.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.ops.chunking import recompute
from reformer_lab.ops.random import draw_seed, keep_pairs
from reformer_lab.ops.softmax import accumulation_dtype, check_attention_inputs, masked_attention


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_length: int = 64,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool = True,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return attention (B, H, L, D_v) of q, k (B, H, L, D) and v (B, H, L, D_v) within windows of chunks, scale 1/sqrt(D).

    Any length; the last chunk may be short. key_padding_mask (B, L), True = padding: neither seen nor seeing; its output is
    0. dropout_p: on the weights, drawn from `generator` (None: one seeded with 0). A UserError names a bad chunk setting.
    """
    check_attention_inputs(v, dropout_p)
    if chunk_length < 1 or chunks_before < 0 or chunks_after < 0:
        raise UserError(
            f"chunk_length={chunk_length}, chunks_before={chunks_before}, chunks_after={chunks_after}: "
            "the first must be at least 1, the others at least 0"
        )
    batch, heads, length, _ = q.shape
    if key_padding_mask is not None:
        hidden = key_padding_mask[:, None, :, None]
        q, k, v = (x.masked_fill(hidden, 0) for x in (q, k, v))
    if length <= chunk_length:  # one short chunk: do not compute its filling
        chunk_length = length
    chunks = -(-length // chunk_length)
    fill = chunks * chunk_length - length

    def windows(x: Tensor) -> Tensor:
        """Return (B, H, C, W * M, ...) of x (B, H, L, ...)."""
        before, after = chunks_before * chunk_length, chunks_after * chunk_length
        x = functional.pad(x, (0, 0, before, after + fill))
        x = x.unfold(2, before + chunk_length + after, chunk_length)
        return x.transpose(-1, -2)

    q_BHCMD = functional.pad(q, (0, 0, 0, fill)).unflatten(2, (chunks, chunk_length))
    k_BHCND, v_BHCND = windows(k), windows(v)
    query_at = torch.arange(chunks * chunk_length, device=q.device).view(chunks, chunk_length, 1)
    first = torch.arange(chunks, device=q.device)[:, None] - chunks_before
    key_at = first * chunk_length + torch.arange(k_BHCND.shape[3], device=q.device)
    key_at = key_at[:, None, :]
    visible = (key_at >= 0) & (key_at < length)
    visible = visible & (key_at <= query_at) if causal else visible.expand(-1, chunk_length, -1)
    visible = visible[None, None]
    padded_query = None
    if key_padding_mask is not None:
        there = (~key_padding_mask).to(q.dtype)[:, None, :, None]
        visible = visible & (windows(there).transpose(-1, -2) > 0)
        padded_query = functional.pad(key_padding_mask, (0, fill)).view(batch, 1, chunks, chunk_length, 1)

    if dropout_p == 0.0:
        # Sequences as the batch and chunks as the heads: torch's kernel keeps no scores. A padded query, which may see
        # nothing, looks at everything instead, and is erased below.
        if padded_query is not None:
            visible = (visible | padded_query).expand(-1, heads, -1, -1, -1)
        output = functional.scaled_dot_product_attention(
            q_BHCMD.flatten(0, 1), k_BHCND.flatten(0, 1), v_BHCND.flatten(0, 1), attn_mask=visible.flatten(0, 1)
        ).unflatten(0, (batch, heads))
    else:
        seed = draw_seed(torch.Generator().manual_seed(0) if generator is None else generator)
        row = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1, 1)
        keep = keep_pairs(seed, row, query_at, key_at, dropout_p)
        output = recompute(partial(_with_dropout, visible=visible, keep=keep, dropout_p=dropout_p), q_BHCMD, k_BHCND, v_BHCND)
    if padded_query is not None:
        output = output.masked_fill(padded_query, 0)
    return output.flatten(2, 3)[:, :, :length]


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor, keep: Tensor, dropout_p: float) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        dtype = accumulation_dtype(q.dtype)
        logits = (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)
        return masked_attention(logits, v.to(dtype), visible, keep, dropout_p)[0].to(v.dtype)
