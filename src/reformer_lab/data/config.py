"""The configurations of the data sets: what is read, how it is cut into sequences, what is held out.

Free of torch, so that the command line can list and check configurations at once. `dataset.open_dataset` opens one.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

from reformer_lab.errors import UserError

BYTE_VOCABULARY = 258
"""Tokens of a byte corpus: byte + 2; 0 is padding, 1 end of sequence (unused, kept for the authors' numbering)."""
BYTE_OFFSET = 2
"""Token of a byte, less the byte."""
FEWEST_WORDS = 64
"""Smallest number of different words of the duplication task that can be split in three."""
BITS_UNITS = {"byte": "bits per byte", "symbol": "bits per symbol", "subpixel": "bits per dimension"}
"""What bits per target are called, by the unit of the data."""


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What the configurations have in common: a kind, and a form that JSON can hold."""

    kind: ClassVar[str]
    unit: ClassVar[str]
    """What one target is."""

    def _require(self, condition: bool, name: str, remedy: str) -> None:
        if not condition:
            raise UserError(f"{name}={getattr(self, name)!r}: {remedy}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the kind and the fields as JSON can hold them; `data_config_from_dict` reads them."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class DuplicationConfig(_Config):
    """The duplication task (paper, section 5): sequences 0 w 0 w, of which the second w alone is scored.

    Streamed: each sequence follows from the seed of the run and its number. No word is in two of the splits.
    """

    kind: ClassVar[str] = "duplication"
    unit: ClassVar[str] = "symbol"

    length: int = 64
    """Tokens of a sequence; even. w has length / 2 - 1 symbols (the paper: 1024, 511 symbols)."""
    num_symbols: int = 126
    """Symbols that w is drawn from: 1 to num_symbols."""
    vocab_size: int = 128
    """Token ids of the model, more than num_symbols (0 marks where a word begins)."""
    eval_sequences: int = 1024
    """Sequences in each of the validation and the test split."""

    def __post_init__(self) -> None:
        self._require(self.length >= 4 and self.length % 2 == 0, "length", "must be even, and at least 4")
        self._require(self.num_symbols >= 2, "num_symbols", "must be at least 2")
        self._require(self.vocab_size > self.num_symbols, "vocab_size",
                      f"must be at least {self.num_symbols + 1}, for {self.num_symbols} symbols and the mark 0")
        self._require(self.eval_sequences >= 1, "eval_sequences", "must be at least 1")
        word_length = self.length // 2 - 1
        self._require(word_length >= 6 or self.num_symbols**word_length >= FEWEST_WORDS, "num_symbols",
                      f"gives fewer than {FEWEST_WORDS} different words of {word_length}: too few to hold some out. "
                      "Use more symbols or a greater length")


@dataclass(frozen=True, kw_only=True)
class ByteCorpusConfig(_Config):
    """One text as one contiguous stream of UTF-8 bytes, tokens byte + 2, cut into windows.

    Of N units (characters or bytes) the last `test` are the test split, the `valid` before them the validation split,
    the rest is for training (Tensor2Tensor's order). Training windows overlap; evaluation windows do not, and cover
    their split exactly once.
    """

    kind: ClassVar[str] = "byte_corpus"
    unit: ClassVar[str] = "byte"

    path: str | None = None
    """A UTF-8 file, plain or as .zip (of one member), .gz, .bz2 or .xz. None: the source files of the running Python's
    standard library. "enwik8": that corpus, from the cache (`reformer-lab data download enwik8`)."""
    length: int = 2048
    """Bytes of a window."""
    stride: int | None = None
    """Bytes between the starts of two training windows. None: a quarter of the length, as in the paper."""
    split_by: Literal["characters", "bytes"] = "characters"
    """Unit of `valid` and `test`: characters as the authors', or bytes as most later papers."""
    valid: int | None = None
    """Units in the validation split. None: 5 % of the corpus; 5,000,000 if it has 100,000,000 bytes, as enwik8 has."""
    test: int | None = None
    """Units in the test split. None: as many as `valid` has by default."""

    def __post_init__(self) -> None:
        self._require(self.length >= 2, "length", "must be at least 2")
        self._require(self.stride is None or self.stride >= 1, "stride", "must be at least 1, or None")
        self._require(self.split_by in ("characters", "bytes"), "split_by", "must be characters or bytes")
        self._require(self.valid is None or self.valid >= 0, "valid", "must not be negative")
        self._require(self.test is None or self.test >= 0, "test", "must not be negative")
        self._require(self.path != "", "path", "is empty: name a file, or leave it out for the embedded corpus")

    @property
    def vocab_size(self) -> int:
        """Token ids: 258."""
        return BYTE_VOCABULARY


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(_Config):
    """Images as sequences of side * side * channels tokens 0 to 255: row by row, the channels of a pixel together."""

    kind: ClassVar[str] = "images"
    unit: ClassVar[str] = "subpixel"

    path: str | None = None
    """A folder or .zip of images, a downsampled-ImageNet .npz archive, or a folder of these. None: the procedural
    stand-in, a small set of drawn shapes for tests and quick runs, which is no photograph of anything."""
    side: int = 64
    """Pixels on each side. Images of another size are resized to it (an .npz archive must have it)."""
    channels: Literal[1, 3] = 3
    """3: red, green, blue. 1: grey."""

    def __post_init__(self) -> None:
        self._require(self.side >= 2, "side", "must be at least 2")
        self._require(self.channels in (1, 3), "channels", "must be 1 (grey) or 3 (red, green, blue)")
        self._require(self.path != "", "path", "is empty: name a folder or an archive, or leave it out")

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.side * self.side * self.channels

    @property
    def vocab_size(self) -> int:
        """Token ids: 256."""
        return 256


DataConfig = DuplicationConfig | ByteCorpusConfig | ImagesConfig

_KINDS: dict[str, type[DuplicationConfig] | type[ByteCorpusConfig] | type[ImagesConfig]] = {
    config.kind: config for config in (DuplicationConfig, ByteCorpusConfig, ImagesConfig)
}


def data_config_from_dict(fields: dict[str, Any]) -> DataConfig:
    """Read what `to_dict` wrote; an unknown kind or field is an error that names it."""
    kind = fields.get("kind")
    if kind not in _KINDS:
        raise UserError(f"unknown kind of data {kind!r}; known: {', '.join(_KINDS)}")
    config = _KINDS[kind]
    values = {name: value for name, value in fields.items() if name != "kind"}
    unknown = sorted(set(values) - set(config.__dataclass_fields__))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {kind}; known: {', '.join(config.__dataclass_fields__)}")
    return config(**values)
