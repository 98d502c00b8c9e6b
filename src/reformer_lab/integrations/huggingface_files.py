"""The files of a Hugging Face model folder: config.json, and weights in safetensors or torch's format, whole or in shards."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reformer_lab.errors import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which they are looked for, each also with an index of shards beside it (`<name>.index.json`)."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of config.json. A UserError names a file that is missing or no JSON object."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: give the folder of a Hugging Face model (config.json and its weights)")
    return _json(path)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the folder. Nothing but tensors is ever built from a file in torch's format.

    A UserError names a file that is missing or damaged, and a tensor that an index promises and no shard holds.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return _tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _sharded(index)
    raise UserError(f"{folder} holds no weights: expected {' or '.join(WEIGHTS_FILES)}, or the index of its shards")


def _sharded(index: Path) -> dict[str, Tensor]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map from tensors to files: fetch the model again")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if Path(name).name != name:
            raise UserError(f"{index} names the shard {name!r}: a shard is a file of the same folder")
        if not path.is_file():
            raise UserError(f"{path} is missing, a shard that {index.name} names: fetch the model again")
        weights |= _tensors(path)
    for name in sorted(set(places) - set(weights)):
        raise UserError(f"{index} promises {name}, which {places[name]} does not hold: fetch the model again")
    return weights


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged, or holds more than tensors ({reason}): fetch it again") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no dict of tensors: give a checkpoint that save_pretrained wrote")
    return weights


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold a JSON object: fetch it again")
    return fields
