"""transformers' `generate` with our cache, against the same without it. Needs transformers (`make test-hf`)."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed: `make test-hf` runs this")

from reformer_lab.errors import UserError
from reformer_lab.evaluation.generate import generate
from reformer_lab.integrations.huggingface_cache import ReformerLabCache
from reformer_lab.integrations.huggingface_model import ReformerLabForCausalLM, as_huggingface
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM

SMALL: dict[str, Any] = {
    "vocab_size": 29, "d_model": 16, "d_ff": 24, "num_layers": 3, "num_heads": 2, "d_head": 8, "max_length": 48,
    "attention": ("local", "lsh", "full"), "num_hashes": 2, "num_buckets": 4, "chunk_length": 8, "local_chunk_length": 8,
}  # fmt: skip
EXACT: dict[str, dict[str, Any]] = {
    "buckets": {"coverage": "bucket"},
    "targets": {"coverage": "bucket", "shift": "targets"},
    "chunks-in-the-last-layer": {"attention": ("full", "local", "lsh")},
    "local": {"attention": ("local",), "num_buckets": None},
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False}, "sampling": {"do_sample": True, "top_k": 12, "temperature": 3.0},
    "beams": {"do_sample": False, "num_beams": 3}, "beams-drawn": {"do_sample": True, "num_beams": 3, "temperature": 3.0},
    "several": {"do_sample": True, "num_return_sequences": 2, "temperature": 3.0},
}  # fmt: skip


def model_of(**changes: Any) -> ReformerLabForCausalLM:
    return as_huggingface(ReformerLM(ReformerConfig(**SMALL | changes), seed=6).double().eval())


def prompts(rows: int = 3, length: int = 11, padded: bool = True) -> dict[str, Tensor]:
    """Texts of different lengths, with the padding on the left."""
    tokens = torch.randint(2, 29, (rows, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    for row in range(rows if padded else 0):
        mask[row, : 4 * row] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


def generated(model: ReformerLabForCausalLM, inputs: dict[str, Tensor], **options: Any) -> Any:
    torch.manual_seed(5)
    return model.generate(
        **inputs, max_new_tokens=20, return_dict_in_generate=True, output_logits=True, **{"eos_token_id": 28} | options
    )


@pytest.fixture
def columns_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions of each text every pass over the model computes."""
    seen: list[int] = []
    for name, method in (("forward", ReformerLM.forward), ("start", ReformerLM.start), ("step", ReformerLM.step)):
        def counting(self: Any, tokens: Tensor, *others: Any, _method: Any = method, **named: Any) -> Any:
            seen.append(tokens.shape[1] if tokens.dim() == 2 else 1)
            return _method(self, tokens, *others, **named)

        monkeypatch.setattr(ReformerLM, name, counting)
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", EXACT)
def test_the_cache_changes_nothing(kind: str, mode: str) -> None:
    model = model_of(**EXACT[kind])
    assert model.config.use_cache
    cached, whole = (generated(model, prompts(), **MODES[mode], use_cache=use_cache) for use_cache in (True, False))
    assert cached.past_key_values is not None
    assert whole.past_key_values is None
    assert torch.equal(cached.sequences, whole.sequences)
    assert len(cached.logits) == len(whole.logits) > 4
    for one, other in zip(cached.logits, whole.logits, strict=True):
        # generate makes them fp32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", EXACT)
def test_the_logits_of_steps_in_double_precision(kind: str) -> None:
    """Beside the fp32 of `generate`: by hand, several tokens in a pass too."""
    model, inputs = model_of(**EXACT[kind]), prompts(length=23)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    whole = model(tokens, attention_mask=mask).logits
    first = model(tokens[:, :12], attention_mask=mask[:, :12], use_cache=True)
    cache = first.past_key_values
    assert cache.get_seq_length() == 12
    pieces = [first.logits]
    for start, end in ((12, 13), (13, 20), (20, 23)):
        out = model(tokens[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        assert out.past_key_values is cache
        pieces.append(out.logits)
    found = torch.cat(pieces, dim=1)
    there = mask == 1
    if model.config.reformer.coverage == "bucket" or "lsh" not in model.config.reformer.layer_kinds():
        torch.testing.assert_close(found[there], whole[there], rtol=0, atol=1e-11)
    else:  # exact for the last token of the text so far
        for end in range(12, 24):
            so_far = model(tokens[:, :end], attention_mask=mask[:, :end]).logits[:, -1]
            torch.testing.assert_close(found[:, end - 1], so_far, rtol=0, atol=1e-11)


@pytest.mark.parametrize("beams", [1, 3])
def test_each_step_reads_one_token(beams: int, columns_read: list[int]) -> None:
    model, inputs = model_of(coverage="bucket"), prompts()
    model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams, eos_token_id=None)
    assert columns_read == [11, 1, 1, 1, 1, 1]
    columns_read.clear()
    model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams, eos_token_id=None, use_cache=False)
    assert columns_read == [12, 13, 14, 15, 16, 17]  # and the place whose token is predicted


