"""Primitives of the benchmarks: seconds of a call, bytes of its activations.

Times are medians over repeats with the 20th and 80th percentile, after a warm-up. Memory is the peak above a baseline
that the caller sets once parameters and optimiser states exist: resident memory on a CPU (where only a process of its
own gives a clean number, see `memory`), the allocator's count on CUDA.
"""

import contextlib
import csv
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from reformer_lab.errors import UserError
from reformer_lab.training.tracking import cpu_name, peak_memory_bytes

MALLOC_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Set before a process starts, makes glibc give every tensor back to the system at once, so that resident memory is the
memory of what is alive. Without it freed blocks stay resident and the peak is a matter of luck."""

_SAMPLE_SECONDS = 0.001
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over repeats."""

    seconds: tuple[float, ...]
    """Each repeat, in order."""

    @property
    def median(self) -> float:
        """The middle repeat."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """20th percentile."""
        return percentile(self.seconds, 0.2)

    @property
    def high(self) -> float:
        """80th percentile."""
        return percentile(self.seconds, 0.8)

    def to_dict(self) -> dict[str, object]:
        """Return the repeats and their summary as JSON values, in seconds."""
        return {"seconds": list(self.seconds), "median": self.median, "low": self.low, "high": self.high}


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value at `fraction` (0 to 1) of the sorted values, interpolated between neighbours."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def resolve_device(name: str) -> torch.device:
    """Return the device called "cpu", "cuda" or "auto" (CUDA where there is one).

    Raises UserError for another name, or for CUDA on a machine without it.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {name!r} does not exist; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': this machine has none that torch can use; choose cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe_device(device: torch.device) -> dict[str, object]:
    """Return what a reader must know of the device to compare numbers: its kind, its name, the threads in use."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads()}


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, waiting for the device before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def give_memory_back() -> None:
    """From now on let glibc give freed tensors back to the system at once, and those that it has kept until now.

    What MALLOC_ENVIRONMENT does for a process that is yet to start: for one whose times have been measured as they are.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, 65536)
        libc.malloc_trim(0)


def process_peak(device: torch.device) -> int:
    """Return the most bytes that this process has used since its start: resident memory, or the allocator's on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        return _status_bytes("VmHWM")
    return peak_memory_bytes(device)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows under `columns`; what a row lacks stays empty. Raises UserError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file with --csv") from error


class PeakMemory:
    """Bytes above a baseline at the highest point of a piece of code, for a process that does nothing else meanwhile::

        with PeakMemory(torch.device("cpu")) as meter:
            tensor = torch.ones(10_000_000)
        meter.bytes    # about 40,000,000
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        """Peak minus baseline, known when the block has ended."""
        self.baseline = 0
        """What was in use when the block began."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline = torch.cuda.memory_allocated(self.device)
        else:
            self._resident = _ResidentPeak()
            self.baseline = self._resident.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = self._resident.stop()
        self.bytes = max(0, peak - self.baseline)


class _ResidentPeak:
    """Peak resident memory of this process between two points.

    Linux keeps the mark itself and lets a process reset its own; elsewhere a thread samples once a millisecond.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._sampled = 0

    def start(self) -> int:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return int(self._process.memory_info().rss)

    def stop(self) -> int:
        if self._sampler is None:
            return _status_bytes("VmHWM")
        self._stop.set()
        self._sampler.join()
        return self._sampled

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sampled = max(self._sampled, self._process.memory_info().rss)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {key}")
