"""The front door: help at once, exit codes that mean something, no traceback."""

import importlib
import importlib.util
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest

from reformer_lab.cli import main as module
from reformer_lab.cli.main import VERBS, main
from reformer_lab.errors import UserError


def run_verb(monkeypatch: pytest.MonkeyPatch, behaviour: object) -> int:
    """Run a verb whose module does `behaviour`."""
    fake = types.SimpleNamespace(main=behaviour)
    monkeypatch.setattr(module.importlib, "import_module", lambda name: fake)
    return main(["env"])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in text
    assert "examples:" in text


def test_every_verb_has_its_module() -> None:
    for verb in VERBS:
        assert importlib.util.find_spec(f"reformer_lab.cli.{verb}") is not None, verb
        assert callable(importlib.import_module(f"reformer_lab.cli.{verb}").main)


def test_help_takes_no_torch_and_no_second() -> None:
    call = ("import sys; from reformer_lab.cli.main import main; main(['--help']);"
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'tyro', 'rich')))")
    began = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", call], stdout=subprocess.DEVNULL).returncode == 0
    assert time.perf_counter() - began < 1.0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reformer-lab 0.")


@pytest.mark.parametrize(("verb", "words"), [("trian", "did you mean 'train'?"), ("xyz", "known: list, reproduce")])
def test_unknown_verb(capsys: pytest.CaptureFixture[str], verb: str, words: str) -> None:
    assert main([verb]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"reformer-lab: error: unknown command '{verb}'")
    assert words in error


def raising(error: BaseException) -> object:
    def behaviour(argv: list[str]) -> NoReturn:
        raise error

    return behaviour


def test_errors_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of an archive's member is quoted."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "abc":
            archive.writestr(f"{name}\x1b]0;owned\x07.png", b"no image")
    assert main(["data", "info", str(tmp_path / "a.zip"), "--side", "4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(r"reformer-lab: error: a\x1b]0;owned\x07.png in ")
    assert not set("\x1b\x07") & set(error)


def test_user_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(monkeypatch, raising(UserError("length=0: must be at least 1"))) == 2
    assert capsys.readouterr().err == "reformer-lab: error: length=0: must be at least 1\n"


def test_faults_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_verb(monkeypatch, raising(ZeroDivisionError()))


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_verb(monkeypatch, raising(KeyboardInterrupt())) == 130


def test_verbs_get_their_words_and_give_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(module.importlib, "import_module",
                        lambda name: types.SimpleNamespace(main=lambda argv: seen.append([name, *argv]) or 7))
    assert main(["train", "--steps", "3"]) == 7
    assert seen == [["reformer_lab.cli.train", "--steps", "3"]]


def test_termination_cleans_up_and_exits_143() -> None:
    call = """
import sys, time, types
from reformer_lab.cli import main as module
def verb(argv):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
module.importlib.import_module = lambda name: types.SimpleNamespace(main=verb)
sys.exit(module.main(["env"]))
"""
    process = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (143, "cleaned up\n", "")


def test_a_closed_pipe_is_no_error() -> None:
    program = f"{sys.executable} -m reformer_lab"
    call = f"set -o pipefail; {program} --help | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", call], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout.strip() in ("0", "141")


def test_python_m_is_the_same_program() -> None:
    result = subprocess.run([sys.executable, "-m", "reformer_lab", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown command 'nonsense'" in result.stderr
    assert "Traceback" not in result.stderr
