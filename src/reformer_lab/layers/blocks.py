"""Residual blocks and their stack: reversible, the same stored, or the regular Transformer's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.ops.random import Draws, dropout
from reformer_lab.ops.reversible import Residual, ReversibleLayer, reversible_stack, stored_stack
from reformer_lab.seeds import derive_seed


class PreNorm(nn.Module):
    """dropout(function(norm(x))): what is added to a residual stream."""

    def __init__(self, function: nn.Module, d_model: int, *, dropout: float = 0.0, layer_norm_eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=layer_norm_eps)
        self.function = function
        self.dropout = dropout

    def forward(self, x: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return (B, L, d_model) for the stream x (B, L, d_model)."""
        x = self.function(self.norm(x), key_padding_mask, draws)
        if self.training and self.dropout > 0:
            x = dropout(x, self.dropout, draws.generator("outer dropout", x.device))
        return x


class TransformerLayer(nn.Module):
    """An attention block and a feed-forward block."""

    def __init__(self, attention: PreNorm, feed_forward: PreNorm):
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    @property
    def feed_forward_chunk_length(self) -> int | None:
        """Positions of the feed-forward block, with its norm, that are computed at once; None: all of them."""
        function = self.feed_forward.function
        return function.chunk_length if isinstance(function, ChunkedFeedForward) else None


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
        draws = [
            (
                Draws(derive_seed(seed, "attention", index), fixed=fixed_draws),
                Draws(derive_seed(seed, "feed-forward", index), fixed=fixed_draws),
            )
            for index in range(len(self.layers))
        ]
        if self.streams == 1:
            for layer, (attention_draws, feed_forward_draws) in zip(self.layers, draws, strict=True):
                x = x + layer.attention(x, key_padding_mask, attention_draws)
                x = x + layer.feed_forward(x, key_padding_mask, feed_forward_draws)
            return x

        def residual(block: PreNorm) -> Residual:
            return lambda x, draws: block(x, key_padding_mask, draws)

        layers = [
            ReversibleLayer(
                residual(layer.attention),
                residual(layer.feed_forward),
                tuple(layer.attention.parameters()),
                tuple(layer.feed_forward.parameters()),
                layer.feed_forward_chunk_length,
            )
            for layer in self.layers
        ]
        stack = reversible_stack if self.reversible else stored_stack
        return torch.cat(stack(x, x, layers, draws), dim=-1)
