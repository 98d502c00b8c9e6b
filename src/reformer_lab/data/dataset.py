"""What every data set offers, the order of its training sequences, and how one is opened."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from reformer_lab.data.config import ByteCorpusConfig, DataConfig, DuplicationConfig, ImagesConfig
from reformer_lab.errors import UserError
from reformer_lab.seeds import derive_seed

IGNORED = -100
"""Target that is not counted, as everywhere in PyTorch."""
EVAL_SPLITS = ("validation", "test")


class Batch(NamedTuple):
    """One batch of sequences. The model shifts inside: `targets` stand where their tokens stand."""

    tokens: Tensor
    """(batch, length) int64."""
    targets: Tensor
    """(batch, length) int64; -100 is not counted."""
    key_padding_mask: Tensor | None = None
    """(batch, length) bool, True = padding; None: no padding."""


class Dataset(Protocol):
    """Sequences of one length, each a function of the configuration, the seed and a number: no state to save."""

    name: str
    """What the data are, for people."""
    vocab_size: int
    length: int
    """Tokens of a sequence."""
    unit: str
    """What one target is: "byte", "symbol" or "subpixel"."""
    fingerprint: str
    """Hexadecimal digest of the data in use: another one means another corpus."""

    def train_batch(self, index: int, batch_size: int) -> Batch:
        """Return training batch number `index` (from 0): sequences index * batch_size to (index + 1) * batch_size - 1
        of the endless stream that the seed fixes."""
        ...

    def eval_batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield "validation" or "test", each target once; with `limit`, at most so many sequences, spread over it."""
        ...


class EpochOrder:
    """The order of `count` training items: each epoch is a permutation of its own, drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._kept: tuple[int, np.ndarray] | None = None

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._kept = epoch, torch.randperm(self.count, generator=generator, device="cpu").numpy()
        return self._kept[1]

    def take(self, first: int, how_many: int) -> np.ndarray:
        """Return items number first to first + how_many - 1 of the endless stream, (how_many,) int64."""
        pieces = []
        while how_many > 0:
            epoch, within = divmod(first, self.count)
            piece = self._permutation(epoch)[within : within + how_many]
            pieces.append(piece)
            first, how_many = first + len(piece), how_many - len(piece)
        return np.concatenate(pieces)


def eval_selection(count: int, batch_size: int, limit: int | None) -> Iterator[np.ndarray]:
    """Yield the numbers of the sequences of each evaluation batch, at most `limit` of `count`, evenly spread.

    Spread, since the first windows of a corpus are one book or one article, and no sample of it.
    """
    chosen = count if limit is None else min(limit, count)
    numbers = np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)
    for begin in range(0, chosen, batch_size):
        yield numbers[begin : begin + batch_size]


def check_request(split: str, batch_size: int, limit: int | None) -> None:
    """Raise UserError for an unknown split, or for a batch size or limit below 1."""
    if split not in EVAL_SPLITS:
        raise UserError(f"split={split!r}: must be validation or test")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or None for the whole split")


def open_dataset(config: DataConfig, seed: int) -> Dataset:
    """Open the data of a run; `seed` fixes draws and orders, never which data are held out of a corpus.

    Raises UserError for data that are not there, damaged, or too short for the configuration.
    """
    if isinstance(config, DuplicationConfig):
        from reformer_lab.data.duplication import DuplicationDataset

        return DuplicationDataset(config, seed)
    if isinstance(config, ByteCorpusConfig):
        from reformer_lab.data.byte_corpus import ByteCorpusDataset

        return ByteCorpusDataset(config, seed)
    if isinstance(config, ImagesConfig):
        from reformer_lab.data.images import ImagesDataset

        return ImagesDataset(config, seed)
    raise UserError(f"{type(config).__name__} is no configuration of data")
