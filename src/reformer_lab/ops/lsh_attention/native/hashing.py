"""Angular hashing on CPUs: products with the rotations and their argmax in one pass, nothing written but the buckets."""

import ctypes

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops.hashing import check_rotations
from reformer_lab.ops.lsh_attention.native import build
from reformer_lab.ops.lsh_attention.native.tensors import Tensor4, view
from reformer_lab.ops.softmax import accumulation_dtype

# Below this many rows in all rounds, starting a thread costs more than it saves.
ROWS_PER_THREAD = 1 << 12


class _HashProblem(ctypes.Structure):
    """The `HashProblem` of hash.h, field by field."""

    _fields_ = [
        ("x", Tensor4),
        ("rotations", ctypes.c_void_p),
        ("rotation_strides", ctypes.c_int64 * 5),
        ("factors", ctypes.POINTER(ctypes.c_int64)),
        ("buckets", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "width", "rounds", "num_factors", "threads")),
    ]


def hash_vectors(x: Tensor, rotations: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return what `reformer_lab.ops.hash_vectors` does, up to rounding where two columns are equally good to it.

    x (B, H, L, D) of any strides, fp64, fp32, bf16 or fp16, hashed in fp32 or better; rotations (B or 1, H or 1, D, R, F) that
    fit it. Returns bucket ids (B, H, R, L), int64. A vector with a NaN gets some valid id.
    """
    kernel, why_not = build.library()
    if kernel is None:
        raise UserError(f"backend='native' cannot be used: {why_not}")
    check_rotations(x, rotations, factors)
    batch, heads, length, width = x.shape
    dtype = accumulation_dtype(x.dtype)
    x = x.detach()
    rotations = rotations.detach().to(x.device, dtype).expand(batch, heads, -1, -1, -1)
    rounds = rotations.shape[3]
    buckets = torch.empty(batch, heads, rounds, length, dtype=torch.int64)
    problem = _HashProblem(
        x=view(x), rotations=rotations.data_ptr(), rotation_strides=(ctypes.c_int64 * 5)(*rotations.stride()),
        factors=(ctypes.c_int64 * len(factors))(*factors), buckets=buckets.data_ptr(), batch=batch, heads=heads, length=length,
        width=width, rounds=rounds, num_factors=len(factors),
        threads=max(1, min(torch.get_num_threads(), batch * heads * length * rounds // ROWS_PER_THREAD)),
    )  # fmt: skip
    function = kernel.lsh_hash_double if dtype == torch.float64 else kernel.lsh_hash_float
    if function(ctypes.byref(problem)):
        raise MemoryError("the native backend of lsh_attention found no memory for its work")
    return buckets
