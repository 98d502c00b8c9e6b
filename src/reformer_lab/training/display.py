"""The progress of a run for people: a live line on a terminal, plain lines anywhere else."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from reformer_lab.data.config import BITS_UNITS
from reformer_lab.terminal import Output, visible
from reformer_lab.training.tracking import Event

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of the same kind."""


def duration(seconds: float) -> str:
    """Return a length of time as people write it: 45 s, 3:05, 2:03:20."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(number: float) -> str:
    """Return a number of bytes as people write it: 512 MB, 3.1 GB (powers of 1000)."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def scores(event: Event, unit: str) -> str:
    """Return bits and accuracy of an evaluation as a phrase."""
    accuracy = "" if event["accuracy"] is None else f", accuracy {100 * event['accuracy']:.2f} %"
    return f"{event['bits']:.4f} {BITS_UNITS.get(unit, 'bits')}{accuracy}"


class Display:
    """Shows a run's events; give it to `train` as `progress`, inside its context."""

    def __init__(self, steps: int, unit: str = "byte", stream: TextIO | None = None) -> None:
        """Show a run of `steps` steps on `stream` (None: standard output); a target of the data is one `unit`."""
        self.steps, self.unit = steps, unit
        self.output = Output(stream or sys.stdout)
        self.console = Console(file=self.output.as_text(), highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        self.last_line = {"step": 0.0, "scoring": time.monotonic()}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event. Raises BrokenPipeError when a pipe's reader has left."""
        self._show_event(event)
        self.output.check()

    def _show_event(self, event: Event) -> None:
        match event["event"]:
            case "start":
                self.unit = event["unit"]
                self.say(event["data"] + "".join(f"; {name} {number:,} {self.unit}s"
                                                 for name, number in event["splits"].items()))
                several = f", {event['processes']} processes" if event.get("processes", 1) > 1 else ""
                self.say(f"{event['parameters']:,} parameters on {event['device']}{several}, {event['steps']} steps"
                         + (f", going on after step {event['step']}" if event["step"] else ""))
            case "step":
                self.show("step", self.step_line(event), event["step"], self.steps)
            case "scoring":
                total = event.get("total")
                done = f"{event['targets']:,}" + (f" of {total:,}" if total else "")
                self.show("scoring", f"evaluating on {event['split']} ({event['name']}): {done} {self.unit}s  "
                          + scores(event, self.unit), event["targets"], total)
            case "eval":
                self.say(f"step {event['step']}: {event['split']} {scores(event, self.unit)}")
            case "note":
                self.say(event["text"])
            case "final":
                early = ", stopped early" if event["stopped_early"] else ""
                self.say(f"finished: {event['step']} steps{early}, {duration(event['seconds'])}")

    def step_line(self, event: Event) -> str:
        """Return the line of one step."""
        return (f"step {event['step']}/{self.steps}  loss {event['loss']:.4f}  "
                f"{event['bits']:.4f} {BITS_UNITS.get(self.unit, 'bits')}  {event['tokens_per_second']:,.0f} tokens/s  "
                f"{duration(event['seconds_left'])} left  peak {size(event['peak_memory_bytes'])}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(escape(visible(text)))

    def show(self, kind: str, text: str, done: int, total: int | None) -> None:
        """Put the line in the live one's place; off a terminal, print it unless one like it was printed just now."""
        if self.live:
            row = Table.grid(padding=(0, 1))
            row.add_row(ProgressBar(total=total, completed=done, pulse=total is None, width=16),
                        Text(visible(text), no_wrap=True))
            self.live.update(row)
        elif done == total or time.monotonic() - self.last_line[kind] >= PLAIN_SECONDS:
            self.last_line[kind] = time.monotonic()
            self.say(text)
