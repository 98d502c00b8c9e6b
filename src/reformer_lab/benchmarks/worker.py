"""One contender in a process of its own: `python -m reformer_lab.benchmarks.worker`, started by `contest`.

Standard input and output carry one JSON object a line. First {"job": ...}, answered by what was built; then any number of
{"command": "turn"}, answered by {"seconds": ...}, {"command": "memory"}, or another job in the place of the first. The
answer to what failed has a "status".
Whatever else is printed goes to standard error. The process ends with its parent: when standard input closes.
"""

import contextlib
import json
import os
import queue
import statistics
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reformer_lab.benchmarks.contest import FAILED, OUT_OF_MEMORY
from reformer_lab.benchmarks.measure import (
    PeakMemory,
    describe_device,
    give_memory_back,
    process_peak,
    time_call,
)
from reformer_lab.errors import is_out_of_memory

_TURN_SECONDS = 0.1
"""A short call is repeated for so long in each turn: the first one after a sleep finds cold caches and slow clocks."""


@dataclass
class Work:
    """What a worker repeats."""

    run: Callable[[], object]
    """One call."""
    device: torch.device
    """Where it computes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Columns of the row: which version, how many buckets. `run` may add to them."""


def build(job: Mapping[str, Any]) -> Work:
    """Build what a job names: "kind" is "attention" (see `attention.build`) or "step" (see `train_step.build`)."""
    if job["kind"] == "step":
        from reformer_lab.benchmarks import train_step

        return train_step.build(job)
    from reformer_lab.benchmarks import attention

    return attention.build(job)


def main(build: Callable[[Mapping[str, Any]], Work] = build) -> None:
    """Serve until standard input closes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes, not its parent
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    work: Work | None = None
    while True:
        message = messages.get()
        try:
            if "job" in message:
                work = None
                if message["job"].get("threads") is not None:
                    torch.set_num_threads(message["job"]["threads"])
                work = build(message["job"])
                reply: dict[str, Any] = {"facts": {**work.facts, **describe_device(work.device)}}
            elif work is None:
                raise RuntimeError("asked for a command without a job")
            elif message["command"] == "turn":
                reply = {"seconds": _turn(work), "facts": work.facts}
            else:
                reply = {"facts": _memory(work)}
        except Exception as error:
            traceback.print_exc()
            if is_out_of_memory(error):
                reply = {"status": OUT_OF_MEMORY}
            else:
                reply = {"status": FAILED, "facts": {"error": f"{type(error).__name__}: {error}".splitlines()[0]}}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


def _turn(work: Work) -> float:
    seconds: list[float] = []
    if work.device.type == "cuda":
        work.run()  # to have again the memory that the last turn left to the others
    while sum(seconds) < _TURN_SECONDS:
        seconds.append(time_call(work.run, work.device))
    if work.device.type == "cuda":
        torch.cuda.empty_cache()
    return statistics.median(seconds)


def _memory(work: Work) -> dict[str, Any]:
    """Return the process's highest memory, and the peak of one more call above what was there before it."""
    before = process_peak(work.device)
    give_memory_back()
    meter = PeakMemory(work.device)
    with meter:
        work.run()
    return {"peak_bytes": max(before, meter.baseline + meter.bytes), "above_baseline_bytes": meter.bytes}


def _listen(messages: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    os._exit(0)  # the parent has gone; a long call of the main thread would not notice


if __name__ == "__main__":
    main()
