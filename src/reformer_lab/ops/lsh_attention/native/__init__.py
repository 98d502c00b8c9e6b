"""LSH attention on CPUs in C++: forward and backward over cache-sized blocks of sorted tokens.

The kernel (kernel.cpp and its headers) knows neither torch nor Python. `build` compiles it for this machine on first use
and keeps it in the cache; without a compiler the backend cannot be used, and `unusable` says why.
"""

import ctypes

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.lsh_attention.native import build
from reformer_lab.ops.lsh_attention.native.hashing import hash_vectors
from reformer_lab.ops.lsh_attention.native.tensors import DTYPES, Tensor4, view
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.softmax import accumulation_dtype

__all__ = ["backward", "forward", "hash_vectors", "unusable"]

# Below this many rows in all rounds, starting a thread costs more than it saves.
ROWS_PER_THREAD = 1 << 12
# Memory for the rows of sequences that are worked on side by side; a longer sequence stays in its tensors.
RECORDS_BYTES = 512 << 20
# Places and codes of the kernel are 32-bit numbers.
CODE_LIMIT = 2**30


def unusable(device: torch.device | None = None, dtype: torch.dtype | None = None) -> str | None:
    """Return why the backend cannot be used for such tensors, or at all, and None if it can. May compile the kernel."""
    if device is not None and device.type != "cpu":
        return f"it computes on CPUs, the tensors are on {device}"
    if dtype is not None and dtype not in DTYPES:
        return f"it knows no {dtype}"
    return build.library()[1]


def forward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, logsumexp, maximum and total (see `operator`)."""
    call = _Call(qk_BHLD, v_BHLD, buckets_BHRL, padding_BL, options)
    output_BHLD = v_BHLD.new_empty(v_BHLD.shape)
    sums = [output_BHLD.new_empty(qk_BHLD.shape[:3], dtype=call.dtype) for _ in range(3)]
    call.run("forward", output_BHLD, *sums)
    return output_BHLD, *sums  # type: ignore[return-value]


def backward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, output_BHLD: Tensor, maximum: Tensor,
    total: Tensor, options: LSHOptions, d_output_BHLD: Tensor, d_logsumexp_BHL: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of qk and v."""
    call = _Call(qk_BHLD, v_BHLD, buckets_BHRL, padding_BL, options)
    d_qk_BHLD, d_v_BHLD = qk_BHLD.new_empty(qk_BHLD.shape), v_BHLD.new_empty(v_BHLD.shape)
    saved = [x.to(call.dtype).contiguous() for x in (maximum, total, d_logsumexp_BHL)]
    call.run("backward", output_BHLD.detach(), d_output_BHLD.detach(), *saved, d_qk_BHLD, d_v_BHLD)
    return d_qk_BHLD, d_v_BHLD


class _Problem(ctypes.Structure):
    """The `Problem` of layout.h, field by field."""

    _fields_ = [
        *((name, Tensor4) for name in ("qk", "v")),
        *((name, ctypes.c_void_p) for name in ("buckets", "padding")),
        *((name, ctypes.c_int64) for name in (
            "batch", "heads", "length", "width", "width_v", "rounds", "chunk_length", "before", "after",
            "causal", "whole_buckets", "cross_bucket", "corrected", "threads", "records_bytes",
        )),
        *((name, ctypes.c_double) for name in ("logit_scale", "keep_factor")),
        *((name, ctypes.c_int64) for name in ("drop_below", "dropout_seed")),
    ]  # fmt: skip


class _Call:
    """The kernel's view of the tensors of one call. It holds them as long as the kernel needs them."""

    def __init__(self, qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions):
        batch, heads, length, width = qk_BHLD.shape
        self.dtype = accumulation_dtype(qk_BHLD.dtype)
        self.qk, self.v = qk_BHLD.detach(), v_BHLD.detach()
        self.buckets = buckets_BHRL.contiguous()
        self.padding = None if padding_BL is None else padding_BL.contiguous()
        chunks = -(-length // options.chunk_length)
        whole = options.coverage == "bucket"
        # A window wider than the sequence sees the same as one that spans it.
        before, after = (0 if whole else min(n, chunks) for n in (options.chunks_before, options.chunks_after))
        if length * (before + after + 2) >= CODE_LIMIT:
            raise UserError(
                f"length={length} with windows of {before + after + 1} chunks is beyond the 32-bit numbers of "
                "backend='native': use backend='torch'"
            )
        work = batch * heads * length * options.num_hashes
        self.problem = _Problem(
            qk=view(self.qk), v=view(self.v), buckets=self.buckets.data_ptr(),
            padding=None if self.padding is None else self.padding.data_ptr(),
            batch=batch, heads=heads, length=length, width=width, width_v=v_BHLD.shape[-1],
            rounds=options.num_hashes, chunk_length=min(options.chunk_length, length), before=before, after=after,
            causal=options.causal, whole_buckets=whole, cross_bucket=options.cross_bucket, corrected=options.correct_duplicates,
            threads=max(1, min(torch.get_num_threads(), work // ROWS_PER_THREAD)),
            records_bytes=RECORDS_BYTES, logit_scale=options.logit_scale, keep_factor=1 / (1 - options.dropout_p),
            drop_below=int(options.dropout_p * 2**32), dropout_seed=options.dropout_seed,
        )  # fmt: skip

    def run(self, name: str, *tensors: Tensor) -> None:
        """Call lsh_<name>: tensors of four dimensions are of any strides, those of three (B, H, L) contiguous in `dtype`."""
        kernel, why_not = build.library()
        if kernel is None:
            raise UserError(f"backend='native' cannot be used: {why_not}")
        function = getattr(kernel, f"lsh_{name}_{'double' if self.dtype == torch.float64 else 'float'}")
        if function(ctypes.byref(self.problem), *(self._argument(x) for x in tensors)):
            raise MemoryError("the native backend of lsh_attention found no memory for its work")

    def _argument(self, x: Tensor) -> object:
        if x.dim() == 4:
            assert x.dtype == self.qk.dtype
            return ctypes.byref(view(x))
        assert x.is_contiguous()
        assert x.dtype == self.dtype
        return ctypes.c_void_p(x.data_ptr())
