"""LSH attention on GPUs in Triton: forward and backward over blocks of sorted tokens, and the hashing.

`sorting` and `attention` hold the kernels. They, and with them triton, are imported when they are first used: an installation
without triton loads this module and learns from `unusable` what it lacks. The reasons for the arrangement: docs/decisions/0014.
"""

import importlib.util
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.softmax import accumulation_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_WIDTH = 128
# Sequences (an example and head each) are taken together as long as what they need beside the tensors of the call stays
# below this; one sequence at least. 1,048,576 tokens of width 64 in four rounds need 0.75 GB.
SCRATCH_BYTES = 1 << 30
# Places and positions are 32-bit numbers, and so is a chunk's end.
MAX_LENGTH = 2**29
# Codes are 32-bit numbers up to this one.
MAX_CODE = 2**31 - 1


def unusable(device: torch.device | None = None, dtype: torch.dtype | None = None, width: int | None = None) -> str | None:
    """Return why the backend cannot be used for such tensors, or at all, and None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton, on Linux)"
    if os.environ.get("TRITON_INTERPRET") != "1":
        if device is not None and device.type != "cuda":
            return f"it computes on GPUs, the tensors are on {device}"
        if not torch.cuda.is_available():
            return "no GPU is there (TRITON_INTERPRET=1 runs it on CPUs, slowly, for tests)"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if dtype is not None and dtype not in DTYPES:
        return f"it knows no {dtype}"
    if width is not None and width > MAX_WIDTH:
        return f"heads of width {width} are beyond {MAX_WIDTH}"
    return None


def forward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output (B, H, L, D_v), and (B, H, L) each the logsumexp, the maximum and the total of the logits seen."""
    call = _Call(qk_BHLD, v_BHLD, buckets_BHRL, padding_BL, options)
    output = call.v.new_empty(v_BHLD.shape)
    logsumexp, maximum, total = (call.v.new_empty(qk_BHLD.shape[:3], dtype=call.precise) for _ in range(3))
    with torch.cuda.device_of(qk_BHLD):
        for part in call.parts():
            part.rounds(
                call.kernels.attention.forward,
                (call.qk, call.v, *part.layout, part.sums(output), maximum, total, output, logsumexp),
                (*call.qk.stride()[:3], *call.v.stride()[:3]),
            )  # fmt: skip
    return output, logsumexp, maximum, total


