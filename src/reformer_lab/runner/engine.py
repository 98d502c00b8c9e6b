"""Runs a suite: every arm once, trainings side by side, measurements alone; the same call goes on where it was.

    <output>/suite.json               what was set out to run
    <output>/runs/<arm id>/           run folder of the arm: checkpoints, metrics, model
    <output>/results/<arm id>.jsonl   written when the arm has ended, well or not
    <output>/logs/<arm id>.*          the worker's job and standard error

A finished arm is never run again; a failed one is, at the next call.
"""

import contextlib
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Arm
from reformer_lab.files import remove_leftovers, writing
from reformer_lab.locks import release_lock, take_lock
from reformer_lab.reporting.records import Suite, read_record, read_suite, write_record
from reformer_lab.runner.display import Display
from reformer_lab.runner.plan import Plan, on_one_gpu
from reformer_lab.runner.process import Worker, WorkerProcess

if TYPE_CHECKING:
    from reformer_lab.runner.cluster import Cluster

LOCK = ".lock"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class SuiteOutcome:
    """How a suite ended."""

    suite: Suite
    """As written to suite.json."""
    failed: Mapping[str, str]
    """Why each failed arm failed, by label."""
    left: tuple[str, ...] = ()
    """Labels of the arms that the time did not suffice for."""


def run_suite(
    plan: Plan, output: Path, *, workers: int | None = None, minutes: float | None = None, command: str = "",
    display: Display | None = None, cluster: "Cluster | None" = None,
) -> SuiteOutcome:  # fmt: skip
    """Run what is not yet finished of `plan` under `output`.

    `workers`: trainings at once; None: one for each processor, or what the plan gives one CUDA device. `minutes`: after so
    many nothing new is started and what runs is stopped, to go on at the next call. `command`: the command line, for the
    record. `cluster`: where the arms run; None: here. Raises UserError for a folder that cannot be used, before anything is
    run or written there. When interrupted, stops the workers, which write their checkpoints, and raises on.
    """
    before = open_folder(output, plan)
    with _only_one(output):
        environment = _environment()
        arms = {**(before.arms if before else {}), **plan.entries}
        if before and set(plan.entries) <= set(before.arms):
            command = before.command  # a call for a part must not pass for the command of the whole
        elif before and not set(before.arms) <= set(plan.entries):
            command = f"{before.command}; {command}"  # it took both calls
        suite = Suite(scale=plan.scale, started=before.started if before else _now(), command=command, arms=arms,
                      environment=environment, seconds=None, corpus=plan.corpus)
        with writing(output):
            remove_leftovers(output)
            remove_leftovers(output / "results")
            suite.write(output)
        earlier = (before.seconds or 0.0) if before else 0.0
        start = time.monotonic()
        waiting = [arm for arm in plan.arms.values() if not is_finished(output, arm)]
        display = display or Display(len(plan.arms), len(plan.arms) - len(waiting))
        deadline = math.inf if minutes is None else start + 60 * minutes
        engine = _Engine(plan, output, environment, display, deadline, cluster)
        try:
            with display:
                todo = {arm.id for arm in waiting}
                trainings = [arm for arm in plan.trainings if arm.id in todo]
                given = workers or (cluster.at_once if cluster else None)
                for group, at_once in [(trainings, given)] if given else groups(trainings):
                    engine.run(group, at_once)
                engine.run([arm for arm in plan.measurements if arm.id in todo], 1)
        finally:
            suite = replace(suite, seconds=earlier + time.monotonic() - start)
            with writing(output):
                suite.write(output)
        return SuiteOutcome(suite, engine.failed, tuple(engine.left))


