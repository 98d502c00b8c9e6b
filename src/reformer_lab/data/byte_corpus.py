"""A byte corpus as a data set: split points, overlapping training windows, evaluation windows that tile their split."""

from collections.abc import Iterator

import numpy as np
import torch

from reformer_lab.data.config import BYTE_OFFSET, ByteCorpusConfig
from reformer_lab.data.corpora import open_corpus, split_bounds, training_starts
from reformer_lab.data.dataset import IGNORED, Batch, EpochOrder, check_request, eval_selection
from reformer_lab.data.watched import WatchedBytes
from reformer_lab.errors import UserError


class ByteCorpusDataset:
    """Windows of one corpus. Tokens are byte + 2, and every token of a window is a target.

    Training windows begin every `stride` bytes, and the last one ends where the split ends, so that each epoch shows
    every byte. The evaluation windows of a split follow one another; a short last one is padded with 0 and masked.
    """

    unit = ByteCorpusConfig.unit

    def __init__(self, config: ByteCorpusConfig, seed: int) -> None:
        self.config = config
        self.corpus = open_corpus(config.path)
        self.name = self.corpus.name
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.fingerprint = self.corpus.sha256
        self.bounds = split_bounds(self.corpus, config)
        self.stride, count = training_starts(self.bounds["train"][1], config)
        self._order = EpochOrder(count, seed)
        self._watched = WatchedBytes(self.corpus.path, self.corpus.num_bytes, self.corpus.sha256)
        self._bytes = self._watched.bytes

    @property
    def windows_per_epoch(self) -> int:
        """Training windows of one epoch."""
        return self._order.count

    def _tokens(self, starts: np.ndarray) -> torch.Tensor:
        """Return the windows that begin at the given bytes: (count,) -> (count, length) int64."""
        self._watched.check()  # before, as a mapped file that has become shorter cannot be read
        windows = np.stack([self._bytes[start : start + self.length] for start in starts])
        self._watched.check()
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
        self._watched.check()
        if starts[-1] + self.length <= end:
            tokens = self._tokens(starts)
            return Batch(tokens, tokens)
        tokens = torch.zeros(len(starts), self.length, dtype=torch.int64)
        if len(starts) > 1:
            tokens[:-1] = self._tokens(starts[:-1])
        rest = self._bytes[starts[-1] : end].astype(np.int64)
        self._watched.check()
        tokens[-1, : len(rest)] = torch.from_numpy(rest) + BYTE_OFFSET
        padding = torch.zeros_like(tokens, dtype=torch.bool)
        padding[-1, len(rest) :] = True
        return Batch(tokens, tokens.masked_fill(padding, IGNORED), padding)
