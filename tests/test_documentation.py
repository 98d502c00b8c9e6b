"""What the documentation shows is run: examples in docstrings, in the README and in docs/."""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
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


def with_examples() -> list[str]:
    origins = {name: importlib.util.find_spec(name).origin for name in MODULES if ".cli." not in name}  # type: ignore[union-attr]
    return [name for name, path in origins.items() if path and ">>>" in Path(path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
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


@pytest.mark.parametrize("page", ["README.md", "benchmarks.md", "gpu.md", "migrating.md", "many-gpus.md", "many-nodes.md",
                                  "slurm.md"])
def test_commands_in_the_pages_exist(page: str) -> None:
    lines = re.findall(r"^    (?:torchrun .* -m (?=reformer_lab )|sbatch (?=examples/))?((?:reformer.lab|examples/\S+) .*)$",
                       PAGES[page], re.M)
    lines = [line.replace("examples/slurm_train.sh", "reformer-lab train") for line in lines]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert commands
    for command in commands:
        assert command[1] in VERBS, command
        module = importlib.import_module(f"reformer_lab.cli.{command[1]}")
        assert callable(module.main)
        options = options_of(module, command[2:3] if command[1] in ("bench", "data") else [])
        for word in command[2:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{' '.join(command[1:3])} has no option {word}"


def options_of(module: object, action: list[str]) -> set[str]:
    """What the help of a command lists as its options; those in its examples are no proof that it has them."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        module.main([*action, "--help"])  # type: ignore[attr-defined]
    found = re.findall(r"^[ │]+((?:-\w(?: \S+)?, )?--[\w.-]+.*)$", output.getvalue(), re.M)
    return {option for line in found for option in re.findall(r"--[\w.-]+", line)}


@pytest.mark.parametrize("code", [0, 2, 143])
def test_the_slurm_script(code: int, tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands and ours: what the processes are told, and what is put back into the queue."""
    stand_ins = {
        "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> "$LOG"; fi',
        "srun": 'shift; SLURM_PROCID=5 SLURM_LOCALID=1 exec "$@"',
        "reformer-lab": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $@" >> "$LOG"; exit "$CODE"',
    }
    for name, lines in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "CODE": str(code),
                   "SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "n", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
    script = str(ROOT / "examples" / "slurm_train.sh")
    ended = subprocess.run(["bash", script, "--corpus", "my novel.txt"], env=environment, check=False)
    assert ended.returncode == code
    told, *requeued = (tmp_path / "log").read_text().splitlines()
    assert told == "5 1 8 first 20007 train --corpus my novel.txt"
    assert requeued == (["requeue 40007"] if code == 143 else [])
