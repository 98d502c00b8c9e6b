"""Rows of a benchmark as they come: on the console, in the CSV file, in the figure."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reformer_lab.cli.bench.options import describe_machine


class Table:
    """Rows on the console and in the CSV file, which is complete after each of them, so that Ctrl-C leaves what there is."""

    def __init__(self, arguments: argparse.Namespace, columns: Sequence[str], *heading: tuple[str, int]) -> None:
        self._arguments, self._columns, self._heading = arguments, columns, heading
        self._machine = describe_machine(arguments)
        self._rows: list[dict[str, Any]] = []
        self._failed = False
        print(self._line([name for name, _ in heading]), flush=True)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show each row as it comes and write it down."""
        from reformer_lab.benchmarks.measure import write_csv

        medians: dict[int, dict[str, float]] = {}
        for row in rows:
            self._rows.append({**self._machine, **row})
            if row["status"] == "finished":
                medians.setdefault(row["length"], {})[row["contender"]] = row["median"]
            self._failed |= row["status"] == "failed"
            progress("")
            print(self._line(self._cells(row)), flush=True)
            if self._arguments.csv is not None:
                write_csv(self._arguments.csv, self._rows, self._columns)
        for length, seconds in medians.items():
            ours = {name: own for name, own in seconds.items() if name.startswith(("lsh-", "reformer-lab"))}
            if ours and len(ours) < len(seconds):
                best = min(ours, key=ours.__getitem__)
                faster = [f"{seconds[name] / ours[best]:.2f} times faster than {name}" for name in seconds if name not in ours]
                print(f"at {length:,} tokens {best} is {', '.join(faster)}", flush=True)

    def end(self) -> int:
        """Draw the figure, say what was written, and return the exit code: 1 if a contender failed."""
        from reformer_lab.reporting.benchmark_figure import draw_benchmark

        if self._arguments.csv is not None:
            print(f"written: {self._arguments.csv}")
        if self._arguments.figure is not None:
            draw_benchmark(self._arguments.csv, self._arguments.figure)
            print(f"written: {self._arguments.figure}")
        return int(self._failed)

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        names = {"what": "what", "pass": "pass", "contender": "contender"}
        head = [f"{row['length']:,}" if name == "length" else str(row[names[name]])
                for name, _ in self._heading if name == "length" or name in names]
        if row["status"] != "finished":
            return [*head, row["status"] + (f" ({row['error']})" if "error" in row else "")]
        if "relative_time" in self._columns:
            return [*head, f"{row['median']:.4f}", f"{row['seconds_per_token'] * 1e6:.3f}", f"{row['relative_time']:.3f}",
                    _number(row.get("bytes_per_token"), ",.0f"), _number(row.get("relative_memory"), ".3f")]
        cells = [*head, *(f"{row[name]:.4f}" for name in ("median", "low", "high"))]
        if "tokens_per_second" in row:
            cells.append(f"{row['tokens_per_second']:,.0f}")
        cells += [_number(row.get("times_faster"), ".2f"), _gigabytes(row.get("peak_bytes"))]
        if "tokens_per_second" in row:
            cells += [_gigabytes(row.get("above_baseline_bytes")), f"{row['loss']:.4f}"]
        return cells

    def _line(self, cells: Sequence[str]) -> str:
        widths = [width for _, width in self._heading]
        return " ".join(f"{cell:<{width}}" if name in ("what", "pass", "contender") else f"{cell:>{width}}"
                        for cell, width, (name, _) in zip(cells, widths, self._heading, strict=False)).rstrip()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def progress(text: str) -> None:
    """Show on a terminal what is being measured; "" takes it away."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
