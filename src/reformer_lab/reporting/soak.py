"""Whether a long run was flat: read from the samples that `reformer-lab bench soak` wrote, and drawn from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reformer_lab.reporting.section import Figure, Level, Series
from reformer_lab.reporting.statistics import Estimate, slope

Row = Mapping[str, str]

WARM_UP = 0.2
"""Part of the run that is not judged: kernels are loaded, caches and the allocator's arenas find their size."""
BLOCKS = 10
"""Neighbouring samples resemble each other, which would make an interval too narrow: the slope is that of block means."""
MOST_GROWTH = 0.005
"""Flat: over as many steps as were judged, resident memory grows by less than this part of itself, with the upper end of the
slope's interval. Twice what the heap's own ups and downs leave open in a run that does not grow."""
LINE_BYTES = 512
"""Longest line of metrics.jsonl that is taken for bounded."""
CHECKPOINT_BYTES = 1024
"""By how much two checkpoints may differ: their counters are written with as many digits as they have."""


@dataclass(frozen=True)
class Soak:
    """What the samples after the warm-up say."""

    first: int
    """Step of the first sample that is judged."""
    last: int
    """Step of the last one."""
    resident: Estimate
    """Bytes of resident memory that a step adds, with its 95 % interval."""
    growth: float
    """The upper end of it over all judged steps, as a part of the mean resident memory."""
    metrics_bytes: float
    """Bytes that a step adds to metrics.jsonl."""
    line_bytes: float
    """Bytes of a line of metrics.jsonl."""
    failures: tuple[str, ...]
    """What is not flat, a sentence each; none if all is."""


def judge_soak(rows: Sequence[Row]) -> Soak:
    """Judge the rows of a soak's CSV file, in the order of the steps.

    Flat means: resident memory as `MOST_GROWTH` says; as many live tensors, of as many bytes, at the end as after the warm-up;
    checkpoints of equal size and as many files, once two checkpoints are there; lines of metrics below `LINE_BYTES`.
    """
    steps = [int(row["step"]) for row in rows]
    judged = [row for row, step in zip(rows, steps, strict=True) if step > max(WARM_UP * steps[-1], _two_checkpoints(rows[0]))]

    def column(name: str) -> list[int]:
        return [int(row[name]) for row in judged]

    at, resident = column("step"), column("resident_bytes")
    size = max(1, len(judged) // BLOCKS)
    pieces = [slice(start, start + size) for start in range(0, len(judged) - size + 1, size)]
    estimate = slope([_mean(at[piece]) for piece in pieces], [_mean(resident[piece]) for piece in pieces])
    most = estimate.value if estimate.high is None else estimate.high
    growth = most * (at[-1] - at[0]) / _mean(resident)
    metrics = (column("metrics_bytes")[-1] - column("metrics_bytes")[0]) / (at[-1] - at[0])
    line = metrics / (1 / int(rows[0]["log_every"]) + 1 / int(rows[0]["eval_every"]))
    failures = []
    if growth > MOST_GROWTH:
        failures.append(f"resident memory may grow by {100 * growth:.2f} % over {at[-1] - at[0]:,} steps")
    for name, words, most_more in (("tensors", "live tensors", 0), ("tensor_bytes", "bytes of live tensors", 0),
                                   ("checkpoint_bytes", "bytes of checkpoints", CHECKPOINT_BYTES),
                                   ("files", "files in the run's folder", 0)):
        values = column(name)
        if values[-1] > values[0] + most_more:
            failures.append(f"{words}: {values[0]:,} at step {at[0]:,}, {values[-1]:,} at step {at[-1]:,}")
    if line > LINE_BYTES:
        failures.append(f"a line of metrics.jsonl has {line:,.0f} bytes")
    return Soak(at[0], at[-1], estimate, growth, metrics, line, tuple(failures))


def soak_lines(soak: Soak) -> list[str]:
    """Return the judgement in sentences."""
    low, high = soak.resident.low, soak.resident.high
    interval = "" if low is None or high is None else f" [{low:+,.0f}, {high:+,.0f}]"
    flat = f"flat: resident memory within {100 * MOST_GROWTH:g} %; live tensors, checkpoints and files did not grow"
    return [
        f"steps {soak.first:,} to {soak.last:,}: resident memory {soak.resident.value:+,.0f}{interval} bytes a step, at most "
        f"{100 * soak.growth:+.2f} % in all; metrics {soak.metrics_bytes:,.1f} bytes a step, {soak.line_bytes:,.0f} a line",
        *(f"not flat: {failure}" for failure in soak.failures),
        *(() if soak.failures else (flat,)),
    ]


def soak_panels(rows: Sequence[Row]) -> list[list[Figure]]:
    """Return the figures: memory with its mean after the warm-up, live tensors, and what is on the disk."""
    steps = [float(row["step"]) for row in rows]
    judged = [float(row["resident_bytes"]) / 1e6 for row in rows if float(row["step"]) > WARM_UP * steps[-1]]

    def panel(column: str, title: str, unit: float, y_label: str, levels: tuple[Level, ...] = ()) -> Figure:
        series = Series(label="one training process", x=steps, y=[float(row[column]) / unit for row in rows])
        return Figure(title=title, x_label="step", y_label=y_label, series=(series,), levels=levels)

    mean = sum(judged) / len(judged)
    bounds = (Level(label=f"{1 + MOST_GROWTH:.3f} x mean", y=mean * (1 + MOST_GROWTH)),
              Level(label=f"{1 - MOST_GROWTH:.3f} x mean", y=mean * (1 - MOST_GROWTH)))
    return [
        [panel("resident_bytes", "resident memory", 1e6, "MB", bounds), panel("tensor_bytes", "live tensors", 1e6, "MB")],
        [panel("metrics_bytes", "metrics.jsonl", 1e3, "kB"), panel("checkpoint_bytes", "checkpoints", 1e6, "MB")],
    ]


def _two_checkpoints(row: Row) -> int:
    return 2 * int(row["checkpoint_every"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
