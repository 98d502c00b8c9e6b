"""The reversible stack as a function: the gradients of plain autograd, the inverse, nothing stored in between."""

from typing import Any

import pytest
import torch
from brute_force import vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.ops import lsh_attention, reversible_loss, reversible_stack, stored_stack
from reformer_lab.ops.random import Draws, dropout
from reformer_lab.ops.residual import LossInPieces, Residual, ResidualInPieces, ResidualInStages, Stages
from reformer_lab.ops.reversible import ReversibleLayer

D = 4


def layers_of(
    depth: int, drop: float = 0.0, dtype: torch.dtype = torch.float64, tied: bool = False, chunk: int | None = None
) -> list[ReversibleLayer]:
    """Return layers with two matrices each; `tied`: all of them share theirs; `chunk`: positions of a piece."""

    def function(a: Tensor, b: Tensor) -> Any:
        return lambda x, draws: dropout(torch.tanh(x @ a) @ b, drop, draws.generator("dropout"))

    layers = []
    for index in range(depth):
        seed = 0 if tied else 4 * index
        f_parameters, g_parameters = (
            tuple((vectors(D, D, seed=seed + s, dtype=dtype) / 2).requires_grad_() for s in pair) for pair in ((1, 2), (3, 4))
        )
        if tied and layers:
            f_parameters, g_parameters = layers[0].f.parameters, layers[0].g.parameters  # type: ignore[assignment]
        g = ResidualInPieces(function(*g_parameters), g_parameters, chunk)
        layers.append(ReversibleLayer(Residual(function(*f_parameters), f_parameters), g))
    return layers


def draws_of(depth: int) -> list[tuple[Draws, Draws]]:
    return [(Draws(2 * i), Draws(2 * i + 1)) for i in range(depth)]


def results(stack: Any, layers: list[ReversibleLayer], x1: Tensor, x2: Tensor) -> list[Tensor | None]:
    """Return the outputs and every gradient."""
    leaves = [x1.detach().clone().requires_grad_(), x2.detach().clone().requires_grad_()]
    parameters = [p for layer in layers for p in (*layer.f.parameters, *layer.g.parameters)]
    for parameter in parameters:
        parameter.grad = None
    y1, y2 = stack(*leaves, layers, draws_of(len(layers)))
    ((y1 * vectors(*y1.shape, seed=50)).sum() + (y2 * vectors(*y2.shape, seed=51)).sum()).backward()
    return [y1.detach(), y2.detach(), *(x.grad for x in leaves), *(p.grad for p in parameters)]


