"""Arms on the machines of a Ray cluster: each one a task that runs `runner.worker` there, as the local engine does here.

Every machine must have this package, and see the output folder under the same path. A task that is lost with its worker or its
machine is started again, where there is room, and a training goes on from its checkpoint; one without memory enough is not,
as it would be lost again. Progress and failures come back to the one engine.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Arm
from reformer_lab.folders import CACHE_VARIABLE, DATA_VARIABLE
from reformer_lab.runner.plan import SMALL_AT_ONCE, is_small
from reformer_lab.runner.process import WorkerProcess
from reformer_lab.runner.worker import OUT_OF_MEMORY

TRIES = 4
"""Starts of an arm whose worker is lost each time."""
_REPORT_SECONDS = 0.25
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Resources:
    """What an arm holds while it runs."""

    cpus: float
    gpus: float
    node: str | None = None
    """Id of the machine that it must run on."""


class Cluster:
    """A connection to Ray, as a context."""

    def __init__(self, address: str | None) -> None:
        """Connect to the cluster at `address`, or to the one of RAY_ADDRESS, or start one of this machine alone."""
        started = {} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False,
                                                                       "object_store_memory": 100_000_000}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False, **started)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"no Ray cluster answers at {address or 'RAY_ADDRESS'} ({line}): start one with "
                            "`ray start --head`, or leave --address out") from error
        self.nodes = _alive()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    @property
    def at_once(self) -> int:
        """Arms that are handed to Ray at once: one for each processor; Ray keeps waiting what has no room yet."""
        return max(1, int(sum(node["Resources"].get("CPU", 0) for node in self.nodes)))

    def resources(self, arm: Arm) -> Resources:
        """Return what an arm holds.

        A training: its threads, and a GPU where there are any, or a share of one if its steps are small. A measurement: all of
        one machine, the same one for all. Raises `UserError` where no machine has that much.
        """
        def most(name: str) -> float:
            return max((node["Resources"].get(name, 0.0) for node in self.nodes), default=0.0)

        if arm.kind == "measurement":
            def size(node: Mapping[str, Any]) -> tuple[Any, ...]:
                return (*(node["Resources"].get(name, 0) for name in ("GPU", "CPU")), node["NodeID"])

            node = max(self.nodes, key=size)
            return Resources(node["Resources"].get("CPU", 1.0), node["Resources"].get("GPU", 0.0), node["NodeID"])
        cpus = float(getattr(arm.run, "threads", None) or 1)
        if cpus > most("CPU"):
            raise UserError(f"{arm.name} computes with {cpus:g} threads, and no machine of the cluster has so many processors "
                            f"({most('CPU'):g} at most): add one, or use --engine local")
        gpus = (1 / SMALL_AT_ONCE if is_small(arm) else 1.0) if most("GPU") >= 1 else 0.0
        return Resources(cpus, gpus)

    def start(self, arm: Arm, job: Mapping[str, Any], job_file: Path, log_file: Path, threads: int | None,
              say: Callable[[str], None]) -> "RemoteWorker":
        """Hand an arm to the cluster. Raises `UserError` as `resources` does, for the machines that there are now."""
        def place() -> Resources:
            self.nodes = _alive()
            return self.resources(arm)

        return RemoteWorker(place, (dict(job), str(job_file), str(log_file), threads), say)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


class RemoteWorker:
    """One arm on the cluster; to the engine what `process.WorkerProcess` is."""

    def __init__(self, place: Callable[[], Resources], arguments: tuple[Any, ...], say: Callable[[str], None]) -> None:
        """`place`: says what the arm is to hold, and where, at each start of it. `arguments`: those of the task."""
        self.done, self.total, self.text = 0, 0, "waiting for room"
        self.error: str | None = None
        self.cause: str | None = None
        self._place, self._resources, self._arguments, self._say = place, place(), arguments, say
        self._start = time.monotonic()
        self._seconds: float | None = None
        self._code: int | None = None
        self._stopping = False
        self._messages: Any = None
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the worker that ended, or since the arm was handed over."""
        return time.monotonic() - self._start if self._seconds is None else self._seconds

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._code

    def failure(self, code: int) -> str:
        """Return why an arm that ended with `code` failed."""
        return self.error or f"exit code {code}"

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        self._cancel(force=False)

    def kill(self) -> None:
        """End it at once. Its process ends with the task."""
        self._cancel(force=True)

    def _cancel(self, *, force: bool) -> None:
        self._stopping = True
        if self._messages is not None and self._code is None:
            with contextlib.suppress(Exception):
                ray.cancel(self._messages, force=force)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutError."""
        self._follower.join(timeout)
        if self._code is None:
            raise TimeoutError
        return self._code

    def _follow(self) -> None:
        try:
            for attempt in range(1, TRIES + 1):
                lost = self._once()
                if lost is None or self._stopping:
                    break
                self.error = f"its worker was lost {attempt} times, at last: {lost}"
                if attempt < TRIES:
                    self._resources = self._place()  # its machine may be gone
                    arm = Path(self._arguments[1]).stem
                    with contextlib.suppress(BrokenPipeError):  # nobody reads the output: the engine notices it too
                        self._say(f"{arm}: its worker was lost ({lost}); started again, from its checkpoint if it has one")
        except Exception as error:  # nowhere to go, or no cluster any more: whatever it is, the engine waits for a code
            self.error = f"its worker was lost, and {error or type(error).__name__}"
        finally:
            self._code = 1 if self._code is None else self._code

    def _once(self) -> str | None:
        """Run the task to its end; return how it was lost, None if it was not."""
        options: dict[str, Any] = {"num_cpus": self._resources.cpus, "num_gpus": self._resources.gpus, "max_retries": 0}
        if self._resources.node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._resources.node, soft=False)
        named = {name: os.environ[name] for name in (CACHE_VARIABLE, DATA_VARIABLE) if name in os.environ}
        code: int | None = None
        try:
            self._messages = _task.options(**options).remote(*self._arguments, named)
            for reference in self._messages:
                message = ray.get(reference)
                self.done, self.total = message.get("done", self.done), message.get("total", self.total)
                self.text = message.get("text", self.text)
                if "code" in message:
                    code, self._seconds = message["code"], message["seconds"]
                    self.error, self.cause = message["error"], message["cause"]
        except ray.exceptions.RayTaskError as error:  # an error of our own, on the other machine
            self.error, code = str(error.cause).strip().splitlines()[-1], 1
        except ray.exceptions.TaskCancelledError:
            code = 143
        except ray.exceptions.OutOfMemoryError as error:  # Ray ends tasks before the system does
            self.error, self.cause, code = str(error).strip().splitlines()[0], OUT_OF_MEMORY, 1
        except ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[0]
        if code is not None and code < 0 and not self._stopping and self.cause != OUT_OF_MEMORY:  # killed there, by someone
            return self.error or f"killed by signal {-code}"
        self._code = 1 if code is None else code
        return None


@ray.remote(num_returns="streaming", max_calls=1)
def _task(
    job: dict[str, Any], job_file: str, log_file: str, threads: int | None, named: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Run a worker on this machine and yield how it goes; at last its exit code."""
    os.environ.update(named)
    output = Path(job["output"])
    if not output.parent.parent.joinpath("suite.json").exists():
        raise UserError(f"{output.parent.parent} is not the suite's folder on {os.uname().nodename}: "
                        "give an --output that every machine sees under this path")
    process = WorkerProcess(job, Path(job_file), Path(log_file), threads)
    shown: tuple[Any, ...] = ()
    try:
        while (code := process.poll()) is None:
            now = (process.done, process.total, process.text)
            if now != shown:
                shown = now
                yield {"done": now[0], "total": now[1], "text": now[2]}
            time.sleep(_REPORT_SECONDS)
        error = process.failure(code) if code else None
        yield {"done": process.done, "total": process.total, "code": code, "error": error, "cause": process.cause,
               "seconds": process.seconds}
    finally:
        process.stop()
        with contextlib.suppress(Exception):
            process.wait(_STOP_SECONDS)
        process.kill()
