"""Checkpoints: whole or not there, two of them, damage found."""

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_model

from reformer_lab.errors import UserError
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training import checkpoint as module
from reformer_lab.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, steps_of
from reformer_lab.training.config import OptimizerConfig
from reformer_lab.training.optimizers import build_optimizer


def trained(seed: int = 0, **changes: object) -> tuple[ReformerLM, torch.optim.Optimizer]:
    """A model after one step, so that the optimiser has something to remember."""
    model = ReformerLM(tiny_model(**changes), seed=seed)
    optimizer = build_optimizer(OptimizerConfig(), model)
    model(torch.ones(1, 16, dtype=torch.long)).loss.backward()
    optimizer.step()
    return model, optimizer


def save(folder: Path, *steps: int) -> None:
    model, optimizer = trained()
    for step in steps:
        save_checkpoint(folder, model, optimizer, {"step": step})


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model, optimizer = trained(tie_embeddings=tied)
    where = save_checkpoint(tmp_path, model, optimizer, {"step": 7, "seconds": 1.5})
    other, other_optimizer = trained(seed=1, tie_embeddings=tied)
    assert load_checkpoint(where, other, other_optimizer) == {"step": 7, "seconds": 1.5}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert str(optimizer.state_dict()) == str(other_optimizer.state_dict())


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    save(tmp_path, 2, 10, 9, 100)
    assert steps_of(tmp_path) == [9, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "9"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "config.json", "checksums.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, name: str, how: str) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "2" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content if how == "flipped" else content[:-1] if name != "checksums.json" else content[:20])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "1"
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint {tmp_path / '2'} is damaged: ")
    assert name in said[0] or name == "checksums.json"  # a wrong sum looks as a wrong file does
    assert said[0].endswith("; the one before it, of step 1, is used")


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nothing", print) is None
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / step / "state.pt").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .state\.pt does not have its checksum in 1.: restore"):
        newest_checkpoint(tmp_path, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("text", ["{}", "[]", "1", '"model.safetensors"', '{"model.safetensors": 1}'])
def test_checksums_that_leave_files_out(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "checksums.json").write_text(text)
    assert newest_checkpoint(tmp_path, lambda said: None) == tmp_path / "1"


def test_every_bit_counts(tmp_path: Path) -> None:
    """One flipped bit at places spread over each file."""
    save(tmp_path, 1, 2)
    for name in ("model.safetensors", "state.pt"):
        whole = (tmp_path / "2" / name).read_bytes()
        for place in range(0, len(whole), len(whole) // 7):
            (tmp_path / "2" / name).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            assert module.damage(tmp_path / "2") == f"{name} does not have its checksum"
        (tmp_path / "2" / name).write_bytes(whole)
    assert module.damage(tmp_path / "2") is None


def test_one_that_replaces_a_damaged_end(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "state.pt").write_bytes(b"")
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "2"
    assert steps_of(tmp_path) == [1, 2]


def test_a_failed_write_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_all", _no_space)
        with pytest.raises(UserError, match="No space left on device"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    (tmp_path / ".tmp-123-2").mkdir()  # what a killed process leaves
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def _no_space(folder: Path) -> None:
    raise OSError(28, "No space left on device")
