"""Local attention whose windows reach around from the first chunk to the last, as in trax and transformers.

For converted checkpoints: their bidirectional models were trained with it. B batch, H heads, L length, D width, C chunks of
M positions, W chunks in a window.
"""

import torch
from torch import Tensor

from reformer_lab.ops.local_attention import local_attention
from reformer_lab.ops.random import draw_seed, keep_pairs
from reformer_lab.ops.softmax import accumulation_dtype, check_attention_inputs, masked_attention


def wrapped_local_attention(
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
    """Return what `local_attention` does, but with the chunks as a circle: the first one's look-back is the last one.

    A window wider than the circle counts a key as often as it holds it. One chunk alone has no circle. Where a causal window
    has nothing to find around the corner the result is `local_attention`'s, in its memory; otherwise the scores of all
    windows exist at once.
    """
    check_attention_inputs({"q": q, "k": k}, v, key_padding_mask, dropout_p)
    length = q.shape[2]
    chunks = -(-length // max(1, chunk_length))
    if chunks <= 1 or (causal and chunks_after == 0 and chunks_before < chunks):
        return local_attention(
            q, k, v, chunk_length=chunk_length, chunks_before=chunks_before, chunks_after=chunks_after, causal=causal,
            key_padding_mask=key_padding_mask, dropout_p=dropout_p, generator=generator,
        )  # fmt: skip
    padding = torch.zeros(q.shape[0], length, dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        padding = key_padding_mask
        q, k, v = (x.masked_fill(padding[:, None, :, None], 0) for x in (q, k, v))
    fill = chunks * chunk_length - length
    position = torch.arange(chunks * chunk_length, device=q.device).view(chunks, chunk_length)
    offsets = torch.arange(-chunks_before, chunks_after + 1, device=q.device)
    window_CW = (torch.arange(chunks, device=q.device)[:, None] + offsets) % chunks

    def in_chunks(x_BHLD: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_BHLD, (0, 0, 0, fill)).unflatten(2, (chunks, chunk_length))

    hidden_BCM = torch.nn.functional.pad(padding, (0, fill), value=True).unflatten(1, (chunks, chunk_length))
    q_BHCMD = in_chunks(q)
    k_BHCND, v_BHCND = (in_chunks(x)[:, :, window_CW].flatten(3, 4) for x in (k, v))
    query_at, key_at = position[:, :, None], position[window_CW].flatten(1)[:, None, :]
    visible = ~hidden_BCM[:, window_CW].flatten(2)[:, None, :, None, :]
    if causal:
        visible = visible & (key_at <= query_at)
    visible = visible & ~hidden_BCM[:, None, :, :, None]
    keep = None
    if dropout_p > 0:
        seed = draw_seed(torch.Generator().manual_seed(0) if generator is None else generator)
        row = torch.arange(q.shape[0] * q.shape[1], device=q.device).view(*q.shape[:2], 1, 1, 1)
        keep = keep_pairs(seed, row, query_at, key_at, dropout_p)
    with torch.autocast(q.device.type, enabled=False):
        dtype = accumulation_dtype(q.dtype)
        logits = (q_BHCMD.to(dtype) * q.shape[-1] ** -0.5) @ k_BHCND.to(dtype).transpose(-1, -2)
        output, _ = masked_attention(logits, v_BHCND.to(dtype), visible, keep, dropout_p)
    return output.to(v.dtype).flatten(2, 3)[:, :, :length]
