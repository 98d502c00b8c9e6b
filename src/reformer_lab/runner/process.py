"""The engine's side of a worker: starts it, listens to it, stops it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from reformer_lab.runner.worker import OUT_OF_MEMORY

COMMAND = (sys.executable, "-m", "reformer_lab.runner.worker")
"""What is started, with the job's file as its last word."""


class Worker(Protocol):
    """What the engine knows of a running arm, here or on another machine."""

    done: int
    """Steps done."""
    total: int
    """Steps in all; 0 until the worker has said so."""
    text: str
    """The worker's last word on how it goes."""
    cause: str | None
    """"out of memory", where it failed for that."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        ...

    def failure(self, code: int) -> str:
        """Return why a worker that ended with `code` failed."""
        ...

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutError or subprocess.TimeoutExpired."""
        ...


def killed_for_memory() -> int:
    """Return how many processes this machine has killed as memory had run out, since its start; 0 if it keeps no count."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class WorkerProcess:
    """One running arm."""

    def __init__(self, job: Mapping[str, Any], job_file: Path, log_file: Path, threads: int | None) -> None:
        """Start `runner.worker` on `job`, written to `job_file`; its standard error goes to `log_file`."""
        for path in (job_file, log_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        job_file.write_text(json.dumps(job), encoding="utf-8")
        environment = dict(os.environ)
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.done = 0
        """Steps done."""
        self.total = 0
        """Steps in all; 0 until the worker has said so."""
        self.text = ""
        """The worker's last word on how it goes."""
        self.error: str | None = None
        """Why it failed, in its own words."""
        self.cause: str | None = None
        """"out of memory", where it failed for that."""
        self._log_file = log_file
        self._killed_for_memory_before = killed_for_memory()
        self._start = time.monotonic()
        command = [*COMMAND, str(job_file)]
        with log_file.open("w", encoding="utf-8") as log:
            # A session of its own: Ctrl-C reaches the engine alone, which then lets its workers write their checkpoints.
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                             encoding="utf-8", env=environment, start_new_session=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start."""
        return time.monotonic() - self._start

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._listener.join()
        # Another process may have been killed meanwhile, but workers ask to be the first to go.
        if code == -signal.SIGKILL and killed_for_memory() > self._killed_for_memory_before:
            self.cause = OUT_OF_MEMORY
        return code

    def failure(self, code: int) -> str:
        """Return why a worker that ended with `code` failed."""
        if self.error:
            return self.error
        if self.cause == OUT_OF_MEMORY:
            return "out of memory: the system killed the process, as there was none left"
        if code < 0:
            hint = " (the system kills a process so when memory runs out)" if code == -signal.SIGKILL else ""
            return f"killed by signal {-code}{hint}"
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises subprocess.TimeoutExpired."""
        code = self._process.wait(timeout)
        self._listener.join()
        return code

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # a line cut short by a kill
                continue
            self.done, self.total = message.get("progress", self.done), message.get("total", self.total)
            self.text, self.error = message.get("text", self.text), message.get("error", self.error)
            self.cause = message.get("cause", self.cause)
