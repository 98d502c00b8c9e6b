"""Folders of Hugging Face's Reformer, read and written without transformers; everything that can be wrong in one is named.

That the numbers are theirs: test_huggingface_peer.py.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reformer_lab.errors import UserError
from reformer_lab.integrations.huggingface import (
    from_huggingface,
    our_config,
    settled_num_buckets,
    their_config,
    to_huggingface,
    to_huggingface_state,
)
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM

SMALL: dict[str, Any] = {
    "vocab_size": 13, "d_model": 8, "d_ff": 12, "num_layers": 3, "num_heads": 2, "d_head": 3, "max_length": 24,
    "attention": ("local", "lsh"), "num_hashes": 2, "num_buckets": 4, "chunk_length": 4, "local_chunk_length": 4,
}  # fmt: skip
AXIAL: dict[str, Any] = {"positions": "axial", "axial_shape": (4, 6), "axial_dims": (3, 5)}
THEIRS = NUMERICS["huggingface"]
CONFIGS: dict[str, dict[str, Any]] = {
    "axial": AXIAL,
    "learned": {},
    "factors": {"num_buckets": (2, 4), "activation": "fast_gelu", "ff_chunk_length": 8},
    "bidirectional": {"causal": False, "chunks_after": 1, "local_chunks_after": 2, **AXIAL},
    "dropouts": {"dropout": 0.2, "attention_dropout": 0.1, "local_attention_dropout": 0.3, **AXIAL},
}


def model_of(**changes: Any) -> ReformerLM:
    return ReformerLM(ReformerConfig(**SMALL | THEIRS | changes), seed=4)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = model_of(**CONFIGS[name]).eval()
    to_huggingface(model, tmp_path)
    again = from_huggingface(tmp_path).eval()
    # Their layers are listed one by one; ours are a cycle.
    assert again.config == model.config.replace(attention=model.config.layer_kinds())
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    tokens = torch.randint(13, (2, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_names_and_shapes() -> None:
    """As PEERS lists them: h 8, A d 6, f 12, V 13, s (4, 6), e (3, 5)."""
    fields, weights = to_huggingface_state(model_of(**AXIAL))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert shapes["reformer.embeddings.word_embeddings.weight"] == (13, 8)
    assert shapes["reformer.embeddings.position_embeddings.weights.0"] == (4, 1, 3)
    assert shapes["reformer.embeddings.position_embeddings.weights.1"] == (1, 6, 5)
    assert shapes["reformer.encoder.layers.0.attention.self_attention.query.weight"] == (6, 8)
    assert shapes["reformer.encoder.layers.1.attention.self_attention.query_key.weight"] == (6, 8)
    assert shapes["reformer.encoder.layers.2.feed_forward.dense.dense.weight"] == (12, 8)
    assert shapes["reformer.encoder.layer_norm.bias"] == (16,)
    assert shapes["lm_head.decoder.weight"] == (13, 16)
    assert shapes["lm_head.bias"] == (13,)
    assert len(weights) == len(model_of(**AXIAL).state_dict())
    assert fields["attn_layers"] == ["local", "lsh", "local"]
    assert fields["architectures"] == ["ReformerModelWithLMHead"]


def test_half_precision_stays_half(tmp_path: Path) -> None:
    model = model_of().bfloat16()
    to_huggingface(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert from_huggingface(tmp_path).embedding.weight.dtype == torch.bfloat16


def test_the_bare_model(tmp_path: Path) -> None:
    model = model_of().eval()
    to_huggingface(model, tmp_path, head=False)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith(("reformer.", "lm_head"))]
    again = from_huggingface(tmp_path).eval()
    assert again.config.tie_embeddings
    tokens = torch.arange(12)[None]
    assert torch.equal(again.hidden_states(tokens), model.hidden_states(tokens))
    torch.testing.assert_close(model.logits(model.hidden_states(tokens)), model(tokens).logits, rtol=0, atol=0)


def test_tied_embeddings_become_a_matrix(tmp_path: Path) -> None:
    model = model_of(tie_embeddings=True).eval()
    to_huggingface(model, tmp_path)
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(from_huggingface(tmp_path).eval()(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)


def test_changes(tmp_path: Path) -> None:
    to_huggingface(model_of(), tmp_path)
    assert from_huggingface(tmp_path, num_hashes=8, reversible=False).config.num_hashes == 8
    with pytest.raises(UserError, match="residual_streams"):
        from_huggingface(tmp_path, residual_streams=1)


def test_other_arithmetic_warns(tmp_path: Path) -> None:
    plain = ReformerLM(ReformerConfig(**SMALL))
    with pytest.warns(UserWarning, match=r"cross_bucket=False.*wrap_around=False.*huggingface"):
        to_huggingface(plain, tmp_path)
    to_huggingface(ReformerLM(ReformerConfig(**SMALL | {"attention": ("local",)})), tmp_path)  # nothing to warn of
    with pytest.warns(UserWarning, match="wrap_around"):
        to_huggingface(ReformerLM(ReformerConfig(**SMALL | {"attention": ("local",), "causal": False})), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": ("full",)}, {"residual_streams": 1, "reversible": False}, {"positions": "sinusoidal"},
        {"positions": "none"}, {"chunks_after": 1}, {"local_chunks_after": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_transformers_has_no_place_for(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        their_config(ReformerConfig(**SMALL | changes))


def test_published_configurations() -> None:
    """The two that transformers' users know, as their config.json says it."""
    enwik8 = our_config({
        "model_type": "reformer", "attention_head_size": 128, "attn_layers": ["local", "local", "lsh", "local"] * 3,
        "axial_pos_shape": [128, 512], "axial_pos_embds_dim": [256, 768], "feed_forward_size": 4096, "hidden_size": 1024,
        "is_decoder": True, "local_attn_chunk_length": 128, "lsh_attn_chunk_length": 256, "max_position_embeddings": 65536,
        "num_attention_heads": 8, "num_buckets": 512, "num_hashes": 4, "vocab_size": 258, "hidden_dropout_prob": 0.2,
        "lsh_attention_probs_dropout_prob": 0.1, "local_attention_probs_dropout_prob": 0.2,
    })  # fmt: skip
    assert sum(parameter.numel() for parameter in ReformerLM(enwik8, seed=None).parameters()) == 149_182_722
    assert (enwik8.dropout, enwik8.attention_dropout, enwik8.local_attention_dropout) == (0.2, 0.1, 0.2)
    crime = our_config({
        "model_type": "reformer", "attention_head_size": 64, "attn_layers": ["local", "lsh"] * 3,
        "axial_pos_shape": [512, 1024], "axial_pos_embds_dim": [64, 192], "feed_forward_size": 512, "hidden_size": 256,
        "is_decoder": True, "max_position_embeddings": 524288, "num_attention_heads": 2, "num_buckets": [64, 128],
        "num_hashes": 1, "vocab_size": 320,
    })  # fmt: skip
    assert sum(parameter.numel() for parameter in ReformerLM(crime, seed=None).parameters()) == 2_748_224
    assert crime.num_buckets == (64, 128)
    assert crime.shift == "targets"


