"""The fast backends as operators of torch.library, so that autograd, torch.compile and torch.export know them alike.

A backend is a module with two functions of plain tensors:

    forward(qk, v, buckets, padding, options) -> (output, logsumexp, maximum, total)
    backward(qk, v, buckets, padding, output, maximum, total, options, d_output, d_logsumexp) -> (d_qk, d_v)

qk (B, H, L, D), v (B, H, L, D_v), buckets (B, H, R, L), padding (B, L) or None. `maximum` and `total` (B, H, L), as
`logsumexp` in fp32 or better: the largest logit over the union of the rounds, and the sum of exp(logit - maximum). It may
also offer hash_vectors(x, rotations, factors), which gives the buckets of `ops.hashing.hash_vectors`, only sooner.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import hashing
from reformer_lab.ops.lsh_attention import chunked, native, triton
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.softmax import accumulation_dtype


class Backend(Protocol):
    """What the module of a fast backend offers."""

    def forward(
        self, qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, options: LSHOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return output, logsumexp, maximum, total."""

    def backward(
        self, qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, output: Tensor, maximum: Tensor, total: Tensor,
        options: LSHOptions, d_output: Tensor, d_logsumexp: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the gradients of qk and v."""


FAST_BACKENDS: dict[str, Backend] = {"torch": chunked, "native": native, "triton": triton}
BACKENDS = ("reference", *FAST_BACKENDS)


def unusable(
    backend: str, device: torch.device | None = None, dtype: torch.dtype | None = None, width: int | None = None,
    options: LSHOptions | None = None,
) -> str | None:  # fmt: skip
    """Return in one line why a backend cannot be used for such tensors, or at all; None if it can. width: the widest head."""
    if backend not in BACKENDS:
        return f"there is no such backend; choose from {', '.join(BACKENDS)}"
    if backend in ("native", "triton") and options is not None and options.historic() is not None:
        return options.historic()
    if backend == "triton":
        return triton.unusable(device, dtype, width)
    return native.unusable(device, dtype) if backend == "native" else None


def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype, width: int | None = None, options: LSHOptions | None = None
) -> str:
    """Return the name of the backend that computes such tensors when `backend`, "auto" or a name, is asked for."""
    if backend == "auto":
        fast = {"cpu": "native", "cuda": "triton"}.get(device.type, "torch")
        return fast if unusable(fast, device, dtype, width, options) is None else "torch"
    if backend not in BACKENDS:
        raise UserError(f"backend={backend!r}: must be auto or one of {', '.join(BACKENDS)}")
    why_not = unusable(backend, device, dtype, width, options)
    if why_not is not None:
        raise UserError(f"backend={backend!r} cannot be used: {why_not}")
    return backend


# The operators take the fields of LSHOptions one by one, after the name of the backend, which may be "auto": the choice is made
# inside, where no compiler looks. `custom_op` would be shorter, but loads torch's compiler at the first call: a second or two.
_FIELDS = {field.name: field.type.__name__ for field in fields(LSHOptions)}  # type: ignore[union-attr]
_OPTIONS = "str backend, " + ", ".join(f"{kind} {name}" for name, kind in _FIELDS.items())
_INPUTS = "Tensor qk, Tensor v, Tensor buckets, Tensor? padding"
_KEPT = "Tensor output, Tensor maximum, Tensor total"
_HASH, _ATTENTION, _GRADIENTS = (f"reformer_lab::lsh_{name}" for name in ("hash", "attention", "attention_backward"))
torch.library.define(_HASH, "(Tensor x, Tensor rotations, int[] factors, str backend) -> Tensor")
torch.library.define(_ATTENTION, f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)")
torch.library.define(_GRADIENTS, f"({_INPUTS}, {_KEPT}, Tensor d_output, Tensor d_logsumexp, {_OPTIONS}) -> (Tensor, Tensor)")


def _options(values: tuple[Any, ...]) -> LSHOptions:
    return LSHOptions(**dict(zip(_FIELDS, values, strict=True)))


def _module(backend: str, qk: Tensor, v: Tensor, options: LSHOptions) -> Backend:
    return FAST_BACKENDS[choose_backend(backend, qk.device, qk.dtype, max(qk.shape[-1], v.shape[-1]), options)]


def attend(
    backend: str, qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, options: LSHOptions
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, L, D_v) and the logsumexp (B, H, L)."""
    values = (getattr(options, name) for name in _FIELDS)
    output, logsumexp, _, _ = torch.ops.reformer_lab.lsh_attention(qk, v, buckets, padding, backend, *values)
    return output, logsumexp


def hash_vectors(backend: str, x: Tensor, rotations: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return bucket ids (B, H, R, L), int64, as `ops.hashing.hash_vectors` does."""
    buckets: Tensor = torch.ops.reformer_lab.lsh_hash(x.detach(), rotations.detach(), factors, backend)
    return buckets


@torch.library.impl(_HASH, "default")
def _hash(x: Tensor, rotations: Tensor, factors: Sequence[int], backend: str) -> Tensor:
    chosen = choose_backend(backend, x.device, x.dtype, x.shape[-1])
    compute = getattr(FAST_BACKENDS.get(chosen), "hash_vectors", hashing.hash_vectors)
    result: Tensor = compute(x, rotations, tuple(factors))
    return result


@torch.library.register_fake(_HASH)
def _hash_fake(x: Tensor, rotations: Tensor, factors: Sequence[int], backend: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], rotations.shape[3], x.shape[2]), dtype=torch.int64)


@torch.library.impl(_ATTENTION, "default")
def _attention(
    qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, backend: str, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(qk.device.type, enabled=False):
        given = _options(options)
        return _module(backend, qk, v, given).forward(qk, v, buckets, padding, given)


@torch.library.register_fake(_ATTENTION)
def _attention_fake(
    qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, backend: str, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = (qk.new_empty(qk.shape[:3], dtype=accumulation_dtype(qk.dtype)) for _ in range(3))
    return v.new_empty(v.shape), *rows  # type: ignore[return-value]


@torch.library.impl(_GRADIENTS, "default")
def _gradients(
    qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, output: Tensor, maximum: Tensor, total: Tensor,
    d_output: Tensor, d_logsumexp: Tensor, backend: str, *options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with torch.autocast(qk.device.type, enabled=False):  # whoever asks for gradients may be under one
        given = _options(options)
        return _module(backend, qk, v, given).backward(
            qk, v, buckets, padding, output, maximum, total, given, d_output, d_logsumexp
        )


@torch.library.register_fake(_GRADIENTS)
def _gradients_fake(qk: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return qk.new_empty(qk.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    qk, v, buckets, padding, *ctx.options = inputs
    attended, _, maximum, total = output
    ctx.mark_non_differentiable(maximum, total)
    ctx.save_for_backward(qk, v, buckets, padding, attended, maximum, total)


def _backward(ctx: Any, d_output: Tensor, d_logsumexp: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    d_qk, d_v = torch.ops.reformer_lab.lsh_attention_backward(*ctx.saved_tensors, d_output, d_logsumexp, *ctx.options)
    return d_qk, d_v, None, None, *(None for _ in ctx.options)


torch.library.register_autograd(_ATTENTION, _backward, setup_context=_keep)


def _no_second_derivative(*_: Any) -> None:
    raise NotImplementedError("lsh_attention has no second derivative; backend='reference' has")


torch.library.register_autograd(_GRADIENTS, _no_second_derivative)
