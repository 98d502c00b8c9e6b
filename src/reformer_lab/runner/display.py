"""What a suite shows while it runs: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from reformer_lab.terminal import Output, visible


class Running(Protocol):
    """What a display reads of a running arm."""

    done: int
    total: int
    text: str


class Display:
    """One bar for the suite and one for each running arm; where there is no terminal, a line for each start and end,
    and one every half minute."""

    LINE_SECONDS = 30.0

    def __init__(self, total: int, finished: int, console: Console | None = None) -> None:
        """`total` arms, of which `finished` are there already."""
        self._output = Output(console.file if console else sys.stderr)
        self._console = console or Console()
        self._console.file = self._output.as_text()
        self._total, self._finished = total, finished
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TextColumn("{task.fields[note]}", style="dim"))
            self._progress = Progress(*columns, console=self._console)
            self._suite = self._progress.add_task("suite", total=total, completed=finished, note="")

    def __enter__(self) -> "Display":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars. Raises BrokenPipeError when a pipe's reader has left."""
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
        self._output.check()

    def start(self, label: str) -> None:
        """An arm has started."""
        if self._progress is not None:
            self._bars[label] = self._progress.add_task(escape(visible(f"  {label}")), total=None, note="")
        else:
            self.say(f"[{self._finished}/{self._total}] {label}: started")

    def end(self, label: str, outcome: str) -> None:
        """An arm has ended, well or not."""
        self._finished += 1
        if self._progress is not None:
            self._progress.remove_task(self._bars.pop(label))
            self._progress.update(self._suite, completed=self._finished)
        self.say(f"[{self._finished}/{self._total}] {label}: {outcome}")

    def update(self, running: Mapping[str, Running]) -> None:
        """Show how far the running arms are."""
        if self._progress is not None:
            for label, arm in running.items():
                note = escape(visible(arm.text))
                self._progress.update(self._bars[label], completed=arm.done, total=arm.total or None, note=note)
        elif running and time.monotonic() - self._last_line >= self.LINE_SECONDS:
            self._last_line = time.monotonic()
            states = [f"{label} {arm.done}/{arm.total or '?'} {arm.text}".strip() for label, arm in running.items()]
            self.say("    " + "; ".join(states))
