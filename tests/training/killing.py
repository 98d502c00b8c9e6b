"""Runs that are killed again and again, in processes forked from one that has torch loaded: a kill costs tenths of a second.

`python killing.py TASK FOLDER` trains without an interruption in FOLDER/whole, and in FOLDER/killed with a SIGKILL at each
instant of a plan drawn from a fixed seed, then to the end. It prints what was killed where, as JSON.

An instant inside a phase is the n-th call or return, of Python's functions or of C's, while the phase's function runs: between
any two writes of a checkpoint, any two operations of a step. Others are instants of the clock, which fall anywhere, also into
the middle of an operation.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import tiny_model, tiny_run

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.training import loop
from reformer_lab.training.config import RunConfig

PHASES: dict[str, tuple[Any, str]] = {
    "step": (loop.Run, "step"), "checkpoint": (loop, "save_checkpoint"), "evaluation": (loop.Run, "score"),
    "model": (loop.Run, "save_model"),
}
TIMED = "clock"


def watch(places: dict[str, tuple[Any, str]], sizes: dict[str, int]) -> None:
    """Note in `sizes` how many instants one pass through each place has, at the most."""
    for name, (owner, attribute) in places.items():
        def begin(name: str = name) -> Callable[..., None]:
            seen = 0

            def event(*_: object) -> None:
                nonlocal seen
                seen += 1
                sizes[name] = max(seen, sizes.get(name, 0))

            return event

        _wrap(owner, attribute, begin, lambda: None)


def kill_inside(place: tuple[Any, str], occurrence: int, instant: int, kill: Callable[[], None]) -> None:
    """Call `kill` at the given instant (from 1) of the given pass (from 1) through a place, at the latest at its end."""
    passes = 0

    def begin() -> Callable[..., None] | None:
        nonlocal passes
        passes += 1
        if passes != occurrence:
            return None
        left = instant

        def event(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                kill()

        return event

    _wrap(*place, begin, lambda: kill() if passes == occurrence else None)


def _wrap(owner: Any, attribute: str, begin: Callable[[], Callable[..., None] | None], end: Callable[[], None]) -> None:
    real = getattr(owner, attribute)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        sys.setprofile(begin())
        try:
            return real(*arguments, **named)
        finally:
            sys.setprofile(None)
            end()

    setattr(owner, attribute, wrapped)


def forked(work: Callable[[], int | None]) -> int:
    """Do `work` in a new process, which ends with its result as exit code; return the process's number."""
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        code = 1
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return number


def ended(number: int) -> int:
    """Wait for a process and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def die() -> None:
    """End at once, as when the power fails."""
    os.kill(os.getpid(), signal.SIGKILL)


def task(name: str, folder: Path) -> RunConfig:
    """Return a run of sixty small steps with evaluations and checkpoints on the way."""
    changes: dict[str, Any] = {"steps": 60, "checkpoint_every": 2, "eval_every": 4, "log_every": 3}
    if name == "duplication":
        return tiny_run(**changes)
    draws = random.Random(1)
    (folder / "text").write_text("".join(draws.choices("abcdefgh \n", k=20_000)))
    data = ByteCorpusConfig(path=str(folder / "text"), length=16, valid=200, test=200)
    return tiny_run(**changes, data=data, model=tiny_model(vocab_size=258))


def warm_up(folder: Path) -> None:
    """Import and set up here what a first training does, and not in each forked process: one and a half seconds."""
    loop.train(tiny_run(steps=2), folder / "warm-up")


def main() -> None:
    """Run the chain that the command line asks for."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    run = task(name, folder)
    warm_up(folder)

    def whole() -> None:
        sizes: dict[str, int] = {}
        watch(PHASES, sizes)
        began: list[float] = []
        loop.train(run, folder / "whole", lambda event: began.append(time.monotonic()))
        (folder / "sizes.json").write_text(json.dumps(sizes | {TIMED: time.monotonic() - began[0]}))

    assert ended(forked(whole)) == 0
    sizes = json.loads((folder / "sizes.json").read_text())
    draws = random.Random(name)
    plan = ["step", "checkpoint", "evaluation", TIMED] * 4 + ["step", "checkpoint", TIMED]
    draws.shuffle(plan)
    done = []
    for phase in [*plan, "model"]:
        reader, writer = os.pipe()

        occurrence, instant = draws.randint(1, 2) if phase in plan else 1, draws.randint(1, int(sizes[phase]) + 1)

        def killed(phase: str = phase, writer: int = writer, occurrence: int = occurrence, instant: int = instant) -> None:
            if phase != TIMED:
                kill_inside(PHASES[phase], occurrence, instant, die)
            loop.train(run, folder / "killed", lambda event: event["event"] == "start" and os.write(writer, b"x"))

        number = forked(killed)
        if phase == TIMED:
            os.read(reader, 1)
            time.sleep(draws.uniform(0, 0.05 * sizes[TIMED]))
            os.kill(number, signal.SIGKILL)
        done.append((phase, ended(number)))
        os.close(reader)
        os.close(writer)
    last = ended(forked(lambda: loop.train(run, folder / "killed") and 0))
    print(json.dumps({"killed": done, "last": last, "sizes": sizes}))


if __name__ == "__main__":
    main()
