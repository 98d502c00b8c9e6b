"""LSH attention in plain PyTorch on any device: memory linear in the length, one round at a time.

N batch * heads, L length, D width, R rounds, C chunks of M sorted positions, W chunks in a window, T chunks in a tile.

Tokens are sorted by (bucket, position) in each round and cut into chunks. Work is done in tiles: T query chunks, each
with its window of W key chunks. Rows are fetched and written by their index in the unsorted tensors; no sorted copy of
the whole sequence exists. Each pair (query, key) is given to the first round that finds it (or to every one, without
the correction for duplicates), so that the union of the sets needs no count: the rounds' partial softmaxes are added up.
The backward pass recomputes the scores of one tile after another from the saved inputs, output, maxima and totals.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reformer_lab.ops.lsh_attention.options import PADDING_BUCKET, LSHOptions
from reformer_lab.ops.random import keep_pairs
from reformer_lab.ops.softmax import accumulation_dtype, unit_length

# Scores of one tile: they should stay in the cache of a CPU core, and fill a GPU.
TILE_SCORES = {"cpu": 1 << 18}
TILE_SCORES_ELSEWHERE = 1 << 26
# Codes of positions are kept in 32 bits where they stay below this.
CODE_LIMIT = 2**29


def forward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, logsumexp, maximum and total (see `operator`)."""
    layout = _Layout(buckets_BHRL, padding_BL, options, accumulation_dtype(qk_BHLD.dtype))
    rows = layout.rows
    q, v = _flat_rows(qk_BHLD), _flat_rows(v_BHLD)
    k = unit_length(q, options.key_epsilon) * options.logit_scale
    # One row more than there are positions: the places that fill the last chunk write there.
    output = v.new_zeros(rows + 1, v.shape[-1])
    maximum, total = v.new_full((rows + 1,), -math.inf), v.new_zeros(rows + 1)
    for hash_round in range(options.num_hashes):
        for tile in layout.tiles(hash_round):
            scores = tile.scores(q, k)
            top = scores.amax(-1, keepdim=True)
            weights = scores.sub_(_finite(top)).exp_()
            partial_total = weights.sum(-1)
            if tile.keep is not None:
                weights = weights * tile.keep
            merge_into(output, total, maximum, tile.query_rows, weights @ tile.window(v), partial_total, top.squeeze(-1))
    output, maximum, total = output[:rows], maximum[:rows].clone(), total[:rows].clone()
    alone = layout.alone(total)
    output = torch.where(alone[:, None], v * layout.self_keep(), output * _inverse(total)[:, None])
    logsumexp = torch.where(alone, (q * k).sum(-1), maximum + total.log())
    shape = qk_BHLD.shape[:3]
    return output.view(v_BHLD.shape).to(v_BHLD.dtype), logsumexp.view(shape), maximum.view(shape), total.view(shape)