def open_folder(output: Path, plan: Plan) -> Suite | None:
    """Make `output` if need be and return the suite that it holds, or None when it is new.

    Raises UserError when it cannot be written, holds something else, or holds a suite of another scale.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        occupied = any(not path.name.startswith(".") for path in output.iterdir())
        writable = os.access(output, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(f"output folder {output} cannot be used ({error.strerror}); choose another with --output") from error
    if not writable:
        raise UserError(f"output folder {output} is not writable; choose another with --output")
    if not occupied:
        return None
    if not (output / "suite.json").exists() and (output / "results").is_dir():
        return None  # its suite.json was lost or removed; what is finished counts by its own content
    if not (output / "suite.json").exists():
        raise UserError(f"output folder {output} holds something other than a suite; choose an empty or a new folder "
                        "with --output")
    before = read_suite(output)
    if before.scale != plan.scale:
        raise UserError(f"output folder {output} holds a suite of scale {before.scale}, not {plan.scale}; nothing was "
                        "changed. Choose another folder with --output")
    if before.corpus != plan.corpus:
        texts = [f"the text {suite.corpus}" if suite.corpus else "the scale's own text" for suite in (before, plan)]
        raise UserError(f"output folder {output} holds a suite on {texts[0]}, not on {texts[1]}; nothing was changed. "
                        "Choose another folder with --output")
    return before


def is_finished(output: Path, arm: Arm) -> bool:
    """Whether `output` holds the result of a finished run of this very configuration."""
    path = output / "results" / f"{arm.id}.jsonl"
    if not path.is_file():
        return False
    record = read_record(path)
    return record.finished and not record.problems and record.header.get("digest") == arm.run.digest()


def groups(trainings: Sequence[Arm]) -> list[tuple[list[Arm], int]]:
    """Return trainings with how many to run at once: one for each processor, or on a CUDA device what fits there."""
    import torch

    if torch.cuda.is_available():
        return on_one_gpu(trainings)
    return [(list(trainings), available_processors())]


def available_processors() -> int:
    """Return the number of processors that this process may use."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Engine:
    """The state of one call: what failed so far, and what is shown."""

    def __init__(self, plan: Plan, output: Path, environment: Mapping[str, Any], display: Display, deadline: float,
                 cluster: "Cluster | None" = None) -> None:
        self.failed: dict[str, str] = {}
        self.left: list[str] = []
        self._deadline, self._started = deadline, 0
        self._plan, self._output, self._environment, self._display = plan, output, environment, display
        self._cluster = cluster

    def run(self, arms: list[Arm], workers: int) -> None:
        """Run `arms`, `workers` at a time, and write their result files."""
        waiting = list(arms)
        running: dict[str, tuple[Arm, Worker]] = {}
        try:
            while waiting or running:
                if time.monotonic() >= self._deadline and not self._must_end(running):
                    self.left += [*running, *(self._plan.labels[arm.id] for arm in waiting)]
                    self._stop([process for _, process in running.values()])
                    return
                while waiting and len(running) < workers and time.monotonic() < self._deadline:
                    arm = waiting.pop(0)
                    label = self._plan.labels[arm.id]
                    self._started += 1
                    running[label] = (arm, self._start(arm))
                    self._display.start(label)
                for label, (arm, process) in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[label]
                        self._finish(arm, label, process, code)
                self._display.update({label: process for label, (_, process) in running.items()})
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self._stop([process for _, process in running.values()])
            raise

    def _must_end(self, running: Mapping[str, tuple[Arm, Worker]]) -> bool:
        """Whether the time must wait: a measurement cannot be taken up again. One that had the whole time, and needs more,
        would else never come to its end."""
        return self._started == 1 and any(arm.kind == "measurement" for arm, _ in running.values())

    def _start(self, arm: Arm) -> Worker:
        output = self._output.resolve() if self._cluster else self._output
        job = {"kind": arm.kind, "config": arm.run.to_dict(), "output": str(output / "runs" / arm.id)}
        logs = output / "logs"
        files = (logs / f"{arm.id}.json", logs / f"{arm.id}.log")
        threads = getattr(arm.run, "threads", None)
        with writing(logs):
            if self._cluster:
                return self._cluster.start(arm, job, *files, threads, self._display.say)
            return WorkerProcess(job, *files, threads)

    def _finish(self, arm: Arm, label: str, process: Worker, code: int) -> None:
        run = self._output / "runs" / arm.id
        header: dict[str, Any] = {
            "arm": arm.id, "name": arm.name, "scale": self._plan.scale, "kind": arm.kind, "seed": arm.seed,
            "config": arm.run.to_dict(), "digest": arm.run.digest(),
            "environment": _read_json(run / "environment.json") or dict(self._environment),
        }
        if code == 0:
            header["status"] = "finished"
            outcome = f"finished in {process.seconds:.0f} s"
        else:
            error = process.failure(code)
            header |= {"status": "failed", "error": error}
            if process.cause:
                header["cause"] = process.cause
            self.failed[label] = error
            outcome = f"failed: {error}"
        if arm.kind == "measurement":  # a training keeps its own time, over all its starts
            header["seconds"] = process.seconds
        with writing(self._output):
            write_record(self._output, header, _read_lines(run / "metrics.jsonl"))
        self._display.end(label, outcome)

    def _stop(self, processes: list[Worker]) -> None:
        """Let the workers write their checkpoints; a second interrupt, or a minute, ends the wait."""
        if not processes:
            return
        with contextlib.suppress(BrokenPipeError):
            self._display.say(f"stopping {len(processes)} running arms; the same command goes on from here")
        deadline = time.monotonic() + _STOP_SECONDS
        for process in processes:
            process.stop()
        try:
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, TimeoutError, KeyboardInterrupt):
            pass
        finally:
            for process in processes:
                process.kill()


@contextlib.contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Keep a second suite out of the folder. The lock ends with the process, however it ends."""
    with writing(output):
        handle = take_lock(output / LOCK)
    try:
        yield
    finally:
        release_lock(output / LOCK, handle)


def _environment() -> dict[str, Any]:
    from reformer_lab.training.tracking import environment

    return dict(environment())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines; none when it is not there. A line cut short is left out."""
    events = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                events.append(json.loads(line))
    return events
