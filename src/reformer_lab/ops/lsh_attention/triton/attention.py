"""The attention kernels of the Triton backend. What they compute: ../README.md; how they are called: __init__.py.

A program takes one block of sorted *places* of one sequence (one example and head) in one hash round. Whom a place may see
is one range of places (README.md, "The native backend"), so a program walks from the least to the greatest place that any
of its own may see, fetching rows by the position that `order` holds for a place. It alone writes its own rows, so every
sum has one order and no atomic operation is needed; the rounds follow one another as launches.

Pointers to what belongs to one sequence are moved to it first, in 64 bits; places, positions and ranges fit in 32.
The suffix _ptr marks pointers, capitals what is compiled in.
"""

import triton
import triton.language as tl

from reformer_lab.ops.lsh_attention.triton.blocks import CHANGING, inner, load_rows, product, store_rows


@inner
def _inverse_length(x):
    """Return 1 / |x| of each row, and 0 for the zero vector."""
    squared = tl.sum(x * x, 1)
    return tl.where(squared > 0, 1 / tl.sqrt(tl.where(squared > 0, squared, 1.0)), 0.0)


@inner
def _unit_length(x, inverse_length):
    """Return x / |x| in the precision of x."""
    return (x.to(inverse_length.dtype) * inverse_length[:, None]).to(x.dtype)


@inner
def _key(k, inverse_length, scale):
    """Return what the logits q . k/|k| times the scale are products with, and the factor of each.

    Half precisions multiply by k as it is and divide afterwards: they would round k/|k|. The others divide first: a length
    is rounded too, and after the product that would be one error in all of a key's logits, as large as they are.
    """
    if k.dtype == inverse_length.dtype:
        return _unit_length(k, inverse_length), scale
    else:
        return k, inverse_length * scale


@inner
def _window(place, begin, end, chunk_length, back, ahead, WHOLE: tl.constexpr):
    """Return the places from `back` chunks before that of a place to `ahead` chunks after it, within [begin, end)."""
    if not WHOLE:
        chunk = place // chunk_length
        begin = tl.maximum(begin, (chunk - back) * chunk_length)
        end = tl.minimum(end, (chunk + ahead + 1) * chunk_length)
    return begin, end


@inner
def _hull(low, high, length):
    """Return one range that holds all the ranges [low, high) of a block."""
    some = low < high
    return tl.min(tl.where(some, low, length), 0), tl.max(tl.where(some, high, 0), 0)


@inner
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@inner
def _keeps(sequence, query, key, seed, drop_below):
    """`keep_pairs` of ops/random.py for tensors that broadcast; 32-bit numbers wrap around here as they are masked there."""
    state = _mix(query.to(tl.uint32) * 0 + sequence.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32))
    state = _mix(state ^ (query.to(tl.uint32) * 0x85EBCA6B))
    state = _mix(state ^ (key.to(tl.uint32) * 0xC2B2AE35))
    return state >= drop_below.to(tl.uint32)


@inner
def _visible(
    low, high, own, other_place, other, own_there, other_there, codes_ptr, hash_round, rounds, before, after,
    OWN_ARE_KEYS: tl.constexpr, CAUSAL: tl.constexpr, CROSS: tl.constexpr, EARLIER: tl.constexpr,
):  # fmt: skip
    """Say which pairs count in this round: rows are a program's own tokens with their ranges, columns are others.

    own, other: their positions. EARLIER: the greatest number of rounds before this one that may have found a pair, so that
    all rounds are one variant of the kernel and the loop over them unrolls.
    """
    visible = (low[:, None] <= other_place[None, :]) & (other_place[None, :] < high[:, None])
    if CAUSAL and CROSS:
        if OWN_ARE_KEYS:
            visible &= own[:, None] < other[None, :]
        else:
            visible &= other[None, :] < own[:, None]
    elif not CAUSAL:
        visible &= own[:, None] != other[None, :]
    for earlier in tl.static_range(EARLIER):
        is_earlier = earlier < hash_round
        own_code = tl.load(codes_ptr + own.to(tl.int64) * rounds + earlier, mask=own_there & is_earlier, other=0)
        other_code = tl.load(codes_ptr + other.to(tl.int64) * rounds + earlier, mask=other_there & is_earlier, other=0)
        away = own_code[:, None] - other_code[None, :]
        if OWN_ARE_KEYS:
            away = -away
        visible &= (away > before) | (away < -after) | (earlier >= hash_round)
    return visible


