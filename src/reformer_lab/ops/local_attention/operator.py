"""Local attention on CPUs as an operator of torch.library: autograd, torch.compile and torch.export see one node.

Behind it stands the native backend or, where that cannot be used, the torch backend: modules with two functions of plain
tensors, as in `ops.lsh_attention.operator`:

    forward(q, k, v, padding, options) -> (output, logsumexp)
    backward(q, k, v, padding, output, logsumexp, options, d_output) -> (d_q, d_k, d_v)

q, k (B, H, L, D), v and output (B, H, L, D_v), padding (B, L) or None, logsumexp (B, H, L) in fp32 or better: the backend's own
note for its backward pass, of any values where it needs none.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from reformer_lab.ops.local_attention import native, windows
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.lsh_attention.operator import choose_backend
from reformer_lab.ops.memory import empty_rows
from reformer_lab.ops.softmax import accumulation_dtype

BACKENDS = ("torch", "native")

# The schema takes the fields of LocalOptions one by one, after the name of the backend: see `ops.lsh_attention.operator`.
_FIELDS = {field.name: field.type.__name__ for field in fields(LocalOptions)}  # type: ignore[union-attr]
_OPTIONS = "str backend, " + ", ".join(f"{kind} {name}" for name, kind in _FIELDS.items())
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? padding"
_ATTENTION, _GRADIENTS = (f"reformer_lab::local_{name}" for name in ("attention", "attention_backward"))
torch.library.define(_ATTENTION, f"({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)")
torch.library.define(
    _GRADIENTS, f"({_INPUTS}, Tensor output, Tensor logsumexp, Tensor d_output, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)


def attend(backend: str, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, options: LocalOptions) -> Tensor:
    """Return the output (B, H, L, D_v). `backend`: "native", or "auto" for the best that can be used when it runs."""
    values = (getattr(options, name) for name in _FIELDS)
    output: Tensor = torch.ops.reformer_lab.local_attention(q, k, v, padding, backend, *values)[0]
    return output


def _options(values: tuple[Any, ...]) -> LocalOptions:
    return LocalOptions(**dict(zip(_FIELDS, values, strict=True)))


def _module(backend: str, q: Tensor) -> Any:
    return native if choose_backend(backend, q.device, q.dtype) == "native" else windows


@torch.library.impl(_ATTENTION, "cpu")
def _attention(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, backend: str, *options: Any
) -> tuple[Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _module(backend, q).forward(q, k, v, padding, _options(options))
    return result


@torch.library.register_fake(_ATTENTION)
def _attention_fake(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, backend: str, *options: Any
) -> tuple[Tensor, Tensor]:
    return empty_rows(v, v.shape[-1]), v.new_empty(v.shape[:3], dtype=accumulation_dtype(v.dtype))


@torch.library.impl(_GRADIENTS, "cpu")
def _gradients(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, output: Tensor, logsumexp: Tensor, d_output: Tensor,
    backend: str, *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(q.device.type, enabled=False):  # whoever asks for gradients may be under one
        result: tuple[Tensor, Tensor, Tensor] = _module(backend, q).backward(
            q, k, v, padding, output, logsumexp, _options(options), d_output
        )
    return result


@torch.library.register_fake(_GRADIENTS)
def _gradients_fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_rows(q, q.shape[-1]), empty_rows(k, k.shape[-1]), empty_rows(v, v.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, padding, *ctx.options = inputs
    attended, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(q, k, v, padding, attended, logsumexp)


def _backward(ctx: Any, d_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.reformer_lab.local_attention_backward(*ctx.saved_tensors, d_output, *ctx.options)
    return *gradients, None, *(None for _ in ctx.options)


torch.library.register_autograd(_ATTENTION, _backward, setup_context=_keep)


def _no_second_derivative(*_: Any) -> None:
    raise NotImplementedError("local_attention has no second derivative")


torch.library.register_autograd(_GRADIENTS, _no_second_derivative)