@pytest.mark.parametrize(
    "changes", [{}, {"coverage": "bucket", "num_buckets": None}, {**NUMERICS["huggingface"], "attention": ("lsh",)}], ids=str
)
def test_where_steps_differ_the_cache_has_to_be_asked_for(changes: dict[str, Any], columns_read: list[int]) -> None:
    model, inputs = model_of(**changes), prompts(1)
    assert not model.config.use_cache
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    model.generate(**inputs, **options)
    assert len(columns_read) == 3
    assert 1 not in columns_read
    columns_read.clear()
    found = model.generate(**inputs, **options, use_cache=True)
    assert columns_read == [11, 1, 1]
    ours = generate(model.reformer, inputs["input_ids"].tolist(), length=3, greedy=True)
    assert found[0, 11:].tolist() == ours[0].tokens


def test_ours_and_theirs() -> None:
    """Greedy texts of a padded batch are those of our own `generate`."""
    model, inputs = model_of(coverage="bucket"), prompts()
    texts = [row[mask == 1].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    found = model.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=None)
    ours = generate(model.reformer, texts, length=20, greedy=True)
    assert [row[11:].tolist() for row in found] == [one.tokens for one in ours]


def test_a_text_goes_on_from_a_cache_that_is_kept() -> None:
    """A copy of a prompt's cache, as transformers' pages recommend, and the whole text as the input again."""
    model, inputs = model_of(coverage="bucket"), prompts(2)
    cache = model(**inputs, use_cache=True).past_key_values
    copied = copy.deepcopy(cache)
    assert copied.decoding.layers[0].layer is model.reformer.stack.layers[0].attention.function
    more = {name: torch.cat([x, torch.ones_like(x[:, :3])], dim=1) for name, x in inputs.items()}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**more, **options)
    assert torch.equal(model.generate(**more, **options, past_key_values=copied), expected)
    assert (cache.get_seq_length(), copied.get_seq_length()) == (11, 18)
    assert torch.equal(model.generate(**more, **options, past_key_values=cache), expected)
    with pytest.raises(UserError, match="at least one token"):
        model.generate(**inputs, **options, past_key_values=cache)


def test_rows_of_the_cache() -> None:
    model, inputs = model_of(coverage="bucket"), prompts(2)
    tokens = torch.tensor([[5], [6], [7], [8]])
    cache = model(**inputs, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    found = model(tokens, past_key_values=cache).logits
    cache.batch_select_indices(torch.tensor([3, 0]))
    again = model(tokens[:2], past_key_values=cache).logits
    for row, source in enumerate([0, 0, 1, 1]):
        text = torch.cat([inputs["input_ids"][source][inputs["attention_mask"][source] == 1], tokens[row]])
        torch.testing.assert_close(found[row], model(text[None]).logits[0, -1:], rtol=0, atol=1e-11)
        if row in (0, 3):
            after = model(torch.cat([text, tokens[1 if row == 0 else 0]])[None]).logits[0, -1:]
            torch.testing.assert_close(again[1 if row == 0 else 0], after, rtol=0, atol=1e-11)


def test_in_training_nothing_is_kept() -> None:
    model, inputs = model_of(coverage="bucket"), prompts(2, padded=False)
    assert model(**inputs, labels=inputs["input_ids"], use_cache=True).past_key_values is None
    assert model(**inputs).past_key_values is None
    assert model.train().generate(**inputs, max_new_tokens=3, do_sample=False).shape == (2, 14)


def test_what_a_cache_cannot_do() -> None:
    model, inputs = model_of(coverage="bucket"), prompts(2)
    cache = model(**inputs, use_cache=True).past_key_values
    assert isinstance(cache, ReformerLabCache)
    with pytest.raises(UserError, match="cropped"):
        cache.crop(5)
    with pytest.raises(UserError, match="leave past_key_values out"):
        cache.reset()
    token = torch.tensor([[5], [6]])
    with pytest.raises(UserError, match="attention_mask hides"):
        model(token, past_key_values=cache, attention_mask=torch.tensor([[1, 1], [1, 0]]))
    with pytest.raises(UserError, match="labels beside past_key_values"):
        model(token, past_key_values=cache, labels=token)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(**prompts(1), assistant_model=model, max_new_tokens=3)
