"""`reformer-lab convert` from end to end, in one process."""

import errno
import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from reformer_lab.cli.main import main
from reformer_lab.integrations.huggingface import from_huggingface
from reformer_lab.integrations.trax import to_trax_arrays
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM

SMALL: dict[str, Any] = {
    "vocab_size": 13, "d_model": 8, "d_ff": 12, "num_layers": 2, "num_heads": 2, "d_head": 3, "max_length": 24,
    "attention": ("local", "lsh"), "num_hashes": 2, "num_buckets": 4, "chunk_length": 4, "local_chunk_length": 4,
}  # fmt: skip


@pytest.fixture
def model() -> ReformerLM:
    return ReformerLM(ReformerConfig(**SMALL | NUMERICS["huggingface"]), seed=2)


def same(one: ReformerLM, other: ReformerLM) -> bool:
    return all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_to_huggingface_and_back(model: ReformerLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "run" / "model")  # as a run folder holds it
    there, back = str(tmp_path / "hf"), str(tmp_path / "back")
    assert main(["convert", str(tmp_path / "run"), there, "--from", "reformer-lab", "--to", "huggingface"]) == 0
    assert same(from_huggingface(there), model)
    assert main(["convert", there, back, "--from", "huggingface", "--to", "reformer-lab", "--set", "num-hashes=8"]) == 0
    again = ReformerLM.from_pretrained(back)
    assert same(again, model)
    assert again.config == model.config.replace(num_hashes=8)
    out = capsys.readouterr().out
    assert "2 layers (local, lsh), vocabulary 13, up to 24 tokens" in out
    assert "warning" not in out


def test_from_trax(model: ReformerLM, tmp_path: Path) -> None:
    source = tmp_path / "model.pkl.gz"
    source.write_bytes(gzip.compress(pickle.dumps({"flat_weights": to_trax_arrays(model)}, protocol=2)))
    words = ["--from", "trax", "--to", "reformer-lab", "--set", "chunk_length=4", "activation=relu", "num_buckets=[2,4]"]
    assert main(["convert", str(source), str(tmp_path / "ours"), *words]) == 0
    again = ReformerLM.from_pretrained(tmp_path / "ours")
    assert same(again, model)
    assert (again.config.chunk_length, again.config.activation, again.config.num_buckets) == (4, "relu", (2, 4))
    assert again.config.wrap_around
    words = ["--from", "trax", "--to", "huggingface", "--set", "chunk_length=4"]
    assert main(["convert", str(source), str(tmp_path / "theirs"), *words]) == 0
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["hidden_act"] == "gelu_new"


def test_another_arithmetic_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ReformerLM(ReformerConfig(**SMALL)).save_pretrained(tmp_path / "ours")
    words = ["--from", "reformer-lab", "--to", "huggingface"]
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), *words]) == 0
    assert "warning: transformers computes another attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere", "new", "--from", "reformer-lab", "--to", "huggingface"], "config.json is missing"),
        (["nowhere", "new", "--from", "huggingface", "--to", "reformer-lab"], "config.json is missing"),
        (["nowhere", "new", "--from", "trax", "--to", "reformer-lab"], "nowhere is no file"),
        (["model", "something/new", "--from", "reformer-lab", "--to", "huggingface"], "name another folder"),
        (["model", "something/new", "--from", "reformer-lab", "--to", "reformer-lab"], "write something/new: Not a directory"),
        (["nowhere", ".", "--from", "trax", "--to", "reformer-lab"], "not empty"),
        (["nowhere", "new", "--from", "trax", "--to", "reformer-lab", "--set", "colour=red"], "--set colour=red"),
        (["nowhere", "new", "--from", "huggingface", "--to", "reformer-lab", "--set", "numerics=paper"], "numerics"),
        (["nowhere", "new", "--from", "paper", "--to", "reformer-lab"], "--from"),
        (["nowhere", "new"], "--from"),
    ],
)
def test_mistakes(
    words: list[str], named: str, model: ReformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "something").touch()
    assert main(["convert", *words]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_folder_to_the_next_call(
    model: ReformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    call = ["convert", str(tmp_path / "model"), str(tmp_path / "new"), "--from", "reformer-lab", "--to", "reformer-lab"]

    def half(self: ReformerLM, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(ReformerLM, "save_pretrained", half)
        assert main(call) == 2
    assert "make room there and call again" in capsys.readouterr().err
    assert main(call) == 0
    assert same(ReformerLM.from_pretrained(tmp_path / "new"), model)
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".")]
