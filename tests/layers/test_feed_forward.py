"""The chunked feed-forward layer."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.layers.initialization import initialize
from reformer_lab.ops.random import Draws


def layer_of(**options: Any) -> ChunkedFeedForward:
    layer = ChunkedFeedForward(6, 16, **options)
    initialize(layer, 1)
    return layer.double()


def x_of(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_is_two_dense_layers(activation: str) -> None:
    layer, x = layer_of(activation=activation), x_of(2, 9)
    hidden = getattr(functional, activation)(x @ layer.dense_in.weight.T + layer.dense_in.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.dense_out.weight.T + layer.dense_out.bias)


@given(chunk_length=st.integers(1, 30), length=st.integers(1, 30))
def test_the_result_does_not_depend_on_the_piece(chunk_length: int, length: int) -> None:
    results = []
    for pieces in (None, chunk_length):
        layer, x = layer_of(chunk_length=pieces), x_of(2, length).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_length", [None, 4])
def test_dropout_is_replayed_in_the_backward_pass(chunk_length: int | None) -> None:
    """The gradient of a sum must be that of the very masks that the forward pass drew: checked by finite differences."""
    layer, x = layer_of(dropout=0.5, chunk_length=chunk_length, activation="gelu"), x_of(1, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, draws=Draws(3)), (x,))
    assert not torch.equal(layer(x, draws=Draws(3)), layer(x, draws=Draws(4)))


def test_pieces_have_draws_of_their_own() -> None:
    layer, x = layer_of(dropout=0.5, chunk_length=4), x_of(1, 4).repeat(1, 2, 1)
    y = layer(x, draws=Draws(3))
    assert not torch.equal(y[:, :4], y[:, 4:])


def test_no_dropout_in_evaluation_and_new_draws_at_each_call_in_training() -> None:
    layer, x = layer_of(dropout=0.5), x_of(1, 9)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_memory_falls_with_the_piece_in_the_backward_pass_too(peak_bytes: Any) -> None:
    """The peers' chunking saves nothing there."""
    peaks = {}
    for chunk_length in (None, 128, 16):
        layer = ChunkedFeedForward(8, 512, chunk_length=chunk_length)
        initialize(layer, 1)
        x = torch.zeros(1, 1024, 8)
        layer(x).sum().backward()
        peaks[chunk_length] = peak_bytes(lambda layer=layer, x=x: layer(x).sum().backward())
    assert peaks[128] < 0.25 * peaks[None]
    assert peaks[16] < 0.1 * peaks[None]


def test_unknown_activation_is_named() -> None:
    with pytest.raises(UserError, match="activation='tanh'"):
        layer_of(activation="tanh")
