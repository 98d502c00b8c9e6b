"""Reversible residual stack (paper, section 3; Gomez et al., 2017): activations are recomputed, not stored.

    y1 = x1 + f(x2),  y2 = x2 + g(y1)        inverse: x2 = y2 - g(y1),  x1 = y1 - f(x2)

One autograd function over the stack. It takes the parameters as inputs and returns their gradients through
`torch.autograd.grad`, so that distributed training, tied and frozen parameters work as with any other function. Kept for
the backward pass: the two output streams, and of each layer the seed and the remembered buckets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reformer_lab.ops.chunking import autocast_state
from reformer_lab.ops.random import Draws
from reformer_lab.ops.residual import Gradients, LossInPieces, Residual, StreamGradients


class ReversibleLayer(NamedTuple):
    """The two functions of a layer."""

    f: Residual
    g: Residual


LayerDraws = Sequence[tuple[Draws, Draws]]
"""For each layer the draws of f and of g; a function must take all its randomness from them."""


def reversible_stack(
    x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws
) -> tuple[Tensor, Tensor]:
    """Return the two streams after the layers, with memory for the backward pass that does not grow with their number.

    x1, x2: streams of equal shape. Equal to `stored_stack` in outputs, and in gradients up to the rounding of the inverse.
    """
    return _ReversibleStack.apply(x1, x2, layers, draws, *_trainable(layers))


def reversible_loss(
    x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws, loss: LossInPieces
) -> Tensor:
    """Return loss(*reversible_stack(...)), in less memory: the streams never leave, so the backward pass works in them.

    It needs the two streams and their gradients, and what undoing one function needs.
    """
    # Within the function gradients are off: whether somebody wants them is asked here.
    parameters = _trainable(layers, loss)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (x1, x2, *parameters))
    return _ReversibleLoss.apply(x1, x2, layers, draws, loss, wanted, *parameters)


def stored_stack(x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws) -> tuple[Tensor, Tensor]:
    """Return the same as `reversible_stack` by plain autograd, which stores every activation."""
    for layer, (f_draws, g_draws) in zip(layers, draws, strict=True):
        x1 = x1 + layer.f(x2, f_draws)
        x2 = x2 + layer.g(x1, g_draws)
    return x1, x2


class _ReversibleStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws,
                *parameters: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.autocast = autocast_state(x1.device.type)
        y1, y2 = _add(x1, x2, layers, draws, ctx.autocast)
        ctx.save_for_backward(y1, y2)
        ctx.layers, ctx.draws, ctx.parameters = layers, draws, parameters
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y1: Tensor, d_y2: Tensor) -> tuple[Tensor | None, ...]:
        gradients = Gradients(ctx.autocast)
        streams = [x.clone() for x in (*ctx.saved_tensors, d_y1, d_y2)]
        return *_undo(streams, ctx.layers, ctx.draws, gradients), None, None, *_sums(gradients, ctx.parameters)


class _ReversibleLoss(torch.autograd.Function):
    """The last layer and the loss are differentiated in the forward pass already, while their activations are there; the
    backward pass scales those gradients, and undoes the other layers."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws, loss: LossInPieces,
                wanted: bool, *parameters: Tensor) -> Tensor:  # fmt: skip
        ctx.autocast = autocast_state(x1.device.type)
        gradients = Gradients(ctx.autocast)
        ending = _ending(x2, layers, draws, loss) if wanted and not _is_half(x1, ctx.autocast) else None
        if ending is None:
            streams: tuple[Tensor, ...] = _add(x1, x2, layers, draws, ctx.autocast)
            with torch.autocast(**ctx.autocast):
                value = loss(*streams)
        else:
            *layers, (f, _) = layers
            *draws, (f_draws, _) = draws
            y1, y2 = _add(x1, x2, layers, draws, ctx.autocast)
            values: list[Tensor] = []

            def of_the_rest(y1: Tensor) -> StreamGradients:
                value, (d_y1, d_y2) = ending.gradient(gradients, y1, y2)
                values.append(value)
                return d_y2, d_y1

            d_y2, d_y1 = f.between(gradients, f_draws, y2, y1, of_the_rest)
            (value,), streams = values, (y1, y2, d_y1, d_y2)
        # Nobody else sees the streams. So they need not be saved as variables, which would hold them to the end.
        ctx.streams = streams if wanted else None
        ctx.sums, ctx.layers, ctx.draws, ctx.loss, ctx.parameters = gradients.sums, layers, draws, loss, parameters
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.streams is None:
            raise RuntimeError("the streams of this graph are used up: ask for retain_graph=True in the first backward pass")
        streams = list(ctx.streams)
        if _graph_is_kept():
            streams = [x.clone() for x in streams]
        else:
            ctx.streams = None
        gradients = Gradients(ctx.autocast, {key: total * d_loss for key, total in ctx.sums.items()})
        if len(streams) == 2:
            streams += ctx.loss.gradient(gradients, *streams, d_loss)[1]
        else:
            for gradient in streams[2:]:
                gradient *= d_loss
        return *_undo(streams, ctx.layers, ctx.draws, gradients), None, None, None, None, *_sums(gradients, ctx.parameters)


def _ending(x: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws, loss: LossInPieces) -> LossInPieces | None:
    """Return the last layer's g and the loss as one loss; None where they do not go together, or where f saves memory."""
    return loss.after(layers[-1].g, draws[-1][1]) if layers and layers[-1].f.is_whole(x) else None


def _is_half(x: Tensor, autocast: dict[str, Any]) -> bool:
    """Whether gradients are fp16 somewhere: they need the scale of the loss, which the forward pass does not know."""
    return torch.float16 in (x.dtype, autocast["dtype"] if autocast["enabled"] else None)


def _add(
    x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer], draws: LayerDraws, autocast: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return the streams after the layers, without a graph."""
    dtype = torch.promote_types(x1.dtype, x2.dtype)
    y1, y2 = (x.to(dtype, copy=True).contiguous() for x in (x1, x2))
    with torch.autocast(**autocast):
        for layer, (f_draws, g_draws) in zip(layers, draws, strict=True):
            layer.f.add(y2, y1, f_draws)
            layer.g.add(y1, y2, g_draws)
    return y1, y2


def _undo(
    streams: list[Tensor], layers: Sequence[ReversibleLayer], draws: LayerDraws, gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x1 and x2, given [y1, y2, d_y1, d_y2], which are changed in place."""
    y1, y2, d_y1, d_y2 = streams
    with torch.no_grad():
        for layer, (f_draws, g_draws) in zip(reversed(layers), reversed(draws), strict=True):
            layer.g.undo(gradients, g_draws.replay(), y1, y2, d_y1, d_y2)
            layer.f.undo(gradients, f_draws.replay(), y2, y1, d_y2, d_y1)
    return d_y1, d_y2


def _trainable(layers: Sequence[ReversibleLayer], *others: LossInPieces) -> list[Tensor]:
    sets = [*(layer.f.parameters for layer in layers), *(layer.g.parameters for layer in layers)]
    sets += [other.parameters for other in others]
    return list({id(parameter): parameter for some in sets for parameter in some if parameter.requires_grad}.values())


def _sums(gradients: Gradients, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(gradients.sums.get(id(parameter)) for parameter in parameters)


def _graph_is_kept() -> bool:
    """Whether this backward pass was asked to retain the graph; True where torch does not tell."""
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if tell is None else bool(tell())
