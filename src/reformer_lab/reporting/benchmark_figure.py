"""The figure of a benchmark, drawn from the CSV file that `reformer-lab bench` wrote: time, ratio, memory against length."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reformer_lab.errors import UserError
from reformer_lab.reporting.figures import panels_svg, standalone_svg
from reformer_lab.reporting.section import Figure, Level, Series
from reformer_lab.reporting.soak import soak_panels

Row = Mapping[str, str]


def draw_benchmark(source: Path, target: Path) -> None:
    """Draw the CSV file `source` into the SVG file `target`.

    Raises UserError for a file that is no such CSV, or a target that cannot be written.
    """
    if target.suffix.lower() != ".svg":
        raise UserError(f"{target}: the figure is an SVG file; choose a name that ends in .svg")
    try:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read ({error}); give a CSV file that `reformer-lab bench` wrote") from None
    soaked = bool(rows) and {"step", "resident_bytes", "metrics_bytes", "precision"} <= rows[0].keys()
    if not soaked and (not rows or not {"contender", "length", "status", "median"} <= rows[0].keys()):
        raise UserError(f"{source} holds no measurements of `reformer-lab bench attention`, `step`, `scaling` or `soak`")
    panels = soak_panels(rows) if soaked else benchmark_panels(rows)
    drawing = standalone_svg(panels_svg(panels, _title(rows), "benchmark"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); choose another file with --figure") from error


def benchmark_panels(rows: Sequence[Row]) -> list[list[Figure]]:
    """Return the figures in rows: a column for each kind of call, or for each quantity of a training step."""
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    if "tokens_per_second" in rows[0]:
        return [[
            _figure(rows, contenders, "tokens_per_second", "training step, tokens a second", "tokens / s"),
            _figure(rows, contenders, "peak_bytes", "peak memory of the process", "GB", lambda value: value / 1e9),
        ]]
    kinds = list(dict.fromkeys((row["what"], row["pass"]) for row in rows))
    columns: list[list[Figure]] = []
    for kind in kinds:
        chosen = [row for row in rows if (row["what"], row["pass"]) == kind]
        name = ", ".join(kind)
        if "relative_time" in rows[0]:
            linear = (Level(label="linear", y=1.0),)
            columns.append([
                _figure(chosen, contenders, "relative_time", f"{name}: time per token", "over the shortest", levels=linear),
                _figure(chosen, contenders, "relative_memory", f"{name}: memory per token", "over the shortest", levels=linear),
            ])
        else:
            even = (Level(label="as fast as exact", y=1.0),)
            columns.append([
                _figure(chosen, contenders, "median", name, "seconds", log_y=True),
                _figure(chosen, contenders, "times_faster", f"{name}: times faster", "exact's time / its own", log_y=True,
                        levels=even),
            ])
    return [list(row) for row in zip(*columns, strict=True)]


def _figure(rows: Sequence[Row], contenders: Sequence[str], column: str, title: str, y_label: str,
            unit: Callable[[float], float] = float, levels: tuple[Level, ...] = (), log_y: bool = False) -> Figure:
    """One panel. Every contender has a series, if an empty one, so that its colour is the same in all panels."""
    bands = {"median": ("low", "high"), "times_faster": ("ratio_low", "ratio_high")}.get(column)
    series = []
    for contender in contenders:
        points = [row for row in rows if row["contender"] == contender and row.get(column)]
        low, high = ([float(point[name]) for point in points] for name in bands) if bands else (None, None)
        series.append(Series(label=contender, x=[float(point["length"]) for point in points],
                             y=[unit(float(point[column])) for point in points], low=low, high=high))
    return Figure(title=title, x_label="length (tokens)", y_label=y_label, series=tuple(series), levels=levels, log_x=True,
                  log_y=log_y)


def _title(rows: Sequence[Row]) -> str:
    first = rows[0]
    return f"{first.get('device_name') or first.get('device', '')}, {first.get('threads', '?')} threads, {first['precision']}"