@triton.jit(do_not_specialize=CHANGING)
def forward(
    qk_ptr, v_ptr, order_ptr, begin_ptr, end_ptr, codes_ptr, sums_ptr, maximum_ptr, total_ptr, output_ptr, logsumexp_ptr,
    first, heads, length, rounds, blocks, qk_batch, qk_head, qk_row, v_batch, v_head, v_row,
    width, width_v, chunk_length, before, after, seed, drop_below, keep_factor: tl.float64, scale: tl.float64, hash_round,
    EARLIER: tl.constexpr, WHOLE: tl.constexpr, CROSS: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRODUCT: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """One round of the forward pass for OWN queries; it adds to what the rounds before left, and the last one finishes.

    `sums` (S, L, D_v): sum of exp(logit - maximum) v, in the precision of the sums.
    """
    local = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = first + local
    qk_ptr += sequence // heads * qk_batch + sequence % heads * qk_head
    v_ptr += sequence // heads * v_batch + sequence % heads * v_head
    order_ptr += (local * rounds + hash_round) * length
    begin_ptr += (local * rounds + hash_round) * length
    end_ptr += (local * rounds + hash_round) * length
    codes_ptr += local * length * rounds
    sums_ptr += local * length * width_v
    maximum_ptr += sequence * length
    total_ptr += sequence * length
    precise = maximum_ptr.dtype.element_ty
    scale, keep_factor = tl.full([1], scale, precise), tl.full([1, 1], keep_factor, precise)

    place = tl.program_id(0) % blocks * OWN + tl.arange(0, OWN)
    there = place < length
    position = tl.load(order_ptr + place, mask=there, other=0)
    begin = tl.load(begin_ptr + place, mask=there, other=0)
    end = tl.load(end_ptr + place, mask=there, other=0)
    low, high = _window(place, begin, end, chunk_length, before, after, WHOLE)
    if CAUSAL and not CROSS:
        high = tl.minimum(high, place)
    q = load_rows(qk_ptr, position, there, qk_row, width, D)

    if hash_round == 0:
        maximum = tl.full([OWN], float("-inf"), precise)
        total = tl.full([OWN], 0, precise)
        sums = tl.full([OWN, D_V], 0, precise)
    else:
        maximum = tl.load(maximum_ptr + position, mask=there, other=float("-inf"))
        total = tl.load(total_ptr + position, mask=there, other=0.0)
        sums = load_rows(sums_ptr, position, there, width_v, width_v, D_V)

    start, stop = _hull(low, high, length)
    for key_start in range(start, stop, OTHERS):
        key_place = key_start + tl.arange(0, OTHERS)
        key_there = key_place < stop
        key_position = tl.load(order_ptr + key_place, mask=key_there, other=0)
        k = load_rows(qk_ptr, key_position, key_there, qk_row, width, D)
        v = load_rows(v_ptr, key_position, key_there, v_row, width_v, D_V)
        visible = _visible(
            low, high, position, key_place, key_position, there, key_there, codes_ptr, hash_round, rounds, before, after,
            False, CAUSAL, CROSS, EARLIER,
        )  # fmt: skip
        key, factor = _key(k, _inverse_length(k.to(precise)), scale)
        logit = product(q, tl.trans(key), PRODUCT) * factor[None, :]
        logit = tl.where(visible, logit, float("-inf"))
        top = tl.maximum(maximum, tl.max(logit, 1))
        # -inf, the maximum of nothing, less itself would be NaN.
        finite = tl.where(top == float("-inf"), 0.0, top)
        lowered = tl.exp(maximum - finite)
        weight = tl.exp(logit - finite[:, None])
        total = total * lowered + tl.sum(weight, 1)
        if DROPOUT:
            keep = _keeps(sequence, position[:, None], key_position[None, :], seed, drop_below)
            weight = tl.where(keep, weight * keep_factor, 0.0)
        sums = sums * lowered[:, None] + product(weight.to(v.dtype), v, PRODUCT)
        maximum = top

    tl.store(maximum_ptr + position, maximum, mask=there)
    tl.store(total_ptr + position, total, mask=there)
    if hash_round == rounds - 1:
        # A token that saw nothing takes itself; padding, whose run ends at 0, gets 0.
        alone = there & (total == 0) & (end > 0)
        own = load_rows(v_ptr, position, alone, v_row, width_v, D_V).to(precise)
        if DROPOUT:
            own = tl.where(_keeps(sequence, position, position, seed, drop_below)[:, None], own * keep_factor, 0.0)
        divisor = tl.where(total == 0, 1.0, total)
        output = tl.where(alone[:, None], own, sums / divisor[:, None])
        store_rows(output_ptr + sequence * length * width_v, position, there, output, width_v, D_V)
        square = q.to(precise)
        square = tl.sum(square * (square * (_inverse_length(square) * scale)[:, None]), 1)
        logsumexp = tl.where(alone, square, maximum + tl.log(divisor))
        tl.store(logsumexp_ptr + sequence * length + position, logsumexp, mask=there)
    else:
        store_rows(sums_ptr, position, there, sums, width_v, D_V)


@triton.jit(do_not_specialize=CHANGING)
def row_statistics(
    output_ptr, d_output_ptr, maximum_ptr, total_ptr, d_logsumexp_ptr, statistics_ptr,
    first, heads, length, blocks, d_batch, d_head, d_row, z_batch, z_head, z_row,
    width_v, D_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pack what the backward pass wants of a query into four numbers side by side: (S, L, 4).

    The maximum; 1 / total, 0 for the total of nothing; the shift in d logit = weight (d weight - shift), that is the
    softmax's own term less what the logsumexp adds; the gradient of the logsumexp where the total is that of nothing.
    """
    local = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = first + local
    position = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = position < length
    at = sequence * length + position
    maximum = tl.load(maximum_ptr + at, mask=there, other=0.0)
    total = tl.load(total_ptr + at, mask=there, other=0.0)
    d_output_ptr += sequence // heads * d_batch + sequence % heads * d_head
    d_logsumexp_ptr += sequence // heads * z_batch + sequence % heads * z_head
    d_logsumexp = tl.load(d_logsumexp_ptr + position.to(tl.int64) * z_row, mask=there, other=0.0).to(maximum.dtype)
    output = load_rows(output_ptr + sequence * length * width_v, position, there, width_v, width_v, D_V).to(maximum.dtype)
    d_output = load_rows(d_output_ptr, position, there, d_row, width_v, D_V).to(maximum.dtype)
    nothing = total == 0
    statistics_ptr += (local * length + position) * 4
    tl.store(statistics_ptr, tl.where(nothing, 0.0, maximum), mask=there)
    tl.store(statistics_ptr + 1, tl.where(nothing, 0.0, 1 / tl.where(nothing, 1.0, total)), mask=there)
    tl.store(statistics_ptr + 2, tl.sum(d_output * output, 1) - d_logsumexp, mask=there)
    tl.store(statistics_ptr + 3, tl.where(nothing, d_logsumexp, 0.0), mask=there)


@triton.jit(do_not_specialize=CHANGING)
def backward(
    qk_ptr, v_ptr, d_output_ptr, order_ptr, begin_ptr, end_ptr, codes_ptr, statistics_ptr, qk_sums_ptr, v_sums_ptr,
    d_qk_ptr, d_v_ptr, first, heads, length, rounds, blocks, qk_batch, qk_head, qk_row, v_batch, v_head, v_row,
    d_batch, d_head, d_row,
    width, width_v, chunk_length, before, after, seed, drop_below, keep_factor: tl.float64, scale: tl.float64, hash_round,
    EARLIER: tl.constexpr, WHOLE: tl.constexpr, CROSS: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRODUCT: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """One round of the backward pass for OWN tokens: what they receive as keys, then what they receive as queries.

    `qk_sums` (S, L, D) and `v_sums` (S, L, D_v) hold what the rounds before have added up.
    """
    local = (tl.program_id(0) // blocks).to(tl.int64)
    sequence = first + local
    qk_ptr += sequence // heads * qk_batch + sequence % heads * qk_head
    v_ptr += sequence // heads * v_batch + sequence % heads * v_head
    d_output_ptr += sequence // heads * d_batch + sequence % heads * d_head
    order_ptr += (local * rounds + hash_round) * length
    begin_ptr += (local * rounds + hash_round) * length
    end_ptr += (local * rounds + hash_round) * length
    codes_ptr += local * length * rounds
    statistics_ptr += local * length * 4
    qk_sums_ptr += local * length * width
    v_sums_ptr += local * length * width_v
    precise = statistics_ptr.dtype.element_ty
    scale, keep_factor = tl.full([1], scale, precise), tl.full([1, 1], keep_factor, precise)

    place = tl.program_id(0) % blocks * OWN + tl.arange(0, OWN)
    there = place < length
    position = tl.load(order_ptr + place, mask=there, other=0)
    begin = tl.load(begin_ptr + place, mask=there, other=0)
    end = tl.load(end_ptr + place, mask=there, other=0)
    x = load_rows(qk_ptr, position, there, qk_row, width, D)
    own_v = load_rows(v_ptr, position, there, v_row, width_v, D_V)
    inverse_length = _inverse_length(x.to(precise))
    own_key, own_factor = _key(x, inverse_length, scale)

    # As keys: rows are own keys, columns are the queries that see one of them.
    low, high = _window(place, begin, end, chunk_length, after, before, WHOLE)
    if CAUSAL and not CROSS:
        low = tl.maximum(low, place + 1)
    d_k = tl.full([OWN, D], 0, precise)
    d_v = tl.full([OWN, D_V], 0, precise)
    start, stop = _hull(low, high, length)
    for query_start in range(start, stop, OTHERS):
        query_place = query_start + tl.arange(0, OTHERS)
        query_there = query_place < stop
        query_position = tl.load(order_ptr + query_place, mask=query_there, other=0)
        q = load_rows(qk_ptr, query_position, query_there, qk_row, width, D)
        d_output = load_rows(d_output_ptr, query_position, query_there, d_row, width_v, D_V)
        maximum = tl.load(statistics_ptr + query_position.to(tl.int64) * 4, mask=query_there, other=0.0)
        inverse_total = tl.load(statistics_ptr + query_position.to(tl.int64) * 4 + 1, mask=query_there, other=0.0)
        shift = tl.load(statistics_ptr + query_position.to(tl.int64) * 4 + 2, mask=query_there, other=0.0)
        visible = _visible(
            low, high, position, query_place, query_position, there, query_there, codes_ptr, hash_round, rounds, before, after,
            True, CAUSAL, CROSS, EARLIER,
        )  # fmt: skip
        logit = product(own_key, tl.trans(q), PRODUCT) * own_factor[:, None]
        weight = tl.exp(tl.where(visible, logit - maximum[None, :], float("-inf"))) * inverse_total[None, :]
        kept, d_weight = weight, product(own_v, tl.trans(d_output), PRODUCT)
        if DROPOUT:
            keep = _keeps(sequence, query_position[None, :], position[:, None], seed, drop_below)
            kept, d_weight = tl.where(keep, weight * keep_factor, 0.0), tl.where(keep, d_weight * keep_factor, 0.0)
        d_logit = weight * (d_weight - shift[None, :])
        d_v += product(kept.to(d_output.dtype), d_output, PRODUCT)
        d_k += product(d_logit.to(q.dtype), q, PRODUCT)

    # A token that sees nothing is its own value, and its logsumexp x . k of itself.
    own_d_output = load_rows(d_output_ptr, position, there, d_row, width_v, D_V)
    own_inverse_total = tl.load(statistics_ptr + position.to(tl.int64) * 4 + 1, mask=there, other=0.0)
    alone = there & (end > 0) & (own_inverse_total == 0)
    if hash_round == 0:
        d_own = tl.where(alone[:, None], own_d_output.to(precise), 0.0)
        if DROPOUT:
            d_own = tl.where(_keeps(sequence, position, position, seed, drop_below)[:, None], d_own * keep_factor, 0.0)
        d_v += d_own
    else:
        d_v += load_rows(v_sums_ptr, position, there, width_v, width_v, D_V)
    if hash_round == rounds - 1:
        store_rows(d_v_ptr + sequence * length * width_v, position, there, d_v, width_v, D_V)
    else:
        store_rows(v_sums_ptr, position, there, d_v, width_v, D_V)
    # Through k = x / |x|: what lies along k has no effect.
    unit = x.to(precise) * inverse_length[:, None]
    d_x = (d_k - unit * tl.sum(unit * d_k, 1)[:, None]) * (inverse_length * scale)[:, None]
    if hash_round == 0:
        d_self = tl.load(statistics_ptr + position.to(tl.int64) * 4 + 3, mask=alone, other=0.0)
        d_x += unit * (d_self * scale)[:, None]
    else:
        d_x += load_rows(qk_sums_ptr, position, there, width, width, D)

    # As queries: rows are own queries, columns are the keys that one of them sees.
    low, high = _window(place, begin, end, chunk_length, before, after, WHOLE)
    if CAUSAL and not CROSS:
        high = tl.minimum(high, place)
    own_maximum = tl.load(statistics_ptr + position.to(tl.int64) * 4, mask=there, other=0.0)
    own_shift = tl.load(statistics_ptr + position.to(tl.int64) * 4 + 2, mask=there, other=0.0)
    start, stop = _hull(low, high, length)
    for key_start in range(start, stop, OTHERS):
        key_place = key_start + tl.arange(0, OTHERS)
        key_there = key_place < stop
        key_position = tl.load(order_ptr + key_place, mask=key_there, other=0)
        k = load_rows(qk_ptr, key_position, key_there, qk_row, width, D)
        v = load_rows(v_ptr, key_position, key_there, v_row, width_v, D_V)
        visible = _visible(
            low, high, position, key_place, key_position, there, key_there, codes_ptr, hash_round, rounds, before, after,
            False, CAUSAL, CROSS, EARLIER,
        )  # fmt: skip
        key_inverse_length = _inverse_length(k.to(precise))
        key, factor = _key(k, key_inverse_length, scale)
        logit = product(x, tl.trans(key), PRODUCT) * factor[None, :]
        weight = tl.exp(tl.where(visible, logit - own_maximum[:, None], float("-inf"))) * own_inverse_total[:, None]
        d_weight = product(own_d_output, tl.trans(v), PRODUCT)
        if DROPOUT:
            keep = _keeps(sequence, position[:, None], key_position[None, :], seed, drop_below)
            d_weight = tl.where(keep, d_weight * keep_factor, 0.0)
        d_logit = weight * (d_weight - own_shift[:, None]) * scale[:, None]
        # The unit vector, not d_logit / |x|: a short x would overflow fp16.
        d_x += product(d_logit.to(k.dtype), _unit_length(k, key_inverse_length), PRODUCT)
    if hash_round == rounds - 1:
        store_rows(d_qk_ptr + sequence * length * width, position, there, d_x, width, D)
    else:
        store_rows(qk_sums_ptr, position, there, d_x, width, D)
