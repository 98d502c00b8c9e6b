"""The engine with stand-in workers: what runs beside what, what is run again, what an interrupt leaves."""

import errno
import io
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Arm, Experiment, MeasurementConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import Suite, read_results, read_suite
from reformer_lab.reporting.section import Section
from reformer_lab.runner import engine, process
from reformer_lab.runner.display import Display
from reformer_lab.runner.engine import SuiteOutcome, run_suite
from reformer_lab.runner.plan import Plan, make_plan
from reformer_lab.training.config import RunConfig

MODEL = get_preset("cpu_tiny")


def training(seed: int, threads: int | None = 1) -> Arm:
    run = RunConfig(model=MODEL, data=DuplicationConfig(length=32), steps=2, seed=seed, threads=threads)
    return Arm(name=f"training {seed}", run=run)


def measurement(behaviour: str) -> Arm:
    return Arm(name=behaviour, run=MeasurementConfig(kind="stand-in", parameters={"behaviour": behaviour}))


def plan(*arms: Arm, name: str = "invented", scale: Any = "smoke", more: Sequence[Arm] = ()) -> Plan:
    def experiment(name: str, arms: Sequence[Arm]) -> Experiment:
        return Experiment(name=name, title=name, question="?", claims=(), criterion="none", arms=lambda scale: tuple(arms),
                          judge=lambda results: (), show=lambda results: Section(), cuts=lambda scale: "all")
    experiments = [experiment(name, arms)] + ([experiment("other", more)] if more else [])
    return make_plan(experiments, scale)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(Path(__file__).with_name("stand_in.py"))))
    monkeypatch.setattr(engine, "_environment", lambda: {"machine": "invented"})
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def lines(log: Path, what: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in found if line["what"] == what]


def run(wanted: Plan, output: Path, command: str = "a test") -> SuiteOutcome:
    return run_suite(wanted, output, workers=2, command=command)


def test_trainings_side_by_side_and_measurements_alone(log: Path, tmp_path: Path) -> None:
    wanted = plan(measurement("one"), *(training(seed) for seed in range(3)), measurement("two"))
    outcome = run(wanted, tmp_path / "suite")
    assert outcome.failed == {}
    spans = {}
    for start in lines(log, "started"):
        end = next(line for line in lines(log, "ended") if line["arm"] == start["arm"])
        spans[start["arm"]] = (start["time"], end["time"], start["kind"], start["threads"])
    assert len(spans) == 5
    at_once = {arm: sum(other[0] <= span[0] < other[1] for other in spans.values()) for arm, span in spans.items()}
    assert max(at_once.values()) == 2
    trained_until = max(span[1] for span in spans.values() if span[2] == "training")
    measured = sorted(span for span in spans.values() if span[2] == "measurement")
    assert trained_until < measured[0][0] < measured[0][1] < measured[1][0]
    assert {span[3] for span in spans.values() if span[2] == "training"} == {"1"}


def test_results_and_suite_say_what_ran(log: Path, tmp_path: Path) -> None:
    wanted = plan(training(0), measurement("one"))
    run(wanted, tmp_path / "suite")
    records = read_results(tmp_path / "suite")
    assert set(records) == set(wanted.arms)
    for arm in wanted.arms.values():
        record = records[arm.id]
        assert record.finished
        assert not record.problems
        assert record.header["digest"] == arm.run.digest()
        assert record.header["config"] == arm.run.to_dict()
        assert record.header["scale"] == "smoke"
        assert record.environment == {"machine": "invented"}
        assert record.seconds is not None
    suite = read_suite(tmp_path / "suite")
    assert (suite.scale, suite.command, suite.arms) == ("smoke", "a test", dict(wanted.entries))
    assert suite.seconds is not None
    assert suite.seconds > 0


def test_an_arm_of_two_experiments_runs_once_and_a_finished_one_never_again(log: Path, tmp_path: Path) -> None:
    wanted = plan(training(0), training(1), more=[training(1), training(2)])
    run(wanted, tmp_path / "suite")
    assert len(lines(log, "started")) == 3
    before = {path.name: path.read_bytes() for path in (tmp_path / "suite" / "results").iterdir()}
    run(wanted, tmp_path / "suite")
    assert len(lines(log, "started")) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "suite" / "results").iterdir()} == before


def test_a_second_call_adds_experiments_to_the_suite(log: Path, tmp_path: Path) -> None:
    run(plan(training(0)), tmp_path / "suite")
    first = read_suite(tmp_path / "suite")
    run(plan(training(1), name="another"), tmp_path / "suite", command="a larger test")
    second = read_suite(tmp_path / "suite")
    assert tuple(second.arms) == ("invented", "another")
    assert second.command == "a test; a larger test"
    run(plan(training(0)), tmp_path / "suite", command="a part of it")
    assert read_suite(tmp_path / "suite").command == "a test; a larger test"
    assert second.started == first.started
    assert second.seconds is not None
    assert first.seconds is not None
    assert second.seconds > first.seconds


