"""Local attention against its formula written out: windows of chunks, no wrap-around."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from brute_force import assert_as_exact_as_naive, padding_mask, usable, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import full_attention, local_attention
from reformer_lab.ops.local_attention import operator, windows
from reformer_lab.ops.random import draw_seed, keep_pairs

BACKENDS = ("torch", "fallback", *usable("native"))
"""`fallback`: the torch backend behind the operator, as on a machine without a compiler."""


@contextmanager
def computing_by(backend: str) -> Iterator[str]:
    """Give the name to pass as `backend`."""
    if backend != "fallback":
        yield backend
        return
    with mock.patch.object(operator, "choose_backend", return_value="torch"):
        yield "auto"


def visible(length: int, chunk: int, before: int, after: int, causal: bool, padding: Tensor | None) -> Tensor:
    """Return (B or 1, 1, L, L): does i see j."""
    batch = 1 if padding is None else padding.shape[0]
    seen = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for b in range(batch):
        for i in range(length):
            for j in range(length):
                near = -after <= i // chunk - j // chunk <= before
                there = padding is None or not (padding[b, i] or padding[b, j])
                seen[b, 0, i, j] = near and there and (j <= i or not causal)
    return seen


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, keep: Tensor | None = None, p: float = 0.0) -> Tensor:
    empty = ~seen.any(-1, keepdim=True)
    logits = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen & ~empty, -math.inf)
    weights = logits.softmax(-1).masked_fill(empty, 0)
    return (weights if keep is None else weights * keep / (1 - p)) @ v


def results(function: Any, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    output.backward(vectors(*output.shape, seed=9).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


@settings(max_examples=150)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 2), length=st.integers(1, 40), chunk=st.integers(1, 12),
    before=st.integers(0, 3), after=st.integers(0, 2), causal=st.booleans(), dropout=st.sampled_from([0.0, 0.3]),
    padding=st.sampled_from(["none", "right", "left", "random", "row"]), piece=st.sampled_from([1, 9, 2048]),
    backend=st.sampled_from(BACKENDS), seed=st.integers(0, 999),
)  # fmt: skip
def test_is_the_formula(
    batch: int, heads: int, length: int, chunk: int, before: int, after: int, causal: bool, dropout: float, padding: str,
    piece: int, backend: str, seed: int,
) -> None:  # fmt: skip
    """`piece`: the positions that the torch backend computes at once."""
    mask = padding_mask(padding, batch, length, seed)
    seen, keep = visible(length, chunk, before, after, causal, mask), None
    if dropout:
        position, rows = torch.arange(length), torch.arange(batch * heads).view(batch, heads, 1, 1)
        drawn = draw_seed(torch.Generator().manual_seed(seed))
        keep = keep_pairs(drawn, rows, position[:, None], position[None, :], dropout)
    inputs = [vectors(batch, heads, length, d, seed=seed + d) for d in (5, 5, 3)]
    with mock.patch.object(windows, "PIECE_LENGTH", piece), computing_by(backend) as name:
        found = results(
            lambda q, k, v: local_attention(
                q, k, v, chunk_length=chunk, chunks_before=before, chunks_after=after, causal=causal, key_padding_mask=mask,
                dropout_p=dropout, generator=torch.Generator().manual_seed(seed), backend=name,
            ),
            inputs,
        )  # fmt: skip
    expected = results(lambda q, k, v: dense(q, k, v, seen, keep, dropout), inputs)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [9, 13, 16])
def test_no_wrap_around(length: int, backend: str) -> None:
    """The first chunk sees no last one, the last no first one."""
    q, eye = vectors(1, 1, length, 4, seed=1), torch.eye(length, dtype=torch.float64)[None, None]
    with computing_by(backend) as name:
        weights = local_attention(q, q, eye, chunk_length=4, chunks_before=1, chunks_after=1, causal=False, backend=name)[0, 0]
    assert (weights[:4, 8:] == 0).all()
    assert (weights[-1, : (length - 1) // 4 * 4 - 4] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(length, dtype=torch.float64))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("chunk_length", [64, 10])
def test_a_window_over_everything_is_full_attention(chunk_length: int, causal: bool) -> None:
    q, k, v = (vectors(2, 2, 30, 6, seed=s) for s in (1, 2, 3))
    found = local_attention(q, k, v, chunk_length=chunk_length, chunks_before=2, chunks_after=2, causal=causal)
    torch.testing.assert_close(found, full_attention(q, k, v, causal=causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["right", "left", "random", "row"])
def test_a_padded_value_changes_nothing(
    padding: str, causal: bool, dropout: float, poison: float, backend: str
) -> None:  # fmt: skip
    mask = padding_mask(padding, 2, 21, seed=3)
    assert mask is not None

    def call(filling: float) -> list[Tensor]:
        inputs = [vectors(2, 2, 21, 4, seed=s).masked_fill(mask[:, None, :, None], filling) for s in (1, 2, 3)]
        return results(
            lambda q, k, v: local_attention(
                q, k, v, chunk_length=4, causal=causal, key_padding_mask=mask, dropout_p=dropout, backend=name
            ),
            inputs,
        )  # fmt: skip

    with computing_by(backend) as name:
        pairs = zip(call(0.5), call(poison), strict=True)
    for clean, poisoned in pairs:
        assert torch.equal(clean, poisoned)
        assert clean.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", ["none", "random"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_error_at_most_twice_the_naive_one(causal: bool, padding: str, dtype: torch.dtype, backend: str) -> None:
    inputs = [vectors(2, 2, 53, 16, seed=s, dtype=dtype) for s in (1, 2, 3)]
    mask = padding_mask(padding, 2, 53, seed=2)
    seen = visible(53, 8, 1, 0, causal, mask)
    with computing_by(backend) as name:
        fast = results(
            lambda q, k, v: local_attention(q, k, v, chunk_length=8, causal=causal, key_padding_mask=mask, backend=name), inputs
        )
    naive = results(lambda q, k, v: dense(q, k, v, seen), inputs)
    exact = results(lambda q, k, v: dense(q, k, v, seen), [x.double() for x in inputs])
    for three in zip(fast, naive, exact, strict=True):
        assert_as_exact_as_naive(*three, what="local attention")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("piece", [2048, 3], ids=["whole", "pieces"])
@pytest.mark.parametrize("padding", ["none", "random"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
def test_gradcheck(dropout: float, padding: str, piece: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "PIECE_LENGTH", piece)
    mask = padding_mask(padding, 1, 7)
    q, k, v = (vectors(1, 1, 7, 2, seed=s).requires_grad_() for s in (1, 2, 3))
    with computing_by(backend) as name:
        assert torch.autograd.gradcheck(
            lambda q, k, v: local_attention(
                q, k, v, chunk_length=3, key_padding_mask=mask, dropout_p=dropout, backend=name
            ), (q, k, v),
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the gradients are asked for under it."""
    monkeypatch.setattr(windows, "PIECE_LENGTH", 10)
    inputs = [vectors(1, 2, 30, 8, seed=s, dtype=torch.float32) for s in (1, 2, 3)]
    with computing_by(backend) as name:
        plain = results(lambda q, k, v: local_attention(q, k, v, chunk_length=5, backend=name), inputs)
        with torch.autocast("cpu", torch.bfloat16):
            cast = results(lambda q, k, v: local_attention(q, k, v, chunk_length=5, backend=name), inputs)
    for one, two in zip(plain, cast, strict=True):
        assert torch.equal(one, two)


