"""Reversible residual stack (paper, section 3; Gomez et al., 2017): activations are recomputed, not stored.

    y1 = x1 + f(x2),  y2 = x2 + g(y1)        inverse: x2 = y2 - g(y1),  x1 = y1 - f(x2)

One autograd function over the whole stack. It takes the parameters as inputs and returns their gradients through
`torch.autograd.grad`, so that distributed training, tied and frozen parameters work as with any other function. Kept for
the backward pass: the two output streams, and of each layer the seed and the remembered buckets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reformer_lab.ops.chunking import autocast_state, chunked_apply
from reformer_lab.ops.random import Draws

Residual = Callable[[Tensor, Draws], Tensor]


class ReversibleLayer(NamedTuple):
    """The two functions of a layer. All that needs gradients besides the stream must be in `parameters`.

    g treats each position alone. With `g_chunk_length` it is called on pieces of so many positions (dimension 1), each with
    draws of its own; the backward pass recomputes a piece and at once takes its gradient.
    """

    f: Residual
    g: Residual
    f_parameters: Sequence[Tensor]
    g_parameters: Sequence[Tensor]
    g_chunk_length: int | None = None


def reversible_stack(
    x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: Sequence[tuple[Draws, Draws]]
) -> tuple[Tensor, Tensor]:
    """Return the two streams after the layers, with memory for the backward pass that does not grow with their number.

    x1, x2: streams of equal shape. draws: for each layer those of f and of g; a function must take all its randomness from
    them. Equal to `stored_stack` in outputs, and in gradients up to the rounding of the inverse.
    """
    seen: dict[int, Tensor] = {}
    for layer in layers:
        for parameter in (*layer.f_parameters, *layer.g_parameters):
            if parameter.requires_grad:
                seen[id(parameter)] = parameter
    return _ReversibleStack.apply(x1, x2, layers, draws, *seen.values())


def stored_stack(
    x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: Sequence[tuple[Draws, Draws]]
) -> tuple[Tensor, Tensor]:
    """Return the same as `reversible_stack` by plain autograd, which stores every activation."""
    for layer, (f_draws, g_draws) in zip(layers, draws, strict=True):
        x1 = x1 + layer.f(x2, f_draws)
        x2 = x2 + chunked_apply(partial(_piece, layer.g, g_draws), x1, layer.g_chunk_length)
    return x1, x2


def _piece(g: Residual, draws: Draws, index: int, x: Tensor) -> Tensor:
    return g(x, draws.part(index))


class _ReversibleStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer],
                draws: Sequence[tuple[Draws, Draws]], *parameters: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.autocast = autocast_state(x1.device.type)
        with torch.autocast(**ctx.autocast):
            y1, y2 = stored_stack(x1, x2, layers, draws)
        ctx.save_for_backward(y1, y2)
        ctx.layers, ctx.draws, ctx.parameters = layers, draws, parameters
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y1: Tensor, d_y2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2 = ctx.saved_tensors
        gradients = _Gradients()
        for layer, (f_draws, g_draws) in zip(reversed(ctx.layers), reversed(ctx.draws), strict=True):
            g = _Undone(layer.g, layer.g_parameters, ctx.autocast, gradients)
            y2, d_y1 = g.undo_in_pieces(g_draws.replay(), layer.g_chunk_length, y1, y2, d_y1, d_y2)
            f = _Undone(layer.f, layer.f_parameters, ctx.autocast, gradients)
            y1, d_y2 = f.undo(f_draws.replay(), y2, y1, d_y2, d_y1)
        return d_y1, d_y2, None, None, *(gradients.sums.get(id(parameter)) for parameter in ctx.parameters)


class _Gradients:
    """Sums of the parameters' gradients, by the parameter's id."""

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self._ours: set[int] = set()

    def add(self, parameter: Tensor, gradient: Tensor | None) -> None:
        key, before = id(parameter), self.sums.get(id(parameter))
        if gradient is None:
            return
        if before is None:
            self.sums[key] = gradient
        elif key in self._ours:
            before += gradient
        else:  # the first one came from autograd, which may have given it to others too
            self.sums[key] = before + gradient
            self._ours.add(key)


@dataclass(frozen=True)
class _Undone:
    """written += function(read), to be undone."""

    function: Residual
    parameters: Sequence[Tensor]
    autocast: dict[str, Any]
    gradients: _Gradients

    def undo(
        self, draws: Draws, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `written` as it was before, and the gradient of `read`; add those of the parameters to the sums."""
        trainable = list({id(parameter): parameter for parameter in self.parameters if parameter.requires_grad}.values())
        # The function alone runs as in the forward pass: under autocast the gradients would be computed in half precision.
        with torch.enable_grad(), torch.autocast(**self.autocast):
            read = read.detach().requires_grad_()
            change = self.function(read, draws)
        # allow_unused: a layer may leave a parameter out in some call.
        found = torch.autograd.grad(change, [read, *trainable], d_written.to(change.dtype), allow_unused=True)
        for parameter, gradient in zip(trainable, found[1:], strict=True):
            self.gradients.add(parameter, gradient)
        with torch.no_grad():
            return written - change, d_read if found[0] is None else d_read + found[0]

    def undo_in_pieces(
        self, draws: Draws, chunk_length: int | None, read: Tensor, written: Tensor, d_read: Tensor, d_written: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do the same piece by piece: of a piece alone are the activations ever there."""
        if chunk_length is None or read.shape[1] <= chunk_length:
            return self.undo(draws.part(0), read, written, d_read, d_written)
        before, d_sum = torch.empty_like(written), torch.empty_like(d_read)
        pieces = (x.split(chunk_length, dim=1) for x in (read, written, d_read, d_written, before, d_sum))
        for index, (*inputs, before_piece, d_piece) in enumerate(zip(*pieces, strict=True)):
            found = self.undo(draws.part(index), *inputs)
            before_piece.copy_(found[0])
            d_piece.copy_(found[1])
        return before, d_sum
