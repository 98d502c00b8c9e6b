"""Starts processes that train together, as a launcher does, without one's own processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

WORKER = Path(__file__).with_name("distributed_worker.py")
SECONDS = 90.0
"""Time that processes which train together may take, all in all."""


def start(words: Sequence[str], count: int = 2, directory: Path | None = None) -> list[subprocess.Popen]:
    """Start `python *words` once for each rank; standard output and error are pipes of text."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory,
                             env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True)
            for rank in range(count)]


def ends(processes: Sequence[subprocess.Popen], seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """Wait; return exit code, standard output and standard error of each. None is left running, nor what it has started."""
    deadline = time.monotonic() + seconds
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            found.append((process.returncode, output, errors))
    finally:
        for process in processes:
            if process.poll() is None:
                kill_all(process)
    return found


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process with its group, and the groups of all that come from it: a launcher gives its own processes others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(child.pid), signal.SIGKILL)
    process.communicate()
