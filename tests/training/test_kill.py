"""SIGKILL at any instant: the next call goes on and ends with the bits of a run that nobody touched."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run, without_times

from reformer_lab.models.language_model import ReformerLM

WORKER = """
import json, sys
from pathlib import Path
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import train
train(RunConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]), lambda event: print(event["event"], flush=True))
"""


def start(folder: Path) -> subprocess.Popen:
    run = tiny_run(steps=40, checkpoint_every=1, eval_every=8)
    return subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(run.to_dict()), str(folder)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigkill_at_random_instants(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    assert whole.stdout is not None
    assert whole.stdout.readline() == "start\n"
    began = time.monotonic()
    assert whole.wait(60) == 0, whole.stderr and whole.stderr.read()
    length = time.monotonic() - began

    draws = random.Random(0)
    killed = 0
    for _ in range(3):
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draws.uniform(0, length / 2.5))
        process.send_signal(signal.SIGKILL)
        killed += process.wait(60) == -signal.SIGKILL
    assert killed >= 2
    last = start(tmp_path / "killed")
    assert last.wait(60) == 0, last.stderr and last.stderr.read()

    assert without_times(tmp_path / "whole") == without_times(tmp_path / "killed")
    one, other = (ReformerLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()) == ["39", "40"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_the_first_signal_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    while process.stdout.readline() != "train\n":
        pass
    process.send_signal(number)
    assert process.wait(60) == code  # an uncaught KeyboardInterrupt ends Python by the signal itself
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 3 <= newest < 40
