"""Small models, and their gradients with given draws."""

from typing import Any

import torch
from torch import Tensor

from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

KINDS: dict[str, tuple[Any, ...]] = {
    "lsh": ("lsh",), "local": ("local",), "full": ("full",), "mixed": ("local", "lsh", "full"),
}  # fmt: skip


def config_of(**changes: Any) -> ReformerConfig:
    """Return a model of a few hundred parameters with odd sizes everywhere."""
    fields: dict[str, Any] = {
        "vocab_size": 19, "d_model": 10, "d_ff": 14, "num_layers": 3, "num_heads": 2, "d_head": 5, "max_length": 40,
        "num_hashes": 2, "num_buckets": 4, "chunk_length": 6, "local_chunk_length": 7,
    }  # fmt: skip
    return ReformerConfig(**(fields | changes))


def tokens_of(batch: int = 2, length: int = 23, seed: int = 0, vocab_size: int = 19) -> Tensor:
    """Return tokens (batch, length)."""
    return torch.randint(1, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: ReformerLM, tokens: Tensor, seed: int = 5, **inputs: Any) -> tuple[float, dict[str, Tensor | None]]:
    """Return the loss and every parameter's gradient of one step with the draws of `seed`."""
    model.zero_grad(set_to_none=True)
    inputs.setdefault("targets", tokens)
    loss = model(tokens, generator=torch.Generator().manual_seed(seed), **inputs).loss
    assert loss is not None
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    """Return |found - expected| / |expected| over all gradients together; the same ones must be there."""
    assert {n for n, g in found.items() if g is None} == {n for n, g in expected.items() if g is None}
    pairs = [(found[n], g) for n, g in expected.items() if g is not None]
    difference = sum((f.double() - g.double()).square().sum() for f, g in pairs)  # type: ignore[union-attr]
    total = sum(g.double().square().sum() for _, g in pairs)
    return float((difference / total) ** 0.5)
