"""Faults of the disk, the clock, the numbers, the memory, the corpus: named in a sentence, and no run loses what it had."""

import contextlib
import errno
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_bits, tiny_model, tiny_run, without_times

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.errors import OutOfMemory, UserError
from reformer_lab.training import loop, tracking
from reformer_lab.training.config import OptimizerConfig
from reformer_lab.training.loop import train
from reformer_lab.training.run_folder import LOCK
from reformer_lab.training.tracking import Event, read_events


def mount(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system on `folder` where this user may; skip where not."""
    folder.mkdir()
    call = ["mount", *options, str(folder)]
    if shutil.which("mount") is None or subprocess.run(call, capture_output=True).returncode != 0:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=512k", "none")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "none")


def interrupted_at(step: int) -> Callable[[Event], None]:
    """A progress callback that ends the run as a fault of the program would."""
    def progress(event: Event) -> None:
        if event["event"] == "step" and event["step"] == step:
            raise RuntimeError("a fault")
    return progress


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, owner: Any, after: int, number: int) -> None:
    """Let the system refuse a call from the n-th on, as `number` says."""
    real, calls = getattr(owner, name), [0]

    def refuse(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, refuse)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """A real one: a tmpfs of 512 KiB that a file fills up while the run goes on."""
    def fill_up(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 512)

    run = tiny_run(log_every=1)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; make room there and call again"):
        train(run, small_disk / "run", fill_up)
    assert sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir()) == ["2", "4"]
    assert not (small_disk / "run" / LOCK).exists()
    (small_disk / "ballast").unlink()
    train(run, small_disk / "run")
    train(run, tmp_path / "whole")
    assert_same_bits(small_disk / "run", tmp_path / "whole")


@pytest.mark.parametrize("written", [0, 20])
def test_a_disk_that_is_full_for_a_line_of_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    """The line is cut short on the disk, and is whole after the same call has gone on."""
    real = tracking.MetricsLog.__init__
    cut: list[object] = []

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            if len(cut) > 1 and cut.append(self) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            cut.append(self)
            return self.file.write(line if len(cut) == 1 else line[:written])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def initialise(self: tracking.MetricsLog, *arguments: Any) -> None:
        real(self, *arguments)
        self._file = Full(self._file)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(tracking.MetricsLog, "__init__", initialise)
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device; make room"):
            train(tiny_run(), tmp_path / "run")
    assert len(cut) == 3
    train(tiny_run(), tmp_path / "run")
    train(tiny_run(), tmp_path / "whole")
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_read_only_disk(read_only_disk: Path) -> None:
    """A real one: a tmpfs mounted read-only, which refuses root too."""
    with pytest.raises(UserError, match=r"cannot write .*: Read-only file system; choose another folder with --output"):
        train(tiny_run(), read_only_disk / "run")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename"), (Path, "mkdir")])
@pytest.mark.parametrize("after", [2, 10])
def test_a_disk_that_becomes_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int
) -> None:
    """As Linux does after an error of the disk. Not even the lock's file can be removed then."""
    with monkeypatch.context() as patch:
        spoil(patch, name, owner, after, errno.EROFS)
        spoil(patch, "unlink", Path, 0, errno.EROFS)
        spoil(patch, "rmdir", Path, 0, errno.EROFS)
        with pytest.raises(UserError, match=r"cannot write .*: Read-only file system; choose another folder"):
            train(tiny_run(), tmp_path / "run")
    train(tiny_run(), tmp_path / "run")
    train(tiny_run(), tmp_path / "whole")
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_a_run_on_a_read_only_disk_can_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reformer_lab.cli.main import main

    train(tiny_run(), tmp_path / "run")
    for owner, name in ((Path, "mkdir"), (Path, "rename"), (os, "fsync"), (os, "truncate")):
        spoil(monkeypatch, name, owner, 0, errno.EROFS)
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_a_clock_that_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day's time is set back by an hour at every look; also between a run and its resumption."""
    now = [2e9]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "time_ns", lambda: int(back() * 1e9))
    said: list[Event] = []
    with pytest.raises(RuntimeError, match="a fault"):
        train(tiny_run(log_every=1), tmp_path / "run", interrupted_at(5))
    train(tiny_run(log_every=1), tmp_path / "run", said.append)
    events = read_events(tmp_path / "run" / "metrics.jsonl")
    seconds = [event["seconds"] for event in events if "seconds" in event]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 600
    assert all(event["tokens_per_second"] > 0 for event in events if event["event"] == "train")
    left = [event["seconds_left"] for event in said if event["event"] == "step"]
    assert len(left) >= 3
    assert all(0 <= estimate < 600 for estimate in left)
    assert left[-1] == 0
    train(tiny_run(log_every=1), tmp_path / "whole")
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


