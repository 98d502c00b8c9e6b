"""Ctrl-C and `kill`: finish the step, save, leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequests:
    """While this context is open, SIGINT and SIGTERM set a flag instead of ending the process.

    A second signal ends it at once, for whoever cannot wait for the step. Outside the main thread, where Python
    delivers no signals, the context has no effect.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.leave()
        self.received = signal.Signals(number)

    def leave(self) -> None:
        """Raise what ends the process with the code of the signal: 130 for SIGINT, 143 for SIGTERM."""
        if self.received is signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt
