"""The end of a program that trains together with others.

The interpreter's own end is left out: with torch 2.13 on CPUs, a process that has talked to others stays in it now and then
for ever. The system closes what such a process leaves open; the others notice. Where it stays is not known: 33 pairs of
processes that took five steps by gloo and left the ordinary way, without `destroy_process_group`, all ended.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def is_one_of_several() -> bool:
    """Whether a launcher (torchrun, `accelerate launch`, srun with its variables) has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_and_end(program: Callable[[], int | None]) -> NoReturn:
    """Run a whole program, and end this process with the exit code that it returns or raises, as Python would."""
    code = 1
    try:
        code = program() or 0
    except SystemExit as leaving:
        code = exit_code(leaving)
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def exit_code(leaving: SystemExit) -> int:
    """Return the exit code of a SystemExit; a text is printed and counts as 1."""
    if leaving.code is None or isinstance(leaving.code, int):
        return leaving.code or 0
    with contextlib.suppress(Exception):
        print(leaving.code, file=sys.stderr)
    return 1
