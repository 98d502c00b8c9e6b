"""Checkpoints of trax: read without trax, whatever they hold; a trained one continues its sequence."""

import gzip
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.evaluation.generate import generate
from reformer_lab.integrations.trax import from_trax, load_trax_arrays, to_trax_arrays, trax_arrays
from reformer_lab.layers.feed_forward import ACTIVATIONS
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.models.presets import get_preset

CHECKPOINT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "trax" / "reformerlm_copy.pkl.gz"
SMALL: dict[str, Any] = {
    "vocab_size": 11, "d_model": 8, "d_ff": 12, "num_layers": 2, "num_heads": 2, "d_head": 3, "max_length": 24,
}  # fmt: skip
AXIAL: dict[str, Any] = {"positions": "axial", "axial_shape": (4, 6), "axial_dims": (3, 5)}


@pytest.fixture
def checkpoint() -> Path:
    if not CHECKPOINT.is_file():
        pytest.skip(f"{CHECKPOINT} is not there")
    return CHECKPOINT


def test_the_authors_checkpoint_copies(checkpoint: Path) -> None:
    model = from_trax(checkpoint).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 118_349
    assert model.config.layer_kinds() == ("local", "local")
    tokens = [0, 3, 7, 5, 3, 2, 4, 0]
    for _ in range(6):
        logits = model(torch.tensor([[*tokens, 0]])).logits
        assert logits is not None
        tokens.append(int(logits[0, -1].argmax()))
    assert tokens[8:] == [3, 7, 5, 3, 2, 4]
    assert logits[0, -1].softmax(-1).max() > 0.99
    (cached,) = generate(model, [[0, 3, 7, 5, 3, 2, 4, 0]], length=6, greedy=True)
    assert cached.tokens == [3, 7, 5, 3, 2, 4]


def test_fast_gelu_is_the_published_formula() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    expected = 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))
    torch.testing.assert_close(ACTIVATIONS["fast_gelu"](x.clone()), expected, rtol=0, atol=1e-9)
    assert (ACTIVATIONS["gelu"](x) - expected).abs().max() > 1e-4