@pytest.mark.usefixtures("global_random_state")
def test_dropout_repeats_with_its_generator_and_leaves_the_global_one_alone() -> None:
    q = vectors(1, 2, 30, 4, seed=1)

    def call(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return local_attention(q, q, q, chunk_length=8, dropout_p=0.4, generator=generator)

    assert torch.equal(call(None), call(None))
    assert torch.equal(call(1), call(1))
    assert not torch.equal(call(1), call(2))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("chunk_length=0", {"chunk_length": 0}),
        ("chunks_before=-1", {"chunks_before": -1}),
        ("chunks_after=-2", {"chunks_after": -2}),
        ("backend='fast': must be auto or one of torch, native", {"backend": "fast"}),
        ("dropout_p=1.0", {"dropout_p": 1.0}),
        (r"k \(1, 1, 4, 2\)", {"k": vectors(1, 1, 4, 2)}),
        ("v is torch.float32", {"v": vectors(1, 1, 5, 2).float()}),
        (r"key_padding_mask of shape \(5,\), torch.bool: expected \(1, 5\)", {"key_padding_mask": torch.ones(5).bool()}),
    ],
)
def test_errors_name_the_value(message: str, options: dict[str, Any]) -> None:
    q = vectors(1, 1, 5, 2)
    with pytest.raises(UserError, match=message):
        local_attention(**({"q": q, "k": q, "v": q} | options))
