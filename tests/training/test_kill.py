"""SIGKILL at any instant: the next call goes on and ends with the bits of a run that nobody touched."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny_runs import assert_same_bits, tiny_run

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
@pytest.mark.parametrize("task", ["duplication", "byte corpus"])
def test_sigkill_at_twenty_instants(tmp_path: Path, task: str) -> None:
    call = [sys.executable, str(Path(__file__).with_name("killing.py")), task, str(tmp_path)]
    result = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert Counter(phase for phase, code in outcome["killed"] if code == -signal.SIGKILL) == {
        "step": 5, "checkpoint": 5, "evaluation": 4, "clock": 5, "model": 1}
    assert min(outcome["sizes"][phase] for phase in ("step", "checkpoint", "evaluation", "model")) > 100  # instants
    assert outcome["last"] == 0, result.stderr
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    while process.stdout.readline() != "train\n":
        pass
    process.send_signal(number)
    assert process.wait(60) == code  # an uncaught KeyboardInterrupt ends Python by the signal itself
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 3 <= newest < 40
