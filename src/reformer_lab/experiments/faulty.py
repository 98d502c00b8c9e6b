"""What the faults of `faults` do: attention layers, a model and data sets that have them, for the experiment `autopsy` alone.

B batch, H heads, R hash rounds, L length, D width of a head.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.dataset import Batch, Dataset
from reformer_lab.experiments.faults import (
    FIXED_SEQUENCES,
    FROZEN,
    LINES,
    RAW,
    REPEATED,
    ROTATION_SEED,
    SEEN,
    WRONG,
    FaultyRunConfig,
)
from reformer_lab.layers.attention import FullSelfAttention, LSHSelfAttention
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.full_attention import full_attention
from reformer_lab.ops.hashing import rotations_shape
from reformer_lab.ops.lsh_attention import lsh_buckets
from reformer_lab.ops.random import Draws
from reformer_lab.seeds import derive_seed
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import Parts, build_data, train
from reformer_lab.training.tracking import Event, Progress

_NEWLINE = 10


class FaultyLSHSelfAttention(LSHSelfAttention):
    """LSH attention with frozen rotations, or with wrong buckets in the backward pass."""

    faults: tuple[str, ...] = ()

    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D); what a recomputation will be given are the last head's buckets."""
        attended = super().mix(*projected, key_padding_mask=key_padding_mask, draws=draws)
        if WRONG in self.faults:
            for name, buckets_BHRL in draws.remembered.items():
                draws.remembered[name] = buckets_BHRL[:, -1:].expand_as(buckets_BHRL).contiguous()
        return attended

    def _hash(self, qk: Tensor, num_buckets: int | tuple[int, ...], draws: Draws) -> Tensor:
        if FROZEN not in self.faults:
            return super()._hash(qk, num_buckets, draws)
        shape = rotations_shape(1, 1, self.d_head, self.num_hashes, num_buckets)
        rotations = torch.randn(shape, generator=torch.Generator().manual_seed(ROTATION_SEED))
        return lsh_buckets(qk, rotations, num_buckets, backend=self.options["backend"])


class FaultyFullSelfAttention(FullSelfAttention):
    """Causal shared-QK attention with keys that are not normalised."""

    faults: tuple[str, ...] = ()

    def mix(self, *projected: Tensor, key_padding_mask: Tensor | None, draws: Draws) -> Tensor:
        """Return the attention (B, H, L, D): logits q . k / sqrt(D), a token sees itself only where it sees nothing else."""
        if RAW not in self.faults:
            return super().mix(*projected, key_padding_mask=key_padding_mask, draws=draws)
        assert self.causal
        assert key_padding_mask is None
        assert not self.attention_dropout(draws)
        qk, v = projected
        # Queries 1.. against keys ..L-2: causal attention to the tokens strictly before.
        later = full_attention(qk[:, :, 1:], qk[:, :, :-1], v[:, :, :-1], causal=True)
        return torch.cat([v[:, :, :1], later], dim=2)


_FAULTY: dict[type[nn.Module], type[nn.Module]] = {
    LSHSelfAttention: FaultyLSHSelfAttention, FullSelfAttention: FaultyFullSelfAttention,
}  # fmt: skip


class FaultyLM(ReformerLM):
    """A language model whose attention layers have faults; parameters and their initial values are those of ReformerLM."""

    def __init__(self, config: RunConfig):
        super().__init__(config.model, seed=config.seed)
        self.faults: tuple[str, ...] = getattr(config, "faults", ())
        _make_faulty(self, self.faults)

    def with_config(self, **changes: Any) -> ReformerLM:
        """Return a model with changed fields and the same faults that shares this one's parameters."""
        other = super().with_config(**changes)
        _make_faulty(other, self.faults)
        return other


def _make_faulty(model: ReformerLM, faults: tuple[str, ...]) -> None:
    for module in model.modules():
        if type(module) in _FAULTY:
            module.__class__ = _FAULTY[type(module)]  # same parameters, same names
            module.faults = faults  # type: ignore[assignment]


class ShuffledLines(ByteCorpusDataset):
    """A byte corpus whose training text has its lines in an order drawn from the seed."""

    def __init__(self, config: ByteCorpusConfig, seed: int) -> None:
        super().__init__(config, seed)
        first, end = self.bounds["train"]
        text = np.asarray(self._bytes)
        self._bytes = np.concatenate([text[:first], shuffled_lines(text[first:end], seed), text[end:]])


def shuffled_lines(text: np.ndarray, seed: int) -> np.ndarray:
    """Return the bytes (count,) with the lines, each with its newline, in another order; one without a newline comes last."""
    content = text.tobytes()
    ends = np.flatnonzero(text == _NEWLINE) + 1
    starts = np.concatenate([[0], ends])
    lines = [content[start:end] for start, end in zip(starts, ends, strict=False)]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(derive_seed(seed, "lines")))
    return np.frombuffer(b"".join([*(lines[i] for i in order.tolist()), content[starts[-1]:]]), dtype=np.uint8)


class SeenValidation:
    """A data set whose validation split is the first part of its training set, and whose training set may be finite."""

    def __init__(self, clean: Dataset, training_sequences: int | None) -> None:
        """`training_sequences`: sequences of the training set, shown again and again; None: as many as `clean` has."""
        self.clean, self.training_sequences = clean, training_sequences
        self.name, self.vocab_size, self.length, self.unit = clean.name, clean.vocab_size, clean.length, clean.unit
        self.fingerprint = clean.fingerprint

    def train_batch(self, index: int, batch_size: int) -> Batch:
        """Return training batch number `index`, counted modulo the batches of the training set."""
        if self.training_sequences is not None:
            index %= max(1, self.training_sequences // batch_size)
        return self.clean.train_batch(index, batch_size)

    def eval_batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the clean test split, or as many training sequences, from the first on, as the clean validation split has."""
        for index, batch in enumerate(self.clean.eval_batches(split, batch_size, limit)):
            if split == "test":
                yield batch
            else:
                rows = len(batch.tokens)
                tokens, targets, _ = self.clean.train_batch(index, batch_size)
                yield Batch(tokens[:rows], targets[:rows])


def faulty_data(config: RunConfig) -> Dataset:
    """Return the data of a run, with the faults that are the data's."""
    faults = getattr(config, "faults", ())
    if LINES in faults:
        assert isinstance(config.data, ByteCorpusConfig)
        data: Dataset = ShuffledLines(config.data, config.seed)
    else:
        data = build_data(config)
    if SEEN in faults or REPEATED in faults:
        data = SeenValidation(data, FIXED_SEQUENCES if REPEATED in faults else None)
    return data


def train_with_faults(config: FaultyRunConfig, output: Path, progress: Progress | None = None) -> Event:
    """Train as `training.loop.train` does, with the faults that the configuration names."""
    return train(config, output, progress, Parts(model=FaultyLM, data=faulty_data))
