"""Models through torch.compile and torch.export."""

import io
from typing import Any

import pytest
import torch
from small_models import KINDS, config_of, gradients, tokens_of

from reformer_lab.models.language_model import ReformerLM


@pytest.mark.parametrize("changes", [{}, {"reversible": False}, {"reversible": False, "residual_streams": 1}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_gives_the_same_logits(kind: str, changes: dict[str, Any]) -> None:
    """Saved and loaded again; rotations are drawn by the program."""
    model, tokens = ReformerLM(config_of(attention=KINDS[kind], **changes)).eval(), tokens_of()
    with torch.no_grad():
        program = torch.export.export(model, (tokens,))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        found = torch.export.load(file).module()(tokens)
        assert torch.equal(found.logits, model(tokens).logits)


@pytest.mark.parametrize("loss_chunk_length", [None, 7], ids=str)
def test_a_compiled_model_has_the_same_gradients(loss_chunk_length: int | None) -> None:
    """The graph breaks where draws are made; the parts between are compiled."""
    config = config_of(attention=KINDS["mixed"], dropout=0.1, ff_chunk_length=5, loss_chunk_length=loss_chunk_length)
    model = ReformerLM(config)
    loss, expected = gradients(model, tokens_of())
    expected = {name: gradient.clone() for name, gradient in expected.items() if gradient is not None}
    model.compile(backend="aot_eager")
    found_loss, found = gradients(model, tokens_of())
    assert found_loss == loss
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
