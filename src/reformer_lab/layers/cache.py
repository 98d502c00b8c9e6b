"""What a layer keeps of a text that is continued token by token, so that no earlier position is computed again.

B batch, H heads, L length, D width of a head, R hash rounds, K places of a window, N keys. Each example of the batch is at a
position of its own. A step gives what the layer would give to the last position of the text so far:

    full     keys and values of every position; the work of a step grows with the text
    local    those of the last window of chunks, in a ring: constant memory and work
    LSH      vectors, values and the members of every bucket; a step hashes one vector and fetches the keys it sees.
             coverage "chunk": at most the rounds times the window, however long the text is; "bucket": the bucket's members

With coverage "chunk" the paper's window is one of sorted places, so it depends on all tokens. Here it is that of the text so
far, which needs no sorting: the new token is the last member of its bucket, the counts say at which place it stands, and so
how far back in the bucket its chunk, and those before it, reach. What converted models see around the corner (wrap_around) is
that of the text so far, too: the last chunks of another round, or the last ones of a text shorter than the window.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reformer_lab.errors import UserError
from reformer_lab.layers.attention import FullSelfAttention, LocalSelfAttention, LSHSelfAttention
from reformer_lab.ops.bucket_lists import BucketLists
from reformer_lab.ops.hashing import bucket_factors, hash_few
from reformer_lab.ops.random import Draws
from reformer_lab.ops.softmax import accumulation_dtype, masked_attention, unit_length


class AttentionCache(ABC):
    """The interface of a layer's cache. `layer`: the causal attention layer that it continues."""

    layer: Any

    def start(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the layer's output (B, L, d_model) for texts x (B, L, d_model) of `lengths` (B,), and keep what steps need."""
        projected = self.layer.project(x)
        return self.layer.merge(self._start(*projected, lengths=lengths))

    def step(self, x: Tensor, position: Tensor, longest: int) -> Tensor:
        """Return the output (B, 1, d_model) for one more position, x (B, 1, d_model) at `position` (B,).

        `longest`: the largest of the positions, plus 1; a number on the host, so that no GPU has to be waited for.
        """
        projected = self.layer.project(x)
        return self.layer.merge(self._step(*projected, position=position, longest=longest))

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows` (int64), in this order; one may be there several times, as for beams."""

    @abstractmethod
    def _start(self, *projected: Tensor, lengths: Tensor) -> Tensor:
        """Return the attention (B, H, L, D) of the layer's projections of the texts, and keep what steps need."""

    @abstractmethod
    def _step(self, *projected: Tensor, position: Tensor, longest: int) -> Tensor:
        """Return the attention (B, H, 1, D) of the layer's projections of one more position, and keep them."""


def cache_of(layer: Any, rotations: Tensor | None, max_length: int) -> AttentionCache:
    """Return an empty cache for a causal layer and texts of up to `max_length` positions. `rotations`: of an LSH layer."""
    if isinstance(layer, FullSelfAttention):
        return FullCache(layer, max_length)
    if isinstance(layer, LocalSelfAttention):
        return LocalCache(layer, max_length)
    if isinstance(layer, LSHSelfAttention):
        assert rotations is not None
        return LSHCache(layer, rotations, max_length)
    raise UserError(f"{type(layer).__name__} has no cache: continue texts with full, local or LSH attention")


class Rows:
    """A vector (H, D) for each position of each example; the room doubles when it is used up."""

    def __init__(self, rows: Tensor, most: int):
        """Keep rows (B, H, L, D); there will never be more than `most` positions."""
        self._rows, self._most = rows, most

    def write(self, row: Tensor, position: Tensor, longest: int) -> None:
        """Set the vectors (B, H, 1, D) at `position` (B,)."""
        room = self._rows.shape[2]
        if longest > room:
            # Zeros, not whatever was in memory: a masked NaN is a NaN all the same.
            self._rows = functional.pad(self._rows, (0, 0, 0, min(max(2 * room, longest), self._most) - room))
        elif not self._rows.is_contiguous():
            self._rows = self._rows.contiguous()
        self._rows[torch.arange(len(position), device=position.device), :, position] = row[:, :, 0].to(self._rows.dtype)

    def first(self, length: int) -> Tensor:
        """Return the vectors (B, H, length, D) of the first positions."""
        return self._rows[:, :, :length]

    def fetch(self, index: Tensor) -> Tensor:
        """Return the vectors (B, H, N, D) of the positions (B, H, N)."""
        batch, heads, room, width = self._rows.shape
        sequence = torch.arange(batch * heads, device=index.device).view(batch, heads, 1)
        found = self._rows.reshape(-1, width).index_select(0, (sequence * room + index).flatten())
        return found.view(*index.shape, width)

    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows`, in this order."""
        self._rows = self._rows.index_select(0, rows)


class FullCache(AttentionCache):
    """Exact attention: keys and values of every position."""

    def __init__(self, layer: FullSelfAttention, max_length: int):
        self.layer, self.max_length = layer, max_length
        self.sees_itself = not layer.shared_qk or layer.self_attention == "allowed"

    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows`, in this order."""
        self._keys.reorder(rows)
        self._values.reorder(rows)

    def _start(self, *projected: Tensor, lengths: Tensor) -> Tensor:
        # Padding comes after the text, where causal attention does not look: it needs no mask.
        self._keys = Rows(self._key(projected), self.max_length)
        self._values = Rows(projected[-1], self.max_length)
        return self.layer.mix(*projected, key_padding_mask=None, draws=Draws(0, fixed=True))

    def _step(self, *projected: Tensor, position: Tensor, longest: int) -> Tensor:
        self._keys.write(self._key(projected), position, longest)
        self._values.write(projected[-1], position, longest)
        at, now = torch.arange(longest, device=position.device), position[:, None]
        visible = at <= now
        if not self.sees_itself:
            visible = visible & ((at < now) | (now == 0))  # the first token sees nothing else, so it sees itself
        return functional.scaled_dot_product_attention(
            projected[0], self._keys.first(longest), self._values.first(longest), attn_mask=visible[:, None, None],
            scale=self.layer.d_head**-0.5 if self.sees_itself else 1.0,
        )  # fmt: skip

    def _key(self, projected: tuple[Tensor, ...]) -> Tensor:
        if not self.layer.shared_qk:
            return projected[1]
        qk = projected[0]
        if self.sees_itself:
            return qk
        scale = 1.0 if self.layer.key_scale == "unit" else self.layer.d_head**-0.5
        with torch.autocast(qk.device.type, enabled=False):
            return (unit_length(qk.to(accumulation_dtype(qk.dtype))) * scale).to(qk.dtype)


class LocalCache(AttentionCache):
    """Local attention: keys and values of the last window, position p at place p modulo its size."""

    def __init__(self, layer: LocalSelfAttention, max_length: int):
        self.layer = layer
        self.chunk_length, self.chunks_before = layer.window["chunk_length"], layer.window["chunks_before"]
        self.chunks_after = layer.window["chunks_after"] if layer.wrap_around else 0  # else there is nothing behind
        self.size = min((self.chunks_before + 1) * self.chunk_length, max_length)
        if self.chunks_after:  # around the corner the text begins again: all of it is kept
            self.size = max_length

    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows`, in this order."""
        self._keys.reorder(rows)
        self._values.reorder(rows)

    def _start(self, *projected: Tensor, lengths: Tensor) -> Tensor:
        _, k, v = projected
        held = self._held(lengths - 1).clamp(min=0)[:, None].expand(-1, k.shape[1], -1)
        self._keys, self._values = (Rows(Rows(x, x.shape[2]).fetch(held), self.size) for x in (k, v))
        if self.layer.wrap_around:
            return _each_length(lambda rows, length: self._mixed(*(x[rows, :, :length] for x in projected)), lengths, v)
        return self._mixed(*projected)

    def _mixed(self, *projected: Tensor) -> Tensor:
        return self.layer.mix(*projected, key_padding_mask=None, draws=Draws(0, fixed=True))

    def _step(self, *projected: Tensor, position: Tensor, longest: int) -> Tensor:
        q, k, v = projected
        place = position % self.size
        self._keys.write(k, place, self.size)
        self._values.write(v, place, self.size)
        mask = self._mask(position, q.dtype)[:, None, None]
        return functional.scaled_dot_product_attention(
            q, self._keys.first(self.size), self._values.first(self.size), attn_mask=mask
        )

    def _mask(self, position: Tensor, dtype: torch.dtype) -> Tensor:
        """Return which places (B, size) count, or what is added to their logits where some may count several times."""
        held, chunk = self._held(position), (position // self.chunk_length)[:, None]
        back = chunk - held // self.chunk_length
        if not self.layer.wrap_around:
            return (held >= 0) & (back <= self.chunks_before)
        # The offsets from -before to after that lead to a place's chunk, on a circle of chunk + 1 of them.
        times = (self.chunks_after + back) // (chunk + 1) - (back - self.chunks_before - 1) // (chunk + 1)
        return times.masked_fill(held < 0, 0).to(dtype).log()

    def _held(self, last: Tensor) -> Tensor:
        """Return which position (B, size) each place holds once `last` (B,) is written; negative: none yet."""
        place = torch.arange(self.size, device=last.device)
        return last[:, None] - (last[:, None] - place) % self.size


class LSHCache(AttentionCache):
    """LSH attention: vectors and values of every position, and which positions stand in which bucket.

    A key and its value lie side by side, as a step fetches both or neither, from places all over the memory. Keys are kept at
    unit length, unless that would need a wider type than they came in.
    """

    def __init__(self, layer: LSHSelfAttention, rotations: Tensor, max_length: int):
        self.layer, self.rotations, self.max_length = layer, rotations, max_length
        self.num_buckets = layer.buckets_for(max_length)

    def reorder(self, rows: Tensor) -> None:
        """Keep the examples `rows`, in this order."""
        self._rows.reorder(rows)
        self._lists.reorder(rows)

    def _start(self, *projected: Tensor, lengths: Tensor) -> Tensor:
        qk, v = projected
        padding = torch.arange(qk.shape[2], device=qk.device) >= lengths[:, None]
        self.rotations = self.rotations.to(qk.device)
        buckets = self.layer.hash(qk, self.rotations, self.num_buckets)
        self._rows = Rows(self._row(qk, v), self.max_length)
        self._lists = BucketLists(buckets, lengths, math.prod(bucket_factors(self.num_buckets)))
        if self.layer.options["wrap_rounds"]:
            return _each_length(
                lambda rows, length: self.layer.attend(
                    qk[rows, :, :length], v[rows, :, :length], buckets[rows, ..., :length], self.num_buckets, None
                ), lengths, v,
            )  # fmt: skip
        return self.layer.attend(qk, v, buckets, self.num_buckets, padding if padding.any() else None)

    def _step(self, *projected: Tensor, position: Tensor, longest: int) -> Tensor:
        qk, v = projected
        bucket_BHR1 = hash_few(qk, self.rotations, self.num_buckets)
        keys_BHN, visible_BHN = self._keys(bucket_BHR1, position, longest)
        self._lists.append(bucket_BHR1, position)
        self._rows.write(self._row(qk, v), position, longest)
        dtype = accumulation_dtype(qk.dtype)
        k, values = self._rows.fetch(keys_BHN).to(dtype).split([qk.shape[-1], v.shape[-1]], dim=-1)
        with torch.autocast(qk.device.type, enabled=False):
            logits = qk.to(dtype) @ (k if qk.dtype == dtype else self._unit(k)).transpose(-1, -2)
            output, _ = masked_attention(logits, values, visible_BHN[:, :, None])
            # Itself, where it sees nothing else in any round.
            return torch.where(visible_BHN.any(-1)[..., None, None], output, v.to(dtype)).to(v.dtype)

    def _row(self, qk: Tensor, v: Tensor) -> Tensor:
        """Return what is kept (B, H, L, 2 D) of vectors and values."""
        return torch.cat([self._unit(qk) if qk.dtype == accumulation_dtype(qk.dtype) else qk, v], dim=-1)

    def _unit(self, k: Tensor) -> Tensor:
        scale = 1.0 if self.layer.options["key_scale"] == "unit" else self.layer.d_head**-0.5
        return unit_length(k, self.layer.options["key_epsilon"]) * scale

    def _keys(self, bucket_BHR1: Tensor, position: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Return the positions (B, H, N) that a new token of these buckets sees, and which of them count."""
        rank = self._lists.counts.gather(-1, bucket_BHR1)
        if self.layer.options["wrap_rounds"]:
            rounds, buckets, ranks, there = self._around(bucket_BHR1, rank, position)
        else:
            rounds, (buckets, ranks, there) = None, self._window(bucket_BHR1, rank, position)
        at = self._lists.positions(buckets.masked_fill(~there, 0), ranks.masked_fill(~there, 0), rounds)
        if not self.layer.options["correct_duplicates"]:
            return at.flatten(-2), there.flatten(-2)
        at, _ = at.masked_fill(~there, longest).flatten(-2).sort(-1)
        if at.device.type == "cpu":  # elsewhere asking would wait for the device
            at = at[..., : max(1, int((at < longest).sum(-1).max()))]
        visible = at < longest
        visible[..., 1:] &= at[..., 1:] != at[..., :-1]
        return at.masked_fill(~visible, 0), visible

    def _place(self, bucket_BHR1: Tensor, rank: Tensor) -> Tensor:
        """Return the place (B, H, R, 1) of a new token among the sorted ones of the text so far, itself included."""
        bucket = torch.arange(self._lists.counts.shape[-1], device=rank.device)
        return self._lists.counts.masked_fill(bucket >= bucket_BHR1, 0).sum(-1, keepdim=True) + rank

    def _window(self, bucket_BHR1: Tensor, rank: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return bucket and rank (B, H, R, K) of whom each round shows a new token, and which of these there are."""
        options, counts = self.layer.options, self._lists.counts
        if options["coverage"] == "bucket":
            return self._back(bucket_BHR1, rank, rank, most=max(1, int(rank.max())))
        place = self._place(bucket_BHR1, rank)
        chunk_length, before, after = self.layer.chunk_length, options["chunks_before"], options["chunks_after"]
        chunk = place // chunk_length
        window_start = (chunk - before).clamp(min=0) * chunk_length
        if not options["cross_bucket"]:
            seen = torch.minimum(rank, place - window_start)
            most = (before + 1) * chunk_length - 1
            if seen.device.type == "cpu":
                most = min(most, int(seen.max()))
            return self._back(bucket_BHR1, rank, seen, most=max(1, most))
        window = torch.arange(min((before + 1 + after) * chunk_length, self.max_length), device=counts.device)
        places = window_start + window
        ends = torch.minimum((chunk + 1 + after) * chunk_length, position.view(-1, 1, 1, 1) + 1)
        there = (places < ends) & (places != place)
        places = places - (places > place).long()  # the lists do not hold the new token yet
        totals = counts.cumsum(-1)
        buckets = torch.searchsorted(totals, places, right=True).masked_fill(~there, 0)
        return buckets, places - (totals - counts).gather(-1, buckets), there

    def _around(self, bucket_BHR1: Tensor, rank: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return round, bucket and rank (B, H, R, K) of whom the windows on the circle of all rounds' chunks show, and which of
        these there are. A window wider than the circle shows some several times."""
        place_BHR1, counts = self._place(bucket_BHR1, rank), self._lists.counts
        rounds, chunk_length, before = place_BHR1.shape[2], self.layer.chunk_length, self.layer.options["chunks_before"]
        tokens = position.view(-1, 1, 1, 1)  # in the lists, which do not hold the new one yet
        chunks = tokens // chunk_length + 1
        first_chunk = torch.arange(rounds, device=tokens.device)[:, None] * chunks
        offsets = torch.arange(-before, self.layer.options["chunks_after"] + 1, device=tokens.device)
        seen = (first_chunk + place_BHR1 // chunk_length + offsets) % (rounds * chunks)
        within = torch.arange(chunk_length, device=tokens.device)
        places = ((seen % chunks)[..., None] * chunk_length + within).flatten(-2)
        which = (seen // chunks)[..., None].expand(*seen.shape, chunk_length).flatten(-2)
        own = place_BHR1.squeeze(-1)[:, :, None].expand(-1, -1, rounds, -1).gather(-1, which)
        there = (places <= tokens) & (places != own)
        # All rounds' buckets, one after the other: each round holds `tokens` of them.
        among_all = which * tokens + places - (places > own).long()
        flat_counts = counts.flatten(2)[:, :, None]
        totals = flat_counts.cumsum(-1).expand(-1, -1, rounds, -1).contiguous()
        bucket = torch.searchsorted(totals, among_all, right=True).masked_fill(~there, 0)
        ranks = among_all - (totals - flat_counts).gather(-1, bucket)
        which = which.masked_fill(~there, 0)
        return which, bucket - which * counts.shape[-1], ranks, there

    @staticmethod
    def _back(bucket: Tensor, rank: Tensor, seen: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latest `most` members of one bucket, of which `seen` are there."""
        back = torch.arange(most, device=bucket.device)
        return bucket.expand(*bucket.shape[:-1], most), rank - 1 - back, back < seen


def _each_length(attend: Callable[[Tensor, int], Tensor], lengths: Tensor, like: Tensor) -> Tensor:
    """Return the attention of texts whose windows reach around the corner, where the longest one's padding must not be.

    attend(rows, length): of some examples' first positions. The result is of the shape (B, H, L, D) of `like`.
    """
    output = torch.zeros_like(like)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        output[rows, :, :length] = attend(rows, length).to(output.dtype)
    return output


class DecodingCache:
    """What a model keeps of texts that it continues: a cache for each layer, and how many tokens each text has."""

    def __init__(self, layers: list[AttentionCache], lengths: Tensor, longest: int):
        self.layers = layers
        self.lengths = lengths
        """(B,) int64: tokens of each text so far."""
        self.longest = longest
        """The largest of the lengths, on the host."""

    def copy(self) -> "DecodingCache":
        """Return a cache that goes on by itself, over the same layers."""
        memo = {id(cache.layer): cache.layer for cache in self.layers}
        return deepcopy(self, memo)

    def reorder(self, rows: Tensor) -> None:
        """Keep the texts `rows` (int64), in this order: beams that go on, or what is left when some texts have ended."""
        for layer in self.layers:
            layer.reorder(rows)
        self.lengths = self.lengths.index_select(0, rows)
        self.longest = int(self.lengths.max())