class Spoilt:
    """Makes one layer's output, or its gradient, NaN from a step on."""

    def __init__(self, layer: str, step: int, backward: bool) -> None:
        self.layer, self.step, self.backward, self.calls = layer, step, backward, 0

    def model(self, config: Any) -> Any:
        model = loop.build_model(config)
        model.get_submodule(self.layer).register_forward_hook(self.spoil)
        return model

    def spoil(self, module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self.calls < self.step:  # type: ignore[attr-defined]
            return output
        if self.backward:
            return output + (output - output.detach()).sqrt()
        return output * math.nan

    def count(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(("layer", "backward", "said"), [
    ("stack.layers.0.feed_forward.norm", False, "layer whose output is not finite: stack.layers.0.feed_forward.norm."),
    ("head", False, "layer whose output is not finite: head."),
    ("norm", True, "the gradient is not: norm.bias is the first in the backward pass."),
])
def test_a_loss_that_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, backward: bool, said: str, late: bool
) -> None:
    """The step is named, and the layer, found by computing the step again; also where numbers are read a step later."""
    monkeypatch.setattr(loop, "reads_late", lambda device: late)
    spoilt = Spoilt(layer, 5, backward)
    real = loop.Run.step
    monkeypatch.setattr(loop.Run, "step", lambda self: (spoilt.count(), real(self))[1])
    with pytest.raises(UserError) as caught:
        train(tiny_run(), tmp_path, parts=loop.Parts(model=spoilt.model))
    message = str(caught.value)
    assert message.startswith("step 5: the loss is ")
    assert "the checkpoint of step 4 is kept. " in message
    assert said in message
    assert "Try a lower --optimizer.learning-rate" in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    assert all(math.isfinite(event["loss"]) for event in without_times(tmp_path))


@pytest.mark.parametrize("optimizer", ["adam", "adafactor"])
def test_a_step_that_ruins_the_weights(tmp_path: Path, optimizer: Any) -> None:
    """Finite gradients, and a step of 1e39 which fp32 cannot hold: the weights never get into a checkpoint."""
    rate = OptimizerConfig(name=optimizer, learning_rate=1e39, schedule="constant", weight_decay=1.0)
    with pytest.raises(UserError, match=r"weights .*not finite, \S+ the first of them"):
        train(tiny_run(optimizer=rate, checkpoint_every=1), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_corpus_that_changes_under_the_run(tmp_path: Path) -> None:
    text = tmp_path / "text"
    content = b"some text, " * 1000
    text.write_bytes(content)
    run = tiny_run(data=ByteCorpusConfig(path=str(text), length=16), model=tiny_model(vocab_size=258))

    def change(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            with text.open("r+b") as file:
                file.write(b"OTHER TEXT")

    with pytest.raises(UserError, match=r"text was changed while the run read it .*put the old content back to go on"):
        train(run, tmp_path / "run", change)
    with pytest.raises(UserError, match="data have changed since the run"):
        train(run, tmp_path / "run")
    text.write_bytes(content)
    train(run, tmp_path / "run")
    train(run, tmp_path / "whole")
    assert_same_bits(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("change", ["shorter", "gone", "replaced"])
def test_a_corpus_that_goes_away_under_the_run(tmp_path: Path, change: str) -> None:
    """One that is removed or replaced is still mapped; reading beyond the end of a shortened one would be a SIGBUS."""
    text = tmp_path / "text"
    text.write_bytes(b"some text, " * 1000)
    run = tiny_run(data=ByteCorpusConfig(path=str(text), length=16), model=tiny_model(vocab_size=258))
    train(run, tmp_path / "whole")

    def go_away(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 5:
            if change == "shorter":
                os.truncate(text, 3)
            elif change == "gone":
                text.unlink()
            else:
                (tmp_path / "new").write_bytes(b"new")
                (tmp_path / "new").replace(text)

    if change == "shorter":
        with pytest.raises(UserError, match=r"text was changed .*11,000 bytes when it began, 3 now"):
            train(run, tmp_path / "run", go_away)
    else:
        train(run, tmp_path / "run", go_away)
        assert_same_bits(tmp_path / "run", tmp_path / "whole")


def test_not_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real refusals: of torch for the model (2 PB), of the loop's own in the middle of a run."""
    with pytest.raises(OutOfMemory, match=r"out of memory, [\d.]+ GB more were asked for; there is no checkpoint yet\. Less"):
        train(tiny_run(model=tiny_model(d_ff=2**45)), tmp_path / "a")
    assert not (tmp_path / "a" / "checkpoints").exists()
    real = loop.Run.forward

    def forward(self: loop.Run, *arguments: Any) -> torch.Tensor:
        if self.counters.step == 4:
            torch.empty(2**50)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "forward", forward)
        with pytest.raises(OutOfMemory, match=r"the checkpoint of step 4 is kept\. Less is needed with a smaller --batch-size"):
            train(tiny_run(), tmp_path / "b")
    train(tiny_run(), tmp_path / "b")
    train(tiny_run(), tmp_path / "whole")
    assert_same_bits(tmp_path / "b", tmp_path / "whole")


def test_an_output_that_nobody_reads(tmp_path: Path) -> None:
    """What a closed pipe raises while a step is shown ends the run as a signal does: saved, then raised on."""
    def progress(event: Event) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise BrokenPipeError(errno.EPIPE, "closed")

    run = tiny_run(checkpoint_every=None)
    with pytest.raises(BrokenPipeError):
        train(run, tmp_path / "run", progress)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    train(run, tmp_path / "run")
    train(run, tmp_path / "whole")
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")


def test_names_reach_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a power failure: every file and folder is synced before its final name exists, and every name after it does."""
    log: list[tuple[str, str]] = []
    fsync, rename, mkdir = os.fsync, Path.rename, Path.mkdir

    def note_sync(handle: int) -> None:
        log.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def note_rename(self: Path, target: Path) -> Path:
        log.append(("rename", f"{self} {target}"))
        return rename(self, target)

    def note_mkdir(self: Path, *arguments: Any, **named: Any) -> None:
        mkdir(self, *arguments, **named)
        log.append(("mkdir", str(self)))

    monkeypatch.setattr(Path, "mkdir", note_mkdir)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    run = tmp_path / "run"
    train(tiny_run(), run)
    renames = [(place, *map(Path, words.split(" "))) for place, (what, words) in enumerate(log) if what == "rename"]
    assert [target.name for _, _, target in renames if target.name != "checksums.json"] == [
        "environment.json", "config.json", "2", "4", "6", "8", "model"]
    for place, source, target in renames:
        before = {path for what, path in log[:place] if what == "sync"}
        after = {path for what, path in log[place:] if what == "sync"}
        assert str(source) in before, target
        if target.is_dir():
            for file in target.iterdir():
                assert str(source / file.name) in before, file
            if target.parent.name == "checkpoints":
                assert str(run / "metrics.jsonl") in before
        assert str(target.parent) in after, target
    first_checkpoint = next(place for place, _, target in renames if target.name == "2")
    for folder in (run, run / "checkpoints"):
        made = log.index(("mkdir", str(folder)))
        assert ("sync", str(folder.parent)) in log[made:first_checkpoint], folder
    assert log[-1] == ("sync", str(run / "metrics.jsonl"))


