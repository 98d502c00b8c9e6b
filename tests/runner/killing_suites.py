"""A suite that is killed again and again: its engine, a worker, or both. Workers are forked from the engine, not started anew.

`python killing_suites.py FOLDER` runs a suite without an interruption in FOLDER/whole, and in FOLDER/killed with a SIGKILL at
each instant of a plan drawn from a fixed seed, then to the end. It prints what was killed, as JSON.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from killing import PHASES, die, ended, forked, kill_inside, task, warm_up, watch
from rich.console import Console

from reformer_lab.experiments.claim import Arm, Experiment
from reformer_lab.reporting.records import Suite
from reformer_lab.reporting.section import Section
from reformer_lab.runner import engine, process, worker
from reformer_lab.runner.display import Display
from reformer_lab.runner.plan import Plan, make_plan

FAILED = 7
"""Exit code of an engine that ended in good order and reports a failed arm."""
IN_THE_ENGINE: dict[str, tuple[Any, str]] = {
    "result": (engine, "write_record"), "suite file": (Suite, "write"), "start of a worker": (engine._Engine, "_start"),
}
before_a_job: list[Callable[[], None]] = []
"""What the workers of this engine do first."""


class Forked:
    """What the engine uses of subprocess.Popen, for a worker forked from it."""

    def __init__(self, command: list[str], *, stderr: Any, **_: Any) -> None:
        inward, self._stdin = os.pipe()
        outward_end, outward = os.pipe()

        def work() -> int:
            sys.setprofile(None)
            os.setsid()
            for source, target in ((inward, 0), (outward, 1), (stderr.fileno(), 2)):
                os.dup2(source, target)
            os.closerange(3, 256)  # other workers' pipes, and the suite's lock
            for prepare in before_a_job:
                prepare()
            sys.argv = ["worker", command[-1]]
            try:
                return worker.main()
            except SystemExit as leaving:
                return int(leaving.code or 0)

        self.pid = forked(work)
        self.returncode: int | None = None
        os.close(inward)
        os.close(outward)
        self.stdout = os.fdopen(outward_end, encoding="utf-8")

    def poll(self) -> int | None:
        if self.returncode is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            if number:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (60 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 60)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def plan_of(folder: Path) -> Plan:
    """Return a suite of three trainings, one of them on a byte corpus."""
    runs = [task("duplication", folder), task("byte corpus", folder)]
    arms = tuple(Arm(name=f"arm {i}", run=type(run).from_dict({**run.to_dict(), "seed": seed, "steps": 96}))
                 for i, (run, seed) in enumerate([(runs[0], 0), (runs[0], 1), (runs[1], 0)]))
    experiment = Experiment(name="invented", title="invented", question="?", claims=(), criterion="none",
                            arms=lambda scale: arms, judge=lambda results: (), show=lambda results: Section(),
                            cuts=lambda scale: "all")
    return make_plan([experiment], "smoke")


def run_engine(plan: Plan, output: Path) -> int:
    """Run the suite; 0, or FAILED when an arm has failed."""
    process.subprocess = types.SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    display = Display(len(plan.arms), 0, Console(file=io.StringIO()))
    return FAILED if engine.run_suite(plan, output, workers=2, command="a test", display=display).failed else 0


def main() -> None:
    """Run the chain that the command line asks for."""
    folder = Path(sys.argv[1])
    plan = plan_of(folder)
    warm_up(folder)

    def whole() -> int:
        sizes: dict[str, int] = {}
        watch(IN_THE_ENGINE, sizes)
        own = os.getpid()
        before_a_job.append(lambda: watch(PHASES, sizes))
        real = worker.run_job

        def run_job(*arguments: Any) -> None:
            real(*arguments)
            (folder / f"sizes-{os.getppid() == own}-{len(sizes)}.json").write_text(json.dumps(sizes))

        worker.run_job = run_job
        code = run_engine(plan, folder / "whole")
        (folder / "sizes-engine.json").write_text(json.dumps(sizes))
        return code

    assert ended(forked(whole)) == 0
    sizes: dict[str, int] = {}
    for path in folder.glob("sizes-*.json"):
        sizes |= {name: max(size, sizes.get(name, 0)) for name, size in json.loads(path.read_text()).items()}
    draws = random.Random("suite")
    attempts = [("engine", "clock")] * 5 + [("both", "step"), ("both", "checkpoint"), ("both", "evaluation")] * 2
    draws.shuffle(attempts)
    attempts = [("engine", "suite file"), ("engine", "start of a worker"), *attempts, ("engine", "result"),
                *[("worker", phase) for phase in ("step", "checkpoint", "evaluation", "step", "checkpoint", "model")]]
    done = []
    for who, where in attempts:
        occurrence, instant = draws.randint(1, 2), draws.randint(1, sizes.get(where, 0) + 1)
        if where in ("model", "result", "suite file"):
            occurrence = 1

        def killed(who: str = who, where: str = where, occurrence: int = occurrence, instant: int = instant) -> int:
            own = os.getpid()

            def kill() -> None:
                if who == "both":
                    os.kill(own, signal.SIGKILL)
                die()

            if where in IN_THE_ENGINE:
                kill_inside(IN_THE_ENGINE[where], occurrence, instant, die)
            elif where in PHASES:
                before_a_job.append(lambda: kill_inside(PHASES[where], occurrence, instant, kill))
            return run_engine(plan, folder / "killed")

        number = forked(killed)
        if where == "clock":
            time.sleep(draws.uniform(0.05, 0.6))
            os.kill(number, signal.SIGKILL)
        done.append((who, where, ended(number)))
    last = ended(forked(lambda: run_engine(plan, folder / "killed")))
    print(json.dumps({"killed": done, "last": last, "sizes": sizes}))


if __name__ == "__main__":
    main()
