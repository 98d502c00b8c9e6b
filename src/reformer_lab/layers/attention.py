"""Self-attention layers: projections around the attention operators. No biases, as in the authors' code.

B batch, H heads, L length, D width of a head.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from reformer_lab.ops.full_attention import full_attention, shared_qk_attention
from reformer_lab.ops.hashing import default_num_buckets, rotations_shape
from reformer_lab.ops.local_attention import local_attention
from reformer_lab.ops.local_attention.wrapped import wrapped_local_attention
from reformer_lab.ops.lsh_attention import lsh_attention, lsh_buckets
from reformer_lab.ops.random import CallSeeds, Draws

ALL_HEADS = slice(None)


class SelfAttention(nn.Module, ABC):
    """Projections to heads and back, around an attention that a subclass gives.

    `shared_qk` True: one projection `query_key` for queries and keys; False: `query` and `key`.
    """

    def __init__(self, d_model: int, num_heads: int, d_head: int, *, shared_qk: bool, causal: bool, dropout: float,
                 seed: int = 0):  # fmt: skip
        super().__init__()
        self.num_heads, self.d_head = num_heads, d_head
        self.shared_qk, self.causal, self.dropout = shared_qk, causal, dropout
        width = num_heads * d_head
        if shared_qk:
            self.query_key = nn.Linear(d_model, width, bias=False)
        else:
            self.query = nn.Linear(d_model, width, bias=False)
            self.key = nn.Linear(d_model, width, bias=False)
        self.value = nn.Linear(d_model, width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)
        self._call_seeds = CallSeeds(seed)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, draws: Draws | None = None) -> Tensor:
        """Return the attention's output (B, L, d_model) for x (B, L, d_model); key_padding_mask (B, L), True = padding.

        `draws` None: new random draws at each call in training, from the layer's `seed`; the same ones at each call in
        evaluation.
        """
        draws = self._call_seeds.draws(fixed=not self.training) if draws is None else draws
        return self.merge(self.mix(*self.project(x), key_padding_mask=key_padding_mask, draws=draws))

    def project(self, x: Tensor, heads: slice = ALL_HEADS) -> tuple[Tensor, ...]:
        """Return what `mix` takes, each (B, H, L, D): queries and keys, or the shared vectors, and values of some heads."""
        names = ("query_key", "value") if self.shared_qk else ("query", "key", "value")
        return tuple(self._heads(getattr(self, name), x, heads) for name in names)

    @abstractmethod
    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D) of projected queries, keys and values."""

    def merge(self, attended: Tensor, heads: slice = ALL_HEADS) -> Tensor:
        """Return the part (B, L, d_model) that some heads' attention (B, H, L, D) has in the output."""
        rows = attended.transpose(1, 2).flatten(2)
        if heads == ALL_HEADS:
            return self.output(rows)
        return functional.linear(rows, self.output.weight.unflatten(1, (self.num_heads, self.d_head))[:, heads].flatten(1))

    def _heads(self, projection: nn.Linear, x: Tensor, heads: slice) -> Tensor:
        if heads == ALL_HEADS:
            rows = projection(x)
        else:
            rows = functional.linear(x, projection.weight.unflatten(0, (self.num_heads, self.d_head))[heads].flatten(0, 1))
        return rows.unflatten(-1, (-1, self.d_head)).transpose(1, 2)

    def attention_dropout(self, draws: Draws) -> dict[str, Any]:
        """Return the operators' dropout arguments for this call."""
        active = self.training and self.dropout > 0
        return {"dropout_p": self.dropout, "generator": draws.generator("attention dropout")} if active else {}


class FullSelfAttention(SelfAttention):
    """Exact attention, with shared (paper, section 2) or separate queries and keys."""

    def __init__(self, d_model: int, num_heads: int, d_head: int, *, shared_qk: bool = True, causal: bool = True,
                 dropout: float = 0.0, key_scale: str = "unit", self_attention: str = "last_resort",
                 seed: int = 0):  # fmt: skip
        super().__init__(d_model, num_heads, d_head, shared_qk=shared_qk, causal=causal, dropout=dropout, seed=seed)
        self.key_scale, self.self_attention = key_scale, self_attention

    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D) of projected queries, keys and values."""
        common = {"causal": self.causal, "key_padding_mask": key_padding_mask, **self.attention_dropout(draws)}
        if self.shared_qk:
            qk, v = projected
            return shared_qk_attention(qk, v, key_scale=self.key_scale, self_attention=self.self_attention, **common)
        q, k, v = projected
        return full_attention(q, k, v, **common)


class LocalSelfAttention(SelfAttention):
    """Attention within windows of chunks, with separate queries and keys."""

    def __init__(self, d_model: int, num_heads: int, d_head: int, *, chunk_length: int = 64, chunks_before: int = 1,
                 chunks_after: int = 0, causal: bool = True, wrap_around: bool = False, dropout: float = 0.0,
                 seed: int = 0):  # fmt: skip
        super().__init__(d_model, num_heads, d_head, shared_qk=False, causal=causal, dropout=dropout, seed=seed)
        self.wrap_around = wrap_around
        self.window: dict[str, Any] = {
            "chunk_length": chunk_length, "chunks_before": chunks_before, "chunks_after": chunks_after,
        }  # fmt: skip

    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D) of projected queries, keys and values."""
        q, k, v = projected
        attend = wrapped_local_attention if self.wrap_around else local_attention
        return attend(
            q, k, v, causal=self.causal, key_padding_mask=key_padding_mask, **self.window, **self.attention_dropout(draws)
        )


