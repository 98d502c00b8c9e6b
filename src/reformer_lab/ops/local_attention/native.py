"""Local attention on CPUs by the compiled kernel (native/local.h of ops.lsh_attention): no windows are ever copied out."""

import ctypes

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.lsh_attention.native import build
from reformer_lab.ops.lsh_attention.native.tensors import Tensor4, view
from reformer_lab.ops.memory import empty_rows
from reformer_lab.ops.softmax import accumulation_dtype

# Below this many rows, starting a thread costs more than it saves.
ROWS_PER_THREAD = 1 << 11


def forward(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, options: LocalOptions) -> tuple[Tensor, Tensor]:
    """Return output and logsumexp (see `operator`)."""
    call = _Call(q, k, v, padding, options)
    output, logsumexp = empty_rows(v, v.shape[-1]), v.new_empty(v.shape[:3], dtype=call.dtype)
    call.run("forward", output, logsumexp)
    return output, logsumexp


def backward(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, output: Tensor, logsumexp: Tensor, options: LocalOptions,
    d_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    call = _Call(q, k, v, padding, options)
    gradients = tuple(empty_rows(x, x.shape[-1]) for x in (q, k, v))
    call.run("backward", output.detach(), d_output.detach(), logsumexp.contiguous(), *gradients)
    return gradients  # type: ignore[return-value]


class _Problem(ctypes.Structure):
    """The `local::Problem` of local_tile.h, field by field."""

    _fields_ = [
        *((name, Tensor4) for name in ("q", "k", "v")),
        ("padding", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in (
            "batch", "heads", "length", "width", "width_v", "chunk_length", "before", "after", "causal", "threads",
        )),
        *((name, ctypes.c_double) for name in ("scale", "keep_factor")),
        *((name, ctypes.c_int64) for name in ("drop_below", "dropout_seed")),
    ]  # fmt: skip


class _Call:
    """The kernel's view of the tensors of one call. It holds them as long as the kernel needs them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, options: LocalOptions):
        batch, heads, length, width = q.shape
        self.dtype = accumulation_dtype(q.dtype)
        self.inputs = [x.detach() for x in (q, k, v)]
        self.padding = None if padding is None else padding.contiguous()
        chunks = -(-length // options.chunk_length)
        # A window wider than the sequence sees the same as one that spans it.
        before, after = (min(n, chunks) for n in (options.chunks_before, options.chunks_after))
        views = dict(zip("qkv", (view(x) for x in self.inputs), strict=True))
        self.problem = _Problem(
            **views, padding=None if self.padding is None else self.padding.data_ptr(), batch=batch, heads=heads, length=length,
            width=width, width_v=v.shape[-1], chunk_length=options.chunk_length, before=before,
            after=0 if options.causal else after, causal=options.causal,
            threads=max(1, min(torch.get_num_threads(), batch * heads * length // ROWS_PER_THREAD)), scale=width**-0.5,
            keep_factor=1 / (1 - options.dropout_p), drop_below=int(options.dropout_p * 2**32),
            dropout_seed=options.dropout_seed,
        )  # fmt: skip

    def run(self, name: str, *tensors: Tensor) -> None:
        """Call local_<name>: tensors of four dimensions are of any strides, the logsumexp (B, H, L) contiguous."""
        kernel, why_not = build.library()
        if kernel is None:
            raise UserError(f"backend='native' cannot be used: {why_not}")
        function = getattr(kernel, f"local_{name}_{'double' if self.dtype == torch.float64 else 'float'}")
        views = [ctypes.byref(view(x)) if x.dim() == 4 else ctypes.c_void_p(x.data_ptr()) for x in tensors]
        if function(ctypes.byref(self.problem), *views):
            raise MemoryError("the native backend of local_attention found no memory for its work")
