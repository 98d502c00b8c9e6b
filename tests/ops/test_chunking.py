"""Pieces of a sequence give what the whole gives, in less memory."""

from typing import Any

import pytest
import torch
from brute_force import vectors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from reformer_lab.ops import chunked_apply, chunked_cross_entropy

D, WIDE = 4, 12


def feed_forward(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return functional.gelu(x @ weights[0]) @ weights[1]


def parameters() -> tuple[Tensor, Tensor]:
    return vectors(D, WIDE, seed=1).requires_grad_(), vectors(WIDE, D, seed=2).requires_grad_()


@given(batch=st.integers(1, 3), length=st.integers(1, 40), chunk_length=st.one_of(st.none(), st.integers(1, 50)))
def test_pieces_equal_the_whole_forward_and_backward(batch: int, length: int, chunk_length: int | None) -> None:
    results = []
    for pieces in (length, chunk_length):
        x, weights = vectors(batch, length, D, seed=3).requires_grad_(), parameters()
        y = chunked_apply(lambda _, piece, w=weights: feed_forward(piece, w), x, pieces)
        y.backward(vectors(*y.shape, seed=4))
        results.append([y.detach(), x.grad, *(w.grad for w in weights)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=0, atol=1e-12)


@given(
    batch=st.integers(1, 3), length=st.integers(1, 40), chunk_length=st.one_of(st.none(), st.integers(1, 50)),
    counted=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_loss_of_pieces_equals_the_whole(batch: int, length: int, chunk_length: int | None, counted: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(7, (batch, length), generator=generator)
    targets[torch.rand(batch, length, generator=generator) >= counted] = -100
    results = []
    for chunked in (False, True):
        hidden, weight = vectors(batch, length, D, seed=1).requires_grad_(), vectors(D, 7, seed=2).requires_grad_()
        if chunked:
            loss = chunked_cross_entropy(lambda h, w=weight: h @ w, hidden, targets, chunk_length)
        else:
            loss = functional.cross_entropy((hidden @ weight).flatten(0, 1), targets.flatten(), reduction="sum")
            loss = loss / max(1, int((targets != -100).sum()))
        loss.backward()
        results.append([loss.detach(), hidden.grad, weight.grad])
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-12)


def test_loss_without_targets_is_zero() -> None:
    hidden = vectors(1, 5, D).requires_grad_()
    loss = chunked_cross_entropy(lambda h: h, hidden, torch.full((1, 5), -100), 2)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loss_is_single_precision(dtype: torch.dtype) -> None:
    hidden, targets = vectors(2, 30, 9, dtype=dtype), torch.arange(60).view(2, 30) % 9
    loss = chunked_cross_entropy(lambda h: h, hidden, targets, 7)
    assert loss.dtype == torch.float32
    exact = functional.cross_entropy(hidden.double().flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("what", ["feed-forward", "loss"])
def test_memory_falls_with_the_piece_forward_and_backward(what: str, peak_bytes: Any, saved_bytes: Any) -> None:
    length, width = 512, 256
    x, grow = vectors(1, length, D, seed=1), vectors(D, width, seed=2).requires_grad_()
    shrink, targets = vectors(width, D, seed=3).requires_grad_(), torch.arange(length)[None] % width
    whole = length * width * 8  # bytes of the hidden layer, or of the logits

    def forward(pieces: int) -> Tensor:
        if what == "loss":
            return chunked_cross_entropy(lambda h: h @ grow, x, targets, length // pieces)
        return chunked_apply(lambda _, h: functional.relu(h @ grow) @ shrink, x, length // pieces).sum()

    forward(2).backward()  # the gradients of the weights exist before the measurement
    peaks = {pieces: peak_bytes(lambda pieces=pieces: forward(pieces).backward()) for pieces in (1, 4, 16)}
    saved = {pieces: saved_bytes(lambda pieces=pieces: forward(pieces)) for pieces in (1, 16)}
    assert peaks[1] > 2 * whole
    assert peaks[4] < 0.4 * peaks[1]
    assert peaks[16] < 0.16 * peaks[1]
    assert saved[1] > whole
    assert saved[16] < 0.1 * whole


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("chunk_length", [None, 3])
def test_each_piece_is_told_its_number(chunk_length: int | None) -> None:
    seen = []
    chunked_apply(lambda i, piece: seen.append((i, piece.shape[1])) or piece, torch.zeros(2, 8, D), chunk_length)  # type: ignore[func-returns-value]
    assert seen == ([(0, 8)] if chunk_length is None else [(0, 3), (1, 3), (2, 2)])
