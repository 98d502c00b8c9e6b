import numpy as np
import pytest
import torch

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.data.duplication import DuplicationDataset

SPLITS = ("train", "validation", "test")


def test_sequence_is_0_w_0_w_and_the_second_w_alone_is_scored():
    dataset = DuplicationDataset(DuplicationConfig(length=64), seed=0)
    tokens, targets, padding = dataset.train_batch(3, 5)
    assert padding is None
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, 32] == 0).all()
    assert torch.equal(tokens[:, 1:32], tokens[:, 33:])
    assert tokens[:, 1:32].min() >= 1
    assert tokens.max() <= 126
    assert (targets[:, :33] == -100).all()
    assert torch.equal(targets[:, 33:], tokens[:, 33:])


def test_paper_length_scores_511_symbols():
    batch = DuplicationDataset(DuplicationConfig(length=1024), seed=0).train_batch(0, 1)
    assert (batch.targets != -100).sum() == 511


@pytest.mark.parametrize("config", [
    DuplicationConfig(length=4, num_symbols=64),
    DuplicationConfig(length=4, num_symbols=126),
    DuplicationConfig(length=6, num_symbols=8),
    DuplicationConfig(length=14, num_symbols=2),
], ids=lambda config: f"{config.num_symbols}^{config.length // 2 - 1}")
def test_splits_are_disjoint_for_short_words_whatever_the_seed(config):
    """So many draws that every word of the small spaces turns up: chance alone would not keep them apart."""
    seen = {split: set() for split in SPLITS}
    for seed in range(3):
        dataset = DuplicationDataset(config, seed)
        for split in SPLITS:
            seen[split] |= set(map(tuple, dataset.words(split, np.arange(2000))))
    assert all(len(words) >= 8 for words in seen.values())
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert sum(map(len, seen.values())) == config.num_symbols ** (config.length // 2 - 1)


def test_sequences_depend_on_seed_and_number_alone():
    config = DuplicationConfig(length=32)
    large = DuplicationDataset(config, seed=5).train_batch(1, 8).tokens
    again = DuplicationDataset(config, seed=5)
    assert torch.equal(torch.cat([again.train_batch(i, 2).tokens for i in (4, 5, 6, 7)]), large)
    assert not torch.equal(DuplicationDataset(config, seed=6).train_batch(1, 8).tokens, large)
    assert len(torch.unique(large, dim=0)) == 8


def test_symbols_are_uniform():
    words = DuplicationDataset(DuplicationConfig(length=64), seed=0).words("train", np.arange(20_000))
    counts = np.bincount(words.ravel(), minlength=127)[1:]
    expected = words.size / 126
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 125) < 5 * np.sqrt(2 * 125)
    neighbours = np.corrcoef(words[:, 0], words[:, 1])[0, 1]
    assert abs(neighbours) < 0.04


def test_eval_has_the_size_that_was_asked():
    dataset = DuplicationDataset(DuplicationConfig(length=16, eval_sequences=10), seed=0)
    batches = list(dataset.eval_batches("validation", 4))
    assert [len(batch.tokens) for batch in batches] == [4, 4, 2]
    assert sum(len(batch.tokens) for batch in dataset.eval_batches("test", 4, limit=6)) == 6


def test_fingerprint_tells_seeds_and_configs_apart():
    config = DuplicationConfig(length=16)
    prints = {DuplicationDataset(config, 0).fingerprint, DuplicationDataset(config, 1).fingerprint,
              DuplicationDataset(config.replace(length=18), 0).fingerprint}
    assert len(prints) == 3
    assert DuplicationDataset(config, 0).fingerprint in prints
