"""What the documentation shows is run: examples in docstrings and in the README."""

import contextlib
import doctest
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from reformer_lab.cli.main import VERBS
from test_package import MODULES

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("name", [name for name in MODULES if ".cli." not in name])
def test_examples_in_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
def test_python_in_the_readme(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_commands_in_the_readme_exist() -> None:
    text = README.read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (reformer-lab .*)$", text, re.M)]
    assert len(commands) >= 4
    for command in commands:
        assert command[1] in VERBS, command
        module = importlib.import_module(f"reformer_lab.cli.{command[1]}")
        assert callable(module.main)
        help_text = help_of(module)
        for word in command[2:]:
            if word.startswith("--"):
                assert word in help_text, f"{command[1]} has no option {word}"


def help_of(module: object) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        module.main(["--help"])  # type: ignore[attr-defined]
    return output.getvalue()
