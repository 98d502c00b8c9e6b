"""Where a training left the finite numbers: the first weight, layer or gradient that is not finite."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from reformer_lab.training.sharding import full, own_part


def first_weight_not_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter with a value that is not finite, None if there is none."""
    return next((name for name, weight in model.named_parameters() if not _finite(full(weight.detach()))), None)


def where_not_finite(model: nn.Module, steps: Callable[[], Tensor]) -> str:
    """Return a sentence that says where a step first leaves the finite numbers.

    `steps`: repeats the step with its own data and draws, forward and backward passes, and returns its loss; gradients are
    then where torch leaves them. The innermost module counts, in the order of the computation.
    """
    weight = first_weight_not_finite(model)
    if weight is not None:
        return f"The weights are not finite, {weight} the first of them."
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name or "the whole model")

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        model.zero_grad(set_to_none=True)
        loss = float(steps().detach())
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"The first layer whose output is not finite: {found[0]}."
    if not math.isfinite(loss):
        return "Every layer's output is finite, the loss is not."
    spoilt = [name for name, weight in model.named_parameters()
              if weight.grad is not None and not _finite(own_part(weight.grad))]
    if spoilt:  # the backward pass comes from the output
        return f"Every layer's output is finite, the gradient is not: {spoilt[-1]} is the first in the backward pass."
    return "The same step, computed again, is finite: suspect the hardware, or an operation that is not deterministic."


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(output.detach().isfinite().all())
    if isinstance(output, (tuple, list)):
        return all(_finite(part) for part in output)
    return True
