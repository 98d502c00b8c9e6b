"""Random draws of one layer that can be replayed: everything follows from an integer seed.

The reversible backward pass and the memory-saving functions recompute parts of the forward pass. They replay the
draws by seed, so no generator state is saved and the global generators are never touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

import torch
from torch import Tensor

from reformer_lab.seeds import derive_seed

_LOW_32_BITS = 0xFFFFFFFF

torch.library.define("reformer_lab::normal", "(int seed, SymInt[] shape) -> Tensor")


@torch.library.impl("reformer_lab::normal", "default")
def _normal(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu")  # whatever the default device


@torch.library.register_fake("reformer_lab::normal")
def _normal_fake(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.empty(*shape)


class Draws:
    """The random draws and the discrete decisions (hash buckets) of one layer in one forward pass.

    A layer asks for generators by name, and wraps what must not change in a recomputation in `remember`. `replay()`
    gives the same generators, and the remembered tensors instead of new ones. `fixed`: the seed is the same at every call,
    as in evaluation.
    """

    def __init__(self, seed: int, *, fixed: bool = False):
        self.seed = seed
        self.fixed = fixed
        self.remembered: dict[str, Tensor] = {}
        self._prefix = ""
        self._replaying = False

    def replay(self) -> "Draws":
        """Return the same draws for a recomputation."""
        return self._like(self.seed, self._prefix, replaying=True)

    def part(self, index: int) -> "Draws":
        """Return the draws of one part of the work, such as a piece of the sequence: others for each index."""
        return self._like(derive_seed(self.seed, "part", index), f"{self._prefix}{index} ", replaying=self._replaying)

    def fix(self, seed: int = 0) -> "Draws":
        """Return the fixed draws of evaluation, with the memory of these."""
        other = self._like(seed, self._prefix, replaying=self._replaying)
        other.fixed = True
        return other

    def _like(self, seed: int, prefix: str, *, replaying: bool) -> "Draws":
        other = Draws(seed, fixed=self.fixed)
        other.remembered, other._prefix, other._replaying = self.remembered, prefix, replaying
        return other

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a new generator on `device`, the same one whenever this name is asked for."""
        return torch.Generator(device).manual_seed(derive_seed(self.seed, name))

    def normal(self, name: str, *shape: int) -> Tensor:
        """Return normal numbers, fp32 on the host: those that `generator(name)` gives. An exported program draws them too."""
        numbers: Tensor = torch.ops.reformer_lab.normal(derive_seed(self.seed, name), shape)
        return numbers

    def remember(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return compute() the first time; in a replay, the tensor of the first time."""
        name = self._prefix + name
        if not self._replaying:
            self.remembered[name] = compute()
        return self.remembered[name]


class CallSeeds:
    """Seeds for a module that is called without draws: another one at each call.

    A recomputation within a backward pass, as activation checkpointing does it, gets the latest call's seed again. That is
    right where each call is followed by its own backward pass; pass draws where it is not.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.calls = 0

    def next(self) -> int:
        """Return the seed of this call."""
        if torch._C._current_graph_task_id() == -1:  # no backward pass is running
            self.calls += 1
        return derive_seed(self.seed, "call", self.calls)

    def draws(self, *, fixed: bool = False) -> Draws:
        """Return the draws of this call: the next part of those that `drawing_from` lends, or new ones by the next seed.

        `fixed`: the same at every call, as in evaluation.
        """
        lent = _LENT.get()
        if lent is not None:
            own = next(lent)
            return own.fix(self.seed) if fixed else own
        return Draws(self.seed, fixed=True) if fixed else Draws(self.next())


_LENT: ContextVar[Iterator[Draws] | None] = ContextVar("lent draws", default=None)


@contextmanager
def drawing_from(draws: Draws) -> Iterator[None]:
    """Within, layers that are called without draws take parts of these, in the order of the calls.

    So a function that calls layers in the same order again replays their draws and their buckets, by `draws.replay()`.
    """
    token = _LENT.set(draws.part(index) for index in count())
    try:
        yield
    finally:
        _LENT.reset(token)


def dropout(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p), by a generator on x's device.

    The mask is drawn again for the backward pass, not kept.
    """
    return x if p == 0.0 else _Dropout.apply(x, p, generator)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, generator: torch.Generator) -> Tensor:
        ctx.p, ctx.device, ctx.state = p, generator.device, generator.get_state()
        return _drop(x, p, generator)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None, None]:
        return _drop(d_output, ctx.p, torch.Generator(ctx.device).set_state(ctx.state)), None, None


def _drop(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    keep = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p, generator=generator)
    return (x * keep).mul_(1 / (1 - p))


def draw_seed(generator: torch.Generator) -> int:
    """Draw a 31-bit seed. A host generator needs no synchronisation with a GPU."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def keep_pairs(seed: int, row: Tensor, query: Tensor, key: Tensor, p: float) -> Tensor:
    """Say for pairs of positions which attention weights dropout keeps: True with probability 1 - p.

    The answer is a hash of (seed, row, query, key), row = batch * heads + head: it does not depend on how a backend
    lays the pairs out, so every backend drops the same ones. Integer tensors of shapes that broadcast.
    """
    state = _mix(row * 0x9E3779B1 + (seed & _LOW_32_BITS))
    state = _mix(state ^ (query * 0x85EBCA6B & _LOW_32_BITS))
    state = _mix(state ^ (key * 0xC2B2AE35 & _LOW_32_BITS))
    return state >= int(p * 2**32)


def _mix(x: Tensor) -> Tensor:
    """Mix the low 32 bits of int64 numbers so that each input bit changes about half of the output bits."""
    x = x & _LOW_32_BITS
    x = (x ^ (x >> 16)) * 0x7FEB352D & _LOW_32_BITS
    x = (x ^ (x >> 15)) * 0x846CA68B & _LOW_32_BITS
    return x ^ (x >> 16)