MODELS: dict[str, dict[str, Any]] = {
    "local": {"attention": ("local",)},
    "lsh": {"attention": ("lsh",)},
    "mixed, axial": {"attention": ("local", "lsh"), **AXIAL},
    "separate": {"attention": ("full",), "shared_qk": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = ReformerLM(ReformerConfig(**SMALL, **MODELS[name], activation="fast_gelu"), seed=3).eval()
    arrays = to_trax_arrays(model)
    assert [array.shape for array in arrays] == list(trax_arrays(model.config).values())
    path = write(tmp_path, arrays)
    options = {"shared_qk": False} if name == "separate" else {}
    read = from_trax(path, attention=model.config.attention, layer_norm_eps=model.config.layer_norm_eps, **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    fields = {field: getattr(read.config, field) for field in (*SMALL, "positions", "axial_shape", "axial_dims")}
    assert fields == {field: getattr(model.config, field) for field in fields}


def test_kinds_follow_from_the_matrices(tmp_path: Path) -> None:
    config = ReformerConfig(**SMALL | {"num_layers": 4}, attention=("local", "local", "lsh", "local"), **AXIAL)
    read = from_trax(write(tmp_path, to_trax_arrays(ReformerLM(config))))
    assert read.config.layer_kinds() == config.layer_kinds()


def test_the_layout_of_each_array() -> None:
    """What trax computes with its arrays, written out with them, is what our parameters give."""
    config = ReformerConfig(**SMALL, attention=("lsh",), **AXIAL)
    model = ReformerLM(config, seed=5)
    arrays = {name: torch.tensor(array) for name, array in zip(trax_arrays(config), to_trax_arrays(model), strict=True)}
    layer = model.stack.layers[1]
    x = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0))

    def projected(name: str) -> Tensor:
        return torch.einsum("bld,hdk->bhlk", x, arrays[f"stack.layers.1.attention.function.{name}.weight"])

    qk, v = layer.attention.function.project(x)  # type: ignore[operator]
    torch.testing.assert_close(qk, projected("query_key"))
    torch.testing.assert_close(v, projected("value"))
    merged = torch.einsum("bhlk,hkd->bld", v, arrays["stack.layers.1.attention.function.output.weight"])
    torch.testing.assert_close(layer.attention.function.merge(v), merged)  # type: ignore[operator]
    dense = x @ arrays["stack.layers.1.feed_forward.function.dense_in.weight"]
    hidden = (dense + arrays["stack.layers.1.feed_forward.function.dense_in.bias"]).relu()
    out = hidden @ arrays["stack.layers.1.feed_forward.function.dense_out.weight"]
    torch.testing.assert_close(
        layer.feed_forward.function(x), out + arrays["stack.layers.1.feed_forward.function.dense_out.bias"]
    )
    grid = torch.cat([arrays[f"positions.tables.{axis}"].expand(1, 4, 6, -1) for axis in range(2)], dim=-1)
    assert model.positions is not None
    torch.testing.assert_close(model.positions(24), grid.reshape(24, 8))
    logits = model.logits(torch.cat([x, x], dim=-1))
    torch.testing.assert_close(logits, torch.cat([x, x], dim=-1) @ arrays["head.weight"] + arrays["head.bias"])


def test_the_tuned_enwik8_model_has_a_place_for_every_array() -> None:
    """Names and shapes alone: 12 layers [local, local, LSH, local] x 3, axial positions."""
    config = get_preset("tuned_enwik8").replace(positions="axial")
    expected = trax_arrays(config)
    assert sum(numpy.prod(shape) for shape in expected.values()) == sum(
        parameter.numel() for parameter in ReformerLM(config, seed=None).parameters()
    )
    assert expected["positions.tables.0"] == (1, 128, 1, 256)
    assert expected["positions.tables.1"] == (1, 1, 512, 768)
    assert expected["stack.layers.2.attention.function.query_key.weight"] == (8, 1024, 128)


def write(folder: Path, arrays: list[numpy.ndarray], **more: Any) -> Path:
    path = folder / "model.pkl.gz"
    content = {"step": 3, "flat_weights": arrays, "history": defaultdict(list, {"loss": [(1, numpy.float32(0.5))]}), **more}
    path.write_bytes(gzip.compress(pickle.dumps(content, protocol=2), 1))
    return path


class Command:
    """What a pickle must never do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch {}".format(os.environ["REFORMER_LAB_TEST_PROOF"]),)


def test_a_pickle_that_names_a_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "ran"
    monkeypatch.setenv("REFORMER_LAB_TEST_PROOF", str(proof))
    path = write(tmp_path, to_trax_arrays(ReformerLM(ReformerConfig(**SMALL))), history=Command())
    with pytest.raises(UserError, match=r"(posix|nt)\.system"):
        from_trax(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("builtins", "eval"), ("numpy", "load"), ("trax.supervised.history", "run"), ("torch", "load")]
)
def test_only_listed_names_are_built(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b".")
    with pytest.raises(UserError, match=rf"{module}\.{name}"):
        from_trax(path)


@pytest.mark.parametrize("content", ["cut", "cut inside", "empty", "text", "no weights", "list"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, to_trax_arrays(ReformerLM(ReformerConfig(**SMALL))))
    whole = path.read_bytes()
    path.write_bytes({
        "cut": whole[: len(whole) // 2], "cut inside": gzip.compress(gzip.decompress(whole)[:999]), "empty": b"",
        "text": b"no checkpoint", "no weights": pickle.dumps({"slots": ()}), "list": pickle.dumps([1, 2]),
    }[content])  # fmt: skip
    with pytest.raises(UserError, match=path.name):
        from_trax(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pkl"):
        from_trax(tmp_path / "nothing.pkl")


def test_arrays_of_another_model(tmp_path: Path) -> None:
    config = ReformerConfig(**SMALL)
    arrays = to_trax_arrays(ReformerLM(config))
    with pytest.raises(UserError, match=r"30 arrays.*28"):
        load_trax_arrays(config, [*arrays, arrays[-1], arrays[-1]])
    with pytest.raises(UserError, match=r"embedding\.weight"):
        load_trax_arrays(config.replace(vocab_size=12), arrays)
    with pytest.raises(UserError, match=r"head\.bias"):
        load_trax_arrays(config, [*arrays[:-1], arrays[-1].astype(numpy.int64)])
    with pytest.raises(UserError, match="no ReformerLM"):
        from_trax(write(tmp_path, arrays[:9]))
    with pytest.raises(UserError, match="no ReformerLM"):
        from_trax(write(tmp_path, [arrays[-1]] * 30))


@pytest.mark.parametrize(
    "changes", [{"positions": "none"}, {"tie_embeddings": True}, {"residual_streams": 1, "reversible": False}], ids=str
)
def test_what_trax_has_no_place_for(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        trax_arrays(ReformerConfig(**SMALL | changes))


class ForgedReferences:
    """An array of a dtype whose state says that its bytes are addresses of objects: numpy would follow them."""

    def __reduce__(self) -> tuple[Any, ...]:
        dtype = ForgedDtype()
        return numpy.zeros(1).__reduce__()[0], (numpy.ndarray, (0,), b"b"), (1, (4,), dtype, False, b"A" * 32)


class ForgedDtype:
    def __reduce__(self) -> tuple[Any, ...]:
        return numpy.dtype, ("O8", False, True), (3, "|", None, None, None, 8, 8, 1)


def test_a_pickle_cannot_make_numpy_follow_addresses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="number 0 of flat_weights is no array"):
        from_trax(write(tmp_path, [ForgedReferences()]))  # type: ignore[list-item]


def test_a_packed_bomb_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_lab.data.corpus_file.EXPANSION_CHECKED_FROM", 1 << 20)
    path = tmp_path / "model.pkl.gz"
    path.write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(UserError, match="more than 200 times"):
        from_trax(path)


def test_a_pickle_that_asks_for_two_thousand_million_places(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(UserError, match="places of memory"):
        from_trax(path)
