"""Real workers on trivially small runs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Arm, Experiment
from reformer_lab.locks import release_lock, take_lock
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import read_results
from reformer_lab.reporting.section import Section
from reformer_lab.runner import worker
from reformer_lab.runner.engine import run_suite
from reformer_lab.runner.plan import make_plan
from reformer_lab.runner.worker import run_job
from reformer_lab.training.config import RunConfig
from reformer_lab.training.run_folder import LOCK

MODEL = get_preset("cpu_tiny").replace(vocab_size=128)


def run_config(steps: int = 3) -> RunConfig:
    return RunConfig(model=MODEL, data=DuplicationConfig(length=32, eval_sequences=4), steps=steps, threads=1,
                     checkpoint_every=None)


def training_job(output: Path, steps: int = 3) -> dict[str, Any]:
    return {"kind": "training", "config": run_config(steps).to_dict(), "output": str(output)}


def start(job: dict[str, Any], folder: Path) -> "subprocess.Popen[str]":
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "reformer_lab.runner.worker", str(folder / "job.json")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_training_reports_its_steps(tmp_path: Path) -> None:
    reports: list[Any] = []
    run_job(training_job(tmp_path / "run"), reports.append)
    assert [report["progress"] for report in reports if report["progress"] > 0][-1] == 3
    assert all(report["total"] == 3 for report in reports)
    assert (tmp_path / "run" / "environment.json").exists()
    final = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["event"] == "final"


def test_a_measurement_leaves_events_and_environment(tmp_path: Path) -> None:
    parameters = {"model": MODEL.to_dict(), "points": [{"length": 16, "batch_size": 2}, {"length": 32, "batch_size": 1}],
                  "rounds": 2, "device": "cpu"}
    reports: list[Any] = []
    config = {"kind": "speed", "parameters": parameters, "seed": 0}
    run_job({"kind": "measurement", "config": config, "output": str(tmp_path / "run")}, reports.append)
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(event["event"], event["length"]) for event in events] == [("measurement", 16), ("measurement", 32)]
    assert reports[-1]["progress"] == reports[-1]["total"] == 6
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]["torch"]


def test_an_unknown_measurement(tmp_path: Path) -> None:
    job = {"kind": "measurement", "config": {"kind": "weight", "parameters": {}, "seed": 0}, "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="'weight' does not exist; known: speed, memory"):
        run_job(job, lambda message: None)


def test_the_reason_of_a_failure_comes_over_the_channel(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start(training_job(tmp_path / "file"), tmp_path)
    assert process.stdout is not None
    assert "is a file" in json.loads(process.stdout.read().splitlines()[-1])["error"]
    assert process.wait(timeout=60) == 1


@pytest.mark.slow
def test_out_of_memory_in_one_arm(tmp_path: Path) -> None:
    """A real refusal of memory in a real worker: recorded as what it is, and the other arm comes to its end."""
    greedy = RunConfig.from_dict({**run_config().to_dict(), "model": MODEL.replace(d_ff=2**45).to_dict()})
    arms = (Arm(name="greedy", run=greedy), Arm(name="modest", run=run_config()))
    experiment = Experiment(name="invented", title="invented", question="?", claims=(), criterion="none",
                            arms=lambda scale: arms, judge=lambda results: (), show=lambda results: Section(),
                            cuts=lambda scale: "all")
    outcome = run_suite(make_plan([experiment], "smoke"), tmp_path, workers=1)
    greedy_record, modest = (read_results(tmp_path)[arm.id] for arm in arms)
    assert set(outcome.failed) == {"invented greedy"}
    assert (greedy_record.header["status"], greedy_record.header["cause"]) == ("failed", "out of memory")
    assert re.match(r"out of memory, [\d.]+ GB more were asked for; there is no checkpoint yet\. Less", greedy_record.error)
    assert modest.finished
    assert "cause" not in modest.header


@pytest.mark.parametrize("leaves", [True, False])
def test_the_worker_of_a_killed_suite_may_finish_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    run_job(training_job(tmp_path / "first"), lambda message: None)  # what is imported at the first time takes long enough
    (tmp_path / "run").mkdir()
    handle = take_lock(tmp_path / "run" / LOCK)
    reports: list[Any] = []
    if leaves:
        threading.Timer(0.5, release_lock, (tmp_path / "run" / LOCK, handle)).start()
        run_job(training_job(tmp_path / "run"), reports.append)
        assert reports[-1]["progress"] == 3
    else:
        monkeypatch.setattr(worker, "HANDOVER_SECONDS", 0.2)
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            run_job(training_job(tmp_path / "run"), reports.append)
        release_lock(tmp_path / "run" / LOCK, handle)


@pytest.mark.parametrize("how", ["terminated", "left alone"])
def test_a_stopped_worker_leaves_a_checkpoint(tmp_path: Path, how: str) -> None:
    job = training_job(tmp_path / "run", steps=100_000)
    process = start(job, tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    while json.loads(process.stdout.readline() or "{}").get("progress", 0) < 2:
        assert process.poll() is None
    if how == "terminated":
        process.send_signal(signal.SIGTERM)
    else:  # what a worker sees when the engine is killed
        process.stdout.close()
        process.stdin.close()
    assert process.wait(timeout=60) == 143
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.slow
def test_ctrl_c_in_a_suite_and_the_same_command_again(tmp_path: Path) -> None:
    """The whole way, with real workers: 130, no process left, and the next call finishes."""
    command = [sys.executable, "-m", "reformer_lab.cli.main", "reproduce", "--scale", "smoke", "--only", "shared_qk",
               "--output", str(tmp_path / "suite"), "--workers", "2"]
    environment = {**os.environ, "REFORMER_LAB_CACHE": str(tmp_path / "cache")}
    suite = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while len(list((tmp_path / "suite").glob("runs/*/config.json"))) < 2:
        assert suite.poll() is None
        time.sleep(0.02)
    suite.send_signal(signal.SIGINT)
    _, errors = suite.communicate(timeout=60)
    assert suite.returncode == 130
    assert "Traceback" not in errors
    assert "the same command goes on from here" in errors
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^C4: inconclusive \(n = 1 seed\): smoke run", done.stdout, re.M)
    assert (tmp_path / "suite" / "report" / "index.html").exists()
    assert len(list((tmp_path / "suite" / "results").iterdir())) == 2
