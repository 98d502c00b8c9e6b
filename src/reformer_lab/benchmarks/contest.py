"""Contenders side by side: a process each, timed in turns, so that a slow minute of the machine falls on all alike.

A contender is started once, warms up, and is then asked for one turn after another, A B C A B C ..., while the others sleep.
At last each is asked for its memory. Out of memory and over time are values of a status, not failures of the benchmark.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from reformer_lab.benchmarks.measure import MALLOC_ENVIRONMENT, Timing, percentile

COMMAND = (sys.executable, "-m", "reformer_lab.benchmarks.worker")
"""What is started for each contender."""

FINISHED, OUT_OF_MEMORY, OVER_TIME, FAILED = "finished", "out of memory", "over time", "failed"

Job = Mapping[str, Any]
"""What a worker is to build, as JSON can hold it: see `worker.build`."""
Progress = Callable[[str], None]

_START_SECONDS = 900
"""For a process to import, build its model and draw its input: not what is measured."""
_COMPILE_SECONDS = 60
"""What the first call may take longer: kernels are compiled and tuned."""
_REST_SECONDS = 0.02
"""Between two turns: the threads of the process that has just ended its turn spin for some milliseconds before they sleep."""


@dataclass
class Outcome:
    """What became of one contender."""

    status: str = FINISHED
    """"finished", "out of memory", "over time", "failed", or "skipped: ... at LENGTH"."""
    seconds: list[float] = field(default_factory=list)
    """One number for each turn, the warm-up not counted."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the worker said of itself, and "peak_bytes" and "above_baseline_bytes"; "error" of one that failed."""


def hold_contest(jobs: Mapping[str, Job], *, repeats: int, max_seconds: float,
                 progress: Progress | None = None) -> dict[str, Outcome]:
    """Let the contenders `jobs` take turns and return each one's outcome.

    `max_seconds`: a turn that takes longer is stopped with its process and is "over time". A contender whose turns have
    taken so long together gets no further one, so that slow ones may have fewer than `repeats`.
    """
    say = progress or (lambda text: None)
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(Contender(job)) for name, job in jobs.items()}
        for name, contender in contenders.items():
            say(f"{name}: warm-up")
            contender.ask({"job": jobs[name]}, _START_SECONDS)
            contender.take_turn(max_seconds + _COMPILE_SECONDS, counted=False)
        for turn in range(repeats):
            for name, contender in contenders.items():
                if sum(contender.outcome.seconds) < max_seconds:
                    say(f"{name}: turn {turn + 1} of {repeats}")
                    contender.take_turn(max_seconds)
        for name, contender in contenders.items():
            if contender.outcome.status == FINISHED:
                say(f"{name}: memory")
                contender.outcome.facts |= _memory(contender, jobs[name], 2 * max_seconds)
            contender.close()
        return {name: contender.outcome for name, contender in contenders.items()}


def _memory(contender: "Contender", job: Job, max_seconds: float) -> dict[str, Any]:
    """Return "peak_bytes" and "above_baseline_bytes", or nothing where that fails: the times stand.

    A job with a "warm_length" gets a new process, which has computed so many tokens before, to load every kernel, and
    gives freed memory back at once. Another one is asked in the process that was timed, whose allocator may keep some
    blocks of less than 32 MB.
    """
    if "warm_length" not in job:
        reply = contender.ask({"command": "memory"}, max_seconds)
    else:
        contender.close()
        with Contender(job, MALLOC_ENVIRONMENT) as fresh:
            fresh.ask({"job": {**job, "length": min(job["length"], job["warm_length"])}}, _START_SECONDS)
            fresh.take_turn(_COMPILE_SECONDS)
            fresh.ask({"job": job}, _START_SECONDS)
            reply = fresh.ask({"command": "memory"}, max_seconds + _COMPILE_SECONDS)
    contender.outcome.status = FINISHED
    facts: dict[str, Any] = reply.get("facts", {})
    return {name: facts[name] for name in ("peak_bytes", "above_baseline_bytes") if name in facts}


