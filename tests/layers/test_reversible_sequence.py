"""Reversible blocks of any modules: the gradients of plain autograd, whatever the modules draw."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.layers import ChunkedFeedForward, LSHSelfAttention, ReversibleSequence
from reformer_lab.ops.random import CallSeeds, Draws, drawing_from

D = 6
Pairs = list[tuple[nn.Module, nn.Module]]


def feed_forward(p: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 10), nn.GELU(), nn.Dropout(p), nn.Linear(10, D), nn.Dropout(p))


def attention(seed: int = 0, **options: Any) -> nn.Module:
    layer = LSHSelfAttention(D, 2, 4, num_hashes=2, chunk_length=4, seed=seed, **options)
    return nn.Sequential(nn.LayerNorm(D), layer)


def plain(p: float) -> Pairs:
    return [(feed_forward(p), feed_forward(p)) for _ in range(4)]


def shared(p: float) -> Pairs:
    """One module in five places, and a parameter in two modules."""
    one, other = feed_forward(p), feed_forward(p)
    other[1].weight = one[1].weight  # type: ignore[index]
    return [(one, one), (other, one), (one, other), (feed_forward(p), one)]


def hashed(p: float) -> Pairs:
    """Layers that draw from generators of their own, one of them twice, beside such as draw from the global one."""
    one = attention(dropout=p)
    ours = ChunkedFeedForward(D, 10, dropout=p, chunk_length=3)
    return [(one, ours), (attention(dropout=p), feed_forward(p)), (one, ours), (nn.Dropout(p), attention(3, dropout=p))]


def nested(p: float) -> Pairs:
    """A reversible sequence inside the functions of another."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = ReversibleSequence(hashed(p)[:2])

        def forward(self, x: Tensor) -> Tensor:
            y1, y2 = self.inside(x)
            return (y1 + y2) / 4

    one = Joined()  # twice, so that the last call's draws are not those of both
    return [(one, feed_forward(p)), (feed_forward(p), one)]


KINDS = {"plain": plain, "shared": shared, "hashed": hashed, "nested": nested}


def results(stack: ReversibleSequence, x1: Tensor, x2: Tensor, seed: int = 5, **options: Any) -> list[Tensor | None]:
    """Return the outputs and every gradient of a fresh copy."""
    stack = copy.deepcopy(stack)
    leaves = [x1.clone().requires_grad_(), x2.clone().requires_grad_()]
    torch.manual_seed(seed)
    y1, y2 = stack(*leaves, **options)
    after = torch.get_rng_state()
    (y1.square().sum() + (y2.sin() * x1).sum()).backward()
    assert torch.equal(torch.get_rng_state(), after)  # the backward pass draws nothing from the global generator
    return [y1.detach(), y2.detach(), *(x.grad for x in leaves), *(p.grad for p in stack.parameters())]


def both(pairs: Pairs, dtype: torch.dtype = torch.float64, train: bool = True, **options: Any) -> Any:
    reversible = ReversibleSequence(pairs, seed=2).to(dtype).train(train)
    stored = copy.deepcopy(reversible)
    stored.reversible = False
    x1, x2 = (torch.randn(2, 11, D, generator=torch.Generator().manual_seed(s), dtype=dtype) for s in (1, 2))
    return [results(stack, x1, x2, **options) for stack in (reversible, stored)]


