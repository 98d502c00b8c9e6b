"""Texts continued token by token, against the whole-sequence forward pass."""

from typing import Any

import pytest
import torch
from small_models import KINDS, config_of, tokens_of
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.models.config import NUMERICS
from reformer_lab.models.language_model import ReformerLM

VARIANTS: dict[str, dict[str, Any]] = {
    "reversible": {},
    "stored": {"reversible": False},
    "one-stream": {"reversible": False, "residual_streams": 1},
    "one-head-at-once": {"heads_at_once": 1},
    "pieces": {"projection_chunk_length": 4, "ff_chunk_length": 3},
    "axial": {"positions": "axial", "axial_shape": (5, 8), "axial_dims": (4, 6)},
    "no-positions-tied": {"positions": "none", "tie_embeddings": True},
    "dropout-is-off": {"dropout": 0.5, "attention_dropout": 0.5},
    "default-buckets": {"num_buckets": None},
    "one-stream-heads": {"reversible": False, "residual_streams": 1, "heads_at_once": 1},
}


def model_of(kind: str = "mixed", **changes: Any) -> ReformerLM:
    return ReformerLM(config_of(attention=KINDS[kind], coverage="bucket", **changes)).double().eval()


def continued(model: ReformerLM, tokens: Tensor, lengths: list[int], steps: int) -> list[Tensor]:
    """For each row the logits (steps, V) of the tokens after the first `length`, each fed the true one before."""
    held = tokens.clone()
    for row, length in enumerate(lengths):
        held[row, length:] = 10**6  # no token at all: what comes after a prompt is not read
    logits, cache = model.start(held[:, : max(lengths)], torch.tensor(lengths))
    found = [logits]
    for step in range(steps - 1):
        found.append(model.step(torch.stack([row[length + step] for row, length in zip(tokens, lengths, strict=True)]), cache))
    return list(torch.stack(found, dim=1))


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("lengths", [[0], [1], [7, 1, 16], [40 - 24, 3, 0, 16]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_the_logits_of_the_whole(kind: str, lengths: list[int]) -> None:
    model, tokens = model_of(kind), tokens_of(len(lengths), 40)
    for row, (length, found) in enumerate(zip(lengths, continued(model, tokens, lengths, 24), strict=True)):
        whole = model(tokens[row : row + 1]).logits[0, length : length + 24]
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_targets_are_shifted_the_logits_of_a_token_are_those_of_the_next(kind: str) -> None:
    model, tokens = model_of(kind, shift="targets", key_epsilon=1e-3), tokens_of(2, 40)
    for row, (length, found) in enumerate(zip([9, 1], continued(model, tokens, [9, 1], 24), strict=True)):
        whole = model(tokens[row : row + 1]).logits[0, length - 1 : length + 23]
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="at least 1"):
        model.start(tokens[:, :0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_every_form_of_model(variant: str) -> None:
    model, tokens = model_of(**VARIANTS[variant]), tokens_of(2, 40)
    whole = model(tokens).logits
    for row, found in enumerate(continued(model, tokens, [9, 12], 28)):
        start = (9, 12)[row]
        torch.testing.assert_close(found, whole[row, start : start + 28], rtol=0, atol=1e-12)


def test_a_number_of_buckets_that_follows_the_length_is_that_of_the_longest_text() -> None:
    model, tokens = model_of(num_buckets=None), tokens_of(2, 23)
    given = model.with_config(num_buckets=2 * (40 // 6))
    assert (model(tokens).logits - given(tokens).logits).abs().max() > 1e-3
    found = continued(model, tokens, [20, 5], 3)[0]
    torch.testing.assert_close(found, given(tokens).logits[0, 20:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, NUMERICS["huggingface"], NUMERICS["trax_v2"]], ids=["paper", "huggingface", "trax_v2"])
def test_with_chunks_the_prompt_is_read_as_a_whole_and_the_rest_follows_the_text_so_far(changes: dict[str, Any]) -> None:
    """Nothing mixes positions after the one LSH layer, so each step equals the whole forward pass over the text so far."""
    config = config_of(attention=("local", "lsh"), num_layers=2, num_buckets=2, num_hashes=3, coverage="chunk", **changes)
    assert config.continues_exactly()
    model, tokens = ReformerLM(config).double().eval(), tokens_of(2, 40)
    found = continued(model, tokens, [5, 9], 30)
    for row, length in enumerate([5, 9]):
        for step in range(30):
            whole = model(tokens[row : row + 1, : length + step + (config.shift == "inputs")]).logits[0, -1]
            torch.testing.assert_close(found[row][step], whole, rtol=0, atol=1e-12)
    # ... which the forward pass over the whole text does not: there later tokens move the chunks.
    first = 5 - (config.shift == "targets")
    assert (found[0] - model(tokens).logits[0, first : first + 30]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({"attention": ("full", "local")}, True), ({"coverage": "bucket"}, True), ({"coverage": "chunk"}, False),
        ({"coverage": "bucket", "num_buckets": None}, False), ({"attention": ("full",), "num_buckets": None}, True),
        ({"attention": ("local", "full", "lsh"), **NUMERICS["huggingface"]}, True),
        ({"attention": ("local", "lsh", "local"), **NUMERICS["huggingface"]}, False),
        ({"attention": ("local",), **NUMERICS["huggingface"]}, True),
        ({"attention": ("local",), "local_chunks_before": 2}, True),
        ({"attention": ("local",), "local_chunks_before": 2, **NUMERICS["huggingface"]}, False),
        ({"attention": ("local",), "local_chunks_after": 1, **NUMERICS["huggingface"]}, False),
        ({"attention": ("local", "full"), "local_chunks_before": 0, "local_chunks_after": 1, **NUMERICS["huggingface"]}, False),
    ],
    ids=str,
)  # fmt: skip
def test_which_models_continue_exactly(changes: dict[str, Any], exact: bool) -> None:
    """Held against the whole forward pass, at lengths where windows reach around the corner too."""
    model, tokens = ReformerLM(config_of(**{"attention": ("lsh",)} | changes)).double().eval(), tokens_of(1, 40)
    assert model.config.continues_exactly() == exact
    found = continued(model, tokens, [3], 30)[0]
    so_far = torch.stack([model(tokens[:, : 3 + n + (model.config.shift == "inputs")]).logits[0, -1] for n in range(30)])
    assert bool((found - so_far).abs().max() < 1e-9) == exact


@pytest.mark.parametrize("rounds", [1, 8])
def test_other_hash_rounds_than_in_training(rounds: int) -> None:
    model, tokens = model_of().with_config(num_hashes=rounds), tokens_of(1, 30)
    torch.testing.assert_close(continued(model, tokens, [4], 20)[0], model(tokens).logits[0, 4:24], rtol=0, atol=1e-12)


def test_half_precision() -> None:
    model, tokens = model_of().float(), tokens_of(2, 40)
    exact = continued(model, tokens, [9, 12], 20)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = continued(model, tokens, [9, 12], 20)
    for one, other in zip(exact, rounded, strict=True):
        assert not torch.equal(one, other.float())
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.float().flatten(), 0) > 0.99
    whole = model.bfloat16()
    assert continued(whole, tokens, [9, 12], 5)[0].dtype == torch.bfloat16


def test_no_graph_is_kept() -> None:
    model = model_of()
    logits, cache = model.start(tokens_of(2, 5))
    assert not logits.requires_grad
    assert not model.step(torch.tensor([1, 2]), cache).requires_grad


def test_what_cannot_be_continued_is_named() -> None:
    model, tokens = model_of(), tokens_of(2, 40)
    with pytest.raises(UserError, match=r"shape \(2, 40\).*below max_length=40"):
        model.start(tokens)
    with pytest.raises(UserError, match=r"lengths=\[3, 6\].*0 to 5"):
        model.start(tokens[:, :5], torch.tensor([3, 6]))
    with pytest.raises(UserError, match=r"lengths=\[3\]: expected 2 numbers"):
        model.start(tokens[:, :5], torch.tensor([3]))
    with pytest.raises(UserError, match=r"token 19 is not in 0\.\.18"):
        model.start(torch.tensor([[3, 19]]))
    with pytest.raises(UserError, match=r"training mode.*eval"):
        model_of().train().start(tokens[:, :5])
    with pytest.raises(UserError, match="causal=False"):
        model_of(causal=False).start(tokens[:, :5])
    _, cache = model.start(tokens[:, :38])
    model.step(tokens[:, 38], cache)
    with pytest.raises(UserError, match="max_length=40"):
        model.step(tokens[:, 39], cache)
    with pytest.raises(UserError, match=r"token -1 is not in"):
        model.step(torch.tensor([3, -1]), model.start(tokens[:, :5])[1])


def test_a_step_asks_for_one_token_of_each_text_and_changes_nothing_before() -> None:
    model, tokens = model_of(), tokens_of(3, 9)
    _, cache = model.start(tokens)
    for wrong in (tokens[:1, 0], tokens[:, :1]):
        with pytest.raises(UserError, match=r"expected \(3,\), one for each text"):
            model.step(wrong, cache)
    assert (cache.lengths.tolist(), cache.longest) == ([9, 9, 9], 9)
    _, again = model.start(tokens)
    assert torch.equal(model.step(tokens[:, 0], cache), model.step(tokens[:, 0], again))


def test_windows_wider_than_the_longest_text_are_that_text() -> None:
    """A step looks at no more places than there may be."""
    common: dict[str, Any] = {"attention": ("lsh",), "num_layers": 1, "coverage": "chunk", "num_buckets": 2,
                              "cross_bucket": True}
    whole, wide = (ReformerLM(config_of(**common, chunk_length=length)).double().eval() for length in (40, 10**10))
    tokens = tokens_of(1, 30)
    assert torch.equal(continued(whole, tokens, [4], 20)[0], continued(wide, tokens, [4], 20)[0])
