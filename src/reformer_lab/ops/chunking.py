"""Apply a function, or a loss, over pieces of the sequence: the memory of one piece, in the backward pass too.

Each piece is recomputed when its gradient is asked for (torch's non-reentrant checkpoint, which also restores
autocast). Functions with random draws must take them from seeds: the global random state is neither saved nor restored.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""A target that does not count, as everywhere in torch."""


def autocast_state(device_type: str) -> dict[str, Any]:
    """Return the arguments of torch.autocast that bring back what is in force now, for a recomputation."""
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        # Autograd is off inside a function's forward: a cast weight that torch caches there would, in versions without
        # pytorch#165068, cut off the gradient of whoever uses the weight next under the same autocast.
        "cache_enabled": False,
    }


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call `function`, keeping its inputs alone for the backward pass, which calls it again."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def chunked_apply(function: Callable[[int, Tensor], Tensor], x: Tensor, chunk_length: int | None) -> Tensor:
    """Return the concatenation of function(i, piece i) over pieces of x (B, L, ...) along the length.

    The result is that of one call on the whole when the function treats positions alone (paper, section 3: chunking).
    `chunk_length` None: one piece, nothing recomputed.
    """
    if chunk_length is None or x.shape[1] <= chunk_length:
        return function(0, x)
    pieces = x.split(chunk_length, dim=1)
    return torch.cat([recompute(lambda piece, i=i: function(i, piece), piece) for i, piece in enumerate(pieces)], dim=1)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum in nats of the cross-entropy of logits (B, L, V) over targets (B, L) that are not IGNORED, in fp32 or
    better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, chunk_length: int | None
) -> Tensor:
    """Return the mean cross-entropy in nats over targets (B, L), with the logits of one piece at a time.

    hidden (B, L, D), logits_of: (B, l, D) -> (B, l, V). With no target that counts it is 0.
    """
    length = max(1, hidden.shape[1]) if chunk_length is None else chunk_length

    def summed(hidden: Tensor, targets: Tensor) -> Tensor:
        return summed_cross_entropy(logits_of(hidden), targets)

    pieces = list(zip(hidden.split(length, dim=1), targets.split(length, dim=1), strict=True))
    if len(pieces) == 1:
        total = summed(*pieces[0])
    else:
        total = torch.stack([recompute(summed, *piece) for piece in pieces]).sum()
    return total / (targets != IGNORED).sum().clamp(min=1)
