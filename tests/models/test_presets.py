"""Presets: each can be built, and has the number of parameters that its source says."""

import pytest
import torch

from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.models.presets import PRESETS, get_preset


def count(config: ReformerConfig) -> int:
    """Count the parameters of a configuration by hand."""
    d, width = config.d_model, config.num_heads * config.d_head
    projections = {"lsh": 3, "local": 4, "full": 3 if config.shared_qk else 4}
    total = config.vocab_size * d
    if config.positions == "axial":
        assert config.axial_shape is not None
        assert config.axial_dims is not None
        total += sum(side * dim for side, dim in zip(config.axial_shape, config.axial_dims, strict=True))
    elif config.positions == "learned":
        total += config.max_length * d
    for kind in config.layer_kinds():
        total += projections[kind] * d * width + 2 * d
        total += 2 * d + d * config.d_ff + config.d_ff + config.d_ff * d + d
    streams = config.residual_streams
    return total + 2 * streams * d + streams * d * config.vocab_size + config.vocab_size


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shapes alone: the largest preset has 150 M parameters.
    monkeypatch.setattr(ReformerLM, "to_empty", lambda self, device: self)
    monkeypatch.setattr("reformer_lab.models.language_model.initialize", lambda model, seed: None)
    model = ReformerLM(get_preset(name))
    assert sum(p.numel() for p in model.parameters()) == count(get_preset(name))


def test_crime_and_punishment_has_the_published_checkpoints_parameters() -> None:
    """google/reformer-crime-and-punishment: 2,748,224 parameters; the two configurations have the same parts."""
    assert count(get_preset("crime_and_punishment")) == 2_748_224


def test_tuned_enwik8_has_the_published_checkpoints_parameters() -> None:
    """google/reformer-enwik8: 149,182,722 parameters; the two configurations have the same parts."""
    assert count(get_preset("tuned_enwik8")) == 149_182_722


@pytest.mark.parametrize("name", PRESETS)
def test_a_small_copy_trains(name: str) -> None:
    """Same layers, options and positions at a size for tests: a step gives every parameter a gradient."""
    config = get_preset(name)
    small = config.replace(
        d_model=24, d_ff=16, num_heads=2, d_head=8, num_layers=min(config.num_layers, 4), max_length=64, num_buckets=(2, 4),
        chunk_length=8, local_chunk_length=8,
        **({} if config.axial_shape is None else {
            "axial_shape": (4,) * len(config.axial_shape), "axial_dims": (8,) * 2 + (8,) * (len(config.axial_shape) - 2),
        } if len(config.axial_shape) == 3 else {"axial_shape": (8, 8), "axial_dims": (8, 16)}),
    )  # fmt: skip
    model = ReformerLM(small)
    tokens = torch.randint(0, small.vocab_size, (2, 50), generator=torch.Generator().manual_seed(1))
    model(tokens, targets=tokens).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", PRESETS)
def test_says_where_it_comes_from(name: str) -> None:
    docstring = PRESETS[name].__doc__ or ""
    assert any(word in docstring for word in ("paper", "authors", "Hugging Face", "CPU", "tests")), docstring


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UserError, match=r"'cpu_smal'.*Did you mean cpu_small.*duplication"):
        get_preset("cpu_smal")
