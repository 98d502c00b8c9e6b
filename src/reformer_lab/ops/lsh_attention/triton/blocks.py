"""What all kernels of the Triton backend share: how they are compiled, and blocks of rows that are fetched by position.

The suffix _ptr marks pointers, capitals what is compiled in.
"""

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Run by triton's interpreter (TRITON_INTERPRET=1) instead of compiled."""
# The interpreter sets the language up anew for each call of a jitted function: a third of its time. A kernel's call is enough.
inner = (lambda function: function) if INTERPRETED else triton.jit

CHANGING = [
    "first", "heads", "rounds", "blocks", "steps", "before", "after", "apart", "seed", "drop_below", "hash_round",
    "first_column", "half", "radix",
]  # fmt: skip
"""Numbers that must not make another variant of a kernel when they happen to be 1, or divisible by 16."""


@inner
def load_rows(rows_ptr, position, wanted, stride, width, BLOCK: tl.constexpr):
    """Fetch rows by position; zeros where not wanted and beyond the width."""
    column = tl.arange(0, BLOCK)
    at = position.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(rows_ptr + at, mask=wanted[:, None] & (column < width)[None, :], other=0.0)


@inner
def store_rows(rows_ptr, position, wanted, value, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    at = position.to(tl.int64)[:, None] * width + column[None, :]
    value = value.to(rows_ptr.dtype.element_ty)
    tl.store(rows_ptr + at, value, mask=wanted[:, None] & (column < width)[None, :])


@inner
def product(a, b, PRODUCT: tl.constexpr):
    """Return a @ b, summed in fp32 or fp64. fp32 is multiplied as such, never as TF32."""
    return tl.dot(a.to(PRODUCT), b.to(PRODUCT), input_precision="ieee")
