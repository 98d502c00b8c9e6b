"""`reformer-lab train` when its terminal is closed or its reader leaves: saved, no traceback; the same call goes on."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

OPTIONS = ["--preset", "duplication_cpu", "--length", "32", "--batch-size", "2", "--eval-every", "100000", "--threads", "1",
           "--checkpoint-every", "100000", "--log-every", "1"]


def command(folder: Path, steps: int) -> list[str]:
    return [sys.executable, "-m", "reformer_lab", "train", *OPTIONS, "--steps", str(steps), "--output", str(folder)]


def newest(folder: Path) -> int:
    return max(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_pipe_whose_reader_leaves(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command(tmp_path / "run", 100_000), stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        while "100000 steps" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        assert process.wait(60) == 141
    assert (tmp_path / "errors").read_text() == ""
    assert newest(tmp_path / "run") >= 1


def on_a_terminal(folder: Path, steps: int, errors: Path, prepare: Callable[[], object]) -> "subprocess.Popen[bytes]":
    """Start a training as a shell on a terminal of its own does, and close that terminal while it trains."""
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        prepare()

    with errors.open("w") as file:
        process = subprocess.Popen(command(folder, steps), stdin=theirs, stdout=theirs, stderr=file, preexec_fn=take_terminal,
                                   env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = b""
    while b"loss" not in seen:  # a live line is cut to the width of the terminal
        seen += os.read(ours, 4096)
    os.close(ours)
    return process


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    process = on_a_terminal(tmp_path / "run", 100_000, tmp_path / "errors", lambda: None)
    assert process.wait(60) == 129
    assert (tmp_path / "errors").read_text() == ""
    assert newest(tmp_path / "run") >= 1
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.slow
def test_a_closed_terminal_that_is_to_be_ignored(tmp_path: Path) -> None:
    """As after `nohup`: the run goes on without its terminal, to its end."""
    process = on_a_terminal(tmp_path / "run", 60, tmp_path / "errors", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.wait(120) == 0
    assert (tmp_path / "errors").read_text() == ""
    assert newest(tmp_path / "run") == 60
