"""save_pretrained and from_pretrained: the same model comes back, or an error says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import KINDS, config_of, tokens_of

from reformer_lab.errors import UserError
from reformer_lab.models.language_model import CONFIG_FILE, WEIGHTS_FILE, ReformerLM


@pytest.mark.parametrize(
    "options",
    [
        *({"attention": kinds} for kinds in KINDS.values()),
        {"tie_embeddings": True}, {"positions": "none"}, {"positions": "sinusoidal"}, {"num_buckets": (2, 4)},
        {"positions": "axial", "axial_shape": (5, 8), "axial_dims": (4, 6)}, {"reversible": False, "residual_streams": 1},
    ],
    ids=str,
)  # fmt: skip
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    model = ReformerLM(config_of(**options), seed=7).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    again = ReformerLM.from_pretrained(tmp_path / "new" / "folder").eval()
    assert again.config == model.config
    assert torch.equal(again(tokens_of()).logits, model(tokens_of()).logits)
    assert json.loads((tmp_path / "new" / "folder" / CONFIG_FILE).read_text())["d_model"] == 10


def test_saving_twice_overwrites(tmp_path: Path) -> None:
    for seed in (1, 2):
        ReformerLM(config_of(), seed=seed).save_pretrained(tmp_path)
    expected = ReformerLM(config_of(), seed=2).embedding.weight
    assert torch.equal(ReformerLM.from_pretrained(tmp_path).embedding.weight, expected)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ReformerLM(config_of()).save_pretrained(tmp_path)
    return tmp_path


def rejects(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ReformerLM.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    rejects(tmp_path / "nowhere", "missing")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    rejects(saved, f"{name} is missing")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{{{", None], ids=["empty", "garbage", "cut"])
def test_damaged_file(saved: Path, name: str, content: bytes | None) -> None:
    before = (saved / name).read_bytes()
    (saved / name).write_bytes(before[: len(before) // 2] if content is None else content)
    rejects(saved, "damaged")


def test_configuration_that_is_no_object(saved: Path) -> None:
    (saved / CONFIG_FILE).write_text("[1, 2]")
    rejects(saved, "JSON object")


@pytest.mark.parametrize("changes", [{"d_ff": 15}, {"num_layers": 2}, {"tie_embeddings": True}], ids=str)
def test_weights_of_another_model(saved: Path, changes: dict[str, Any]) -> None:
    (saved / CONFIG_FILE).write_text(json.dumps(config_of(**changes).to_dict()))
    rejects(saved, "does not fit")


@pytest.mark.parametrize("fields", [{"colour": "red"}, {"num_buckets": 7}, {"d_model": "wide"}], ids=str)
def test_impossible_configuration(saved: Path, fields: dict[str, Any]) -> None:
    (saved / CONFIG_FILE).write_text(json.dumps(config_of().to_dict() | fields))
    with pytest.raises(UserError, match=next(iter(fields))):
        ReformerLM.from_pretrained(saved)