class LSHSelfAttention(SelfAttention):
    """LSH attention (paper, section 2): the arguments are those of `ops.lsh_attention`.

    Rotations are drawn for each call in training, and are fixed in evaluation. Layers with other seeds draw others.
    `key_padding_mask` is that of torch.nn.MultiheadAttention, so in an encoder block of your own this takes its place:

    >>> import torch
    >>> from torch import nn
    >>> class Block(nn.Module):
    ...     def __init__(self, d_model, num_heads):
    ...         super().__init__()
    ...         self.attention = LSHSelfAttention(d_model, num_heads, d_model // num_heads, chunk_length=8, causal=False)
    ...         self.feed_forward = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.ReLU(), nn.Linear(4 * d_model, d_model))
    ...         self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
    ...
    ...     def forward(self, x, key_padding_mask=None):
    ...         x = x + self.attention(self.norm1(x), key_padding_mask)
    ...         return x + self.feed_forward(self.norm2(x))
    >>> Block(32, 2)(torch.zeros(1, 100, 32), torch.arange(100)[None] >= 90).shape
    torch.Size([1, 100, 32])
    """

    def __init__(self, d_model: int, num_heads: int, d_head: int, *, num_hashes: int = 4,
                 num_buckets: int | tuple[int, ...] | None = None, chunk_length: int = 64, chunks_before: int = 1,
                 chunks_after: int = 0, causal: bool = True, coverage: str = "chunk", cross_bucket: bool = False,
                 correct_duplicates: bool = True, key_scale: str = "unit", wrap_around: bool = False,
                 key_epsilon: float = 0.0, dropout: float = 0.0,
                 share_rotations: bool = False, backend: str = "auto", seed: int = 0):  # fmt: skip
        super().__init__(d_model, num_heads, d_head, shared_qk=True, causal=causal, dropout=dropout, seed=seed)
        self.num_hashes, self.num_buckets, self.chunk_length = num_hashes, num_buckets, chunk_length
        self.share_rotations = share_rotations
        self.options: dict[str, Any] = {
            "chunks_before": chunks_before, "chunks_after": chunks_after, "coverage": coverage,
            "cross_bucket": cross_bucket, "correct_duplicates": correct_duplicates, "key_scale": key_scale,
            "wrap_rounds": wrap_around, "key_epsilon": key_epsilon, "backend": backend,
        }  # fmt: skip

    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D) of projected vectors and values."""
        qk, v = projected
        num_buckets = self.buckets_for(qk.shape[2])
        # Remembered: a recomputation sees x with other rounding errors, which could move a vector to another bucket.
        buckets = draws.remember("buckets", lambda: self._hash(qk, num_buckets, draws))
        return self.attend(qk, v, buckets, num_buckets, key_padding_mask, **self.attention_dropout(draws))

    def buckets_for(self, length: int) -> int | tuple[int, ...]:
        """Return the number of buckets of one round: the one that was given, or the default for a sequence of `length`."""
        return default_num_buckets(length, self.chunk_length) if self.num_buckets is None else self.num_buckets

    def rotations(self, batch: int, heads: int, num_buckets: int | tuple[int, ...], draws: Draws) -> Tensor:
        """Draw the rotations (batch or 1, heads, d_head, num_hashes, half the sum of the factors) of one call."""
        # Fixed rotations are shared, so that an example's result does not depend on its place in the batch.
        batch = 1 if self.share_rotations or draws.fixed else batch
        return draws.normal("rotations", *rotations_shape(batch, heads, self.d_head, self.num_hashes, num_buckets))

    def hash(self, qk: Tensor, rotations: Tensor, num_buckets: int | tuple[int, ...]) -> Tensor:
        """Return the buckets (B, H, R, L) of vectors (B, H, L, D)."""
        return lsh_buckets(qk, rotations, num_buckets, backend=self.options["backend"])

    def _hash(self, qk: Tensor, num_buckets: int | tuple[int, ...], draws: Draws) -> Tensor:
        return self.hash(qk, self.rotations(qk.shape[0], qk.shape[1], num_buckets, draws), num_buckets)

    def attend(self, qk: Tensor, v: Tensor, buckets: Tensor, num_buckets: int | tuple[int, ...],
               key_padding_mask: Tensor | None, **dropout: Any) -> Tensor:  # fmt: skip
        """Return the attention (B, H, L, D) of vectors and values in given buckets (B, H, R, L)."""
        return lsh_attention(
            qk, v, num_hashes=self.num_hashes, num_buckets=num_buckets, chunk_length=self.chunk_length,
            causal=self.causal, key_padding_mask=key_padding_mask, buckets=buckets, **self.options, **dropout,
        ).output  # fmt: skip
