"""Every field of a model's configuration is checked, and survives JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import config_of

from reformer_lab.errors import UserError
from reformer_lab.models.config import ADDED_FIELDS, NUMERICS, SWITCHES, ReformerConfig
from reformer_lab.models.presets import PRESETS, get_preset

AXIAL: dict[str, Any] = {"positions": "axial", "axial_shape": (5, 8), "axial_dims": (4, 6)}

WRONG: list[tuple[str, dict[str, Any]]] = [
    *((f"{name}=0", {name: 0}) for name in (
        "vocab_size", "d_model", "d_ff", "num_layers", "num_heads", "d_head", "max_length", "num_hashes", "chunk_length",
        "local_chunk_length", "ff_chunk_length", "loss_chunk_length",
    )),
    *((f"{name}=-1", {name: -1}) for name in (
        "num_layers", "chunks_before", "chunks_after", "local_chunks_before", "local_chunks_after", "ff_chunk_length",
    )),
    ("num_buckets=7", {"num_buckets": 7}),
    ("num_buckets=0", {"num_buckets": 0}),
    (r"num_buckets=\(4, 5\)", {"num_buckets": (4, 5)}),
    (r"num_buckets=\(\)", {"num_buckets": ()}),
    ("dropout=1.0", {"dropout": 1.0}),
    ("dropout=-0.1", {"dropout": -0.1}),
    ("attention_dropout=1.5", {"attention_dropout": 1.5}),
    (r"attention=\(\)", {"attention": ()}),
    ("attention=.*'sparse'", {"attention": ("lsh", "sparse")}),
    ("self_attention='no'", {"self_attention": "no"}),
    ("coverage='all'", {"coverage": "all"}),
    ("cross_bucket=True", {"coverage": "bucket", "cross_bucket": True}),
    ("key_scale='raw'", {"key_scale": "raw"}),
    ("activation='tanh'", {"activation": "tanh"}),
    ("residual_streams=3", {"residual_streams": 3}),
    ("residual_streams=2", {"residual_streams": 1}),
    ("positions='rotary'", {"positions": "rotary"}),
    ("axial_shape and axial_dims", {"positions": "axial"}),
    ("axial_shape.*39 places.*max_length=40", AXIAL | {"axial_shape": (3, 13)}),
    ("axial_dims.*adds up to 11.*d_model=10", AXIAL | {"axial_dims": (4, 7)}),
    ("equally long", AXIAL | {"axial_dims": (2, 2, 6)}),
    (r"axial_shape=\(-5, -8\)", AXIAL | {"axial_shape": (-5, -8)}),
    (r"axial_dims=\(0, 10\)", AXIAL | {"axial_dims": (0, 10)}),
    ("layer_norm_eps=-1", {"layer_norm_eps": -1.0}),
    ("d_model='wide'", {"d_model": "wide"}),
    ("num_layers=2.5", {"num_layers": 2.5}),
    ("chunks_after=None", {"chunks_after": None}),
    ("dropout='0.1'", {"dropout": "0.1"}),
    ("local_attention_dropout=1", {"local_attention_dropout": 1.0}),
    ("key_epsilon=-1", {"key_epsilon": -1}),
    ("shift='none'", {"shift": "none"}),
    ("wrap_around=True.*cross_bucket=True", {"wrap_around": True}),
    ("num_buckets='many'", {"num_buckets": "many"}),
    *((f"{name}='false'", {name: "false"}) for name in SWITCHES),
    ("lsh_backend=7", {"lsh_backend": 7}),
    ("num_layers=True", {"num_layers": True}),
    ("num_layers=10001", {"num_layers": 10_001}),
    ("key_epsilon=inf", {"key_epsilon": float("inf")}),
    ("projection_chunk_length=0", {"projection_chunk_length": 0}),
    ("heads_at_once=0", {"heads_at_once": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("named", "changes"), WRONG, ids=[named for named, _ in WRONG])
def test_a_wrong_field_is_named(named: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=named):
        config_of(**changes)
    with pytest.raises(UserError, match=named):
        config_of().replace(**changes)


@given(
    num_layers=st.integers(1, 9), num_buckets=st.sampled_from([None, 4, (2, 4)]),
    attention=st.lists(st.sampled_from(["full", "local", "lsh"]), min_size=1, max_size=4).map(tuple),
    dropout=st.floats(0, 0.9), axial=st.booleans(),
)  # fmt: skip
def test_json_round_trip(axial: bool, **fields: Any) -> None:
    config = config_of(**fields, **(AXIAL if axial else {}))
    assert ReformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    assert ReformerConfig.from_dict(json.loads(json.dumps(get_preset(name).to_dict()))) == get_preset(name)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(UserError, match=r"num_hash'.*num_hashes"):
        ReformerConfig.from_dict({"num_hash": 4})


def test_attention_is_a_cycle() -> None:
    config = config_of(attention=("local", "local", "lsh"), num_layers=5)
    assert config.layer_kinds() == ("local", "local", "lsh", "local", "local")
    assert config_of(attention="full").attention == ("full",)


def test_every_field_can_be_wrong() -> None:
    assert {name for _, changes in WRONG for name in changes} == set(ReformerConfig.__dataclass_fields__)


def test_later_fields_leave_no_trace_at_their_default() -> None:
    """A run's identity is the digest of this."""
    fields = config_of().to_dict()
    assert not set(fields) & set(ADDED_FIELDS)
    changed = config_of(**NUMERICS["huggingface"], heads_at_once=1, local_attention_dropout=0.0)
    assert {"shift", "wrap_around", "key_epsilon", "heads_at_once", "local_attention_dropout"} <= set(changed.to_dict())
    assert ReformerConfig.from_dict(changed.to_dict()) == changed


@pytest.mark.parametrize("name", NUMERICS)
def test_numerics_are_those_of_the_operator(name: str) -> None:
    from reformer_lab.ops.lsh_attention import PRESETS as OPERATOR_PRESETS

    config = config_of(**NUMERICS[name])
    found = {"wrap_rounds": config.wrap_around} | {
        field: getattr(config, field) for field in ("cross_bucket", "correct_duplicates", "key_epsilon")
    }
    defaults = {"wrap_rounds": False, "cross_bucket": False, "correct_duplicates": True, "key_epsilon": 0.0}
    assert found == defaults | OPERATOR_PRESETS[name]
