"""Layers: nn.Modules over `reformer_lab.ops`, for models of your own too."""

from reformer_lab.layers.attention import FullSelfAttention, LocalSelfAttention, LSHSelfAttention
from reformer_lab.layers.blocks import PreNorm, ReversibleStack, TransformerLayer
from reformer_lab.layers.feed_forward import ChunkedFeedForward
from reformer_lab.layers.positions import AxialPositions
from reformer_lab.layers.reversible import ReversibleSequence

__all__ = [
    "AxialPositions",
    "ChunkedFeedForward",
    "FullSelfAttention",
    "LSHSelfAttention",
    "LocalSelfAttention",
    "PreNorm",
    "ReversibleSequence",
    "ReversibleStack",
    "TransformerLayer",
]
