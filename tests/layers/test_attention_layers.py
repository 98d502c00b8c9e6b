"""Attention layers: projections around the operators, and draws that can be replayed."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reformer_lab.layers.attention import FullSelfAttention, LocalSelfAttention, LSHSelfAttention, SelfAttention
from reformer_lab.layers.blocks import PreNorm, ReversibleStack, TransformerLayer
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.layers.initialization import initialize
from reformer_lab.ops import full_attention, local_attention, lsh_attention, shared_qk_attention
from reformer_lab.ops.random import Draws

LAYERS: dict[str, Any] = {
    "full": lambda **o: FullSelfAttention(10, 3, 4, **o),
    "full-separate": lambda **o: FullSelfAttention(10, 3, 4, shared_qk=False, **o),
    "local": lambda **o: LocalSelfAttention(10, 3, 4, chunk_length=5, **o),
    "lsh": lambda **o: LSHSelfAttention(10, 3, 4, chunk_length=5, num_hashes=2, **o),
}


def layer_of(kind: str, **options: Any) -> SelfAttention:
    with torch.device("meta"):  # torch's own layers start from the global generator
        layer: SelfAttention = LAYERS[kind](**options)
    layer.to_empty(device="cpu")
    initialize(layer, 1)
    return layer.double()


def x_of(batch: int = 2, length: int = 17) -> Tensor:
    return torch.randn(batch, length, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padded", [True, False], ids=["padding", "no-padding"])
@pytest.mark.parametrize("kind", LAYERS)
def test_is_the_operator_between_projections(kind: str, padded: bool, causal: bool) -> None:
    layer, x, draws = layer_of(kind, causal=causal), x_of(), Draws(1)
    mask = (torch.arange(17) > 12).expand(2, -1) if padded else None
    found = layer(x, mask, draws)

    def heads(name: str) -> Tensor:
        weight = getattr(layer, name).weight  # (3 * 4, 10): head after head
        return torch.einsum("bli,hdi->bhld", x, weight.view(3, 4, 10))

    options: dict[str, Any] = {"causal": causal, "key_padding_mask": mask}
    if kind == "full":
        attended = shared_qk_attention(heads("query_key"), heads("value"), **options)
    elif kind == "full-separate":
        attended = full_attention(heads("query"), heads("key"), heads("value"), **options)
    elif kind == "local":
        attended = local_attention(heads("query"), heads("key"), heads("value"), chunk_length=5, **options)
    else:
        attended = lsh_attention(
            heads("query_key"), heads("value"), num_hashes=2, chunk_length=5, buckets=draws.remembered["buckets"],
            backend="reference", **options,
        ).output  # fmt: skip
    expected = torch.einsum("bhld,ohd->blo", attended, layer.output.weight.view(10, 3, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_no_biases(kind: str) -> None:
    assert all(name.endswith("weight") for name, _ in layer_of(kind).named_parameters())


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("kind", LAYERS)
def test_a_replay_gives_the_same_bits(kind: str) -> None:
    layer, x, draws = layer_of(kind, dropout=0.3), x_of(), Draws(5)
    first = layer(x, None, draws)
    assert torch.equal(layer(x, None, draws.replay()), first)
    assert torch.equal(layer(x, None, Draws(5)), first)
    assert not torch.equal(layer(x, None, Draws(6)), first)


def test_a_replay_keeps_the_buckets_of_a_moved_vector() -> None:
    """What the reversible backward pass restores differs by rounding: it must not hash anew."""
    layer, x, draws = layer_of("lsh"), x_of(), Draws(5)
    layer(x, None, draws)
    before = draws.remembered["buckets"].clone()
    replay = draws.replay()
    layer(x.flip(1) * 3, None, replay)
    assert torch.equal(replay.remembered["buckets"], before)


@pytest.mark.parametrize("kind", LAYERS)
def test_by_itself_a_layer_draws_anew_in_training_and_the_same_in_evaluation(kind: str) -> None:
    layer, x = layer_of(kind, dropout=0.3), x_of()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer_of(kind, dropout=0.3)(x), layer_of(kind, dropout=0.3)(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_rotations_for_each_example_or_shared(shared: bool) -> None:
    layer, x = layer_of("lsh", share_rotations=shared), x_of(1, 40).expand(4, -1, -1)
    draws = Draws(1)
    layer(x, None, draws)
    buckets = draws.remembered["buckets"]
    assert all(torch.equal(buckets[0], other) for other in buckets) == shared


def test_hashing_is_the_same_under_autocast() -> None:
    layer, x = layer_of("lsh").float(), x_of().float()
    layer.query_key.requires_grad_(False)
    seen = []
    for enabled in (False, True):
        draws = Draws(1)
        # bf16 projections are other vectors: the values are made to fit bf16, so that only the hash could differ.
        with torch.no_grad():
            layer.query_key.weight.zero_().view(3, 4, 10)[:, :, :4] = torch.eye(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            layer(x.bfloat16().float(), None, draws)
        seen.append(draws.remembered["buckets"])
    assert torch.equal(*seen)


def test_a_recomputation_in_the_backward_pass_draws_the_same() -> None:
    """Activation checkpointing calls the layer again, without telling it which call is repeated."""
    x = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for wrap in (lambda layer: layer(x), lambda layer: checkpoint(layer, x, use_reentrant=False)):
        layer = LSHSelfAttention(32, 2, 16, num_hashes=1, chunk_length=8, dropout=0.2)
        initialize(layer, 0)
        layer(x)
        wrap(layer).square().sum().backward()
        found.append([parameter.grad for parameter in layer.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_layers_with_other_seeds_draw_other_rotations() -> None:
    x = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0))
    layers = [LSHSelfAttention(32, 2, 16, num_hashes=1, chunk_length=8, seed=seed) for seed in (0, 0, 1)]
    for layer in layers:
        initialize(layer, 0)
    same, again, other = (layer(x) for layer in layers)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_layers_with_other_seeds_draw_other_rotations_in_evaluation_too() -> None:
    x = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0))
    layers = [LSHSelfAttention(32, 2, 16, num_hashes=1, chunk_length=8, seed=seed).eval() for seed in (0, 0, 1)]
    for layer in layers:
        initialize(layer, 0)
    same, again, other = (layer(x) for layer in layers)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert torch.equal(layers[2](x), other)


def stack_of(seed: int = 0, streams: int = 2) -> ReversibleStack:
    layers = [TransformerLayer(PreNorm(LSHSelfAttention(32, 2, 16, num_hashes=1, chunk_length=8), 32),
                               PreNorm(ChunkedFeedForward(32, 64, dropout=0.2), 32, dropout=0.2)) for _ in range(2)]
    stack = ReversibleStack(layers, streams=streams, seed=seed)
    initialize(stack, 0)
    return stack


@pytest.mark.parametrize("streams", [1, 2])
def test_a_stack_of_ones_own_draws_anew_at_each_call_in_training(streams: int) -> None:
    """As its layers do when they are called alone, the same sequence of draws for the same seed."""
    x = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    stack, twin, other = (stack_of(seed, streams) for seed in (0, 0, 1))
    first, second = stack(x), stack(x)
    assert not torch.equal(first, second)
    assert torch.equal(twin(x), first)
    assert torch.equal(twin(x), second)
    assert not torch.equal(other(x), first)
    assert torch.equal(stack(x, seed=7), twin(x, seed=7))


@pytest.mark.parametrize("streams", [1, 2])
def test_a_stack_of_ones_own_in_evaluation_is_the_same_for_every_place_in_the_batch(streams: int) -> None:
    stack = stack_of(streams=streams).eval()
    x = torch.randn(1, 50, 32, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1)
    y = stack(x)
    assert torch.equal(y, stack(x))
    torch.testing.assert_close(y[1:], y[:2])


def test_gradients_of_a_stack_of_ones_own_are_those_of_its_twin_that_stores() -> None:
    x = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for reversible in (True, False):
        stack = stack_of().double()
        stack.reversible = reversible
        stack(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in stack.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
