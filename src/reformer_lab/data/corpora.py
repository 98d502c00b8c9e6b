"""Which text a path means, and where it is split. Free of torch: the command line describes a corpus at once."""

from pathlib import Path

from reformer_lab.data import enwik8
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpus_file import CorpusFile, open_corpus_file
from reformer_lab.data.stdlib_corpus import open_stdlib_corpus
from reformer_lab.errors import UserError

_ENWIK8_HELD_OUT = 5_000_000


def open_corpus(path: str | None) -> CorpusFile:
    """Open the corpus that `ByteCorpusConfig.path` means. Raises UserError as `open_corpus_file` does."""
    if path is None:
        return open_stdlib_corpus()
    if path == "enwik8" and not Path(path).exists():
        return enwik8.open_enwik8()
    corpus = open_corpus_file(path)
    if Path(path).name in enwik8.NAMES:
        enwik8.check_sum(corpus.name, corpus.num_bytes, corpus.sha256)
    return corpus


def split_bounds(corpus: CorpusFile, config: ByteCorpusConfig) -> dict[str, tuple[int, int]]:
    """Return the (first, end) bytes of "train", "validation" and "test", which touch and cover the corpus.

    Raises UserError if the held-out splits leave too little to train on.
    """
    units = corpus.num_characters if config.split_by == "characters" else corpus.num_bytes
    default = _ENWIK8_HELD_OUT if corpus.num_bytes == enwik8.NUM_BYTES else max(1, round(0.05 * units))
    valid = default if config.valid is None else config.valid
    test = default if config.test is None else config.test
    if valid + test >= units:
        raise UserError(f"{corpus.name} has {units:,} {config.split_by}, of which valid={valid:,} and test={test:,} "
                        "would leave none to train on: hold out less, or give a longer text")
    places = (0, units - valid - test, units - test, units)
    first, middle, last, end = map(corpus.offset, places) if config.split_by == "characters" else places
    return {"train": (first, middle), "validation": (middle, last), "test": (last, end)}


def training_starts(train_bytes: int, config: ByteCorpusConfig) -> tuple[int, int]:
    """Return the stride and the number of training windows of one epoch; the last one ends where the split ends.

    Raises UserError if the split is shorter than a window.
    """
    if train_bytes < config.length:
        raise UserError(f"{config.path or 'the corpus'} has {train_bytes:,} bytes to train on, less than one window "
                        f"of {config.length:,}: give a longer text, or a length of at most {train_bytes:,}")
    stride = config.stride or max(1, config.length // 4)
    return stride, -(-(train_bytes - config.length) // stride) + 1