def backward(
    qk_BHLD: Tensor,
    v_BHLD: Tensor,
    buckets_BHRL: Tensor,
    padding_BL: Tensor | None,
    output_BHLD: Tensor,
    maximum_BHL: Tensor,
    total_BHL: Tensor,
    options: LSHOptions,
    d_output_BHLD: Tensor,
    d_logsumexp_BHL: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qk and v from those of the output and the logsumexp."""
    call = _Call(qk_BHLD, v_BHLD, buckets_BHRL, padding_BL, options)
    output, maximum, total = output_BHLD.contiguous(), maximum_BHL.contiguous(), total_BHL.contiguous()
    d_output = _rows(d_output_BHLD.to(v_BHLD.dtype))
    d_qk, d_v = call.qk.new_empty(qk_BHLD.shape), call.v.new_empty(v_BHLD.shape)
    with torch.cuda.device_of(qk_BHLD):
        for part in call.parts():
            statistics = maximum.new_empty(part.count, call.length, 4)
            blocks = -(-call.length // ROW_BLOCK)
            call.kernels.attention.row_statistics[(blocks * part.count,)](
                output, d_output, maximum, total, d_logsumexp_BHL, statistics, part.first, call.heads, call.length, blocks,
                *d_output.stride()[:3], *d_logsumexp_BHL.stride(), call.width_v, call.sizes["D_V"], ROW_BLOCK,
            )  # fmt: skip
            part.rounds(
                call.kernels.attention.backward,
                (call.qk, call.v, d_output, *part.layout, statistics, part.sums(d_qk), part.sums(d_v), d_qk, d_v),
                (*call.qk.stride()[:3], *call.v.stride()[:3], *d_output.stride()[:3]),
            )  # fmt: skip
    return d_qk, d_v


def hash_vectors(x: Tensor, rotations: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return the bucket ids of ops/hashing.py's `hash_vectors`, without writing the projections down."""
    kernels = _kernels()
    batch, heads, length, width = x.shape
    rounds = rotations.shape[3]
    x = _rows(x.detach())
    rotations = rotations.detach().to(x.device, accumulation_dtype(x.dtype)).contiguous()
    rotations = rotations.expand(batch, heads, -1, -1, -1)
    buckets = torch.empty(batch, heads, rounds, length, dtype=torch.int64, device=x.device)
    blocks = -(-length // HASH_ROWS)
    radix, column = 1, 0
    with torch.cuda.device_of(x):
        for factor in factors:
            kernels.sorting.hash_digit[(blocks * batch * heads * rounds,)](
                x, rotations, buckets, heads, length, rounds, blocks, *x.stride()[:3], *rotations.stride()[:4], width,
                column, factor // 2, radix, _product_type(kernels, x.dtype), _padded(width), HASH_ROWS, HASH_COLUMNS,
            )  # fmt: skip
            radix, column = radix * factor, column + factor // 2
    return buckets


# Rows of a program of the kernels that only stream, and of hashing.
ROW_BLOCK = 64
HASH_ROWS, HASH_COLUMNS = 64, 32
LAYOUT_BLOCK = 256


def block_sizes(dtype: torch.dtype, widest: int, interpreted: bool = False) -> dict[str, int]:
    """Return how many places a program owns, how many others it looks at in a step, and its warps.

    The others: about as many as a bucket holds by default. Warps: what the kernels' registers allow (docs/decisions/0014).
    """
    if interpreted:
        return {"OWN": 64, "OTHERS": 64}  # its time goes by the operation, not by the number
    if dtype in (torch.bfloat16, torch.float16):
        return {"OWN": 64, "OTHERS": 32, "num_warps": 4 if widest <= 64 else 8, "num_stages": 2}
    return {"OWN": 32, "OTHERS": 32, "num_warps": 8, "num_stages": 2}


class _Call:
    """The tensors of one call as the kernels take them, and the numbers that all launches share."""

    def __init__(self, qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions):
        self.kernels = _kernels()
        self.batch, self.heads, self.length, self.width = qk_BHLD.shape
        self.width_v = v_BHLD.shape[-1]
        self.qk, self.v = _rows(qk_BHLD), _rows(v_BHLD)
        self.precise = accumulation_dtype(qk_BHLD.dtype)
        self.buckets = buckets_BHRL.reshape(self.batch * self.heads, -1, self.length)
        self.padding = padding_BL
        self.options = options
        if self.length > MAX_LENGTH:
            raise UserError(f"length={self.length} is beyond the 32-bit numbers of backend='triton': use backend='torch'")
        whole = options.coverage == "bucket"
        chunk_length = min(options.chunk_length, self.length)
        chunks = -(-self.length // chunk_length)
        # A window wider than the sequence sees the same as one that spans it.
        before, after = (0 if whole else min(n, chunks) for n in (options.chunks_before, options.chunks_after))
        self.chunk_length, self.apart = chunk_length, before + after + 1
        self.code_dtype = torch.int32 if self.length * (self.apart + 1) <= MAX_CODE else torch.int64
        self.numbers = (
            self.width, self.width_v, chunk_length, before, after, _as_int32(options.dropout_seed),
            _as_int32(int(options.dropout_p * 2**32)), 1 / (1 - options.dropout_p), options.logit_scale,
        )  # fmt: skip
        self.kind: dict[str, Any] = {"WHOLE": whole, "CROSS": options.cross_bucket}
        widths = _padded(self.width), _padded(self.width_v)
        self.sizes: dict[str, Any] = {
            "EARLIER": options.num_hashes - 1 if options.correct_duplicates else 0, "CAUSAL": options.causal,
            "DROPOUT": options.dropout_p > 0, "PRODUCT": _product_type(self.kernels, self.qk.dtype), "D": widths[0],
            "D_V": widths[1], **self.kind, **block_sizes(self.qk.dtype, max(widths), self.kernels.blocks.INTERPRETED),
        }  # fmt: skip

    def parts(self) -> Iterator["_Part"]:
        """Yield the sequences, as many together as the scratch memory holds."""
        rounds, digits = self.options.num_hashes, self.precise.itemsize
        # Sorting: keys and places, twice each; then order, begin, end and codes.
        layout = rounds * (4 * 8 + 3 * 4 + self.code_dtype.itemsize)
        bytes_each = self.length * (layout + (self.width + self.width_v + 4) * digits)
        together = max(1, SCRATCH_BYTES // bytes_each)
        sequences = self.batch * self.heads
        for first in range(0, sequences, together):
            yield _Part(self, first, min(together, sequences - first))


class _Part:
    """Some of the sequences, with the sorted order of all their rounds: (S, R, L), and codes (S, L, R)."""

    def __init__(self, call: _Call, first: int, count: int):
        self.call, self.first, self.count = call, first, count
        length, rounds = call.length, call.options.num_hashes
        keys = call.buckets[first : first + count]
        if call.padding is not None:
            padding = call.padding[:, None].expand(-1, call.heads, -1).reshape(-1, 1, length)[first : first + count]
            keys = keys.masked_fill(padding, call.kernels.sorting.PADDING_KEY.value)
        keys, places = keys.sort(dim=-1, stable=True)
        order, begin, end = (torch.empty_like(keys, dtype=torch.int32) for _ in range(3))
        codes = torch.empty(count, length, rounds, dtype=call.code_dtype, device=keys.device)
        blocks = -(-length // LAYOUT_BLOCK)
        call.kernels.sorting.layout[(blocks * count * rounds,)](
            keys, places, order, begin, end, codes, length, rounds, blocks, length.bit_length(), call.chunk_length, call.apart,
            **call.kind, BLOCK=LAYOUT_BLOCK,
        )  # fmt: skip
        self.layout = order, begin, end, codes

    def sums(self, result: Tensor) -> Tensor:
        """Return where the rounds of these sequences add up what becomes `result`: there, if it is precise enough."""
        flat = result.flatten(0, 1)[self.first : self.first + self.count]
        return flat if result.dtype == self.call.precise else torch.empty_like(flat, dtype=self.call.precise)

    def rounds(self, kernel: Any, tensors: tuple[Tensor, ...], strides: tuple[int, ...]) -> None:
        """Launch a kernel once for each hash round."""
        call, options = self.call, self.call.options
        blocks = -(-call.length // call.sizes["OWN"])
        for hash_round in range(options.num_hashes):
            kernel[(blocks * self.count,)](
                *tensors, self.first, call.heads, call.length, options.num_hashes, blocks, *strides, *call.numbers,
                hash_round, **call.sizes,
            )  # fmt: skip


def _kernels() -> Any:
    """Return the modules of the kernels by their names."""
    from reformer_lab.ops.lsh_attention.triton import attention, blocks, sorting

    return SimpleNamespace(attention=attention, blocks=blocks, sorting=sorting)


def _rows(x: Tensor) -> Tensor:
    """Return x with rows that are contiguous in themselves, however they lie."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _padded(width: int) -> int:
    """Return the least width that matrix products take: a power of two from 16 on."""
    return max(16, 1 << (width - 1).bit_length())


def _as_int32(number: int) -> int:
    """Return the number with the same low 32 bits that an int32 can hold."""
    number &= 0xFFFFFFFF
    return number - 2**32 if number >= 2**31 else number


def _product_type(kernels: Any, dtype: torch.dtype) -> Any:
    """Return the type in which matrices are multiplied: their own; the interpreter knows no products of bf16."""
    if kernels.blocks.INTERPRETED and dtype == torch.bfloat16:
        dtype = torch.float32
    return getattr(kernels.blocks.tl, str(dtype).removeprefix("torch."))
