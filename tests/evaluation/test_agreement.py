"""Decoding with the paper's chunks, where it cannot be exact: how near it comes to the whole-sequence pass after training."""

import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

LENGTH = 160


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """Tokens (windows, LENGTH) of text that has something to learn."""
    text = torch.tensor(list(Path(textwrap.__file__).read_bytes())) % 97
    return text.unfold(0, LENGTH, 40)


@pytest.fixture(scope="module")
def trained(windows: Tensor) -> ReformerLM:
    """Two LSH layers, whose buckets hold more than a chunk and so are cut by chunks, after some steps of Adam."""
    fields: dict[str, Any] = {
        "vocab_size": 97, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_head": 16, "max_length": LENGTH,
        "attention": ("lsh",), "num_hashes": 2, "num_buckets": 8, "chunk_length": 16,
    }  # fmt: skip
    model = ReformerLM(ReformerConfig(**fields)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = windows[torch.randint(len(windows), (8,), generator=generator)]
        optimizer.zero_grad()
        model(batch, generator=generator).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("coverage", "rounds"), [("chunk", 2), ("chunk", 8), ("bucket", 2)])
def test_steps_agree_with_the_whole(trained: ReformerLM, windows: Tensor, coverage: str, rounds: int) -> None:
    model, tokens = trained.with_config(coverage=coverage, num_hashes=rounds), windows[::25][:16]
    with torch.no_grad():
        whole = model(tokens).logits[:, 20:]
    logits, cache = model.start(tokens[:, :20])
    steps = [logits]
    for at in range(20, LENGTH - 1):
        steps.append(model.step(tokens[:, at], cache))
    found = torch.stack(steps, dim=1)

    def bits(logits: Tensor) -> float:
        return float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 20:].flatten())) / math.log(2)

    print(f"{coverage} {rounds}: {bits(found):.4f} and {bits(whole):.4f} bits")
    assert bits(whole) < 4.2  # of log2 97 = 6.6: it has learned something
    agreed = float((found.argmax(-1) == whole.argmax(-1)).float().mean())
    print(f"{100 * agreed:.2f} % of the greedy tokens agree")
    if coverage == "bucket":
        assert (found - whole).abs().max() < 1e-3
        assert agreed > 0.999
    else:
        assert (found - whole).abs().max() > 1e-3
        assert agreed > 0.97
        assert abs(bits(found) - bits(whole)) < 0.01