def test_a_lost_suite_file_costs_no_finished_run(log: Path, tmp_path: Path) -> None:
    wanted = plan(training(0))
    run(wanted, tmp_path / "suite")
    (tmp_path / "suite" / "suite.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="remove it"):
        run(wanted, tmp_path / "suite")
    (tmp_path / "suite" / "suite.json").unlink()
    run(wanted, tmp_path / "suite")
    assert len(lines(log, "started")) == 1
    assert read_suite(tmp_path / "suite").scale == wanted.scale


def test_failures_are_recorded_and_the_others_go_on(log: Path, tmp_path: Path) -> None:
    wanted = plan(*(measurement(word) for word in ("fail", "crash", "traceback", "work")))
    outcome = run(wanted, tmp_path / "suite")
    errors = {record.header["name"]: record.error for record in read_results(tmp_path / "suite").values()}
    assert errors["fail"] == "it had to fail"
    assert errors["crash"].startswith("killed by signal 9")
    assert errors["traceback"] == "ZeroDivisionError: on standard error"
    assert errors["work"] == ""
    assert set(outcome.failed) == {"invented fail", "invented crash", "invented traceback"}
    run(wanted, tmp_path / "suite")  # tries the failed ones again, and no other
    assert sum(line["arm"].startswith("stand-in") for line in lines(log, "started")) == 4 + 3


def test_a_worker_that_the_system_kills_for_its_memory(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = itertools.count()
    monkeypatch.setattr(process, "killed_for_memory", lambda: next(counts))
    outcome = run(plan(measurement("crash"), measurement("fail")), tmp_path / "suite")
    headers = {record.header["name"]: record.header for record in read_results(tmp_path / "suite").values()}
    assert headers["crash"]["cause"] == "out of memory"
    assert "cause" not in headers["fail"]
    assert outcome.failed["invented crash"] == "out of memory: the system killed the process, as there was none left"


@pytest.mark.parametrize(("text", "count"), [("nr_free_pages 3\noom_kill 7\n", 7), ("nr_free_pages 3\n", 0)])
def test_the_systems_count_of_kills(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.killed_for_memory() >= 0
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert process.killed_for_memory() == count


def test_a_damaged_result_is_run_again(log: Path, tmp_path: Path) -> None:
    wanted = plan(training(0))
    run(wanted, tmp_path / "suite")
    (path,) = (tmp_path / "suite" / "results").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    run(wanted, tmp_path / "suite")
    assert len(lines(log, "started")) == 2
    assert read_results(tmp_path / "suite")[path.stem].finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_workers_and_the_next_call_goes_on(
    log: Path, tmp_path: Path, number: signal.Signals
) -> None:
    wanted = plan(*(training(seed) for seed in range(3)))
    (tmp_path / "hang").touch()

    def interrupt() -> None:
        while len(lines(log, "started")) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    def terminate(*_: object) -> None:  # what the command line installs
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(wanted, tmp_path / "suite")
    finally:
        signal.signal(signal.SIGTERM, before)
    started = lines(log, "started")
    assert len(started) == 2
    assert len(lines(log, "stopped")) == 2
    for line in started:
        with pytest.raises(ProcessLookupError):
            os.kill(line["pid"], 0)
    assert read_results(tmp_path / "suite") == {}
    assert read_suite(tmp_path / "suite").seconds is not None
    (tmp_path / "hang").unlink()
    assert run(wanted, tmp_path / "suite").failed == {}
    assert len(read_results(tmp_path / "suite")) == 3


def test_the_minutes_are_over_and_the_next_call_goes_on(log: Path, tmp_path: Path) -> None:
    wanted = plan(measurement("one"), *(training(seed) for seed in range(3)))
    (tmp_path / "hang").touch()
    began = time.monotonic()
    outcome = run_suite(wanted, tmp_path / "suite", workers=2, minutes=1 / 60)
    assert time.monotonic() - began < 30
    assert outcome.failed == {}
    assert set(outcome.left) == set(wanted.labels.values())
    assert len(lines(log, "started")) == 2
    assert all(line["kind"] == "training" for line in lines(log, "started"))
    assert read_results(tmp_path / "suite") == {}
    (tmp_path / "hang").unlink()
    outcome = run_suite(wanted, tmp_path / "suite", workers=2, minutes=10)
    assert (outcome.failed, outcome.left) == ({}, ())
    assert len(read_results(tmp_path / "suite")) == 4


def test_a_measurement_that_had_all_the_time_comes_to_its_end(log: Path, tmp_path: Path) -> None:
    """It cannot be taken up again: stopped at every call, it would never end. One that began late is stopped."""
    alone = plan(measurement("slow"), measurement("one"))
    outcome = run_suite(alone, tmp_path / "suite", workers=2, minutes=0.2 / 60)
    assert outcome.left == ("invented one",)
    assert len(lines(log, "ended")) == 1
    outcome = run_suite(plan(measurement("work"), measurement("hang")), tmp_path / "other", minutes=3 / 60)
    assert outcome.left == ("invented hang",)


def test_a_reader_that_leaves_stops_the_workers(log: Path, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()

    class Left(io.StringIO):
        def write(self, text: str) -> int:
            if "seed 1: started" in self.getvalue() or "training 1: started" in text:
                raise BrokenPipeError(errno.EPIPE, "closed")
            return super().write(text)

    wanted = plan(*(training(seed) for seed in range(3)))
    with pytest.raises(BrokenPipeError):
        run_suite(wanted, tmp_path / "suite", workers=2, display=Display(3, 0, Console(file=Left(), width=100)))
    assert len(lines(log, "started")) == len(lines(log, "stopped"))
    assert read_suite(tmp_path / "suite").seconds is not None
    (tmp_path / "hang").unlink()
    assert run(wanted, tmp_path / "suite").failed == {}


@pytest.mark.parametrize("what", ["suite.json", "result"])
def test_a_full_disk_is_named_and_costs_no_finished_run(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = plan(training(0), training(1))
    with monkeypatch.context() as patch:
        if what == "result":
            patch.setattr(engine, "write_record", full)
        else:
            patch.setattr(Suite, "write", full)
        with pytest.raises(UserError, match=r"cannot write .*suite: No space left on device; make room there and call again"):
            run(wanted, tmp_path / "suite")
    assert run(wanted, tmp_path / "suite").failed == {}
    assert len(read_results(tmp_path / "suite")) == 2


def test_what_a_killed_suite_had_begun_to_write_goes(log: Path, tmp_path: Path) -> None:
    wanted = plan(training(0))
    run(wanted, tmp_path / "suite")
    leftovers = [tmp_path / "suite" / ".tmp-7-suite.json", tmp_path / "suite" / "results" / ".tmp-7-arm.jsonl"]
    for path in leftovers:
        path.touch()
    run(wanted, tmp_path / "suite")
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize("gpu", [False, True])
def test_how_many_trainings_run_at_once(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(engine, "available_processors", lambda: 7)
    arms = [training(0), training(1)]
    assert engine.groups(arms) == ([(arms, 4), ([], 1)] if gpu else [(arms, 7)])


def test_folders_that_cannot_be_used_are_left_alone(log: Path, tmp_path: Path) -> None:
    run(plan(training(0)), tmp_path / "suite")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for folder, scale, message in (
        ("suite", "quick", "holds a suite of scale smoke, not quick"),
        ("photographs", "smoke", "holds something other than a suite"),
        ("file", "smoke", "cannot be used"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run(plan(training(1), scale=scale), tmp_path / folder)
        assert "--output" in str(caught.value)
    with pytest.raises(UserError, match=r"a suite on the scale's own text, not on the text novel\.txt.*--output"):
        run(replace(plan(training(1)), corpus="novel.txt"), tmp_path / "suite")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert len(lines(log, "started")) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(log: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o555)
    with pytest.raises(UserError, match="not writable"):
        run(plan(training(0)), tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be used"):
        run(plan(training(0)), tmp_path / "mine" / "below")


def test_two_suites_in_one_folder(log: Path, tmp_path: Path) -> None:
    run(plan(training(0)), tmp_path / "suite")
    named = f"in use by process {os.getpid()} on .* since .*: wait for it, or choose another --output"
    with engine._only_one(tmp_path / "suite"), pytest.raises(UserError, match=named):
        run(plan(training(1)), tmp_path / "suite")
    run(plan(training(1)), tmp_path / "suite")


@pytest.mark.parametrize("terminal", [True, False])
def test_labels_and_errors_cannot_command_a_terminal(terminal: bool) -> None:
    class Arm:
        done, total, text = 1, 2, "half [red]\x1b]0;owned\x07"

    stream = io.StringIO()
    display = Display(3, 1, Console(file=stream, force_terminal=terminal, width=200))
    display.LINE_SECONDS = 0
    label = "[red]an arm\x1b]0;owned\x07"
    with display:
        display.start(label)
        display.update({label: Arm()})
        if display._progress is not None:
            display._progress.refresh()
        display.end(label, "failed: \x1b]0;owned\x07")
    text = stream.getvalue()
    assert r"[2/3] [red]an arm\x1b]0;owned\x07: failed: \x1b]0;owned\x07" in text
    assert not terminal or r"  [red]an arm\x1b]0;owned\x07 " in text
    assert r"half [red]\x1b]0;owned\x07" in text
    assert "\x1b]" not in text
    assert "\x07" not in text


def test_plain_lines_and_bars() -> None:
    class Arm:
        done, total, text = 1, 2, "half"

    for terminal in (False, True):
        stream = io.StringIO()
        display = Display(3, 1, Console(file=stream, force_terminal=terminal, width=100))
        display.LINE_SECONDS = 0
        with display:
            display.start("an arm")
            display.update({"an arm": Arm()})
            display.end("an arm", "finished in 3 s")
        text = stream.getvalue()
        assert "[2/3] an arm: finished in 3 s" in text
        assert ("\x1b" in text) is terminal
        if not terminal:
            assert text.splitlines() == ["[1/3] an arm: started", "    an arm 1/2 half", "[2/3] an arm: finished in 3 s"]
