"""A byte corpus as a data set: split points, overlapping training windows, evaluation windows that tile their split."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from reformer_lab.data import enwik8
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpus_file import CorpusFile, open_corpus_file
from reformer_lab.data.dataset import IGNORED, Batch, EpochOrder, check_request, eval_selection
from reformer_lab.data.stdlib_corpus import open_stdlib_corpus
from reformer_lab.errors import UserError

BYTE_OFFSET = 2
"""Token of a byte minus the byte."""
_ENWIK8_SIZE = 100_000_000
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
    default = _ENWIK8_HELD_OUT if corpus.num_bytes == _ENWIK8_SIZE else max(1, round(0.05 * units))
    valid = default if config.valid is None else config.valid
    test = default if config.test is None else config.test
    if valid + test >= units:
        raise UserError(f"{corpus.name} has {units:,} {config.split_by}, of which valid={valid:,} and test={test:,} "
                        "would leave none to train on: hold out less, or give a longer text")
    places = (0, units - valid - test, units - test, units)
    first, middle, last, end = map(corpus.offset, places) if config.split_by == "characters" else places
    return {"train": (first, middle), "validation": (middle, last), "test": (last, end)}


class ByteCorpusDataset:
    """Windows of one corpus. Tokens are byte + 2, and every token of a window is a target.

    Training windows begin every `stride` bytes, and the last one ends where the split ends, so that each epoch shows
    every byte. The evaluation windows of a split follow one another; a short last one is padded with 0 and masked.
    """

    unit = "byte"

    def __init__(self, config: ByteCorpusConfig, seed: int) -> None:
        self.config = config
        self.corpus = open_corpus(config.path)
        self.name = self.corpus.name
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.fingerprint = self.corpus.sha256
        self.bounds = split_bounds(self.corpus, config)
        train_bytes = self.bounds["train"][1]
        if train_bytes < config.length:
            raise UserError(f"{self.name} has {train_bytes:,} bytes to train on, less than one window of "
                            f"{config.length:,}: give a longer text, or a length of at most {train_bytes:,}")
        self.stride = config.stride or max(1, config.length // 4)
        self._order = EpochOrder(-(-(train_bytes - config.length) // self.stride) + 1, seed)
        self._bytes = self.corpus.bytes()

    @property
    def windows_per_epoch(self) -> int:
        """Training windows of one epoch."""
        return self._order.count

    def _tokens(self, starts: np.ndarray) -> torch.Tensor:
        """Return the windows that begin at the given bytes: (count,) -> (count, length) int64."""
        windows = np.stack([self._bytes[start : start + self.length] for start in starts])
        return torch.from_numpy(windows.astype(np.int64)) + BYTE_OFFSET

    def train_batch(self, index: int, batch_size: int) -> Batch:
        """Return training batch number `index`; see `Dataset`."""
        numbers = self._order.take(index * batch_size, batch_size)
        tokens = self._tokens(np.minimum(numbers * self.stride, self.bounds["train"][1] - self.length))
        return Batch(tokens, tokens)

    def eval_batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the windows of "validation" or "test"; see `Dataset`. Raises UserError if the split is empty."""
        check_request(split, batch_size, limit)
        first, end = self.bounds[split]
        if first == end:
            raise UserError(f"the {split} split of {self.name} is empty: hold out at least one byte for it")
        for numbers in eval_selection(-(-(end - first) // self.length), batch_size, limit):
            yield self._eval_batch(first + numbers * self.length, end)

    def _eval_batch(self, starts: np.ndarray, end: int) -> Batch:
        if starts[-1] + self.length <= end:
            tokens = self._tokens(starts)
            return Batch(tokens, tokens)
        tokens = torch.zeros(len(starts), self.length, dtype=torch.int64)
        if len(starts) > 1:
            tokens[:-1] = self._tokens(starts[:-1])
        rest = self._bytes[starts[-1] : end].astype(np.int64)
        tokens[-1, : len(rest)] = torch.from_numpy(rest) + BYTE_OFFSET
        padding = torch.zeros_like(tokens, dtype=torch.bool)
        padding[-1, len(rest) :] = True
        return Batch(tokens, tokens.masked_fill(padding, IGNORED), padding)
