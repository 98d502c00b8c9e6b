"""Reversible gradients are the gradients: held against plain autograd, with the faults of other implementations in mind."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import KINDS, config_of, gradients, relative_error, tokens_of
from torch import Tensor

from reformer_lab.models.language_model import ReformerLM

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=str)


def both(
    dtype: torch.dtype, prepare: Callable[[ReformerLM], Any] = lambda model: None, mask: Tensor | None = None, **changes: Any
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Return the gradients of the reversible and of the stored model; their losses are equal bit for bit."""
    results = []
    for reversible in (True, False):
        model = ReformerLM(config_of(reversible=reversible, **changes)).to(dtype)
        prepare(model)
        results.append(gradients(model, tokens_of(), key_padding_mask=mask))
    assert results[0][0] == results[1][0]
    return results[0][1], results[1][1]


def assert_exact(dtype: torch.dtype, **options: Any) -> None:
    found, expected = both(dtype, **options)
    assert relative_error(found, expected) < LIMITS[dtype]
    for name, gradient in expected.items():
        if gradient is not None:
            assert gradient.isfinite().all(), name
            assert (gradient != 0).any(), name


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.2], ids=lambda p: f"dropout{p}")
def test_with_dropout_the_recomputation_draws_the_same(dropout: float, kind: str, dtype: torch.dtype) -> None:
    """transformers: other masks in the recomputation, gradients off by 21 to 68 %."""
    assert_exact(dtype, attention=KINDS[kind], dropout=dropout, attention_dropout=dropout)


@DTYPES
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 8], ids=lambda n: f"heads{n}")
def test_each_head_has_its_own_buckets(heads: int, dtype: torch.dtype) -> None:
    """reformer_fastai: one bucket cache for all heads of a layer, gradients off by 9 to 38 %."""
    assert_exact(dtype, num_heads=heads, dropout=0.1)


@DTYPES
@pytest.mark.parametrize("depth", [1, 2, 5, 12], ids=lambda n: f"depth{n}")
def test_depth(depth: int, dtype: torch.dtype) -> None:
    assert_exact(dtype, num_layers=depth, attention=KINDS["mixed"], dropout=0.1, attention_dropout=0.1)


@DTYPES
@pytest.mark.parametrize("ff_chunk_length", [None, 1, 5, 23], ids=lambda n: f"ff-chunk-{n}")
@pytest.mark.parametrize("loss_chunk_length", [None, 1, 7, 100], ids=lambda n: f"loss-chunk-{n}")
def test_every_memory_knob(loss_chunk_length: int | None, ff_chunk_length: int | None, dtype: torch.dtype) -> None:
    """reformer-pytorch: `attn_chunks` above 1 mixes the chunks' buckets, gradients off by 8 to 11 %."""
    assert_exact(
        dtype, attention=KINDS["mixed"], ff_chunk_length=ff_chunk_length, loss_chunk_length=loss_chunk_length, dropout=0.1
    )


@DTYPES
@pytest.mark.parametrize("projection_chunk_length", [None, 1, 6, 100], ids=lambda n: f"projections-{n}")
@pytest.mark.parametrize("heads_at_once", [1, 2, 3, None], ids=lambda n: f"heads-at-once-{n}")
@pytest.mark.parametrize("mask", [None, torch.arange(23).expand(2, -1) > 16], ids=["no-padding", "padding"])
def test_attention_in_stages(
    mask: Tensor | None, heads_at_once: int | None, projection_chunk_length: int | None, dtype: torch.dtype
) -> None:
    """Groups of heads are added to the stream one by one and not as a sum: the losses differ by rounding."""
    found = []
    for reversible in (True, False):
        config = config_of(
            reversible=reversible, num_heads=3, attention=KINDS["mixed"], dropout=0.1, attention_dropout=0.1,
            heads_at_once=heads_at_once, projection_chunk_length=projection_chunk_length, ff_chunk_length=4,
            loss_chunk_length=7,
        )  # fmt: skip
        found.append(gradients(ReformerLM(config).to(dtype), tokens_of(), key_padding_mask=mask))
    assert found[0][0] == pytest.approx(found[1][0], rel=LIMITS[dtype])
    assert relative_error(found[0][1], found[1][1]) < LIMITS[dtype]


