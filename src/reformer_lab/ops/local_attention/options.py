"""What every backend of local attention is told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Options of one call; the meanings are those of `local_attention`, which checks them."""

    chunk_length: int
    chunks_before: int
    chunks_after: int
    causal: bool
    dropout_p: float = 0.0
    dropout_seed: int = 0
    """Seed of `keep_pairs`."""
