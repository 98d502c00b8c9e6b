"""Residual blocks and their stack: reversible, the same stored, or the regular Transformer's."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reformer_lab.layers.attention import ALL_HEADS, SelfAttention
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.ops.random import Draws, dropout
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
            attention, heads = self.function, self.function.num_heads
            step = self.heads_at_once or heads
            groups = [slice(start, start + step) for start in range(0, heads, step)] if step < heads else [ALL_HEADS]
            stages = [self._stages(attention, group, key_padding_mask) for group in groups]
            return ResidualInStages(stages, parameters, self.chunk_length)
        return Residual(whole, parameters)

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
    """

    def __init__(self, layers: Sequence[TransformerLayer], *, reversible: bool = True, streams: int = 2):
        super().__init__()
        self.layers: Sequence[TransformerLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.reversible, self.streams = reversible, streams

    def forward(
        self, x: Tensor, key_padding_mask: Tensor | None = None, seed: int = 0, fixed_draws: bool = False
    ) -> Tensor:
        """Return (B, L, streams * d_model) for x (B, L, d_model). All random draws follow from `seed`."""
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
