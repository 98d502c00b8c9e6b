"""Reversible residual stack (paper, section 3; Gomez et al., 2017): activations are recomputed, not stored.

    y1 = x1 + f(x2),  y2 = x2 + g(y1)        inverse: x2 = y2 - g(y1),  x1 = y1 - f(x2)

One autograd function over the whole stack. It takes the parameters as inputs and returns their gradients through
`torch.autograd.grad`, so that distributed training, tied and frozen parameters work as with any other function. Kept for
the backward pass: the two output streams, and of each layer the seed and the remembered buckets.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reformer_lab.ops.random import Draws

Residual = Callable[[Tensor, Draws], Tensor]


class ReversibleLayer(NamedTuple):
    """The two functions of a layer. All that needs gradients besides the stream must be in `parameters`."""

    f: Residual
    g: Residual
    f_parameters: Sequence[Tensor]
    g_parameters: Sequence[Tensor]


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
        x2 = x2 + layer.g(x1, g_draws)
    return x1, x2


class _ReversibleStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, layers: Sequence[ReversibleLayer],
                draws: Sequence[tuple[Draws, Draws]], *parameters: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        device_type = x1.device.type
        ctx.autocast = {
            "device_type": device_type,
            "enabled": torch.is_autocast_enabled(device_type),
            "dtype": torch.get_autocast_dtype(device_type),
            # Autograd is off inside a function's forward: a cast weight that torch caches here would, in versions without
            # pytorch#165068, cut off the gradient of whoever uses the weight next under the same autocast.
            "cache_enabled": False,
        }
        with torch.autocast(**ctx.autocast):
            y1, y2 = stored_stack(x1, x2, layers, draws)
        ctx.save_for_backward(y1, y2)
        ctx.layers, ctx.draws, ctx.parameters = layers, draws, parameters
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y1: Tensor, d_y2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2 = ctx.saved_tensors
        gradients: dict[int, Tensor] = {}
        for layer, (f_draws, g_draws) in zip(reversed(ctx.layers), reversed(ctx.draws), strict=True):
            y2, d_y1 = _undo(layer.g, layer.g_parameters, g_draws.replay(), ctx.autocast, y1, y2, d_y1, d_y2, gradients)
            y1, d_y2 = _undo(layer.f, layer.f_parameters, f_draws.replay(), ctx.autocast, y2, y1, d_y2, d_y1, gradients)
        return d_y1, d_y2, None, None, *(gradients.get(id(parameter)) for parameter in ctx.parameters)


def _undo(
    function: Residual,
    parameters: Sequence[Tensor],
    draws: Draws,
    autocast: dict[str, Any],
    read: Tensor,
    written: Tensor,
    d_read: Tensor,
    d_written: Tensor,
    gradients: dict[int, Tensor],
) -> tuple[Tensor, Tensor]:
    """Undo written += function(read): return `written` as it was before, and the gradient of `read`.

    The parameters' gradients are added to `gradients`, by id.
    """
    trainable = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
    # The function alone runs as in the forward pass: under autocast the gradients would be computed in half precision.
    with torch.enable_grad(), torch.autocast(**autocast):
        read = read.detach().requires_grad_()
        change = function(read, draws)
    # allow_unused: a layer may leave a parameter out in some call.
    found = torch.autograd.grad(change, [read, *trainable], d_written.to(change.dtype), allow_unused=True)
    for parameter, gradient in zip(trainable, found[1:], strict=True):
        if gradient is not None:
            before = gradients.get(id(parameter))
            gradients[id(parameter)] = gradient if before is None else before + gradient
    with torch.no_grad():
        restored = written - change
        d_read = d_read if found[0] is None else d_read + found[0]
    return restored, d_read
