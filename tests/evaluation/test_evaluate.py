"""Scores of a split, against one forward pass over one byte after another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig
from reformer_lab.data.dataset import Batch, Dataset, open_dataset
from reformer_lab.errors import UserError
from reformer_lab.evaluation.evaluate import autocast, evaluate, split_sizes
from reformer_lab.evaluation.metrics import Metrics
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM


def model(**changes: object) -> ReformerLM:
    fields = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_head": 8, "max_length": 32,
              "num_hashes": 2, "chunk_length": 8, "dropout": 0.5}
    return ReformerLM(ReformerConfig(**fields | changes))


@pytest.fixture
def corpus(tmp_path: Path) -> Dataset:
    """A corpus whose validation split is no multiple of the window, of the batch or of both."""
    path = tmp_path / "text"
    path.write_bytes(bytes(32 + (i * i) % 90 for i in range(5000)))
    return open_dataset(ByteCorpusConfig(path=str(path), length=32, valid=32 * 7 + 5, test=64), seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_byte_counts_once(corpus: Dataset, batch_size: int) -> None:
    lm = model(attention=("full",)).eval()
    text = corpus.corpus.bytes()[5000 - 64 - 229 : 5000 - 64]
    nats = right = 0.0
    for start in range(0, 229, 32):
        tokens = torch.tensor(text[start : start + 32].astype("int64") + 2)[None]
        logits = lm(tokens).logits.detach()[0].double()
        nats += float(functional.cross_entropy(logits, tokens[0], reduction="sum"))
        right += int((logits.argmax(-1) == tokens[0]).sum())
    metrics = evaluate(lm, corpus, "validation", batch_size=batch_size)
    assert metrics.targets == 229
    assert metrics.loss == pytest.approx(nats / 229, rel=1e-5)
    assert metrics.accuracy == right / 229


def test_chunked_loss_is_the_same_without_an_accuracy(corpus: Dataset) -> None:
    whole = evaluate(model(), corpus, "validation", batch_size=2)
    chunked = evaluate(model(loss_chunk_length=5), corpus, "validation", batch_size=2)
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (chunked.targets, chunked.accuracy) == (whole.targets, None)


def test_limit_and_mode(corpus: Dataset) -> None:
    lm = model().train()
    assert evaluate(lm, corpus, "validation", limit=2).targets == 64
    assert lm.training
    # Without dropout, and with rotations that are the same at every call.
    assert evaluate(lm, corpus, "test") == evaluate(lm.eval(), corpus, "test")
    assert not lm.training
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_a_generator_draws_other_rotations(corpus: Dataset) -> None:
    lm = model(attention=("lsh",), num_hashes=1)
    fixed = evaluate(lm, corpus, "validation")
    drawn = [evaluate(lm, corpus, "validation", generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({fixed.loss, drawn[0].loss, drawn[2].loss}) == 3


def test_precision(corpus: Dataset) -> None:
    exact, rounded = (evaluate(model(), corpus, "test", precision=name) for name in ("fp32", "bf16"))
    assert exact.loss != rounded.loss
    assert exact.loss == pytest.approx(rounded.loss, rel=0.02)


def test_progress_sees_every_batch_and_may_end_it(corpus: Dataset) -> None:
    seen: list[Metrics] = []
    last = evaluate(model(), corpus, "validation", batch_size=3, progress=seen.append)
    assert [metrics.targets for metrics in seen] == [96, 192, 229]
    assert seen[-1] == last

    def stop(metrics: Metrics) -> None:
        raise KeyboardInterrupt

    lm = model().train()
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, corpus, "validation", progress=stop)
    assert lm.training


def test_nothing_to_score_is_an_error(corpus: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        return iter(())

    monkeypatch.setattr(corpus, "eval_batches", nothing)
    with pytest.raises(UserError, match="validation split holds nothing to score"):
        evaluate(model(), corpus, "validation")


def test_split_sizes(corpus: Dataset) -> None:
    assert split_sizes(corpus) == {"train": 5000 - 229 - 64, "validation": 229, "test": 64}
    assert split_sizes(corpus, limit=3) == {"train": 96, "validation": 96, "test": 64}
    assert split_sizes(open_dataset(DuplicationConfig(length=16), seed=0)) == {}


def test_a_precision_that_does_not_exist_is_named() -> None:
    """It computed in fp32 without a word."""
    for name in ("bfloat16", "fp16"):
        with pytest.raises(UserError, match=f"precision='{name}': must be fp32 or bf16"):
            autocast(torch.device("cpu"), name)
