"""What every backend of LSH attention is told, checked once."""

from dataclasses import dataclass, replace

from reformer_lab.errors import UserError

PADDING_BUCKET = 2**31
"""Bucket of padded tokens while sorting: behind every real one."""


@dataclass(frozen=True, kw_only=True)
class LSHOptions:
    """Options of one call; the meanings are those of `lsh_attention`."""

    num_hashes: int
    chunk_length: int
    chunks_before: int
    chunks_after: int
    causal: bool
    coverage: str
    cross_bucket: bool
    correct_duplicates: bool
    logit_scale: float
    """Factor of q . k/|k|."""
    dropout_p: float
    dropout_seed: int = 0
    """Seed of `keep_pairs`."""
    wrap_rounds: bool = False
    """The rounds' chunks form one circle, in which a window reaches from one round into the next."""
    key_epsilon: float = 0.0
    """Added to the mean square of a key before it is brought to unit length."""

    def __post_init__(self) -> None:
        for name, least in (("num_hashes", 1), ("chunk_length", 1), ("chunks_before", 0), ("chunks_after", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.coverage not in ("chunk", "bucket"):
            raise UserError(f"coverage={self.coverage!r}: must be 'chunk' or 'bucket'")
        if self.coverage == "bucket" and self.cross_bucket:
            raise UserError("cross_bucket=True has no meaning with coverage='bucket': drop one of the two")
        if self.wrap_rounds and (self.correct_duplicates or not self.cross_bucket):
            raise UserError("wrap_rounds=True needs cross_bucket=True and correct_duplicates=False: no other code ever had it")
        if not self.key_epsilon >= 0:
            raise UserError(f"key_epsilon={self.key_epsilon}: must be at least 0")
        if not 0 <= self.dropout_p < 1:
            raise UserError(f"dropout_p={self.dropout_p}: must be in [0, 1)")

    def within(self, length: int) -> "LSHOptions":
        """Return the options with chunks and windows no larger than a sequence of `length`; who sees whom stays."""
        chunk_length = min(self.chunk_length, length)
        if self.wrap_rounds:  # a window wider than the circle counts tokens several times
            return replace(self, chunk_length=chunk_length)
        chunks = -(-length // chunk_length)
        return replace(self, chunk_length=chunk_length, chunks_before=min(self.chunks_before, chunks),
                       chunks_after=min(self.chunks_after, chunks))

    def historic(self) -> str | None:
        """Return in one line which option only the slower backends know; None if there is none."""
        if self.wrap_rounds:
            return "it does not look from one hash round into another (wrap_rounds)"
        return "it knows no epsilon in the length of a key (key_epsilon)" if self.key_epsilon else None

    def with_dropout_seed(self, seed: int) -> "LSHOptions":
        """Return the options with the seed of this call's dropout."""
        return replace(self, dropout_seed=seed)
