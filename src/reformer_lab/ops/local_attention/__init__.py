"""Local attention: each chunk of positions attends to itself and to its neighbours, with no wrap-around."""

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.local_attention import operator, windows
from reformer_lab.ops.local_attention.operator import BACKENDS as BACKENDS
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.random import draw_seed
from reformer_lab.ops.softmax import check_attention_inputs


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
    backend: str = "auto",
) -> Tensor:
    """Return attention (B, H, L, D_v) of q, k (B, H, L, D) and v (B, H, L, D_v) within windows of chunks, scale 1/sqrt(D).

    Any length; the last chunk may be short. key_padding_mask (B, L), True = padding: neither seen nor seeing; its output is
    0. dropout_p: on the weights, drawn from `generator` (None: one seeded with 0). backend: a name in `BACKENDS`, or "auto",
    which is "native" on a CPU where it can be used and "torch" elsewhere. A UserError names what cannot be used.
    """
    check_attention_inputs({"q": q, "k": k}, v, key_padding_mask, dropout_p)
    if chunk_length < 1 or chunks_before < 0 or chunks_after < 0:
        raise UserError(
            f"chunk_length={chunk_length}, chunks_before={chunks_before}, chunks_after={chunks_after}: "
            "the first must be at least 1, the others at least 0"
        )
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"backend={backend!r}: must be auto or one of {', '.join(BACKENDS)}")
    seed = 0
    if dropout_p > 0:
        seed = draw_seed(torch.Generator().manual_seed(0) if generator is None else generator)
    options = LocalOptions(
        chunk_length=min(chunk_length, q.shape[2]), chunks_before=chunks_before, chunks_after=chunks_after, causal=causal,
        dropout_p=dropout_p, dropout_seed=seed,
    )  # fmt: skip
    if backend == "torch" or (backend == "auto" and q.device.type != "cpu"):
        return windows.attend(q, k, v, key_padding_mask, options)
    return operator.attend(backend, q, k, v, key_padding_mask, options)