@settings(max_examples=30)
@given(
    depth=st.integers(0, 12), batch=st.integers(1, 3), length=st.integers(1, 9), drop=st.sampled_from([0.0, 0.05, 0.2]),
    tied=st.booleans(), frozen=st.integers(0, 2**6 - 1), chunk=st.sampled_from([None, 1, 2, 4, 20]),
)  # fmt: skip
def test_gradients_are_those_of_plain_autograd(
    depth: int, batch: int, length: int, drop: float, tied: bool, frozen: int, chunk: int | None
) -> None:
    layers = layers_of(depth, drop, tied=tied, chunk=chunk)
    for index, layer in enumerate(layers):
        for bit, parameter in enumerate((*layer.f.parameters, *layer.g.parameters)):
            if frozen >> (index + bit) % 6 & 1:
                parameter.requires_grad_(False)
    x1, x2 = vectors(batch, length, D, seed=60), vectors(batch, length, D, seed=61)
    for found, expected in zip(results(reversible_stack, layers, x1, x2), results(stored_stack, layers, x1, x2), strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_gradcheck(drop: float, chunk: int | None) -> None:
    layers = layers_of(2, drop, chunk=chunk)
    parameters = [p for layer in layers for p in (*layer.f.parameters, *layer.g.parameters)]
    x1, x2 = vectors(1, 3, D, seed=1).requires_grad_(), vectors(1, 3, D, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x1, x2, *_: reversible_stack(x1, x2, layers, draws_of(2)), (x1, x2, *parameters))


def test_gradcheck_with_hashed_attention() -> None:
    """The remembered buckets are part of the function: gradcheck moves x, and a new hash would move vectors elsewhere."""
    buckets = torch.randint(4, (1, 1, 2, 6), generator=torch.Generator().manual_seed(1))
    weight = (vectors(D, D, seed=3) / 2).requires_grad_()

    def attention(x: Tensor, draws: Draws) -> Tensor:
        found = draws.remember("buckets", lambda: buckets)
        heads = (x @ weight)[:, None]
        return lsh_attention(heads, heads, num_hashes=2, num_buckets=4, chunk_length=2, buckets=found).output[:, 0]

    layers = [ReversibleLayer(Residual(attention, (weight,)), layers_of(1)[0].g)]
    x1, x2 = vectors(1, 6, D, seed=1).requires_grad_(), vectors(1, 6, D, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x1, x2, w: reversible_stack(x1, x2, layers, draws_of(1)), (x1, x2, weight))


def test_pieces_change_nothing_without_dropout() -> None:
    x1, x2 = vectors(2, 7, D, seed=60), vectors(2, 7, D, seed=61)
    whole, pieces = (results(reversible_stack, layers_of(3, chunk=chunk), x1, x2) for chunk in (None, 3))
    for one, two in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_piece_is_computed_twice_and_not_more() -> None:
    """Once forward, once backward, where its gradient is taken at once: checkpoints inside would compute it thrice."""
    layer = layers_of(1)[0]
    seen: list[int] = []

    def counted(x: Tensor, draws: Draws) -> Tensor:
        seen.append(x.shape[1])
        return layer.g.function(x, draws)

    x = vectors(1, 7, D, seed=1).requires_grad_()
    layers = [layer._replace(g=ResidualInPieces(counted, layer.g.parameters, 3))]
    torch.cat(reversible_stack(x, x, layers, draws_of(1))).sum().backward()
    assert seen == [3, 3, 1] * 2


H = 3


def staged_layers(depth: int, drop: float, groups: int, chunk: int | None) -> list[ReversibleLayer]:
    """Return layers whose f is a sum of attentions in stages: positions meet in the middle alone."""
    layers = layers_of(depth, drop, chunk=chunk)
    for index, layer in enumerate(layers):
        weights = [(vectors(H * D, D, seed=100 * index + n) / 2).requires_grad_() for n in range(2 * groups)]

        def stages(into: Tensor, out: Tensor) -> Stages:
            def before(x: Tensor) -> tuple[Tensor, Tensor]:
                heads = torch.tanh(x @ into.T).unflatten(-1, (H, D)).transpose(1, 2)
                return heads, heads.square()

            def mix(q: Tensor, v: Tensor, draws: Draws) -> Tensor:
                at = draws.remember("order", lambda: torch.randperm(q.shape[2], generator=draws.generator("order")))
                return (q @ q[:, :, at].transpose(-1, -2)).softmax(-1) @ v

            def after(mixed: Tensor, draws: Draws) -> Tensor:
                return dropout(mixed.transpose(1, 2).flatten(2) @ out, drop, draws.generator("outer"))

            return Stages(before, mix, after)

        pairs = [stages(*weights[2 * n : 2 * n + 2]) for n in range(groups)]
        layers[index] = layer._replace(f=ResidualInStages(pairs, weights, chunk))
    return layers


@pytest.mark.parametrize("chunk", [None, 1, 3, 20])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_stages_in_groups_and_pieces_are_plain_autograd(drop: float, groups: int, chunk: int | None) -> None:
    x1, x2 = vectors(2, 7, D, seed=60), vectors(2, 7, D, seed=61)
    layers = staged_layers(3, drop, groups, chunk)
    for found, expected in zip(results(reversible_stack, layers, x1, x2), results(stored_stack, layers, x1, x2), strict=True):
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_memory_of_stages_is_that_of_one_group_and_piece(peak_bytes: Any) -> None:
    """Besides the streams and their gradients."""
    x, width = vectors(1, 2048, D), 64

    def layers(groups: int, chunk: int | None) -> list[ReversibleLayer]:
        wide, into, out = (
            vectors(*shape, seed=n).requires_grad_() for n, shape in enumerate([(D, 8 * width), (8 * width, width), (width, D)])
        )
        some = Stages(
            lambda x: ((torch.tanh(x @ wide) @ into).unsqueeze(1),), lambda q, _: q * 2.0, lambda mixed, _: mixed[:, 0] @ out
        )
        return [ReversibleLayer(ResidualInStages([some] * groups, (wide, into, out), chunk), layers_of(1, chunk=chunk)[0].g)]

    def peak(groups: int, chunk: int | None) -> int:
        def step() -> None:
            loss = LossInPieces(lambda _, y1, y2: (y1 * y2).sum(), (), chunk)
            reversible_loss(x, x, layers(groups, chunk), draws_of(1), loss).backward()

        return peak_bytes(step)

    middle = x.shape[1] * width * 8
    assert peak(1, 64) < 6 * middle  # that before and after mixing, the gradients of both, and one piece
    assert peak(3, 64) < 1.3 * peak(1, 64)  # not three times
    assert peak(1, None) > 3 * peak(1, 64)


def test_pieces_are_joined_without_a_second_copy(peak_bytes: Any) -> None:
    """What mixes positions is there once, not also as the pieces that it came in."""
    x, width = vectors(1, 2048, D), 64
    into, out = vectors(D, width, seed=1), vectors(width, D, seed=2)
    some = Stages(lambda x: ((x @ into).unsqueeze(1),), lambda q, _: q, lambda mixed, _: mixed[:, 0] @ out)
    layers = [ReversibleLayer(ResidualInStages([some], (), 64), layers_of(1, chunk=64)[0].g)]
    with torch.no_grad():
        peak = peak_bytes(lambda: reversible_stack(x, x, layers, draws_of(1)))
    assert peak < 1.5 * x.shape[1] * width * 8


@pytest.mark.parametrize(("groups", "chunk", "times"), [(3, 2, 3 * 2), (1, 2, 2), (3, None, 3 * 2), (1, None, 0)])
def test_room_is_made_before_each_group(groups: int, chunk: int | None, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; nothing is asked of the system where the function is computed at once."""
    calls: list[None] = []
    monkeypatch.setattr("reformer_lab.ops.residual.return_freed_memory", lambda: calls.append(None))
    x = vectors(2, 7, D, seed=60).requires_grad_()
    torch.cat(reversible_stack(x, x, staged_layers(1, 0.0, groups, chunk), draws_of(1))).sum().backward()
    assert len(calls) == times


def loss_in_pieces(chunk: int | None, weight: Tensor) -> LossInPieces:
    return LossInPieces(lambda i, y1, y2: ((y1 @ weight).sin() * y2).sum() * (1 + (i > 99)), (weight,), chunk)


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_the_loss_inside_is_the_loss_outside(drop: float, chunk: int | None, groups: int) -> None:
    layers, found = (staged_layers(3, drop, groups, 3) if groups else layers_of(3, drop, chunk=chunk)), []
    for inside in (True, False):
        x = vectors(2, 7, D, seed=60).requires_grad_()
        weight = vectors(D, D, seed=5).requires_grad_()
        parameters = [p for layer in layers for p in (*layer.f.parameters, *layer.g.parameters)]
        loss = loss_in_pieces(chunk, weight)
        if inside:
            value = reversible_loss(x, x, layers, draws_of(3), loss)
        else:
            value = loss(*stored_stack(x, x, layers, draws_of(3)))
        found.append([value.detach(), *torch.autograd.grad(value * 2, [x, weight, *parameters])])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def counted_layers(depth: int) -> tuple[list[ReversibleLayer], list[str]]:
    """Return layers that note each call of a function, as "f0" for the first layer's f."""
    layers, calls = layers_of(depth, 0.2), []

    def noted(name: str, function: Any) -> Any:
        def call(x: Tensor, draws: Draws) -> Tensor:
            calls.append(name)
            return function(x, draws)

        return call

    for index, (f, g) in enumerate(layers):
        f.function, g.function = noted(f"f{index}", f.function), noted(f"g{index}", g.function)
    return layers, calls


def test_the_last_layer_is_computed_once_where_a_loss_follows() -> None:
    layers, calls = counted_layers(3)
    x = vectors(1, 4, D, seed=1).requires_grad_()
    value = reversible_loss(x, x, layers, draws_of(3), loss_in_pieces(None, torch.eye(D, dtype=torch.float64)))
    assert sorted(calls) == ["f0", "f1", "f2", "g0", "g1", "g2"]
    value.backward()
    assert sorted(calls) == ["f0", "f0", "f1", "f1", "f2", "g0", "g0", "g1", "g1", "g2"]


def test_attention_in_stages_waits_for_the_backward_pass() -> None:
    """In the forward pass the model's input is in memory too, and its activations would be on top."""
    (layer,) = staged_layers(1, 0.0, 1, 2)
    assert isinstance(layer.f, ResidualInStages)
    (group,), calls = layer.f.groups, []

    def mix(*inputs: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return group.mix(*inputs)

    layer.f.groups = (group._replace(mix=mix),)
    x = vectors(1, 4, D, seed=1).requires_grad_()
    value = reversible_loss(x, x, [layer], draws_of(1), loss_in_pieces(2, torch.eye(D, dtype=torch.float64)))
    assert calls == [False]
    value.backward()
    assert calls == [False, True]


def test_the_last_layer_is_not_differentiated_without_need() -> None:
    """Where nobody asks for gradients, and where a scale of the loss has to come first: in fp16."""
    weight = torch.eye(D, dtype=torch.float64).requires_grad_()
    seen: list[bool] = []

    def loss(_: int, y1: Tensor, y2: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return (y1 @ weight.to(y1.dtype) * y2).float().sum()

    x = vectors(1, 4, D, seed=1)
    with torch.no_grad():
        reversible_loss(x, x, layers_of(2), draws_of(2), LossInPieces(loss, (weight,), None))
    with torch.autocast("cpu", torch.float16):
        x = x.float().requires_grad_()
        reversible_loss(x, x, layers_of(2, dtype=torch.float32), draws_of(2), LossInPieces(loss, (weight,), None))
    assert seen == [False, False]
    reversible_loss(x, x, layers_of(2, dtype=torch.float32), draws_of(2), LossInPieces(loss, (weight,), None))
    assert seen[2:] == [True]


def test_gradcheck_of_the_loss() -> None:
    layers, weight = staged_layers(1, 0.2, 2, 2), vectors(D, D, seed=5).requires_grad_()
    parameters = [p for layer in layers for p in (*layer.f.parameters, *layer.g.parameters)]
    x1, x2 = vectors(1, 3, D, seed=1).requires_grad_(), vectors(1, 3, D, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x1, x2, w, *_: reversible_loss(x1, x2, layers, draws_of(1), loss_in_pieces(2, w)), (x1, x2, weight, *parameters)
    )


@pytest.mark.parametrize("chunk", [2, 3])
def test_the_loss_backward_twice(chunk: int) -> None:
    """With retain_graph it adds up; without, the streams are used up, and that is said."""
    layers, x = layers_of(2, 0.2, chunk=2), vectors(1, 4, D, seed=1).requires_grad_()
    value = reversible_loss(x, x, layers, draws_of(2), loss_in_pieces(chunk, torch.eye(D, dtype=torch.float64)))
    value.backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    value.backward()
    torch.testing.assert_close(x.grad, 2 * once, rtol=1e-12, atol=0)
    with pytest.raises(RuntimeError, match="retain_graph"):
        value.backward()


def test_a_loss_without_gradients_keeps_nothing() -> None:
    x = vectors(1, 4, D)
    with torch.no_grad():
        value = reversible_loss(x, x, layers_of(2), draws_of(2), loss_in_pieces(2, torch.eye(D, dtype=torch.float64)))
    assert not value.requires_grad


def test_one_tensor_for_both_streams() -> None:
    layers, x = layers_of(3), vectors(2, 5, D, seed=1)
    gradients = []
    for stack in (reversible_stack, stored_stack):
        leaf = x.clone().requires_grad_()
        torch.cat(stack(leaf, leaf, layers, draws_of(3))).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_inputs_that_require_no_gradient() -> None:
    layers, x = layers_of(2), vectors(1, 4, D)
    torch.cat(reversible_stack(x, x, layers, draws_of(2))).sum().backward()
    for layer in layers:
        for parameter in (*layer.f.parameters, *layer.g.parameters):
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert (parameter.grad != 0).any()


@pytest.mark.parametrize("used", ["first", "second"])
def test_a_loss_of_one_stream_alone(used: str) -> None:
    layers, x = layers_of(2), vectors(1, 4, D)
    gradients = []
    for stack in (reversible_stack, stored_stack):
        leaf = x.clone().requires_grad_()
        streams = stack(leaf, leaf, layers, draws_of(2))
        streams[used == "second"].square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_backward_twice_adds_up() -> None:
    layers, x = layers_of(2, 0.2), vectors(1, 4, D, seed=1).requires_grad_()
    loss = torch.cat(reversible_stack(x, x, layers, draws_of(2))).square().sum()
    loss.backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once, rtol=1e-12, atol=0)


@settings(max_examples=20)
@given(depth=st.integers(1, 12), drop=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
def test_the_inverse_restores_the_inputs(depth: int, drop: float, seed: int) -> None:
    """The first function's input is restored in the backward pass: seen by recording it."""
    layers = layers_of(depth, drop)
    seen: list[Tensor] = []
    first = layers[0]

    def record(x: Tensor, draws: Draws) -> Tensor:
        seen.append(x.detach().clone())
        return first.f.function(x, draws)

    layers[0] = first._replace(f=Residual(record, first.f.parameters))
    x1, x2 = vectors(1, 4, D, seed=seed).requires_grad_(), vectors(1, 4, D, seed=seed + 1)
    torch.cat(reversible_stack(x1, x2, layers, draws_of(depth))).sum().backward()
    forward, backward = seen
    assert torch.equal(forward, x2)
    torch.testing.assert_close(backward, x2, rtol=0, atol=1e-12)


def test_nothing_kept_grows_with_depth(saved_bytes: Any) -> None:
    x = vectors(2, 16, D).requires_grad_()

    def kept(stack: Any, depth: int) -> int:
        return saved_bytes(lambda: stack(x, x, layers_of(depth), draws_of(depth)))

    assert kept(reversible_stack, 1) == kept(reversible_stack, 12) == 2 * x.nbytes
    assert kept(stored_stack, 12) > 11 * kept(stored_stack, 1)


def test_peak_of_a_step_does_not_grow_with_depth(peak_bytes: Any) -> None:
    x = vectors(1, 4096, D)

    def peak(stack: Any, depth: int) -> int:
        layers = layers_of(depth)
        return peak_bytes(lambda: torch.cat(stack(x, x, layers, draws_of(depth))).sum().backward())

    assert peak(reversible_stack, 12) < 1.1 * peak(reversible_stack, 2)
    assert peak(stored_stack, 12) > 4 * peak(stored_stack, 2)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("context", ["no_grad", "inference_mode"])
def test_without_gradients(context: str, depth: int) -> None:
    x = vectors(1, 4, D)
    with getattr(torch, context)():
        y1, y2 = reversible_stack(x, x, layers_of(depth), draws_of(depth))
    expected = stored_stack(x, x, layers_of(depth), draws_of(depth))
    assert torch.equal(y1, expected[0])
    assert torch.equal(y2, expected[1])
    assert not y1.requires_grad


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward-outside", "backward-inside"])
def test_autocast_is_that_of_the_forward_pass(backward_inside: bool) -> None:
    """Recomputed values equal the forward's bit for bit for the same input, and no cached cast cuts a gradient off."""
    calls: list[tuple[Tensor, Tensor]] = []
    layers = layers_of(3, 0.2, torch.float32)
    last = layers[-1]

    def record(x: Tensor, draws: Draws) -> Tensor:
        y = last.g.function(x, draws)
        calls.append((x.detach().clone(), y.detach().clone()))
        return y

    layers[-1] = last._replace(g=Residual(record, last.g.parameters))
    x = vectors(1, 8, D, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.cat(reversible_stack(x, x, layers, draws_of(3))).float().square().sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    (x_before, y_before), (x_again, y_again) = calls
    assert y_before.dtype == y_again.dtype == torch.bfloat16
    assert torch.equal(x_before, x_again)
    assert torch.equal(y_before, y_again)
    for layer in layers:
        for parameter in (*layer.f.parameters, *layer.g.parameters):
            assert parameter.grad is not None
            assert (parameter.grad != 0).any()
