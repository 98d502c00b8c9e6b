"""The duplication task: sequences 0 w 0 w, drawn without state (paper, section 5).

A symbol is a hash of (seed, split, number of the sequence, attempt, position), so any sequence can be had at once, in
any batch. A word belongs to the split that a hash of its symbols names; words of another split are drawn again.
Hence no word is in two splits, whatever the seeds and however short the words.
"""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.data.dataset import IGNORED, Batch, check_request, eval_selection
from reformer_lab.seeds import derive_seed

_SHARES = {"train": (0, 1), "validation": (2,), "test": (3,)}
"""Quarters of all words that each split draws from."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MOST_ATTEMPTS = 10_000


def _mix(x: np.ndarray) -> np.ndarray:
    """Return the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood, 2014) of each number."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _quarter_of(words: np.ndarray) -> np.ndarray:
    """Return 0 to 3 for each word, (count, n) -> (count,): a hash of its symbols alone."""
    state = np.zeros(len(words), dtype=np.uint64)
    for column in words.T.astype(np.uint64):
        state = _mix(state ^ column)
    return state >> np.uint64(62)


class DuplicationDataset:
    """Stream of training sequences, and `eval_sequences` of validation and of test; only the second w is scored."""

    unit = DuplicationConfig.unit

    def __init__(self, config: DuplicationConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.name = f"duplication task, length {config.length}"
        self.vocab_size = config.vocab_size
        self.length = config.length
        identity = json.dumps({**config.to_dict(), "seed": seed, "stream": 1}, sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def words(self, split: str, numbers: np.ndarray) -> np.ndarray:
        """Return the words of the given sequences of a split: (count,) -> (count, length / 2 - 1), symbols from 1."""
        key = np.uint64(derive_seed(self.seed, "duplication", split))
        streams = _mix(key ^ _mix(numbers.astype(np.uint64)))
        positions = _mix(np.arange(self.length // 2 - 1, dtype=np.uint64))
        words = np.empty((len(numbers), len(positions)), dtype=np.int64)
        waiting = np.arange(len(numbers))
        for _ in range(_MOST_ATTEMPTS):
            streams = _mix(streams)
            draws = _mix(streams[waiting, None] ^ positions[None, :])
            words[waiting] = draws % np.uint64(self.config.num_symbols) + np.uint64(1)
            waiting = waiting[~np.isin(_quarter_of(words[waiting]), _SHARES[split])]
            if len(waiting) == 0:
                return words
        raise AssertionError(f"no word of {split} in {_MOST_ATTEMPTS} draws: {self.config}")

    def _batch(self, split: str, numbers: np.ndarray) -> Batch:
        words = torch.from_numpy(self.words(split, numbers))
        marks = words.new_zeros(len(numbers), 1)
        tokens = torch.cat([marks, words, marks, words], dim=1)
        targets = tokens.clone()
        targets[:, : self.length // 2 + 1] = IGNORED
        return Batch(tokens, targets)

    def train_batch(self, index: int, batch_size: int) -> Batch:
        """Return training batch number `index`; see `Dataset`."""
        return self._batch("train", np.arange(index * batch_size, (index + 1) * batch_size))

    def eval_batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the sequences of "validation" or "test"; see `Dataset`."""
        check_request(split, batch_size, limit)
        for numbers in eval_selection(self.config.eval_sequences, batch_size, limit):
            yield self._batch(split, numbers)
