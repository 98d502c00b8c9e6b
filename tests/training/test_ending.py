"""However a program among several ends: its output is out, its exit code is Python's, the interpreter's own end is left out."""

import os
import subprocess
import sys

import pytest

ATEXIT = "import atexit, os, signal, sys; atexit.register(print, 'the own end'); print('said'); "
ENDING = ATEXIT + "from reformer_lab.training.ending import run_and_end\ndef program():\n    {}\nrun_and_end(program)"
COMMAND = ATEXIT + "from reformer_lab.cli.main import main; sys.exit(main({}))"


def end(code: str, processes: int = 2) -> tuple[int, str, str]:
    """Run Python code as one of several processes; return exit code, standard output and standard error."""
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, "WORLD_SIZE": str(processes)}, capture_output=True,
                           text=True, timeout=60, check=False)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize(("line", "code", "error"), [
    ("return None", 0, ""),
    ("return 3", 3, ""),
    ("sys.exit()", 0, ""),
    ("sys.exit(143)", 143, ""),
    ("sys.exit('a reason')", 1, "a reason"),
    ("raise ValueError('a fault')", 1, "ValueError: a fault"),
    ("os.kill(os.getpid(), signal.SIGINT)", 130, "KeyboardInterrupt"),
    ("sys.stdout.close()", 0, ""),
])  # fmt: skip
def test_every_way_to_end(line: str, code: int, error: str) -> None:
    found, output, errors = end(ENDING.format(line))
    assert (found, output) == (code, "said\n")
    assert error in errors if error else not errors


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["nonsense"], 2)])
def test_the_command_line_ends_so(arguments: list[str], code: int) -> None:
    found, output, _ = end(COMMAND.format(arguments))
    assert found == code
    assert "said" in output
    assert "the own end" not in output


def test_a_single_process_ends_as_any_other() -> None:
    assert end(COMMAND.format(["nonsense"]), processes=1)[:2] == (2, "said\nthe own end\n")
