"""Reversible blocks of any two modules (paper, section 3; Gomez et al., 2017), which need not know that they are recomputed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reformer_lab.errors import UserError
from reformer_lab.ops.random import CallSeeds, Draws, drawing_from
from reformer_lab.ops.residual import Gradients, Residual
from reformer_lab.ops.reversible import ReversibleLayer, reversible_stack, stored_stack

NO_ARGUMENTS: Mapping[str, Any] = {}


class ReversibleSequence(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1) for each pair (f, g); the backward pass recomputes activations instead of storing them.

    f and g: any modules x -> y with y of the shape of x. Gradients are those of plain autograd (`reversible=False`, which
    stores everything) up to the rounding of the inverse. One pair is a reversible block; a module may stand in several places.

    Randomness is replayed: what a module draws from torch's global generators (nn.Dropout) comes from their state at the first
    call, and the backward pass leaves them as it found them; layers of this package take their draws and hash buckets from the
    sequence, so that `seed`, not theirs, decides.

    What f and g do must follow from x, their parameters, these draws and the arguments alone. A module that counts its calls in
    training, such as batch norm for its running statistics, counts the recomputation too. Tensors that are neither parameters
    nor x get no gradient. Leave activation checkpointing out of f and g: its work is done here.

    >>> import torch
    >>> from torch import nn
    >>> from reformer_lab.layers import LSHSelfAttention
    >>> f = nn.Sequential(nn.LayerNorm(16), LSHSelfAttention(16, 2, 8, chunk_length=8), nn.Dropout(0.1))
    >>> g = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 16))
    >>> stack = ReversibleSequence([(f, g), (nn.Tanh(), nn.Linear(16, 16))])
    >>> y1, y2 = stack(torch.randn(1, 50, 16))
    >>> (y1 + y2).sum().backward()
    >>> all(parameter.grad is not None for parameter in stack.parameters())
    True
    """

    def __init__(self, pairs: Iterable[tuple[nn.Module, nn.Module]], *, reversible: bool = True, seed: int = 0):
        super().__init__()
        given = list(pairs)
        for index, pair in enumerate(given):
            if len(pair) != 2:
                raise UserError(f"pair {index} has {len(pair)} modules: give two, f and g")
        self.blocks: Sequence[Iterable[nn.Module]] = nn.ModuleList(map(nn.ModuleList, given))  # type: ignore[assignment]
        self.reversible = reversible
        self._call_seeds = CallSeeds(seed)

    def forward(self, x1: Tensor, x2: Tensor | None = None, *, f_arguments: Mapping[str, Any] = NO_ARGUMENTS,
                g_arguments: Mapping[str, Any] = NO_ARGUMENTS) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the streams y1, y2 for x1, x2 of equal shape, with any number of dimensions; x2 None: x1 again.

        f_arguments, g_arguments: named arguments of every f and of every g, such as a mask.

        Raises:
            UserError: streams of different shapes; a module that returns another shape; an argument that needs a gradient.
        """
        x2 = x1 if x2 is None else x2
        if x1.shape != x2.shape:
            raise UserError(f"streams of shapes {tuple(x1.shape)} and {tuple(x2.shape)}: both must have one shape")
        for name, value in (*f_arguments.items(), *g_arguments.items()):
            if isinstance(value, Tensor) and value.requires_grad:
                raise UserError(f"argument {name} needs a gradient, and would get none: detach it, or make it a stream")
        layers = [ReversibleLayer(_Call(f, f_arguments), _Call(g, g_arguments)) for f, g in self.blocks]
        own = self._call_seeds.draws(fixed=not self.training)
        draws = [(own.part(2 * i), own.part(2 * i + 1)) for i in range(len(layers))]
        stack = reversible_stack if self.reversible else stored_stack
        return stack(x1, x2, layers, draws)


class _Call(Residual):
    """x -> module(x, **arguments), whose draws are the global generators as they were and those that are lent to its layers."""

    def __init__(self, module: nn.Module, arguments: Mapping[str, Any]):
        def call(x: Tensor, draws: Draws) -> Tensor:
            with drawing_from(draws):
                y = module(x, **arguments)
            if not isinstance(y, Tensor) or y.shape != x.shape:
                found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                name = type(module).__name__
                raise UserError(f"{name} makes {found} of {tuple(x.shape)}: it must return a tensor of that shape")
            return y

        super().__init__(call, tuple(module.parameters()))

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        _generator_states(draws, x.device)
        return super().__call__(x, draws)

    def undo(
        self, gradients: Gradients, draws: Draws, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> None:
        """written -= module(read), and d_read += the gradient of the module at d_written."""
        with _generators_as_in(draws, read.device):
            super().undo(gradients, draws, read, written, d_read, d_written)


def _generator_states(draws: Draws, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the states of torch's global generators, of the host and of the device; in a replay, those of the first time."""
    on_host = draws.remember("host generator", torch.get_rng_state)
    if device.type == "cpu":
        return on_host, None
    return on_host, draws.remember("device generator", lambda: torch.get_device_module(device).get_rng_state(device))


@contextmanager
def _generators_as_in(draws: Draws, device: torch.device) -> Iterator[None]:
    """Set torch's global generators as they were at the first call, and afterwards as they are now."""
    on_host, on_device = _generator_states(draws, device)
    with torch.random.fork_rng([] if on_device is None else [device], device_type="cuda" if on_device is None else device.type):
        torch.set_rng_state(on_host)
        if on_device is not None:
            torch.get_device_module(device).set_rng_state(on_device, device)
        yield
