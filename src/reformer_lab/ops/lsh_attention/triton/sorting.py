"""The kernels before attention: hashing, and from the sorted buckets what a place needs to know of its own.

Places, positions and ranges fit in 32 bits; pointers to what belongs to one sequence are moved to it first, in 64. The suffix
_ptr marks pointers, capitals what is compiled in.
"""

import triton
import triton.language as tl

from reformer_lab.ops.lsh_attention.triton.blocks import CHANGING, inner, load_rows, product

PADDING_KEY = tl.constexpr(2**63 - 1)
"""What padding sorts by: behind every bucket."""


@triton.jit(do_not_specialize=CHANGING)
def hash_digit(
    x_ptr, rotations_ptr, buckets_ptr, heads, length, rounds, blocks, x_batch, x_head, x_row,
    rotations_batch, rotations_head, rotations_row, rotations_round, width, first_column, half, radix,
    PRODUCT: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add one factor's digit, argmax [x R ; -x R] over its `half` columns, times the radix, to the buckets (B, H, R, L).

    The product is that of fp32 also for a half-precision x: R is then split into three numbers of that precision, which hold
    its digits, so that it is three products on tensor cores.
    """
    hash_round = tl.program_id(0) % rounds
    block = tl.program_id(0) // rounds
    sequence = (block // blocks).to(tl.int64)
    position = block % blocks * ROWS + tl.arange(0, ROWS)
    there = position < length
    precise = rotations_ptr.dtype.element_ty
    x_ptr += sequence // heads * x_batch + sequence % heads * x_head
    x = load_rows(x_ptr, position, there, x_row, width, D)
    rotations_ptr += sequence // heads * rotations_batch + sequence % heads * rotations_head + hash_round * rotations_round
    row = tl.arange(0, D)
    highest, lowest = tl.full([ROWS], float("-inf"), precise), tl.full([ROWS], float("inf"), precise)
    high_at, low_at = tl.full([ROWS], 0, tl.int32), tl.full([ROWS], 0, tl.int32)
    for start in range(0, half, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        wanted = column < half
        rotations = tl.load(
            rotations_ptr + row[:, None] * rotations_row + (first_column + column)[None, :],
            mask=(row < width)[:, None] & wanted[None, :], other=0.0,
        )  # fmt: skip
        projected = tl.full([ROWS, COLUMNS], 0, precise)
        if x.dtype == precise:
            projected = product(x, rotations, PRODUCT)
        else:
            for _ in tl.static_range(3):
                part = rotations.to(x.dtype)
                projected += product(x, part, PRODUCT)
                rotations -= part.to(precise)
        high, at = tl.max(tl.where(wanted[None, :], projected, float("-inf")), 1, return_indices=True)
        # Only what is greater: the first of equal ones wins.
        high_at, highest = tl.where(high > highest, start + at, high_at), tl.maximum(high, highest)
        low, at = tl.min(tl.where(wanted[None, :], projected, float("inf")), 1, return_indices=True)
        low_at, lowest = tl.where(low < lowest, start + at, low_at), tl.minimum(low, lowest)
    digit = tl.where(highest >= -lowest, high_at, low_at + half).to(tl.int64) * radix
    at = (sequence * rounds + hash_round) * length + position
    if first_column > 0:
        digit += tl.load(buckets_ptr + at, mask=there, other=0)
    tl.store(buckets_ptr + at, digit, mask=there)


@inner
def _lower_bound(keys_ptr, target, length, steps):
    """Return the first place whose key is not below the target, in `steps` halvings of [0, length)."""
    low = target.to(tl.int32) * 0
    high = low + length
    for _ in range(steps):
        middle = (low + high) // 2
        searching = low < high
        below = searching & (tl.load(keys_ptr + middle, mask=searching, other=0) < target)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit(do_not_specialize=CHANGING)
def layout(
    keys_ptr, places_ptr, order_ptr, begin_ptr, end_ptr, codes_ptr, length, rounds, blocks, steps, chunk_length, apart,
    WHOLE: tl.constexpr, CROSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the sorted keys and their positions (S, R, L): the order and the run [begin, end) of a place's bucket in 32 bits,
    (S, R, L), and each position's codes (S, L, R). Padding has the run [0, 0); with CROSS the run is all that is no padding."""
    row = tl.program_id(0) // blocks
    sequence, hash_round = (row // rounds).to(tl.int64), row % rounds
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = place < length
    keys_ptr += row.to(tl.int64) * length
    at = row.to(tl.int64) * length + place
    key = tl.load(keys_ptr + place, mask=there, other=0)
    position = tl.load(places_ptr + at, mask=there, other=0)
    padding = key == PADDING_KEY
    if CROSS:
        begin = place * 0
        end = _lower_bound(keys_ptr, key * 0 + PADDING_KEY, length, steps)
    else:
        begin = _lower_bound(keys_ptr, key, length, steps)
        end = _lower_bound(keys_ptr, tl.where(padding, key, key + 1), length, steps)
    code = (place // chunk_length).to(codes_ptr.dtype.element_ty)
    if WHOLE:
        code = begin.to(code.dtype)
    elif not CROSS:
        code += begin.to(code.dtype) * apart
    tl.store(order_ptr + at, position.to(tl.int32), mask=there)
    tl.store(begin_ptr + at, tl.where(padding, 0, begin), mask=there)
    tl.store(end_ptr + at, tl.where(padding, 0, end), mask=there)
    tl.store(codes_ptr + (sequence * length + position) * rounds + hash_round, code, mask=there)
