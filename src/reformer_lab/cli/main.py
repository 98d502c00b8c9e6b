"""`reformer-lab`: finds the verb, runs it, turns what went wrong into a line and an exit code.

Imports nothing heavy: help answers at once, and a verb loads what it needs.
"""

import difflib
import errno
import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from reformer_lab import __version__
from reformer_lab.errors import UserError
from reformer_lab.terminal import visible
from reformer_lab.training.ending import is_one_of_several, run_and_end

VERBS = {
    "list": "experiments, scales, claims and presets",
    "reproduce": "run the paper's experiments and write the report",
    "train": "train a model on any file",
    "evaluate": "score a trained model over a whole split",
    "generate": "continue a text with a trained model",
    "bench": "measure speed and memory",
    "data": "show a corpus, download a known one",
    "report": "write the report of results again",
    "convert": "weights of trax and Hugging Face, in and out",
    "env": "versions, machine, threads, backends, cache",
}
"""Every verb is the module `reformer_lab.cli.<verb>` with `main(argv) -> exit code`."""

_LINES = "\n".join(f"  {verb:<10} {line}" for verb, line in VERBS.items())
HELP = f"""\
reformer-lab {__version__}: the Reformer (ICLR 2020), reproduced.

usage: reformer-lab <command> [options]        reformer-lab <command> --help

{_LINES}

examples:
  reformer-lab reproduce --scale quick
  reformer-lab train --corpus novel.txt --output runs/novel
  reformer-lab evaluate runs/novel --split test
  reformer-lab generate runs/novel --prompt "It was a dark and stormy night"
  reformer-lab bench attention --lengths 1k,4k,16k

Exit codes: 0 done, 1 a fault of the program, 2 something to mend in the call, 3 time over with more to do,
129 terminal closed, 130 Ctrl-C, 141 nobody reads the output, 143 terminated: after these, or a kill, the same call
goes on where it was.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code; as one of several processes, end with it."""
    if is_one_of_several():
        run_and_end(lambda: _run(argv))
    return _run(argv)


def _run(argv: list[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    on_a_terminal = sys.stdout.isatty()
    try:
        code = _answer(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_lost_outputs()
        return 141
    except OSError as error:
        if error.errno != errno.EIO or not on_a_terminal or sys.stdout.isatty():
            raise
        _forget_lost_outputs()  # the terminal was closed
        return 129


def _answer(arguments: list[str]) -> int:
    """Run one command line; say what a user can mend in a line or two."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"reformer-lab: error: {visible(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reformer-lab: interrupted", file=sys.stderr)
        return 130


def _forget_lost_outputs() -> None:
    """Give the outputs whose reader (head, less) has gone another end: Python flushes them once more when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(f"reformer-lab {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(VERBS)}"
        raise UserError(f"unknown command {verb!r}: {remedy}")
    # A hang-up that is ignored (nohup) stays ignored.
    numbers = [signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
    before = {number: signal.signal(number, _terminate) for number in numbers}
    try:
        return importlib.import_module(f"reformer_lab.cli.{verb}").main(rest)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as a terminated process does, but let `finally` and `with` clean up first."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