@pytest.mark.parametrize("kind", ["local", "full"])
def test_heads_at_once_change_no_gradient(kind: str) -> None:
    """Of attention without draws of its own: groups of LSH heads hash with other rotations."""
    results = [
        gradients(ReformerLM(config_of(attention=KINDS[kind], heads_at_once=heads)).double(), tokens_of())
        for heads in (None, 1)
    ]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-13)
    assert relative_error(results[0][1], results[1][1]) < 1e-12


@pytest.mark.parametrize("knob", ["ff_chunk_length", "loss_chunk_length", "projection_chunk_length"])
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "stored"])
def test_a_memory_knob_changes_no_gradient(reversible: bool, knob: str) -> None:
    """With dropout the draws of the pieces differ, so this is asked of dropout 0."""
    results = [
        gradients(ReformerLM(config_of(reversible=reversible, **{knob: length})).double(), tokens_of())
        for length in (None, 1, 5)
    ]
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-13)
        assert relative_error(found, results[0][1]) < 1e-12


@pytest.mark.parametrize("option", [
    {"coverage": "bucket"}, {"cross_bucket": True}, {"correct_duplicates": False}, {"key_scale": "unit_over_sqrt_d"},
    {"share_rotations": True}, {"chunks_before": 2, "chunks_after": 1}, {"num_buckets": (2, 4)}, {"num_buckets": None},
    {"causal": False}, {"activation": "gelu"}, {"tie_embeddings": True}, {"lsh_backend": "reference"}, {"num_hashes": 5},
    {"shared_qk": False}, {"self_attention": "allowed"}, {"positions": "sinusoidal"}, {"positions": "none"},
    {"positions": "axial", "axial_shape": (5, 8), "axial_dims": (4, 6)},
], ids=lambda option: "-".join(f"{k}={v}" for k, v in option.items()))  # fmt: skip
@pytest.mark.parametrize("mask", [False, True], ids=["no-padding", "padding"])
def test_every_option(mask: bool, option: dict[str, Any]) -> None:
    padding = (torch.arange(23) >= 17).expand(2, -1) & torch.tensor([[True], [False]]) if mask else None
    assert_exact(torch.float64, mask=padding, attention=KINDS["mixed"], dropout=0.1, attention_dropout=0.1, **option)


@DTYPES
def test_frozen_embeddings(dtype: torch.dtype) -> None:
    """transformers: the encoder silently gets no gradient."""

    def freeze(model: ReformerLM) -> None:
        for module in (model.embedding, model.positions):
            assert module is not None
            module.requires_grad_(False)

    assert_exact(dtype, prepare=freeze, attention=KINDS["mixed"], dropout=0.1)


