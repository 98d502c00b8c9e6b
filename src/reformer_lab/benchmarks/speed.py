"""Seconds of one training step (forward and backward) of a model against length.

The points of one measurement are timed in turn, round after round, so that a slow minute of the machine falls on every
length alike and not on one of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from reformer_lab.benchmarks.measure import Timing, describe_device, resolve_device, time_call
from reformer_lab.benchmarks.steps import TrainingStep, point_spec
from reformer_lab.errors import is_out_of_memory

Progress = Callable[[int, int], None]


def measure_speed(parameters: Mapping[str, Any], seed: int, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Time every point and yield one event for each.

    `parameters`: "model" (fields of ReformerConfig), "points" (a list of {"length", "batch_size", fields that differ}),
    "rounds" (repeats of each point), "device" ("auto", "cpu", "cuda"), "precision" ("fp32", "bf16") and "max_seconds"
    (a point whose warm-up takes longer is not repeated; its status is "over time").

    The events: {"event": "measurement", "length", "batch_size", "model": the fields that differ, "status": "finished" |
    "over time" | "out of memory", "seconds": [one for each round], "median", "low", "high", "device", ...}.
    `progress` is called with the number of steps done and their total.
    """
    device = resolve_device(parameters.get("device", "auto"))
    points: Sequence[Mapping[str, Any]] = parameters["points"]
    rounds, limit = parameters["rounds"], parameters.get("max_seconds", float("inf"))
    status = ["finished"] * len(points)
    seconds: list[list[float]] = [[] for _ in points]
    steps: list[TrainingStep | None] = [None] * len(points)
    total = len(points) * (rounds + 1)
    for turn in range(rounds + 1):  # turn 0 warms up
        for index, point in enumerate(points):
            if status[index] == "finished":
                try:
                    step = steps[index] = steps[index] or TrainingStep(point_spec(parameters, point), seed, device)
                    elapsed = time_call(step.run, device)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    status[index], seconds[index], steps[index] = "out of memory", [], None
                else:
                    if turn == 0 and elapsed > limit:
                        status[index], seconds[index], steps[index] = "over time", [elapsed], None
                    elif turn > 0:
                        seconds[index].append(elapsed)
            if progress is not None:
                progress(turn * len(points) + index + 1, total)
    for point, state, times in zip(points, status, seconds, strict=True):
        fields = {name: value for name, value in point.items() if name not in ("length", "batch_size")}
        summary = Timing(tuple(times)).to_dict() if times else {"seconds": []}
        yield {"event": "measurement", "length": point["length"], "batch_size": point["batch_size"], "model": fields,
               "status": state, **summary, **describe_device(device)}
