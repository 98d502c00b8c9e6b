"""The loop: the same bits however often it is interrupted, the same gradient however it is cut, clear ends."""

import json
import math
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import tiny_model, tiny_run, without_times

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.dataset import Dataset
from reformer_lab.errors import UserError
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training import loop
from reformer_lab.training.config import Evaluation, OptimizerConfig, RunConfig
from reformer_lab.training.loop import train
from reformer_lab.training.processes import Processes
from reformer_lab.training.tracking import Event, read_events

ADAFACTOR = OptimizerConfig(name="adafactor", schedule="warmup_rsqrt", learning_rate=1.0, warmup_steps=4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ReformerLM.from_pretrained(folder / "model").state_dict()


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal weights, and the same lines but for times."""
    assert without_times(one) == without_times(other)
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


class Interrupting:
    """A progress callback that raises, or sends a signal, at the n-th event of one kind."""

    def __init__(self, kind: str, number: int, how: Any) -> None:
        self.kind, self.left, self.how = kind, number, how

    def __call__(self, event: Event) -> None:
        self.left -= event["event"] == self.kind
        if self.left == 0:
            self.left = -1
            if isinstance(self.how, signal.Signals):
                os.kill(os.getpid(), self.how)
            else:
                raise self.how


class Crash(Exception):
    """Stands for a fault that gives the loop no chance to save."""


def test_records(tmp_path: Path) -> None:
    final = train(tiny_run(), tmp_path / "run")
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    assert [(event["event"], event["step"]) for event in events] == [
        ("train", 3), ("eval", 4), ("train", 6), ("train", 8), ("eval", 8), ("final", 8)]
    assert events[-1] == final
    assert all(next(iter(event)) == "event" for event in events)
    assert set(events[0]) == {"event", "step", "loss", "bits", "learning_rate", "grad_norm", "tokens_per_second",
                              "seconds", "peak_memory_bytes"}
    assert set(events[1]) == {"event", "step", "split", "name", "loss", "bits", "accuracy", "targets"}
    assert events[0]["bits"] == pytest.approx(events[0]["loss"] / math.log(2))
    assert events[1]["targets"] == 8 * 7
    assert final["evaluations"]["own"] == {name: events[4][name] for name in ("loss", "bits", "accuracy", "targets")}
    assert final["parameters"] == sum(value.numel() for value in weights(tmp_path / "run").values())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.json", "environment.json", "metrics.jsonl", "model"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["6", "8"]
    assert RunConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())["config"]) == tiny_run()


def test_a_line_holds_the_mean_since_the_line_before(tmp_path: Path) -> None:
    for every in (1, 3):
        train(tiny_run(log_every=every), tmp_path / str(every))
    single, mean = ([event["loss"] for event in without_times(tmp_path / str(every)) if event["event"] == "train"]
                    for every in (1, 3))
    assert mean == pytest.approx([sum(single[:3]) / 3, sum(single[3:6]) / 3, sum(single[6:]) / 2], rel=1e-12)


def test_learns(tmp_path: Path) -> None:
    run = tiny_run(steps=60, batch_size=16, eval_every=None, log_every=1, checkpoint_every=None)
    train(run, tmp_path)
    losses = [event["loss"] for event in read_events(tmp_path / "metrics.jsonl") if event["event"] == "train"]
    assert losses[0] > 2.2
    assert sum(losses[-5:]) / 5 < losses[0] - 0.1


@pytest.mark.parametrize("changes", [
    {}, {"optimizer": ADAFACTOR}, {"precision": "bf16"}, {"accumulation": 2},
    {"model": tiny_model(attention=("lsh", "local"), num_layers=2, local_chunk_length=4, reversible=False)},
], ids=["adam", "adafactor", "bf16", "accumulation", "stored"])
@pytest.mark.parametrize(("kind", "number"), [("step", 1), ("step", 5), ("eval", 1), ("scoring", 2), ("final", 1)])
def test_resumed_equals_uninterrupted(tmp_path: Path, changes: dict, kind: str, number: int) -> None:
    run = tiny_run(**changes, steps=6)
    train(run, tmp_path / "whole")
    with pytest.raises(Crash):
        train(run, tmp_path / "halves", Interrupting(kind, number, Crash()))
    train(run, tmp_path / "halves")
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_the_last_evaluation_on_the_way_is_recorded_once(tmp_path: Path) -> None:
    """The last step is evaluated, but no multiple of checkpoint_every: it is saved after its evaluation was recorded."""
    run = tiny_run(steps=6, eval_every=3, checkpoint_every=4)
    train(run, tmp_path / "whole")
    with pytest.raises(Crash):
        train(run, tmp_path / "halves", Interrupting("final", 1, Crash()))
    (tmp_path / "halves" / "metrics.jsonl").write_bytes(
        (tmp_path / "halves" / "metrics.jsonl").read_bytes().rpartition(b'{"event": "final"')[0])
    train(run, tmp_path / "halves")
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_the_seed_makes_the_difference(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_run(seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["head.weight"], weights(tmp_path / "c")["head.weight"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize(("kind", "at"), [("step", 3), ("scoring", 1)])
def test_signals_save_and_leave(tmp_path: Path, number: signal.Signals, code: type, kind: str, at: int) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = tiny_run(checkpoint_every=None)
    with pytest.raises(code) as raised:
        train(run, tmp_path / "run", Interrupting(kind, at, number))
    if code is SystemExit:
        assert raised.value.code == 143
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["3" if kind == "step" else "4"]
    train(run, tmp_path / "run")
    train(run, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_checkpoint_costs_two_steps_only(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        train(tiny_run(), tmp_path / "run", Interrupting("step", 7, Crash()))
    (tmp_path / "run" / "checkpoints" / "6" / "model.safetensors").write_bytes(b"damaged")
    said: list[Event] = []
    train(tiny_run(), tmp_path / "run", said.append)
    assert "damaged" in next(event for event in said if event["event"] == "note")["text"]
    assert next(event for event in said if event["event"] == "start")["step"] == 4
    train(tiny_run(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    final = train(tiny_run(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    said: list[Event] = []
    assert train(tiny_run(), tmp_path, said.append) == final
    assert [event["event"] for event in said] == ["note"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    # Without draws: dropout and rotations are drawn anew for each micro-batch.
    model = tiny_model(attention=("full",), dropout=0.0)
    for pieces in (1, 2, 4):
        train(tiny_run(model=model, accumulation=pieces, eval_batch_size=4), tmp_path / str(pieces))
    whole = without_times(tmp_path / "1")
    for pieces in ("2", "4"):
        for line, expected in zip(without_times(tmp_path / pieces), whole, strict=True):
            for name in ("loss", "grad_norm"):
                if name in expected:
                    assert line[name] == pytest.approx(expected[name], rel=1e-4), (pieces, line)


def test_pieces_weigh_by_their_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = loop.open_dataset

    def uneven(config: object, seed: int) -> object:
        dataset = real(config, seed)
        batch_of = dataset.train_batch

        def train_batch(index: int, size: int) -> object:
            batch = batch_of(index, size)
            targets = batch.targets.clone()
            targets[0, :-1] = -100  # one target in the first sequence, seven in the others
            return batch._replace(targets=targets)

        dataset.train_batch = train_batch
        return dataset

    monkeypatch.setattr(loop, "open_dataset", uneven)
    model = tiny_model(attention=("full",), dropout=0.0)
    losses = []
    for pieces in (1, 4):
        train(tiny_run(model=model, accumulation=pieces, log_every=1, steps=1), tmp_path / str(pieces))
        losses.append(without_times(tmp_path / str(pieces))[0])
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["grad_norm"] == pytest.approx(losses[1]["grad_norm"], rel=1e-4)


def test_clipping_bounds_the_step_and_records_the_norm(tmp_path: Path) -> None:
    def moved(clip: float | None) -> tuple[float, float]:
        # Adafactor and Adam divide by the gradient's size: only a large epsilon lets the clipped norm show.
        optimizer = OptimizerConfig(clip_norm=clip, eps=1e6, learning_rate=1e6, schedule="constant")
        run = tiny_run(optimizer=optimizer, steps=1, log_every=1, eval_every=None)
        train(run, tmp_path / str(clip))
        start = ReformerLM(run.model, seed=run.seed).state_dict()
        end = weights(tmp_path / str(clip))
        distance = math.sqrt(sum(float((end[name] - start[name]).square().sum()) for name in start))
        return distance, without_times(tmp_path / str(clip))[0]["grad_norm"]

    free, norm = moved(None)
    clipped, same_norm = moved(0.01)
    assert norm == same_norm > 0.02
    assert free == pytest.approx(norm, rel=1e-2)
    assert clipped == pytest.approx(0.01, rel=1e-2)


def test_evaluations_change_the_model_alone(tmp_path: Path) -> None:
    run = tiny_run(evaluations=(Evaluation(), Evaluation(name="full", model={"attention": ["full"]}),
                                Evaluation(name="LSH-8", model={"num_hashes": 8})), final_split="test")
    final = train(run, tmp_path)
    assert list(final["evaluations"]) == ["own", "full", "LSH-8"]
    assert len({score["loss"] for score in final["evaluations"].values()}) == 3
    # The test split is another one than that of the evaluation on the way.
    assert final["evaluations"]["own"]["loss"] != read_events(tmp_path / "metrics.jsonl")[-2]["loss"]


def test_stops_at_an_accuracy(tmp_path: Path) -> None:
    run = tiny_run(stop_at_accuracy=1e-9, eval_every=2, steps=50)
    final = train(run, tmp_path / "run")
    assert final["stopped_early"]
    assert final["step"] < 50
    assert not train(tiny_run(stop_at_accuracy=1.0), tmp_path / "other")["stopped_early"]
    with pytest.raises(Crash):
        train(run, tmp_path / "again", Interrupting("final", 1, Crash()))
    assert train(run, tmp_path / "again")["step"] == final["step"]


def test_numbers_read_late_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where reading a number waits for the device: lines, weights and resumed runs do not change."""
    for late in (False, True):
        monkeypatch.setattr(loop, "reads_late", lambda device, late=late: late)
        train(tiny_run(), tmp_path / str(late))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(), tmp_path / "resumed", Interrupting("step", 3, signal.SIGINT))
    train(tiny_run(), tmp_path / "resumed")
    for name in ("True", "resumed"):
        assert_same_run(tmp_path / name, tmp_path / "False")


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_not_finite_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str, late: bool
) -> None:
    monkeypatch.setattr(loop, "reads_late", lambda device: late)
    real = loop.Run.forward
    calls = []

    def forward(self: loop.Run, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        loss = real(self, *arguments)
        if len(calls) < 5:
            return loss
        return loss * math.nan if spoilt == "loss" else loss + (loss - loss.detach()).sqrt()

    monkeypatch.setattr(loop.Run, "forward", forward)
    with pytest.raises(UserError, match="step 5: the loss is"):
        train(tiny_run(), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    assert all(math.isfinite(event["loss"]) for event in without_times(tmp_path))


def test_the_model_must_take_the_data(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"some text, " * 1000)
    data = ByteCorpusConfig(path=str(text), length=16)
    with pytest.raises(UserError, match="vocab_size=12: the data have 258"):
        train(tiny_run(data=data), tmp_path / "a")
    with pytest.raises(UserError, match="max_length=8: the data's sequences have 16"):
        train(tiny_run(model=tiny_model(max_length=8)), tmp_path / "b")


def test_changed_data_are_noticed(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"some text, " * 1000)
    run = tiny_run(data=ByteCorpusConfig(path=str(text), length=16), model=tiny_model(vocab_size=258))
    with pytest.raises(Crash):
        train(run, tmp_path / "run", Interrupting("step", 3, Crash()))
    text.write_bytes(b"other text " * 1000)
    with pytest.raises(UserError, match="data have changed since the run"):
        train(run, tmp_path / "run")


def test_global_random_state_and_threads_are_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    train(tiny_run(), tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()) == before[1:]


@pytest.mark.parametrize("limit", [500, 3000, 12_000, 18_000])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The limit on a file's size refuses a write as a full disk does: of the configuration, the weights, the optimiser.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="File too large; make room there and call again"):
            train(tiny_run(), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(tiny_run(), tmp_path / "run")
    train(tiny_run(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("changes", "message"), [
    ({"evaluations": (Evaluation(name="other", model={"num_layers": 2}),)}, "would need other parameters"),
    ({"data": ByteCorpusConfig(length=16, test=0), "final_split": "test"}, "the test split of .* is empty"),
    ({"data": ByteCorpusConfig(length=16, valid=0), "eval_every": None}, "the validation split of .* is empty"),
    ({"data": ByteCorpusConfig(length=16, valid=0), "evaluations": ()}, "the validation split of .* is empty"),
])
def test_what_cannot_be_scored_is_told_before_the_training(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    steps: list[Event] = []
    config = tiny_run(**{"model": tiny_model(vocab_size=258), **changes})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", lambda event: steps.append(event) if event["event"] == "step" else None)
    assert steps == []
    assert not (tmp_path / "run" / "config.json").exists()  # so that the mended call may take the folder


def test_a_split_that_nobody_scores_may_be_empty(tmp_path: Path) -> None:
    config = tiny_run(model=tiny_model(vocab_size=258), data=ByteCorpusConfig(length=16, test=0), steps=1, eval_limit=2)
    assert train(config, tmp_path / "run")["step"] == 1


def test_only_devices_with_operators_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no CUDA, Accelerate would take Apple's MPS or another device, for which no kernel is registered."""
    asked: list[bool] = []

    def accelerator(*, mixed_precision: str, cpu: bool) -> Accelerator:
        asked.append(cpu)
        return Accelerator(mixed_precision=mixed_precision, cpu=cpu)

    monkeypatch.setattr("reformer_lab.training.processes.Accelerator", accelerator)
    assert Processes().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert asked == [not torch.cuda.is_available()]


def test_other_counters_are_those_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole checkpoint, whose counters this version does not know: one message, with the remedy."""
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(), tmp_path / "run", Interrupting("step", 5, signal.SIGINT))
    monkeypatch.setattr(loop, "load_state", lambda checkpoint, state: {"steps_of_another_version": 5})
    with pytest.raises(UserError) as caught:
        train(tiny_run(), tmp_path / "run")
    assert str(caught.value).count("is not one of this run") == 1
    assert "steps_of_another_version" in str(caught.value)

    def refuse(checkpoint: Path, state: object) -> dict[str, Any]:
        raise UserError("said once")

    monkeypatch.setattr(loop, "load_state", refuse)
    with pytest.raises(UserError, match=r"^said once$"):
        train(tiny_run(), tmp_path / "run")


def test_a_split_without_sequences_is_told_before_the_training() -> None:
    class Nothing:
        def eval_batches(self, split: str, batch_size: int, limit: int | None) -> list[Any]:
            return []

    with pytest.raises(UserError, match="the test split holds nothing to score"):
        loop.check_evaluations(tiny_run(final_split="test", eval_every=None), cast("Dataset", Nothing()),
                               ReformerLM(tiny_model(), seed=0))