@pytest.mark.parametrize("half", range(4))
def test_frozen_halves_of_the_parameters(half: int) -> None:
    def freeze(model: ReformerLM) -> None:
        for index, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(bool(index >> half // 2 & 1) ^ bool(half & 1))

    found, _ = both(torch.float64, prepare=freeze, attention=KINDS["mixed"], dropout=0.1)
    assert any(gradient is None for gradient in found.values())
    assert_exact(torch.float64, prepare=freeze, attention=KINDS["mixed"], dropout=0.1)


def test_gradients_in_eval_mode() -> None:
    """transformers: an assertion fails in the backward pass."""
    assert_exact(torch.float64, prepare=lambda model: model.eval(), attention=KINDS["mixed"], dropout=0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "stored"])
def test_gradients_through_the_stack_of_inputs_that_require_none(reversible: bool, kind: str) -> None:
    stack = ReformerLM(config_of(attention=KINDS[kind], reversible=reversible, dropout=0.1)).stack
    stack(torch.randn(2, 23, 10, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


LADDER = list(itertools.product(KINDS, (True, False), (1, 2), (False, True)))


@pytest.mark.parametrize("length", [1, 2, 5, 23, 40])
@pytest.mark.parametrize(("kind", "reversible", "streams", "tied"), [
    rung for rung in LADDER if not (rung[1] and rung[2] == 1)
], ids=lambda value: str(value))  # fmt: skip
def test_every_parameter_gets_a_gradient(kind: str, reversible: bool, streams: int, tied: bool, length: int) -> None:
    """reformer-pytorch with `layer_dropout` and a short input: the body silently gets none."""
    model = ReformerLM(
        config_of(
            attention=KINDS[kind], reversible=reversible, residual_streams=streams, tie_embeddings=tied, dropout=0.1,
            attention_dropout=0.1, coverage="bucket" if length == 5 else "chunk",
        )
    )  # fmt: skip
    _, found = gradients(model, tokens_of(length=length))
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        # One token alone attends to itself with weight 1, whatever the queries and keys are.
        if length >= 5 or not any(part in name for part in ("query", "key")):
            assert (gradient != 0).any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_get_the_sum_of_both_uses(kind: str) -> None:
    model = ReformerLM(config_of(attention=KINDS[kind], tie_embeddings=True, dropout=0.1)).double()
    assert "head" not in dict(model.named_parameters())
    assert_exact(torch.float64, attention=KINDS[kind], tie_embeddings=True, dropout=0.1)


def test_layers_that_share_their_parameters() -> None:
    def share(model: ReformerLM) -> None:
        for layer in list(model.stack.layers)[1:]:
            layer.attention = model.stack.layers[0].attention
            layer.feed_forward = model.stack.layers[0].feed_forward

    assert_exact(torch.float64, prepare=share, dropout=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward-outside", "backward-inside"])
def test_bf16_autocast_recomputes_bit_for_bit(backward_inside: bool, kind: str) -> None:
    """transformers: autocast is not restored, the streams come back with an error of 4e-3 to 6e-3."""
    model = ReformerLM(config_of(attention=KINDS[kind], num_layers=4, dropout=0.1, attention_dropout=0.1))
    calls: list[tuple[int, str, Tensor, Tensor]] = []
    for index, layer in enumerate(model.stack.layers):
        for name, block in (("attention", layer.attention), ("feed-forward", layer.feed_forward)):
            block.register_forward_hook(
                lambda _, inputs, y, i=index, n=name: calls.append((i, n, inputs[0].detach().clone(), y.detach().clone()))
            )
    tokens = tokens_of()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, targets=tokens, generator=torch.Generator().manual_seed(5)).loss
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    forward, backward = calls[:8], calls[:7:-1]
    assert [call[:2] for call in forward] == [call[:2] for call in backward]
    # The last function reads the saved stream itself: the same input, so the same bits.
    assert torch.equal(forward[-1][2], backward[-1][2])
    for (_, _, x, y), (_, _, x_again, y_again) in zip(forward, backward, strict=True):
        assert y.dtype == y_again.dtype
        if torch.equal(x, x_again):
            assert torch.equal(y, y_again)
        # Streams are fp32: their error is that of fp32 sums, far below bf16's unit of 8e-3.
        assert (x - x_again).abs().max() < 1e-5 * x.abs().max()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_bf16_autocast_gradients_are_those_of_the_stored_model(tied: bool, kind: str) -> None:
    results = []
    for reversible in (True, False):
        model = ReformerLM(config_of(attention=KINDS[kind], reversible=reversible, tie_embeddings=tied, dropout=0.1))
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(model, tokens_of()))
    assert results[0][0] == results[1][0]
    # Rounding of a restored stream may move a value by one unit of bf16, 2^-8, here and there.
    assert relative_error(results[0][1], results[1][1]) < 2**-8


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_kept_grows_with_depth_but_buckets(kind: str, saved_bytes: Any) -> None:
    def kept(reversible: bool, depth: int) -> int:
        model = ReformerLM(config_of(attention=KINDS[kind], num_layers=depth, reversible=reversible, dropout=0.1))
        return saved_bytes(lambda: model(tokens_of()))

    assert kept(True, 12) == kept(True, 3)
    assert kept(False, 12) > 2.5 * kept(False, 3)


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "stored"])
def test_same_bits_twice_and_the_global_random_state_untouched(reversible: bool) -> None:
    """transformers reseeds the global generator from the operating system, reformer_fastai resets it at every hash."""

    def step() -> tuple[float, dict[str, Tensor | None]]:
        config = config_of(attention=KINDS["mixed"], reversible=reversible, dropout=0.1, attention_dropout=0.1)
        return gradients(ReformerLM(config), tokens_of())

    (loss, first), (loss_again, second) = step(), step()
    assert loss == loss_again
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name  # type: ignore[arg-type]
