"""One of the processes of test_distributed.py: trains each of the runs in a file, one after the other.

    python distributed_worker.py CASES.json

A case: {"output", "config", "shard", "find_unused", "stop": [rank, step], "kill": [rank, step]}
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import nn

from reformer_lab.training import loop
from reformer_lab.training.config import RunConfig
from reformer_lab.training.ending import run_and_end
from reformer_lab.training.processes import Processes

rank = int(os.environ["RANK"])
steps, prepare = loop.Run.step, Processes.prepare


def with_signal(at: list[int], number: signal.Signals) -> None:
    """Let the process of rank at[0] send itself a signal in step at[1]."""

    def step(self: loop.Run) -> None:
        if [rank, self.counters.step + 1] == at:
            os.kill(os.getpid(), number)
        steps(self)

    loop.Run.step = step  # type: ignore[method-assign]


def finding_unused(self: Processes, model: nn.Module) -> nn.Module:
    """Prepare a model as `find_unused_parameters` does."""
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def run(case: dict[str, Any]) -> None:
    """Train one run; check that it ends as the case says."""
    loop.Run.step = steps  # type: ignore[method-assign]
    Processes.prepare = finding_unused if case.get("find_unused") else prepare  # type: ignore[method-assign]
    for name, number in (("stop", signal.SIGTERM), ("kill", signal.SIGKILL)):
        if name in case:
            with_signal(case[name], number)
    code: Any = 0
    events: list[str] = []
    try:
        loop.train(RunConfig.from_dict(case["config"]), Path(case["output"]), lambda event: events.append(event["event"]),
                   shard=case.get("shard", False))
    except SystemExit as leaving:
        code = leaving.code
        if "stop" not in case:
            raise
    assert (len(events) > 0) == (rank == 0)
    assert code == (143 if "stop" in case else 0), code


def main() -> int:
    """Train all."""
    for case in json.loads(Path(sys.argv[1]).read_text()):
        run(case)
    print("all done")
    return 0


run_and_end(main)
