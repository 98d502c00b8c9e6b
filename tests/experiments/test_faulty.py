"""Each fault changes what it says and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig
from reformer_lab.data.dataset import Batch, open_dataset
from reformer_lab.experiments.faults import (
    FAULTS,
    FIXED_SEQUENCES,
    FLAT,
    FROZEN,
    LINES,
    RAW,
    REPEATED,
    SEEN,
    WRONG,
    FaultyRunConfig,
    with_faults,
)
from reformer_lab.experiments.faulty import FaultyLM, faulty_data, shuffled_lines, train_with_faults
from reformer_lab.layers.attention import SelfAttention
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.random import Draws
from reformer_lab.runner.worker import run_job
from reformer_lab.training.config import Evaluation, RunConfig
from reformer_lab.training.loop import train
from reformer_lab.training.tracking import Event, read_events

pytestmark = pytest.mark.usefixtures("one_thread", "global_random_state")


def tiny_run(**changes: Any) -> RunConfig:
    """Two LSH layers on the duplication task at length 16."""
    model = ReformerConfig(vocab_size=12, d_model=16, d_ff=16, num_layers=2, num_heads=2, d_head=8, max_length=16,
                           num_hashes=2, chunk_length=4)
    return RunConfig(model=model.replace(**changes), data=DuplicationConfig(length=16, num_symbols=10, vocab_size=12,
                                                                            eval_sequences=6),
                     steps=6, batch_size=4, eval_every=3, checkpoint_every=2, threads=1,
                     evaluations=(Evaluation(), Evaluation(name="full", model={"attention": ("full",)})))


def attention_of(run: RunConfig, layer: int = 0) -> SelfAttention:
    found = FaultyLM(run).stack.layers[layer].attention.function
    assert isinstance(found, SelfAttention)
    return found


def mixed(attention: SelfAttention, qk: torch.Tensor, v: torch.Tensor, seed: int = 3) -> torch.Tensor:
    return attention.mix(qk, v, key_padding_mask=None, draws=Draws(seed))


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qk, v = torch.randn(2, 3, 2, 16, 8, generator=generator)
    return 4 * qk, v


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ReformerLM.from_pretrained(folder / "model").state_dict()


def test_no_fault_gives_the_bits_of_an_ordinary_run(tmp_path: Path) -> None:
    run = tiny_run()
    train(run, tmp_path / "ordinary")
    fields = {name: getattr(run, name) for name in RunConfig.__dataclass_fields__}
    train_with_faults(FaultyRunConfig(**fields), tmp_path / "none")
    ours, theirs = weights(tmp_path / "ordinary"), weights(tmp_path / "none")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    finals = [read_events(tmp_path / name / "metrics.jsonl")[-1]["evaluations"] for name in ("ordinary", "none")]
    assert finals[0] == finals[1]


@pytest.mark.parametrize("kind", ["lsh", "full"])
def test_flat_logits_are_divided_by_the_root_of_the_width(kind: str, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    qk, v = vectors
    clean = tiny_run(attention=(kind,))
    flat = mixed(attention_of(with_faults(clean, (FLAT,))), qk, v)
    torch.testing.assert_close(flat, mixed(attention_of(clean), qk / 8**0.5, v))  # a scaled vector is hashed alike
    assert not torch.allclose(flat, mixed(attention_of(clean), qk, v), atol=1e-2)


def test_raw_keys_in_full_attention_alone(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    qk, v = vectors
    logits = qk @ qk.transpose(-1, -2) / 8**0.5
    before = torch.ones(16, 16, dtype=torch.bool).tril(-1)
    before[0, 0] = True  # nothing else to see
    expected = logits.masked_fill(~before, float("-inf")).softmax(-1) @ v
    torch.testing.assert_close(mixed(attention_of(with_faults(tiny_run(attention=("full",)), (RAW,))), qk, v), expected)
    lsh = [mixed(attention_of(with_faults(tiny_run(), names)), qk, v) for names in ((), (RAW,))]
    assert torch.equal(*lsh)


def test_another_way_of_evaluating_has_the_fault_too() -> None:
    run = with_faults(tiny_run(), (RAW,))
    tokens = torch.arange(16)[None] % 12
    full = FaultyLM(run).eval().with_config(attention=("full",))(tokens).logits
    direct = FaultyLM(with_faults(tiny_run(attention=("full",)), (RAW,))).eval()(tokens).logits
    clean = FaultyLM(tiny_run(attention=("full",))).eval()(tokens).logits
    assert torch.equal(full, direct)
    assert not torch.allclose(full, clean, atol=1e-4)


def test_frozen_rotations_are_the_same_everywhere(vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
    def buckets(names: tuple[str, ...], layer: int, seed: int, fixed: bool = False) -> torch.Tensor:
        draws = Draws(seed, fixed=fixed)
        qk = vectors[0][:1, :1].expand(2, 2, -1, -1)  # the same vectors in each sequence and head
        attention_of(with_faults(tiny_run(), names), layer).mix(qk, qk, key_padding_mask=None, draws=draws)
        return draws.remembered["buckets"]

    frozen = buckets((FROZEN,), 0, 1)
    assert (frozen == frozen[:1, :1]).all()
    assert torch.equal(frozen, buckets((FROZEN,), 1, 2))
    assert torch.equal(frozen, buckets((FROZEN,), 0, 2, fixed=True))
    assert not (frozen[0, 0, 0] == frozen[0, 0, 1]).all()  # the rounds differ
    clean = buckets((), 0, 1)
    assert not (clean == clean[:1]).all()
    assert not (clean == clean[:, :1]).all()


def gradient(run: RunConfig) -> tuple[float, torch.Tensor]:
    model = FaultyLM(run)
    batch = open_dataset(run.data, 0).train_batch(0, 8)
    loss = model(batch.tokens, targets=batch.targets, generator=torch.Generator().manual_seed(1)).loss
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_wrong_buckets_change_the_gradient_and_not_the_loss() -> None:
    clean, wrong = gradient(tiny_run()), gradient(with_faults(tiny_run(), (WRONG,)))
    assert wrong[0] == clean[0]
    error = (wrong[1] - clean[1]).norm() / clean[1].norm()
    assert 0.03 < error < 1
    one_head = [gradient(with_faults(tiny_run(num_heads=1), names))[1] for names in ((), (WRONG,))]
    assert torch.equal(*one_head)  # the last head is the only one


def text_run(tmp_path: Path, *names: str) -> RunConfig:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i} {'x' * (i % 7)}\n" for i in range(200)) + "no end")
    run = RunConfig(model=tiny_run().model.replace(vocab_size=258), steps=1,
                    data=ByteCorpusConfig(path=str(path), length=16, split_by="bytes"))
    return with_faults(run, names)


def bytes_of(batches: Iterator[Batch]) -> bytes:
    return b"".join(bytes((batch.tokens[batch.tokens > 0] - 2).tolist()) for batch in batches)


def test_lines_are_shuffled_in_the_training_text_alone(tmp_path: Path) -> None:
    clean, faulty = (faulty_data(text_run(tmp_path, *names)) for names in ((), (LINES,)))
    for split in ("validation", "test"):
        assert bytes_of(faulty.eval_batches(split, 4)) == bytes_of(clean.eval_batches(split, 4))
    assert not torch.equal(faulty.train_batch(0, 8).tokens, clean.train_batch(0, 8).tokens)
    text = np.frombuffer((tmp_path / "text.txt").read_bytes(), dtype=np.uint8)
    one, again, other = (shuffled_lines(text, seed).tobytes() for seed in (0, 0, 1))
    assert sorted(one.split(b"\n")) == sorted(text.tobytes().split(b"\n"))
    assert one == again
    assert len({one, other, text.tobytes()}) == 3
    kept = sum(a == b for a, b in zip(one.split(b"\n"), text.tobytes().split(b"\n"), strict=True))
    assert kept < 20


@pytest.mark.parametrize("fault", [SEEN, REPEATED])
def test_validation_from_training(tmp_path: Path, fault: str) -> None:
    run = text_run(tmp_path) if fault == SEEN else tiny_run()
    clean, seen = faulty_data(run), faulty_data(with_faults(run, (fault,)))
    validation = list(seen.eval_batches("validation", 4))
    assert [len(batch.tokens) for batch in validation] == [len(batch.tokens) for batch in clean.eval_batches("validation", 4)]
    tokens = torch.cat([batch.tokens for batch in validation])
    assert torch.equal(tokens, torch.cat([clean.train_batch(i, 4).tokens for i in range(len(validation))])[: len(tokens)])
    for ours, theirs in zip(seen.eval_batches("test", 4), clean.eval_batches("test", 4), strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
    epoch = FIXED_SEQUENCES // 4
    again = torch.equal(seen.train_batch(epoch + 1, 4).tokens, seen.train_batch(1, 4).tokens)
    assert again == (fault == REPEATED)
    assert torch.equal(seen.train_batch(epoch - 1, 4).tokens, clean.train_batch(epoch - 1, 4).tokens)


class Crash(Exception):
    """Stands for a kill."""


def test_a_faulty_run_resumes_after_a_kill(tmp_path: Path) -> None:
    run = with_faults(tiny_run(), tuple(name for name in FAULTS if name != LINES))
    assert isinstance(run, FaultyRunConfig)

    def crash(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise Crash

    whole = train_with_faults(run, tmp_path / "whole")
    with pytest.raises(Crash):
        train_with_faults(run, tmp_path / "halves", crash)
    halves = train_with_faults(run, tmp_path / "halves")
    assert whole["evaluations"] == halves["evaluations"]
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_worker_trains_with_the_faults(tmp_path: Path) -> None:
    finals = []
    for name, run in (("clean", tiny_run()), ("frozen", with_faults(tiny_run(), (FROZEN,)))):
        run_job({"kind": "training", "config": run.to_dict(), "output": str(tmp_path / name)}, lambda message: None)
        finals.append(read_events(tmp_path / name / "metrics.jsonl")[-1])
        assert json.loads((tmp_path / name / "config.json").read_text())["config"] == run.to_dict()
    assert finals[0]["evaluations"] != finals[1]["evaluations"]
