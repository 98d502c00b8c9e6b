"""Residual blocks and their stack: reversible, the same stored, or the regular Transformer's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reformer_lab.layers.attention import ALL_HEADS, LSHSelfAttention, SelfAttention
from reformer_lab.layers.cache import AttentionCache, cache_of
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.ops.random import CallSeeds, Draws, dropout
from reformer_lab.ops.residual import LossInPieces, Residual, ResidualInPieces, ResidualInStages, Stages
from reformer_lab.ops.reversible import ReversibleLayer, reversible_loss, reversible_stack, stored_stack
from reformer_lab.seeds import derive_seed


class PreNorm(nn.Module):
    """dropout(function(norm(x))): what is added to a residual stream.

    `heads_at_once`: heads of an attention that are computed at once; `chunk_length`: positions of its projections. They change
    the memory, and no result but the draws.
    """

    def __init__(self, function: nn.Module, d_model: int, *, dropout: float = 0.0, layer_norm_eps: float = 1e-6,
                 heads_at_once: int | None = None, chunk_length: int | None = None):  # fmt: skip
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=layer_norm_eps)
        self.function = function
        self.dropout = dropout
        self.heads_at_once, self.chunk_length = heads_at_once, chunk_length

    def forward(self, x: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return (B, L, d_model) for the stream x (B, L, d_model)."""
        return self._dropout(self.function(self.norm(x), key_padding_mask, draws), draws)

    def residual(self, key_padding_mask: Tensor | None) -> Residual:
        """Return the block in the form of a residual function that needs the least memory."""
        parameters = tuple(self.parameters())

        def whole(x: Tensor, draws: Draws) -> Tensor:
            return self(x, key_padding_mask, draws)

        if isinstance(self.function, ChunkedFeedForward):
            return ResidualInPieces(whole, parameters, self.function.chunk_length)
        if isinstance(self.function, SelfAttention) and (self.heads_at_once or self.chunk_length):
            stages = [self._stages(self.function, group, key_padding_mask) for group in self.head_groups()]
            return ResidualInStages(stages, parameters, self.chunk_length)
        return Residual(whole, parameters)

    def head_groups(self) -> list[slice]:
        """Return the heads of an attention that are computed at once; each group has draws of its own."""
        assert isinstance(self.function, SelfAttention)
        heads = self.function.num_heads
        step = self.heads_at_once or heads
        return [slice(start, start + step) for start in range(0, heads, step)] if step < heads else [ALL_HEADS]

    def _stages(self, attention: SelfAttention, heads: slice, key_padding_mask: Tensor | None) -> Stages:
        return Stages(
            before=lambda x: attention.project(self.norm(x), heads),
            mix=lambda *inputs: attention.mix(*inputs[:-1], key_padding_mask=key_padding_mask, draws=inputs[-1]),
            after=lambda attended, draws: self._dropout(attention.merge(attended, heads), draws),
        )

    def _dropout(self, x: Tensor, draws: Draws) -> Tensor:
        if self.training and self.dropout > 0:
            x = dropout(x, self.dropout, draws.generator("outer dropout", x.device))
        return x


class TransformerLayer(nn.Module):
    """An attention block and a feed-forward block."""

    def __init__(self, attention: PreNorm, feed_forward: PreNorm):
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward


