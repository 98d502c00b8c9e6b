"""`reformer-lab env`."""

import platform
from pathlib import Path

import pytest
import torch

from reformer_lab.cli.main import main


def test_env(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "cache"))
    assert main(["env"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("torch threads", "threads").splitlines())
    assert rows["torch"] == torch.__version__
    assert rows["python"] == platform.python_version()
    assert rows["threads"] == str(torch.get_num_threads())
    assert "reference" in rows["lsh_attention"]
    assert rows["cache"] == str(tmp_path / "cache")


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["env", "--nonsense"])
    assert raised.value.code == 2
    assert "--nonsense" in capsys.readouterr().err
