"""One of the processes of test_distributed.py: trains each of the runs in a file, one after the other.

    python distributed_worker.py CASES.json        [{"output", "config", "shard", "stop": [rank, step], "kill": [rank, step]}]
"""

import json
import os
import signal
import sys
from pathlib import Path

from reformer_lab.training import loop
from reformer_lab.training.config import RunConfig
from reformer_lab.training.processes import Processes

rank = int(os.environ["RANK"])
steps = loop.Run.step


def with_signal(at: list[int], number: signal.Signals) -> None:
    """Let the process of rank at[0] send itself a signal in step at[1]."""

    def step(self: loop.Run) -> None:
        if [rank, self.counters.step + 1] == at:
            os.kill(os.getpid(), number)
        steps(self)

    loop.Run.step = step  # type: ignore[method-assign]


for case in json.loads(Path(sys.argv[1]).read_text()):
    loop.Run.step = steps  # type: ignore[method-assign]
    for name, number in (("stop", signal.SIGTERM), ("kill", signal.SIGKILL)):
        if name in case:
            with_signal(case[name], number)
    code = 0
    try:
        events: list[str] = []
        loop.train(RunConfig.from_dict(case["config"]), Path(case["output"]), lambda event, e=events: e.append(event["event"]),
                   shard=case.get("shard", False))
    except SystemExit as leaving:
        code = leaving.code
    assert (len(events) > 0) == (rank == 0)
    assert code == (143 if "stop" in case else 0), code
print("all done", flush=True)
Processes().leave()