class ReversibleStack(nn.Module):
    """Layers over residual streams.

    streams 2: y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1) (paper, section 3), starting from x1 = x2 = x and ending in
    the concatenation of both; `reversible` chooses between recomputed and stored activations, with equal results.
    streams 1: the regular Transformer, x = x + attention(x), x = x + feed_forward(x).

    The blocks know masks and draws. For any two modules: `layers.ReversibleSequence`.

    >>> from reformer_lab.layers import LSHSelfAttention
    >>> stack = ReversibleStack([
    ...     TransformerLayer(PreNorm(LSHSelfAttention(32, 2, 16, chunk_length=8), 32), PreNorm(ChunkedFeedForward(32, 64), 32))
    ...     for _ in range(3)
    ... ])
    >>> y1, y2 = stack(torch.randn(1, 100, 32)).chunk(2, dim=-1)
    >>> y1.shape
    torch.Size([1, 100, 32])
    """

    def __init__(self, layers: Sequence[TransformerLayer], *, reversible: bool = True, streams: int = 2, seed: int = 0):
        super().__init__()
        self.layers: Sequence[TransformerLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.reversible, self.streams = reversible, streams
        self._call_seeds = CallSeeds(seed)

    def forward(
        self, x: Tensor, key_padding_mask: Tensor | None = None, seed: int | None = None, fixed_draws: bool = False
    ) -> Tensor:
        """Return (B, L, streams * d_model) for x (B, L, d_model). All random draws follow from `seed`.

        `seed` None: new draws at each call in training, from the stack's `seed`; the same ones at each call in evaluation.
        `fixed_draws`: those of evaluation, which are the same for all examples.
        """
        if seed is None:
            own = self._call_seeds.draws(fixed=not self.training)
            seed, fixed_draws = own.seed, own.fixed
        draws = self._draws(seed, fixed_draws)
        if self.streams == 1:
            for layer, (attention_draws, feed_forward_draws) in zip(self.layers, draws, strict=True):
                x = x + layer.attention(x, key_padding_mask, attention_draws)
                x = x + layer.feed_forward(x, key_padding_mask, feed_forward_draws)
            return x
        stack = reversible_stack if self.reversible else stored_stack
        return torch.cat(stack(x, x, self._reversible_layers(key_padding_mask), draws), dim=-1)

    def loss(
        self,
        x: Tensor,
        loss_of: Callable[[int, Tensor], Tensor],
        parameters: Sequence[Tensor],
        chunk_length: int | None,
        key_padding_mask: Tensor | None = None,
        seed: int = 0,
        fixed_draws: bool = False,
    ) -> Tensor:
        """Return the sum of loss_of(index, piece) over pieces of `forward`'s result, which never exists as a whole.

        For a reversible stack. `parameters`: those of `loss_of`. The backward pass needs the streams, their gradients and what
        undoing one function needs.
        """
        loss = LossInPieces(lambda index, y1, y2: loss_of(index, torch.cat([y1, y2], dim=-1)), parameters, chunk_length)
        layers = self._reversible_layers(key_padding_mask)
        return reversible_loss(x, x, layers, self._draws(seed, fixed_draws), loss)

    def start(self, x: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, list[AttentionCache]]:
        """Return `forward`'s result in evaluation for texts of different lengths, and what continuing them needs.

        x (B, L, d_model), of which the first lengths[b] positions count; texts may grow to `max_length`. With buckets whose
        number follows the length it is that of `max_length`.
        """
        caches = [
            cache_of(layer.attention.function, self._rotations(layer.attention, draws, max_length), max_length)
            for layer, (draws, _) in zip(self.layers, self._draws(0, fixed=True), strict=True)
        ]
        return self._attending(x, lambda index, x: caches[index].start(x, lengths)), caches

    def step(self, x: Tensor, caches: Sequence[AttentionCache], position: Tensor, longest: int) -> Tensor:
        """Return (B, 1, streams * d_model) of one more position of each text, x (B, 1, d_model) at `position` (B,).

        `longest`: the largest of the positions, plus 1.
        """
        return self._attending(x, lambda index, x: caches[index].step(x, position, longest))

    def _attending(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return what `forward` does in evaluation, with `attend(layer's index, its normed input)` as the attention."""
        draws = Draws(0, fixed=True)
        x1 = x2 = x
        for index, layer in enumerate(self.layers):
            x1 = x1 + attend(index, layer.attention.norm(x2))
            if self.streams == 1:
                x1 = x2 = x1 + layer.feed_forward(x1, None, draws)
            else:
                x2 = x2 + layer.feed_forward(x1, None, draws)
        return x1 if self.streams == 1 else torch.cat([x1, x2], dim=-1)

    def _rotations(self, attention: PreNorm, draws: Draws, max_length: int) -> Tensor | None:
        """Return the rotations of an LSH layer in evaluation: those that `forward` draws."""
        lsh = attention.function
        if not isinstance(lsh, LSHSelfAttention):
            return None
        num_buckets = lsh.buckets_for(max_length)
        groups = [ALL_HEADS] if self.streams == 1 else attention.head_groups()
        if len(groups) == 1:
            return lsh.rotations(1, lsh.num_heads, num_buckets, draws)
        sizes = [len(range(lsh.num_heads)[group]) for group in groups]
        return torch.cat([lsh.rotations(1, size, num_buckets, draws.part(i)) for i, size in enumerate(sizes)], dim=1)

    def _draws(self, seed: int, fixed: bool) -> list[tuple[Draws, Draws]]:
        return [
            (
                Draws(derive_seed(seed, "attention", index), fixed=fixed),
                Draws(derive_seed(seed, "feed-forward", index), fixed=fixed),
            )
            for index in range(len(self.layers))
        ]

    def _reversible_layers(self, key_padding_mask: Tensor | None) -> list[ReversibleLayer]:
        return [
            ReversibleLayer(layer.attention.residual(key_padding_mask), layer.feed_forward.residual(key_padding_mask))
            for layer in self.layers
        ]
