"""LSH attention on CPUs in C++: forward and backward over cache-sized blocks of sorted tokens.

The kernel (kernel.cpp and its headers) knows neither torch nor Python. `build` compiles it for this machine on first use
and keeps it in the cache; without a compiler the backend cannot be used, and `unusable` says why.
"""

import ctypes

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.lsh_attention.native import build
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.softmax import accumulation_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Below this many rows in all rounds, starting a thread costs more than it saves.
ROWS_PER_THREAD = 1 << 12
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
    output_BHLD, logsumexp_BHL = torch.empty_like(call.v), call.v.new_empty(qk_BHLD.shape[:3])
    maximum, total = torch.empty_like(logsumexp_BHL), torch.empty_like(logsumexp_BHL)
    call.run("forward", output_BHLD, maximum, total, logsumexp_BHL)
    return output_BHLD.to(v_BHLD.dtype), logsumexp_BHL, maximum, total


def backward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, output_BHLD: Tensor, maximum: Tensor,
    total: Tensor, options: LSHOptions, d_output_BHLD: Tensor, d_logsumexp_BHL: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of qk and v."""
    call = _Call(qk_BHLD, v_BHLD, buckets_BHRL, padding_BL, options)
    d_qk_BHLD, d_v_BHLD = torch.empty_like(call.qk), torch.empty_like(call.v)
    rows = [x.to(call.qk.dtype).contiguous() for x in (output_BHLD, maximum, total, d_output_BHLD, d_logsumexp_BHL)]
    call.run("backward", *rows, d_qk_BHLD, d_v_BHLD)
    return d_qk_BHLD.to(qk_BHLD.dtype), d_v_BHLD.to(v_BHLD.dtype)


class _Problem(ctypes.Structure):
    """The `Problem` of layout.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("qk", "v", "buckets", "padding")),
        *((name, ctypes.c_int64) for name in (
            "sequences", "heads", "length", "width", "width_v", "rounds", "chunk_length", "before", "after",
            "causal", "whole_buckets", "cross_bucket", "corrected", "threads",
        )),
        *((name, ctypes.c_double) for name in ("logit_scale", "keep_factor")),
        *((name, ctypes.c_int64) for name in ("drop_below", "dropout_seed")),
    ]  # fmt: skip


class _Call:
    """The kernel's view of the tensors of one call. It holds them as long as the kernel needs them."""

    def __init__(self, qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions):
        batch, heads, length, width = qk_BHLD.shape
        dtype = accumulation_dtype(qk_BHLD.dtype)
        self.qk, self.v = qk_BHLD.detach().to(dtype).contiguous(), v_BHLD.detach().to(dtype).contiguous()
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
            qk=self.qk.data_ptr(), v=self.v.data_ptr(), buckets=self.buckets.data_ptr(),
            padding=None if self.padding is None else self.padding.data_ptr(),
            sequences=batch * heads, heads=heads, length=length, width=width, width_v=v_BHLD.shape[-1],
            rounds=options.num_hashes, chunk_length=min(options.chunk_length, length), before=before, after=after,
            causal=options.causal, whole_buckets=whole, cross_bucket=options.cross_bucket, corrected=options.correct_duplicates,
            threads=max(1, min(torch.get_num_threads(), work // ROWS_PER_THREAD)),
            logit_scale=options.logit_scale, keep_factor=1 / (1 - options.dropout_p),
            drop_below=int(options.dropout_p * 2**32), dropout_seed=options.dropout_seed,
        )  # fmt: skip

    def run(self, name: str, *tensors: Tensor) -> None:
        """Call lsh_<name> with contiguous tensors of the precision of `qk`, the last of them to be filled."""
        kernel, why_not = build.library()
        if kernel is None:
            raise UserError(f"backend='native' cannot be used: {why_not}")
        assert all(x.is_contiguous() and x.dtype == self.qk.dtype for x in tensors)
        function = getattr(kernel, f"lsh_{name}_{'double' if self.qk.dtype == torch.float64 else 'float'}")
        if function(ctypes.byref(self.problem), *(ctypes.c_void_p(x.data_ptr()) for x in tensors)):
            raise MemoryError("the native backend of lsh_attention found no memory for its work")
