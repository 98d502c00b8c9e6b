"""Local attention on a circle of chunks: literal loops, and local_attention itself where both must be the same."""

import pytest
import torch
from brute_force import padding_mask, vectors
from torch import Tensor

from reformer_lab.ops.local_attention import local_attention
from reformer_lab.ops.local_attention.wrapped import wrapped_local_attention


def literal(q: Tensor, k: Tensor, v: Tensor, padded: list[bool], size: int, before: int, after: int, causal: bool) -> Tensor:
    length = len(padded)
    chunks = -(-length // size)
    rows = []
    for i in range(length):
        window = [(i // size + offset) % chunks for offset in range(-before, after + 1)] if chunks > 1 else [0]
        held = [j for c in window for j in range(c * size, min(length, c * size + size))]
        seen = [j for j in held if not padded[j] and (j <= i or not causal)]
        if padded[i]:
            rows.append(torch.zeros_like(v[0]))
        else:
            rows.append((k[seen] @ q[i] / q.shape[1] ** 0.5).softmax(0) @ v[seen])
    return torch.stack(rows)


@pytest.mark.parametrize("padding", ["none", "right", "random", "row"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_literal(causal: bool, padding: str) -> None:
    for n, (length, before, after) in enumerate([(16, 1, 0), (13, 2, 1), (5, 1, 1), (1, 1, 0), (8, 2, 0), (4, 1, 1)]):
        q, k = vectors(2, 2, length, 6, seed=n), vectors(2, 2, length, 6, seed=n + 20)
        v, mask = vectors(2, 2, length, 5, seed=n + 10), padding_mask(padding, 2, length, seed=n)
        found = wrapped_local_attention(
            q, k, v, chunk_length=4, chunks_before=before, chunks_after=after, causal=causal, key_padding_mask=mask
        )
        for b in range(2):
            padded = [False] * length if mask is None else mask[b].tolist()
            for h in range(2):
                expected = literal(q[b, h], k[b, h], v[b, h], padded, 4, before, after, causal)
                torch.testing.assert_close(found[b, h], expected, rtol=0, atol=1e-10)


def test_only_the_ends_differ() -> None:
    q, k, v = (vectors(1, 2, 40, 6, seed=n) for n in range(3))
    options = {"chunk_length": 8, "chunks_before": 1, "chunks_after": 1, "causal": False}
    for dropout in (0.0, 0.3):
        plain, wrapped = (f(q, k, v, dropout_p=dropout, **options) for f in (local_attention, wrapped_local_attention))
        torch.testing.assert_close(plain[:, :, 8:32], wrapped[:, :, 8:32], rtol=0, atol=1e-12)
        assert ((plain - wrapped).abs() > 1e-6).any(-1)[:, :, [*range(8), *range(32, 40)]].all()


def test_gradients_and_half_precision() -> None:
    q, k, v = (vectors(1, 1, 11, 3, seed=n).requires_grad_() for n in range(3))
    options = {"chunk_length": 4, "chunks_before": 1, "chunks_after": 1, "causal": False}
    assert torch.autograd.gradcheck(lambda *x: wrapped_local_attention(*x, **options), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        half = wrapped_local_attention(*(x.bfloat16() for x in (q, k, v)), **options)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wrapped_local_attention(q, k, v, **options), rtol=0, atol=0.05)
