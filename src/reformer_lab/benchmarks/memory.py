"""Bytes of activations of one training step, each point in a process of its own.

Activations are what forward and backward need beyond parameters, gradients and optimiser states: those exist (made by steps
on fewer tokens) before the baseline is taken, and the measured step adds to the gradients that are there. What is added
exists twice for a moment, all at once in a reversible stack: it counts as activations, to the reversible model's cost.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reformer_lab.benchmarks.measure import (
    MALLOC_ENVIRONMENT,
    PeakMemory,
    describe_device,
    resolve_device,
)
from reformer_lab.benchmarks.steps import TrainingStep, point_spec
from reformer_lab.errors import is_out_of_memory

Progress = Callable[[int, int], None]

_WARM_LENGTH = 1024
"""Tokens of the step before the baseline: enough to load every kernel, whose own pages would count otherwise."""
_KILLED = (-9, 137)


def measure_memory(parameters: Mapping[str, Any], seed: int, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Measure every point and yield one event for each.

    `parameters`: "model" (fields of ReformerConfig), "points" (a list of the fields, "length" and "batch_size" that
    differ), "length" and "batch_size" where they are common, "device", "precision", and "max_seconds" for one point.

    The events: {"event": "measurement", "length", "batch_size", "model": the fields that differ, "status": "finished" |
    "out of memory" | "over time", "activation_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes", "seconds",
    "loss", "gradient_norm", "gradient_component", "device", ...}.
    """
    points: Sequence[Mapping[str, Any]] = parameters["points"]
    for index, point in enumerate(points):
        spec = point_spec(parameters, point)
        fields = {name: value for name, value in point.items() if name not in ("length", "batch_size")}
        yield {"event": "measurement", "length": spec["length"], "batch_size": spec["batch_size"], "model": fields,
               **run_point(spec, seed, parameters.get("max_seconds"))}
        if progress is not None:
            progress(index + 1, len(points))


def run_point(spec: Mapping[str, Any], seed: int, max_seconds: float | None = None) -> dict[str, Any]:
    """Measure one point in a new process. Out of memory and over time are values of "status".

    Raises RuntimeError with the process's last words when it fails in any other way.
    """
    command = [sys.executable, "-m", "reformer_lab.benchmarks.memory"]
    job = json.dumps({"spec": spec, "seed": seed})
    environment = {**os.environ, **MALLOC_ENVIRONMENT}
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, env=environment, timeout=max_seconds)
    except subprocess.TimeoutExpired:
        return {"status": "over time"}
    if done.returncode in _KILLED:  # by the system, which had no memory left
        return {"status": "out of memory"}
    if done.returncode != 0:
        raise RuntimeError(f"a memory measurement failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_here(spec: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure one point in this process, whose earlier allocations are counted into the baseline."""
    device = resolve_device(spec.get("device", "auto"))
    try:
        step = TrainingStep(spec, seed, device)
        optimizer = torch.optim.Adam(step.model.parameters(), lr=0.0)
        warm_tokens = step.random_tokens(1, min(_WARM_LENGTH, spec["length"]))
        for _ in range(2):
            step.run(warm_tokens)
            optimizer.step()
        gradients = [parameter.grad for parameter in step.model.parameters() if parameter.grad is not None]
        gradient_bytes = sum(gradient.nbytes for gradient in gradients)
        del gradients
        optimizer.zero_grad(set_to_none=False)
        meter = PeakMemory(device)
        start = time.perf_counter()
        with meter:
            loss = step.forward()
            loss.backward()
        seconds = time.perf_counter() - start
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"status": "out of memory"}
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "status": "finished",
        "activation_bytes": meter.bytes,
        "parameter_bytes": sum(parameter.nbytes for parameter in step.model.parameters()),
        "gradient_bytes": gradient_bytes,
        "optimizer_bytes": sum(state.nbytes for state in states),
        "seconds": seconds,
        "loss": float(loss),
        **step.gradient_summary(),
        **describe_device(device),
    }


def main() -> None:
    """Read a job from standard input, write its result as one line of JSON to standard output."""
    job = json.load(sys.stdin)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes, not its parent
    torch.set_num_threads(1)  # the workspaces of more threads are no activations
    print(json.dumps(measure_here(job["spec"], job["seed"])))


if __name__ == "__main__":
    main()
