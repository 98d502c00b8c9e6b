"""Contenders in processes of their own, here made-up ones whose doings are known."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from reformer_lab.benchmarks import contest
from reformer_lab.benchmarks.contest import Contender, Outcome, climb, hold_contest, summary

WORKER = """
import os, signal, sys, time, torch
from reformer_lab.benchmarks.worker import Work, main

def build(job):
    def run():
        with open(job["log"], "a") as log:
            log.write(job["name"] + " ")
        time.sleep(job.get("seconds", 0.1))
        does = job.get("does", "")
        if does == "die":
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        if does == "hang":
            time.sleep(600)
        if does == "raise":
            raise ValueError("two\\nlines")
        if does == "allocate":
            torch.ones(job["numbers"])
        if does == "chat":
            print("to standard output")
    return Work(run, torch.device("cpu"), {"version": "made up"})

main(build)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make jobs of the made-up worker: jobs(name=fields); jobs.log() tells who ran, in order."""
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(WORKER)
    monkeypatch.setattr(contest, "COMMAND", (sys.executable, str(script)))

    def make(**contenders: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {name: {"log": str(log), "name": name, **fields} for name, fields in contenders.items()}

    make.log = lambda: log.read_text().split()  # type: ignore[attr-defined]
    yield make
    assert not psutil.Process().children(), "a worker was left behind"


def test_contenders_take_turns(jobs: Any) -> None:
    said: list[str] = []
    outcomes = hold_contest(jobs(a={}, b={"does": "chat"}), repeats=3, max_seconds=60, progress=said.append)
    assert jobs.log() == ["a", "b"] * 4 + ["a", "b"]  # warm-up, three turns, memory
    assert [outcome.status for outcome in outcomes.values()] == ["finished", "finished"]
    for outcome in outcomes.values():
        assert len(outcome.seconds) == 3
        assert all(0.1 <= seconds < 5 for seconds in outcome.seconds)
        assert outcome.facts["version"] == "made up"
        assert outcome.facts["device"] == "cpu"
    assert "b: turn 2 of 3" in said


def test_a_short_call_is_repeated_within_its_turn(jobs: Any) -> None:
    outcome = hold_contest(jobs(a={"seconds": 0.02}), repeats=1, max_seconds=60)["a"]
    assert 0.02 <= outcome.seconds[0] < 0.1  # of one call, not of the turn
    assert len(jobs.log()) > 4


def test_out_of_memory_over_time_and_failures_are_values(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_COMPILE_SECONDS", 0)
    outcomes = hold_contest(
        jobs(killed={"does": "die", "signal": "SIGKILL"}, hangs={"does": "hang"}, large={"does": "allocate", "numbers": 2**50},
             raises={"does": "raise"}, crashes={"does": "die", "signal": "SIGSEGV"}, well={}),
        repeats=1, max_seconds=5)  # fmt: skip
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "killed": "out of memory", "hangs": "over time", "large": "out of memory", "raises": "failed", "crashes": "failed",
        "well": "finished"}  # fmt: skip
    assert outcomes["raises"].facts["error"] == "ValueError: two"
    assert "-11" in outcomes["crashes"].facts["error"]
    assert len(outcomes["well"].seconds) == 1
    assert "median" not in summary(outcomes["hangs"])


def test_slow_ones_get_fewer_turns(jobs: Any) -> None:
    outcomes = hold_contest(jobs(slow={"seconds": 0.8}, quick={}), repeats=3, max_seconds=1.5)
    assert [len(outcome.seconds) for outcome in outcomes.values()] == [2, 3]


def test_greater_lengths_are_skipped_once_one_was_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(jobs: dict[str, dict[str, Any]], **_: Any) -> dict[str, Outcome]:
        return {name: Outcome(name if job["length"] >= 20 else "finished") for name, job in jobs.items()}

    names = ("out of memory", "over time", "failed", "finished")
    monkeypatch.setattr(contest, "hold_contest", hold)
    jobs_at = lambda length: {name: {"length": length} for name in names}  # noqa: E731
    found = dict(climb([30, 10, 20, 30], jobs_at, repeats=1, max_seconds=60))
    assert list(found) == [10, 20, 30]
    assert {name: [found[length][name].status for length in found] for name in names} == {
        "out of memory": ["finished", "out of memory", "skipped: out of memory at 20"],
        "over time": ["finished", "over time", "skipped: over time at 20"],
        "failed": ["finished", "failed", "failed"],  # another length may suit it
        "finished": ["finished"] * 3,
    }


@pytest.mark.parametrize("fresh", [False, True], ids=["in-the-timed-process", "in-a-new-process"])
def test_memory(fresh: bool, jobs: Any) -> None:
    how = {"does": "allocate", "numbers": 50_000_000, **({"warm_length": 1} if fresh else {}), "length": 7}
    facts = hold_contest(jobs(a=how), repeats=1, max_seconds=60)["a"].facts
    assert 190e6 < facts["above_baseline_bytes"] < 230e6
    assert facts["peak_bytes"] > facts["above_baseline_bytes"] + 50e6  # the interpreter and torch
    assert len(jobs.log()) == (4 if fresh else 3)


def test_ratios() -> None:
    base, fast = Outcome(seconds=[8.0, 10.0, 12.0, 30.0, 9.0]), Outcome(seconds=[2.0, 1.0, 4.0, 3.0, 2.0])
    row = summary(fast, base)
    assert (row["median"], row["low"], row["high"], row["repeats"]) == (2.0, 1.8, pytest.approx(3.2), 5)
    assert row["times_faster"] == 10.0 / 2.0
    # turn by turn 4, 10, 3, 10, 4.5: percentiles between neighbours
    assert (row["ratio_low"], row["ratio_high"]) == (pytest.approx(3.8), pytest.approx(10.0))
    assert "times_faster" not in summary(fast)
    assert "times_faster" not in summary(fast, Outcome("over time"))
    assert summary(base, base)["times_faster"] == 1
    few = summary(Outcome(seconds=[2.0]), base)  # one that was too slow for more
    assert (few["times_faster"], few["ratio_low"]) == (5.0, 4.0)


def test_workers_end_with_their_parent(jobs: Any, tmp_path: Path) -> None:
    """A killed benchmark leaves nothing that goes on computing."""
    made = jobs(a={"does": "hang"})
    code = f"""
from reformer_lab.benchmarks import contest
contest.COMMAND = {contest.COMMAND!r}
contender = contest.Contender({{}})
contender.ask({{"job": {made["a"]!r}}}, 60)
print(contender._process.pid, flush=True)
contender.ask({{"command": "turn"}}, 600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        for _ in range(600):
            if (tmp_path / "log").exists():
                break
            time.sleep(0.1)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    gone, alive = psutil.wait_procs([worker], timeout=30)
    for process in alive:
        process.kill()
    assert gone


def test_an_exception_ends_every_worker(jobs: Any) -> None:
    turns = itertools.count()

    def interrupt(text: str) -> None:
        if "turn" in text and next(turns) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold_contest(jobs(a={}, b={}), repeats=3, max_seconds=60, progress=interrupt)


def test_a_command_before_a_job_is_a_failure(jobs: Any) -> None:
    with Contender({}) as contender:
        assert contender.ask({"command": "turn"}, 60)["status"] == "failed"
