"""What the documentation shows is run: examples in docstrings, in the README and in docs/."""

import contextlib
import doctest
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from reformer_lab.cli.main import VERBS
from reformer_lab.models.config import ReformerConfig
from test_package import MODULES

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
ELSEWHERE = {"fastai.md"}
"""Pages whose code needs an extra: tests/integrations/test_fastai.py runs it."""
BLOCKS = [
    (name, block)
    for name, text in PAGES.items() if name not in ELSEWHERE
    for block in re.findall(r"```python\n(.*?)```", text, re.S)
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODULES if ".cli." not in name])
def test_examples_in_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_python_in_the_pages(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})


def test_fields_in_migrating_exist() -> None:
    """What stands in the column "here" as name=value is accepted by the model's configuration."""
    tables = re.findall(r"^\|[^|\n]+\|([^|\n]+)\|[^|\n]*\|$", PAGES["migrating.md"], re.M)
    fields = [field for cell in tables for field in re.findall(r"`(\w+=[^`]+)`", cell)]
    assert len(fields) > 60
    grid = "axial_shape=(128, 64), axial_dims=(64, 192)"
    extra = {"positions": grid, "axial_shape": "axial_dims=(64, 192)"}
    for field in fields:
        name = field.partition("=")[0]
        eval(f"ReformerConfig({field}, {extra.get(name, '')})", {"ReformerConfig": ReformerConfig})


def test_tests_that_reliability_names_exist() -> None:
    """Every row of its tables names tests, and each of them is there."""
    rows = re.findall(r"^\| (?!fault|operator|`)[^-].*\|$", PAGES["reliability.md"], re.M)
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split(" | ")[-1])
        assert named, row
        for path, function in named:
            assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), f"{path}::{function}"


@pytest.mark.parametrize("page", ["README.md", "benchmarks.md", "gpu.md", "migrating.md"])
def test_commands_in_the_pages_exist(page: str) -> None:
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (reformer-lab .*)$", PAGES[page], re.M)]
    assert commands
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