def backward(
    qk_BHLD: Tensor, v_BHLD: Tensor, buckets_BHRL: Tensor, padding_BL: Tensor | None, output_BHLD: Tensor, maximum_BHL: Tensor,
    total_BHL: Tensor, options: LSHOptions, d_output_BHLD: Tensor, d_logsumexp_BHL: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of qk and v, from one tile after another."""
    layout = _Layout(buckets_BHRL, padding_BL, options, accumulation_dtype(qk_BHLD.dtype))
    rows = layout.rows
    maximum, total = maximum_BHL.reshape(rows), total_BHL.reshape(rows)
    q, v, d_output = _flat_rows(qk_BHLD), _flat_rows(v_BHLD), _flat_rows(d_output_BHLD)
    k = unit_length(q, options.key_epsilon) * options.logit_scale
    d_logsumexp = d_logsumexp_BHL.reshape(rows).to(q.dtype)
    # d logit = weight * (d weight - shift): the softmax's own term, less what the logsumexp's gradient adds.
    shift = (d_output * _flat_rows(output_BHLD)).sum(-1) - d_logsumexp
    # weight = exp(logit - maximum) / total; the division is done here, once for a row.
    inverse_total, finite_maximum = _inverse(total), _finite(maximum)
    scaled_d_output, shift = d_output * inverse_total[:, None], shift * inverse_total

    d_q, d_k = q.new_zeros(rows + 1, q.shape[-1]), q.new_zeros(rows + 1, q.shape[-1])
    d_v = v.new_zeros(rows + 1, v.shape[-1])
    for hash_round in range(options.num_hashes):
        for tile in layout.tiles(hash_round):
            d_output_TMD = tile.queries(scaled_d_output)
            weights = tile.scores(q, k).sub_(tile.queries(finite_maximum)[..., None]).exp_()
            kept = weights if tile.keep is None else weights * tile.keep
            tile.add_to_window(d_v, kept.transpose(1, 2) @ d_output_TMD)
            d_weights = d_output_TMD @ tile.window(v).transpose(1, 2)
            if tile.keep is not None:
                d_weights *= tile.keep
            d_scores = weights.mul_(d_weights.sub_(tile.queries(shift)[..., None]))
            tile.add_to_queries(d_q, d_scores @ tile.window(k))
            tile.add_to_window(d_k, d_scores.transpose(1, 2) @ tile.queries(q))

    d_q, d_k, d_v = d_q[:rows], d_k[:rows], d_v[:rows]
    alone = layout.alone(total)
    # A token alone: output v, logsumexp q . k of itself.
    d_self = (alone * d_logsumexp)[:, None]
    d_q += d_self * k
    d_k += d_self * q
    d_v += alone[:, None] * d_output * layout.self_keep()
    d_qk = d_q + options.logit_scale * _unit_length_backward(q, d_k, options.key_epsilon)
    return d_qk.view_as(qk_BHLD).to(qk_BHLD.dtype), d_v.view_as(v_BHLD).to(v_BHLD.dtype)


def _flat_rows(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.reshape(-1, x_BHLD.shape[-1]).to(accumulation_dtype(x_BHLD.dtype))


def _finite(maximum: Tensor) -> Tensor:
    """Replace -inf, the maximum of nothing, by 0: what it is subtracted from then stays -inf and not NaN."""
    return maximum.masked_fill(maximum == -math.inf, 0.0)


def _inverse(total: Tensor) -> Tensor:
    """Return 1 / total, and 0 for the total of nothing."""
    nothing = total == 0
    return total.masked_fill(nothing, 1.0).reciprocal().masked_fill(nothing, 0.0)


def _as_int32(codes: Tensor) -> Tensor:
    """Return the codes in half the memory, where they fit and asking costs no synchronisation."""
    return codes.int() if codes.device.type == "cpu" and int(codes.abs().amax()) < CODE_LIMIT else codes


def _unit_length_backward(x: Tensor, d_unit: Tensor, epsilon: float) -> Tensor:
    """Return the gradient of x from that of `unit_length`."""
    squared = x.square().sum(-1, keepdim=True) + epsilon * x.shape[-1]
    zero = squared == 0
    inverse = squared.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)
    unit = x * inverse
    return (d_unit - unit * (unit * d_unit).sum(-1, keepdim=True)) * inverse


def merge_into(
    output: Tensor,
    total: Tensor,
    maximum: Tensor,
    rows: Tensor,
    partial_output: Tensor,
    partial_total: Tensor,
    partial_maximum: Tensor,
) -> None:
    """Add partial softmaxes to those of the given rows, in place.

    output and total are sums of exp(logit - maximum) v and of exp(logit - maximum); a logsumexp in their stead would cost
    digits when the logits are large.
    """
    rows = rows.flatten()
    partial_output, partial_total, partial_maximum = (
        partial_output.flatten(0, -2), partial_total.flatten(), partial_maximum.flatten(),
    )  # fmt: skip
    before = maximum.index_select(0, rows)
    after = torch.maximum(before, partial_maximum)
    finite = _finite(after)
    old_factor, new_factor = (before - finite).exp_(), (partial_maximum - finite).exp_()
    merged = output.index_select(0, rows).mul_(old_factor[:, None]).addcmul_(partial_output, new_factor[:, None])
    output.index_copy_(0, rows, merged)
    total.index_copy_(0, rows, total.index_select(0, rows).mul_(old_factor).addcmul_(partial_total, new_factor))
    maximum.index_copy_(0, rows, after)


class _Layout:
    """The sorted order of every round, and the tiles in which a round is computed."""

    def __init__(self, buckets_BHRL: Tensor, padding_BL: Tensor | None, options: LSHOptions, dtype: torch.dtype):
        batch, heads, rounds, self.length = buckets_BHRL.shape
        self.options = options = options.within(self.length)
        self.dtype = dtype
        self.device = buckets_BHRL.device
        self.count = batch * heads
        self.rows = self.count * self.length
        self.chunks = -(-self.length // options.chunk_length)
        self.padding_NL: Tensor | None = None
        if padding_BL is not None:
            self.padding_NL = padding_BL[:, None].expand(batch, heads, self.length).reshape(self.count, self.length)
            buckets_BHRL = buckets_BHRL.masked_fill(padding_BL[:, None, None, :], PADDING_BUCKET)
        self.buckets_NRL = buckets_BHRL.reshape(self.count, rounds, self.length)
        # (N, R, L): the positions in the order of (bucket, position); a stable sort keeps the positions' order.
        self.order_NRL = self.buckets_NRL.argsort(dim=-1, stable=True)
        self.codes_NRL = self._codes()

    def _codes(self) -> Tensor:
        """Return for each round a number of each position such that i sees j, apart from causality and padding, if and only
        if -chunks_after <= code_i - code_j <= chunks_before. Those of padding mean nothing."""
        options = self.options
        buckets_NRL = self.buckets_NRL
        if self.padding_NL is not None:
            buckets_NRL = buckets_NRL.masked_fill(self.padding_NL[:, None], 0)
        if options.coverage == "bucket":
            return _as_int32(buckets_NRL)
        place = torch.arange(self.length, device=self.device) // options.chunk_length
        chunk = torch.empty_like(self.order_NRL).scatter_(-1, self.order_NRL, place.expand_as(self.order_NRL))
        if options.wrap_rounds:
            return torch.zeros_like(chunk)  # the window itself says who sees whom
        if options.cross_bucket:
            return _as_int32(chunk)
        apart = self.chunks + options.chunks_before + options.chunks_after
        return _as_int32(buckets_NRL * apart + chunk)

    def alone(self, total: Tensor) -> Tensor:
        """Return (N * L,): the tokens that see nothing but themselves."""
        alone = total == 0
        return alone if self.padding_NL is None else alone & ~self.padding_NL.flatten()

    def self_keep(self) -> Tensor | float:
        """Return the dropout factors (N * L, 1) of the pairs (i, i)."""
        if self.options.dropout_p == 0.0:
            return 1.0
        position = torch.arange(self.length, device=self.device)
        row = torch.arange(self.count, device=self.device)[:, None]
        keep = keep_pairs(self.options.dropout_seed, row, position, position, self.options.dropout_p)
        return self._factors(keep.reshape(-1, 1))

    def _factors(self, keep: Tensor) -> Tensor:
        return keep.to(self.dtype) / (1 - self.options.dropout_p)

    def tiles(self, hash_round: int) -> Iterator["_Tile"]:
        """Yield the tiles of one round; together they hold each query with all the keys it sees in that round once."""
        order_NL = self.order_NRL[:, hash_round]
        if self.options.wrap_rounds:
            position, codes = self._circle
            windows = self._windows_on_the_circle(hash_round)
        else:
            position, codes = self._sorted(hash_round)
            windows = self._windows(hash_round, order_NL)
        for query_chunks, window_chunks in windows:
            scores = window_chunks.shape[1] * self.options.chunk_length**2
            step = max(1, TILE_SCORES.get(self.device.type, TILE_SCORES_ELSEWHERE) // scores)
            for some, window in zip(query_chunks.split(step), window_chunks.split(step), strict=True):
                yield self._tile(position, codes, some, window)

    def _sorted(self, hash_round: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the positions (N * C, M) in the order of a round, -1 where the last chunk is filled, and their codes."""
        order_NL = self.order_NRL[:, hash_round]
        fill = self.chunks * self.options.chunk_length - self.length
        position = torch.nn.functional.pad(order_NL, (0, fill), value=-1).view(-1, self.options.chunk_length)
        return position, self._sorted_codes(hash_round, order_NL, fill)

    @cached_property
    def _circle(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return what `_sorted` does for all rounds (R * N * C, M), one after the other."""
        positions, codes = zip(*(self._sorted(hash_round) for hash_round in range(self.options.num_hashes)), strict=True)
        as_query, as_key = zip(*(code for (code,) in codes), strict=True)  # duplicates are never corrected here
        return torch.cat(positions), [(torch.cat(as_query), torch.cat(as_key))]

    def _windows_on_the_circle(self, hash_round: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the query chunks (N * C,) of a round and their windows (N * C, W), as indices into R * N * C chunks."""
        options = self.options
        offset = torch.arange(-options.chunks_before, options.chunks_after + 1, device=self.device)
        on_circle = hash_round * self.chunks + torch.arange(self.chunks, device=self.device)
        target = (on_circle[:, None] + offset) % (options.num_hashes * self.chunks)
        within = torch.arange(self.count, device=self.device)[:, None, None] * self.chunks + target % self.chunks
        window = torch.div(target, self.chunks, rounding_mode="floor") * self.count * self.chunks + within
        first = hash_round * self.count * self.chunks
        yield torch.arange(first, first + self.count * self.chunks, device=self.device), window.flatten(0, 1)

    def _sorted_codes(self, hash_round: int, order_NL: Tensor, fill: int) -> list[tuple[Tensor, Tensor]]:
        """Return the codes (N * C, M) as query and as key in the order of `hash_round`: its own and, where duplicates are
        corrected, those of the rounds before it."""
        first = 0 if self.options.correct_duplicates else hash_round
        # Further from every real code than a window is wide: positions that see nothing, keys that nobody sees.
        invisible = self._invisible_code()
        blind = -invisible
        result = []
        for other in range(hash_round, first - 1, -1):
            code = self.codes_NRL[:, other].gather(-1, order_NL)
            as_query = as_key = code
            if self.padding_NL is not None:
                padded = self.padding_NL.gather(-1, order_NL)
                as_query, as_key = code.masked_fill(padded, blind), code.masked_fill(padded, invisible)
            as_query = torch.nn.functional.pad(as_query, (0, fill), value=blind)
            as_key = torch.nn.functional.pad(as_key, (0, fill), value=invisible)
            result.append((as_query.view(-1, self.options.chunk_length), as_key.view(-1, self.options.chunk_length)))
        return result

    def _invisible_code(self) -> int:
        return torch.iinfo(self.codes_NRL.dtype).max // 2

    def _windows(self, hash_round: int, order_NL: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs (query chunks (n,), their windows (n, W)) as indices into N * C chunks; -1: no chunk there."""
        chunk = torch.arange(self.chunks, device=self.device).expand(self.count, self.chunks)
        base = torch.arange(self.count, device=self.device)[:, None] * self.chunks
        if self.options.coverage == "chunk":
            offset = torch.arange(-self.options.chunks_before, self.options.chunks_after + 1, device=self.device)
            window = chunk[..., None] + offset
            there = (window >= 0) & (window < self.chunks)
            window = torch.where(there, window + base[..., None], -1)
            yield (chunk + base).flatten(), window.flatten(0, 1)
            return
        first, last = self._bucket_span(hash_round, order_NL, chunk)
        for distance in range(int((first - chunk).min()), int((last - chunk).max()) + 1):
            key_chunk = chunk + distance
            wanted = (first <= key_chunk) & (key_chunk <= last)
            yield (chunk + base)[wanted], (key_chunk + base)[wanted][:, None]

    def _bucket_span(self, hash_round: int, order_NL: Tensor, chunk_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the last chunk (N, C) that hold keys of the buckets of a chunk's queries."""
        length = self.options.chunk_length
        bucket_NL = self.buckets_NRL[:, hash_round].gather(-1, order_NL).contiguous()
        first_bucket = bucket_NL[:, ::length].contiguous()
        last_bucket = bucket_NL[:, [min(c * length + length, self.length) - 1 for c in range(self.chunks)]]
        first = torch.searchsorted(bucket_NL, first_bucket) // length
        last = (torch.searchsorted(bucket_NL, last_bucket, right=True) - 1) // length
        # Padding fills a bucket of its own in which nobody sees anybody.
        first = torch.where(first_bucket == PADDING_BUCKET, chunk_NC, first)
        last = torch.where((last_bucket == PADDING_BUCKET) | self.options.causal, chunk_NC, last)
        return first, last

    def _tile(
        self, position: Tensor, codes: list[tuple[Tensor, Tensor]], query_chunks: Tensor, window_chunks: Tensor
    ) -> "_Tile":
        options = self.options
        exact = options.coverage == "bucket" or options.wrap_rounds
        offsets = range(1) if exact else range(-options.chunks_after, options.chunks_before + 1)
        invisible = self._invisible_code()
        there = window_chunks >= 0
        window_chunks = window_chunks.clamp(min=0)
        query_at = position[query_chunks]
        key_at = position[window_chunks].flatten(1)
        hidden = key_at[:, None, :] >= query_at[:, :, None] if options.causal else key_at[:, None, :] == query_at[:, :, None]
        for which, (as_query, as_key) in enumerate(codes):
            query_code = as_query[query_chunks][:, :, None]
            key_code = as_key[window_chunks].masked_fill(~there[..., None], invisible).flatten(1)[:, None, :]
            found = torch.zeros_like(hidden)
            for offset in offsets:
                found |= query_code - offset == key_code
            # The first codes are the round's own; a pair that an earlier round found is that round's.
            hidden |= ~found if which == 0 else found

        sequence = torch.div(query_chunks, self.chunks, rounding_mode="floor")[:, None] % self.count
        keep = None
        if options.dropout_p > 0:
            keep = self._factors(
                keep_pairs(
                    options.dropout_seed, sequence[..., None], query_at[:, :, None], key_at[:, None, :], options.dropout_p
                )
            )
        # What is not there is read, unseen, from the same sequence: another one's NaN must not come in.
        start = sequence * self.length
        return _Tile(
            hidden,
            keep,
            query_source=start + query_at.clamp(min=0),
            query_rows=torch.where(query_at >= 0, start + query_at, self.rows),
            key_source=start + key_at.clamp(min=0),
            key_rows=torch.where(key_at >= 0, start + key_at, self.rows),
            window_width=window_chunks.shape[1],
        )


@dataclass
class _Tile:
    """T query chunks with their windows: which rows they are, and who sees whom."""

    hidden: Tensor
    """(T, M, W * M) bool: pairs that do not count here."""
    keep: Tensor | None
    """(T, M, W * M): dropout's factors."""
    query_source: Tensor
    """(T, M): rows of N * L to read; any row of the sequence where the last chunk is filled."""
    query_rows: Tensor
    """(T, M): rows to write; N * L itself where the last chunk is filled."""
    key_source: Tensor
    """(T, W * M), likewise."""
    key_rows: Tensor
    """(T, W * M), likewise."""
    window_width: int
    """W."""

    def queries(self, x: Tensor) -> Tensor:
        """Fetch the queries' rows of x (N * L, ...): (T, M, ...)."""
        return self._fetch(x, self.query_source)

    def window(self, x: Tensor) -> Tensor:
        """Fetch the keys' rows of x (N * L, ...): (T, W * M, ...)."""
        return self._fetch(x, self.key_source)

    @staticmethod
    def _fetch(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the logits (T, M, W * M), -inf where a query does not see a key."""
        scores = self.queries(q) @ self.window(k).transpose(1, 2)
        return scores.masked_fill_(self.hidden, -math.inf)

    def add_to_queries(self, x: Tensor, addend: Tensor) -> None:
        """Add (T, M, D) to the queries' rows of x (N * L + 1, D)."""
        x.index_add_(0, self.query_rows.flatten(), addend.flatten(0, 1))

    def add_to_window(self, x: Tensor, addend: Tensor) -> None:
        """Add (T, W * M, D) to the keys' rows of x (N * L + 1, D)."""
        # Chunk by chunk of the window: then a row is named twice only with zeros, and the sum has one order. (With
        # wrap_rounds the chunks of two rounds may meet in one part: on a GPU their order is left open.)
        for rows, part in zip(self.key_rows.chunk(self.window_width, 1), addend.chunk(self.window_width, 1), strict=True):
            x.index_add_(0, rows.flatten(), part.flatten(0, 1))
