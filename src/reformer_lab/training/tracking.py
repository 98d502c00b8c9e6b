"""What a run writes down: lines of metrics, and the environment that they were measured in."""

import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reformer_lab import __version__
from reformer_lab.errors import UserError
from reformer_lab.files import sync, writing

Event = dict[str, Any]
Progress = Callable[[Event], None]
"""Called with every recorded event, and with events that are shown only:
"start" (what is trained on what), "step" (each one), "scoring" (each batch of an evaluation), "note" (a sentence)."""


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, appended, cut back to a checkpoint's position when a run goes on."""

    def __init__(self, path: Path, position: int = 0) -> None:
        """Open the file and forget what stands behind `position` (in bytes)."""
        self.path = path
        with writing(path):
            # Unbuffered: a refused write leaves nothing behind that closing the file would try to write again.
            self._file = path.open("ab", buffering=0)
            sync(path.parent)
            if self._file.tell() < position:
                self._file.close()
                raise UserError(f"{path} is shorter than its checkpoint says: restore it, or remove the run's folder")
            self._file.truncate(position)
            self._file.seek(position)

    def append(self, event: Event) -> None:
        """Write one line. A kill may cut it short, never mix it with another."""
        assert "event" in event, "every line says what it is"
        with writing(self.path):
            line = json.dumps(event, allow_nan=False).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def position(self) -> int:
        """Return the position behind the last line, in bytes."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_events(path: Path) -> list[Event]:
    """Return the lines of a `metrics.jsonl`, less one that a kill cut short; none if there is no such file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [event for event in events if isinstance(event, dict)]


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: of torch's tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in KiB, on macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def parameter_count(model: torch.nn.Module) -> int:
    """Return the number of parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def bits(nats: float) -> float:
    """Return nats in bits."""
    return nats / math.log(2)


def environment() -> dict[str, Any]:
    """Return versions, machine and commit: what results depend on, and nothing that names a person or a computer."""
    packages = ("torch", "numpy", "accelerate", "safetensors")
    return {
        "reformer_lab": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    """Return the commit of the package's own checkout, "-dirty" if tracked files differ; None outside a checkout."""
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(package), *arguments]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None  # installed somewhere below another project's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    import psutil

    return psutil.virtual_memory().total