@pytest.fixture(autouse=True)
def _weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_plain_autograd(kind: str, p: float, train: bool) -> None:
    for found, expected in zip(*both(KINDS[kind](p), train=train), strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_in_single_precision_the_error_stays_that_of_rounding() -> None:
    """A vector that the recomputation hashed to another bucket would show here."""
    for found, expected in zip(*both(hashed(0.3), torch.float32), strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm() + 1e-7


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_frozen_parameters(kind: str) -> None:
    pairs = KINDS[kind](0.3)
    pairs[0][0].requires_grad_(False)
    pairs[1][1].requires_grad_(False)
    found, expected = both(pairs)
    assert [x is None for x in found] == [x is None for x in expected]
    assert any(x is None for x in found)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_autocast_is_that_of_the_forward_pass() -> None:
    """Where the recomputation ran in fp32 it would miss what was added in bf16 by far more than fp32 rounds."""
    with torch.autocast("cpu", torch.bfloat16):
        reversible, stored = both(plain(0.3), torch.float32)
    for found, expected in zip(reversible, stored, strict=True):
        assert (found - expected).norm() < 2e-2 * expected.norm()
    inverse_error: list[float] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.seen = nn.Linear(D, D), torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            if self.seen.numel():
                inverse_error.append(float((x.detach() - self.seen).abs().max()))
            self.seen = x.detach().clone()
            return self.dense(x)

    x = torch.randn(2, 11, D).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y1, y2 = ReversibleSequence([(Watch(), Watch()) for _ in range(4)])(x)
    (y1 * y2).sum().backward()
    assert len(inverse_error) == 8
    assert max(inverse_error) < 1e-5


def test_gradcheck_with_dropout() -> None:
    stack = ReversibleSequence([(feed_forward(0.3), feed_forward(0.3)) for _ in range(2)]).double()
    x1, x2 = (torch.randn(1, 3, D, dtype=torch.float64).requires_grad_() for _ in range(2))

    def fixed(x1: Tensor, x2: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return stack(x1, x2)

    assert torch.autograd.gradcheck(fixed, (x1, x2, *stack.parameters()))


def test_two_forward_passes_before_the_backward_ones() -> None:
    stack = ReversibleSequence(hashed(0.3), seed=1).double()
    stored = ReversibleSequence(stack.blocks, seed=1, reversible=False)  # type: ignore[arg-type]
    x = torch.randn(1, 9, D, dtype=torch.float64)
    found = []
    for model in (stack, stored):
        torch.manual_seed(1)
        first, second = model(x)[0], model(x)[1]
        assert not torch.equal(first, model(x)[0])
        loss = (first * second).sum()
        found.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_nothing_is_stored_for_a_deeper_stack(saved_bytes: Callable[[Callable[[], object]], int]) -> None:
    x = torch.randn(2, 50, D).requires_grad_()

    def kept(depth: int, reversible: bool) -> int:
        stack = ReversibleSequence([(feed_forward(0.1), feed_forward(0.1))] * depth, reversible=reversible)
        return saved_bytes(lambda: stack(x))

    assert kept(8, True) == kept(1, True)
    assert kept(8, False) > 5 * kept(1, False)


def test_arguments_reach_their_modules() -> None:
    class Mask(nn.Module):
        def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
            return x.sin() if hidden is None else x.sin().masked_fill(hidden, 0)

    hidden = torch.arange(11)[:, None] > 6
    x1, x2 = torch.randn(2, 11, D).double().requires_grad_(), torch.randn(2, 11, D).double().requires_grad_()
    y1, y2 = ReversibleSequence([(Mask(), Mask())])(x1, x2, f_arguments={"hidden": hidden})
    expected1 = x1 + x2.sin().masked_fill(hidden, 0)
    expected2 = x2 + expected1.sin()
    torch.testing.assert_close((y1, y2), (expected1, expected2))
    found = torch.autograd.grad((y1 * y2).sum(), (x1, x2))
    torch.testing.assert_close(found, torch.autograd.grad((expected1 * expected2).sum(), (x1, x2)))


def test_what_cannot_be_used_is_named() -> None:
    x = torch.randn(1, 4, D)
    with pytest.raises(UserError, match="pair 0 has 1"):
        ReversibleSequence([(nn.Tanh(),)])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"\(1, 4, 6\) and \(1, 3, 6\)"):
        ReversibleSequence([(nn.Tanh(), nn.Tanh())])(x, x[:, :3])
    with pytest.raises(UserError, match=r"Linear makes \(1, 4, 1\)"):  # which would broadcast
        ReversibleSequence([(nn.Linear(D, 1), nn.Tanh())])(x)
    with pytest.raises(UserError, match="GRU makes tuple"):
        ReversibleSequence([(nn.GRU(D, D), nn.Tanh())])(x)
    with pytest.raises(UserError, match="bias needs a gradient"):
        ReversibleSequence([(nn.Tanh(), nn.Tanh())])(x, g_arguments={"bias": torch.ones(1, requires_grad=True)})


def test_lent_draws_come_in_the_order_of_the_calls() -> None:
    draws, one, other = Draws(4), CallSeeds(1), CallSeeds(2)
    with drawing_from(draws):
        first = [one.draws().seed, other.draws().seed, one.draws().seed]
    with drawing_from(draws.replay()):
        assert [one.draws().seed, other.draws().seed, one.draws().seed] == first
        assert one.draws(fixed=True).seed == one.seed == 1
        assert one.draws(fixed=True).fixed
    assert len(set(first)) == 3
    assert (one.calls, other.calls) == (0, 0)
    assert one.draws().seed == CallSeeds(1).next()


def test_evaluation_is_that_of_the_modules_alone() -> None:
    pairs = hashed(0.3)
    stack, x = ReversibleSequence(pairs).double().eval(), torch.randn(1, 9, D).double()
    y1 = x + pairs[0][0](x)
    torch.testing.assert_close(ReversibleSequence(pairs[:1]).eval()(x), (y1, x + pairs[0][1](y1)))
    assert torch.equal(stack(x)[0], stack(x)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_its_generator_is_replayed() -> None:
    stack = ReversibleSequence(plain(0.3)).double().cuda()
    stored = copy.deepcopy(stack)
    stored.reversible = False
    x = torch.randn(2, 11, D, dtype=torch.float64, device="cuda")
    found = []
    for model in (stack, stored):
        torch.manual_seed(1)
        y1, y2 = model(x)
        state = torch.cuda.get_rng_state()
        found.append(torch.autograd.grad((y1 * y2).sum(), list(model.parameters())))
        assert torch.equal(torch.cuda.get_rng_state(), state)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_the_shape_may_have_any_number_of_dimensions() -> None:
    class Blur(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.silu(super().forward(x))

    stack = ReversibleSequence([(Blur(3, 3, 3, padding=1), Blur(3, 3, 1)) for _ in range(3)]).double()
    x = torch.randn(2, 3, 5, 5).double()
    reversible, stored = results(stack, x, x), results(ReversibleSequence(stack.blocks, reversible=False), x, x)  # type: ignore[arg-type]
    for found, expected in zip(reversible, stored, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
