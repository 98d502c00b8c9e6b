"""Ctrl-C, `kill`, a closed terminal: finish the step, save, leave."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import NoReturn, Self


class StopRequests:
    """While this context is open, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process.

    A second signal ends it at once, for whoever cannot wait for the step. A SIGHUP that is ignored (`nohup`) stays ignored.
    Outside the main thread, where Python delivers no signals, the context has no effect. A process that is not `alone` must
    ask the others before it stops: the flag is set by whoever has asked them.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    PASSED_ON_SECONDS = 5.0
    """A launcher passes on to its processes the signal that they may have had from a terminal or a scheduler too."""

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.noticed: signal.Signals | None = None
        """What this process has received."""
        self.received: signal.Signals | None = None
        """What all processes know of."""
        self._noticed_at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reader_left(self) -> None:
        """Stop as well when nobody reads the output any more."""
        if self.noticed is None:
            self.noticed, self._noticed_at = signal.SIGPIPE, time.monotonic()
        if self.alone:
            self.received = self.received or self.noticed

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.noticed is not None:
            if self.alone or time.monotonic() - self._noticed_at > self.PASSED_ON_SECONDS:
                self.received = self.noticed
                self.leave()
            return
        self.noticed, self._noticed_at = signal.Signals(number), time.monotonic()
        if self.alone:
            self.received = self.noticed

    def leave(self) -> NoReturn:
        """Raise what ends the process with the code of the signal: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, 141 for
        an output that nobody reads."""
        assert self.received is not None
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is signal.SIGPIPE:
            raise BrokenPipeError("nobody reads the output any more")
        raise SystemExit(128 + self.received)
