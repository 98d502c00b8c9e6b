"""Starts processes that train together, as a launcher does, without one's own processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("distributed_worker.py")


def start(words: Sequence[str], count: int = 2, directory: Path | None = None) -> list[subprocess.Popen]:
    """Start `python *words` once for each rank; standard output and error are pipes of text."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory,
                             env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)]


def ends(processes: Sequence[subprocess.Popen], seconds: float = 120.0) -> list[tuple[int, str, str]]:
    """Wait; return exit code, standard output and standard error of each. None is left running."""
    try:
        found = []
        for process in processes:
            output, errors = process.communicate(timeout=seconds)
            found.append((process.returncode, output, errors))
        return found
    except subprocess.TimeoutExpired:
        for process in processes:  # a launcher ends its own processes when it is asked to
            process.terminate()
        raise
    finally:
        for process in processes:
            process.wait(40)