def climb(lengths: Sequence[int], jobs_at: Callable[[int], Mapping[str, Job]], *, repeats: int, max_seconds: float,
          progress: Progress | None = None) -> Iterator[tuple[int, dict[str, Outcome]]]:
    """Hold a contest at each length, the shortest first, and yield its outcomes.

    A contender that ran out of memory or time is not tried at greater lengths: its status says where it ended.
    """
    ended: dict[str, str] = {}
    for length in sorted(set(lengths)):
        jobs = jobs_at(length)
        outcomes = hold_contest({name: job for name, job in jobs.items() if name not in ended}, repeats=repeats,
                                max_seconds=max_seconds, progress=progress)
        yield length, {name: outcomes.get(name) or Outcome(ended[name]) for name in jobs}
        for name, outcome in outcomes.items():
            if outcome.status in (OUT_OF_MEMORY, OVER_TIME):
                ended[name] = f"skipped: {outcome.status} at {length}"


def summary(outcome: Outcome, against: Outcome | None = None) -> dict[str, Any]:
    """Return the columns of one outcome: its facts, the timing, and how many times faster than `against` it is.

    "times_faster" is the ratio of the medians. "ratio_low" and "ratio_high" are the 20th and 80th percentile of the
    ratios of turns that followed each other.
    """
    row: dict[str, Any] = {"status": outcome.status, **outcome.facts}
    if outcome.status != FINISHED:
        return row
    timing = Timing(tuple(outcome.seconds))
    row |= {"median": timing.median, "low": timing.low, "high": timing.high, "repeats": len(timing.seconds)}
    if against is not None and against.status == FINISHED:
        ratios = [other / own for other, own in zip(against.seconds, outcome.seconds, strict=False)]
        row |= {"times_faster": Timing(tuple(against.seconds)).median / timing.median,
                "ratio_low": percentile(ratios, 0.2), "ratio_high": percentile(ratios, 0.8)}
    return row


class Contender:
    """One worker process, from this side."""

    def __init__(self, job: Job, variables: Mapping[str, str] | None = None) -> None:
        """Start it; it computes nothing until it is asked. `variables` are added to its environment."""
        environment = {**os.environ, **(variables or {})}
        if job.get("threads") is not None:
            environment |= {"OMP_NUM_THREADS": str(job["threads"]), "MKL_NUM_THREADS": str(job["threads"])}
        self.outcome = Outcome()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        # A session of its own: Ctrl-C reaches this process alone, which then ends its workers.
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                                         encoding="utf-8", env=environment, start_new_session=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._log.close()

    def take_turn(self, max_seconds: float, *, counted: bool = True) -> None:
        """Let it compute once (a short call: some times) and note the seconds of one call."""
        time.sleep(_REST_SECONDS)
        reply = self.ask({"command": "turn"}, max_seconds)
        if counted and "seconds" in reply:
            self.outcome.seconds.append(reply["seconds"])

    def ask(self, message: Mapping[str, Any], max_seconds: float) -> dict[str, Any]:
        """Send a message and return the reply, whose "facts" and "status" go into the outcome; {} once it has ended."""
        if self.outcome.status != FINISHED:
            return {}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=max_seconds)
        except queue.Empty:
            reply: dict[str, Any] = {"status": OVER_TIME}
        else:
            reply = self._last_words() if line is None else json.loads(line)
        self.outcome.facts |= reply.get("facts", {})
        self.outcome.status = reply.get("status", FINISHED)
        if self.outcome.status != FINISHED:
            self.close()
        return reply

    def close(self) -> None:
        """End the process at once."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> dict[str, Any]:
        """Return the status of a process that has ended by itself, or was ended by the system."""
        code = self._process.wait()
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip()
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or "bad_alloc" in words:  # the system had no memory left
            return {"status": OUT_OF_MEMORY}
        last = words.splitlines()[-1] if words else "no word"
        return {"status": FAILED, "facts": {"error": f"the process ended with {code}: {last}"}}
