"""Training steps under torch's deterministic algorithms, and what in a step has no order of its own on a GPU."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_model

from reformer_lab.models.language_model import ReformerLM
from reformer_lab.ops.lsh_attention import unusable
from reformer_lab.training.config import OptimizerConfig
from reformer_lab.training.optimizers import build_optimizer

KINDS = {
    "lsh-torch": {"lsh_backend": "torch"}, "lsh-native": {"lsh_backend": "native"},
    "lsh-reference": {"lsh_backend": "reference"},
    "local": {"attention": ("local",)}, "full": {"attention": ("full",)},
    "full-two-projections": {"attention": ("full",), "shared_qk": False},
    "full-dropout": {"attention": ("full",), "attention_dropout": 0.1},
    "regular": {"attention": ("full",), "reversible": False, "residual_streams": 1},
    "stored": {"attention": ("local", "lsh"), "num_layers": 2, "reversible": False, "lsh_backend": "torch"},
    "axial": {"lsh_backend": "torch", "positions": "axial", "axial_shape": (4, 4), "axial_dims": (8, 8)},
    "pieces": {"lsh_backend": "torch", "ff_chunk_length": 8, "loss_chunk_length": 8, "tie_embeddings": True},
}
ORDERLESS = {
    "index_add_", "index_copy_", "index_put_", "_index_put_impl_", "put_", "scatter_", "scatter_add_", "scatter_reduce_",
    "gather_backward", "repeat_interleave", "cumsum", "bincount", "histc", "median", "kthvalue", "nll_loss_forward",
    "nll_loss2d_forward", "_embedding_bag", "embedding_dense_backward", "_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip
"""Operators of aten that the documentation of `torch.use_deterministic_algorithms` names (backward passes by what they call),
and two whose CUDA kernels add in the order of arrival, or may: embeddings' and fused attention's backward passes. The latter
has another name on the CPU. `index_select`'s backward pass is `index_add_`, `gather`'s `scatter_add_`."""
RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture(autouse=True)
def _deterministic(one_thread: None) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def step(kind: str, seed: int = 3) -> dict[str, torch.Tensor]:
    """Take a training step of a model with everything drawn; return the weights and the gradients, of 16 tokens."""
    fields = {"dropout": 0.1, "local_chunk_length": 4, **KINDS[kind]}
    reason = unusable(fields["lsh_backend"], torch.device("cpu"), torch.float32, 8) if "lsh_backend" in fields else None
    if reason:
        pytest.skip(reason)
    model = ReformerLM(tiny_model(**fields), seed=0).train()
    optimizer = build_optimizer(OptimizerConfig(), model)
    tokens = torch.randint(1, 12, (3, 16), generator=torch.Generator().manual_seed(1))
    loss = model(tokens, targets=tokens, generator=torch.Generator().manual_seed(seed)).loss
    loss.backward()
    optimizer.step()
    return {**model.state_dict(), **{f"gradient of {name}": value.grad for name, value in model.named_parameters()}}


def operators_of(kind: str) -> set[str]:
    """Return the names of aten's operators that run in a step, those inside ours too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(kind)
    return {event.key.removeprefix("aten::") for event in profile.key_averages() if event.key.startswith("aten::")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_under_deterministic_algorithms(kind: str) -> None:
    """Nothing in it is refused, memory that torch.empty gives is filled with NaN, and the same step gives the same bits."""
    first, again, other = step(kind), step(kind), step(kind, seed=4)
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, again[name]), name
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_what_is_not_deterministic_is_documented() -> None:
    """The operators of a step that add in the order of arrival on a GPU, or of which torch says so, are those of the page."""
    found = set().union(*(operators_of(kind) for kind in KINDS if kind != "lsh-native"))  # no GPU runs that one
    listed = re.findall(r"^\| `(\w+)`", RELIABILITY.read_text(encoding="utf-8").partition("## Numbers")[2], re.M)
    assert sorted(found & ORDERLESS) == sorted(listed)