def test_settled_number_of_buckets_is_used() -> None:
    config = our_config({"model_type": "reformer", "num_buckets": None, "max_position_embeddings": 1024})
    assert config.num_buckets == settled_num_buckets(1024, 64, 1024) == 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    to_huggingface(model_of(**AXIAL), tmp_path)
    return tmp_path


def test_bias_of_two_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    bias = weights.pop("lm_head.bias")
    for names in (("lm_head.bias",), ("lm_head.decoder.bias",), ("lm_head.bias", "lm_head.decoder.bias")):
        save_file(weights | {name: (bias + 1).clone() for name in names}, folder / "model.safetensors")
        assert torch.equal(from_huggingface(folder).state_dict()["head.bias"], bias + 1)
    save_file(weights | {"lm_head.bias": bias, "lm_head.decoder.bias": bias + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match="differ"):
        from_huggingface(folder)


@pytest.mark.parametrize("version", [4, 5])
def test_what_each_version_of_transformers_saves(version: int, folder: Path) -> None:
    """Version 5.23 has one name for the bias, which it reads and does not add, and "dtype" for "torch_dtype"."""
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    weights["lm_head.bias"] = torch.arange(13.0)
    expected = from_huggingface(folder).state_dict() | {"head.bias": torch.arange(13.0)}
    if version == 4:
        weights["lm_head.decoder.bias"] = weights["lm_head.bias"].clone()
    else:
        config |= {"dtype": config.pop("torch_dtype"), "transformers_version": "5.23.0"}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    found = from_huggingface(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_constants_of_old_versions_are_dropped(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "reformer.encoder.layers.1.attention.self_attention.self_mask_value_float16"
    save_file(weights | {name: torch.tensor(-1e3)}, folder / "model.safetensors")
    from_huggingface(folder)


def in_torchs_format(folder: Path) -> dict[str, Tensor]:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def test_torchs_format(folder: Path) -> None:
    expected = from_huggingface(folder).state_dict()
    in_torchs_format(folder)
    found = from_huggingface(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def shard(folder: Path) -> Path:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [{name: weights[name] for name in sorted(weights)[half::2]} for half in range(2)]
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    places = {name: f"model-{number}.safetensors" for number, part in enumerate(parts) for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards(folder: Path) -> None:
    expected = from_huggingface(folder).state_dict()
    shard(folder)
    found = from_huggingface(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("damage", ["missing shard", "promise", "no map", "outside", "garbage"])
def test_wrong_shards(folder: Path, damage: str) -> None:
    index = shard(folder)
    places = json.loads(index.read_text())["weight_map"]
    if damage == "missing shard":
        (folder / "model-1.safetensors").unlink()
    elif damage == "promise":
        index.write_text(json.dumps({"weight_map": places | {"reformer.more": "model-0.safetensors"}}))
    elif damage == "no map":
        index.write_text("{}")
    elif damage == "outside":
        index.write_text(json.dumps({"weight_map": places | {"lm_head.bias": "../model-0.safetensors"}}))
    else:
        index.write_text("garbage")
    named = {"missing shard": "model-1", "promise": "reformer.more", "no map": "weight_map", "outside": r"\.\./model-0",
             "garbage": "index.json"}[damage]  # fmt: skip
    with pytest.raises(UserError, match=named):
        from_huggingface(folder)


class Command:
    """What torch's format could hold and must not be built."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("built",)


def test_a_pickle_that_does_more_than_hold_tensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = in_torchs_format(folder)
    torch.save(weights | {"lm_head.bias": Command()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        from_huggingface(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command()))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        from_huggingface(folder)
    assert "built" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{{{", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes | None) -> None:
    if name == "pytorch_model.bin":
        in_torchs_format(folder)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(before[: len(before) // 2] if content is None else content)
    with pytest.raises(UserError, match=name):
        from_huggingface(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        from_huggingface(folder)


FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("model_type='bert'.*BertModel", {"model_type": "bert", "architectures": ["BertModel"]}),
    ("model_type=None", {"model_type": None, "architectures": None}),
    ("hidden_act='swish'", {"hidden_act": "swish"}),
    ("word_embeddings.*vocab_size", {"vocab_size": 14}),
    ("also holds.*layers.2", {"attn_layers": ["local", "lsh"]}),
    ("lacks.*query_key", {"attn_layers": ["lsh", "lsh", "local"]}),
    ("num_buckets=7", {"num_buckets": 7}),
    ("axial_dims", {"axial_pos_embds_dim": [3, 4]}),
    ("position_embeddings.*another model", {"axial_pos_shape": [6, 4]}),
]


@pytest.mark.parametrize(("named", "changes"), FIELDS, ids=[named for named, _ in FIELDS])
def test_a_configuration_that_does_not_fit(folder: Path, named: str, changes: dict[str, Any]) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(UserError, match=named):
        from_huggingface(folder)


def test_missing_and_superfluous_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    some = dict(sorted(weights.items())[:-2])
    save_file(some, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks .* and 1 more"):
        from_huggingface(folder)
    save_file(weights | {"classifier.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"also holds classifier\.weight"):
        from_huggingface(folder)


def test_a_module_without_transformers() -> None:
    """A model of theirs is anything with a configuration of theirs and a state dict."""
    fields, weights = to_huggingface_state(model_of())

    class Theirs(nn.Module):
        config = type("Config", (), {"to_dict": staticmethod(lambda: fields)})

        def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
            return weights

    found = from_huggingface(Theirs())
    assert torch.equal(found.embedding.weight, weights["reformer.embeddings.word_embeddings.weight"])
