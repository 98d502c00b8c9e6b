"""Generated texts, against decoding that computes the whole text again for each token."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.evaluation.beams import Generation, beam_search, score
from reformer_lab.evaluation.evaluate import autocast
from reformer_lab.evaluation.generate import generate, stream
from reformer_lab.evaluation.sampling import Sampling
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

PROMPTS = [[3], [5, 6, 7, 8, 9], [1, 2], [4] * 21]


def model_of(**changes: Any) -> ReformerLM:
    """A model whose attention and probabilities are far from even, in fp64, where equal texts are equal."""
    fields: dict[str, Any] = {
        "vocab_size": 13, "d_model": 16, "d_ff": 16, "num_layers": 3, "num_heads": 2, "d_head": 8, "max_length": 48,
        "attention": ("local", "lsh", "full"), "num_hashes": 2, "num_buckets": 4, "chunk_length": 4, "coverage": "bucket",
        "local_chunk_length": 5, "dropout": 0.3,
    }  # fmt: skip
    return ReformerLM(ReformerConfig(**fields | changes)).double()


@torch.no_grad()
def next_logits(model: ReformerLM, text: list[int]) -> Tensor:
    """Return the logits (V,) of the token after `text`, by the forward pass over the text and any token."""
    return model.eval()(torch.tensor([[*text, 0]])).logits[0, -1]


def log_probability(model: ReformerLM, prompt: list[int], new: list[int]) -> float:
    with torch.no_grad():
        log_probabilities = model.eval()(torch.tensor([[*prompt, *new]])).logits[0].log_softmax(-1)
    return sum(float(log_probabilities[len(prompt) + at, token]) for at, token in enumerate(new))


@pytest.mark.usefixtures("global_random_state")
def test_greedy_is_the_most_probable_token_of_the_whole_forward_pass() -> None:
    model = model_of()
    for prompt, found in zip(PROMPTS, generate(model, PROMPTS, length=20, greedy=True), strict=True):
        text = list(prompt)
        for token in found.tokens:
            assert token == int(next_logits(model, text).argmax())
            text.append(token)
        assert len(found.tokens) == 20
        assert not found.ended
        assert found.log_probability == pytest.approx(log_probability(model, prompt, found.tokens), abs=1e-9)


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("coverage", ["bucket", "chunk"])
@pytest.mark.parametrize("how", [{"greedy": True}, {"temperature": 0.9, "top_k": 8, "top_p": 0.95}, {"num_beams": 3}], ids=str)
def test_a_row_of_a_batch_is_its_own_decode_alone(how: dict[str, Any], coverage: str) -> None:
    model = model_of(coverage=coverage)
    together = generate(model, PROMPTS, length=15, end_token=11, seed=4, **how)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, [prompt], length=15, end_token=11, seed=4, **how)
        assert alone.tokens == found.tokens
        assert alone.log_probability == pytest.approx(found.log_probability, abs=1e-9)


def test_drawn_tokens_are_those_of_the_whole_forward_pass() -> None:
    model, options = model_of(), {"temperature": 1.5, "top_k": 9, "top_p": 0.9}
    for prompt in PROMPTS:
        (found,) = generate(model, [prompt], length=12, seed=3, **options)
        allowed = Sampling(**options)
        for at, token in enumerate(found.tokens):
            assert allowed.probabilities(next_logits(model, [*prompt, *found.tokens[:at]])[None])[0, token] > 0
        assert found.log_probability == pytest.approx(log_probability(model, prompt, found.tokens), abs=1e-9)


def test_seeds() -> None:
    model = model_of()

    def texts(seed: int, prompts: list[list[int]]) -> list[list[int]]:
        return [found.tokens for found in generate(model, prompts, length=20, seed=seed)]

    assert texts(1, PROMPTS) == texts(1, PROMPTS) != texts(2, PROMPTS)
    first, second = texts(1, [[3, 4], [3, 4]])
    assert first != second
    assert [first] == texts(1, [[3, 4]])
    assert texts(1, [[5], [3, 4], [3, 4]])[1:] == [first, second]


def test_each_row_ends_by_itself() -> None:
    model = model_of()
    free = generate(model, PROMPTS, length=25, seed=5)
    # A token that ends some of them soon, some late and some perhaps never.
    for end in range(13):
        for before, found in zip(free, generate(model, PROMPTS, length=25, seed=5, end_token=end), strict=True):
            kept = before.tokens.index(end) + 1 if end in before.tokens else 25
            assert found.tokens == before.tokens[:kept]
            assert found.ended == (end in before.tokens)


def test_a_stream_is_the_same_text_as_it_comes() -> None:
    model = model_of()
    options: dict[str, Any] = {"length": 20, "seed": 5, "end_token": 7, "temperature": 2.0}
    steps = list(stream(model, PROMPTS, **options))
    for row, found in enumerate(generate(model, PROMPTS, **options)):
        column = [step[row] for step in steps]
        assert column == found.tokens + [None] * (len(steps) - len(found.tokens))
    # Each token is there before the next one is computed, and the model is the owner's in between.
    lazily = stream(model.train(), PROMPTS, **options)
    assert next(lazily) == steps[0]
    assert model.training
    assert torch.is_grad_enabled()


def test_more_hash_rounds_than_in_training() -> None:
    model = model_of()
    (found,) = generate(model, [PROMPTS[1]], length=20, greedy=True, num_hashes=8)
    more = model.with_config(num_hashes=8)
    assert found.log_probability == pytest.approx(log_probability(more, PROMPTS[1], found.tokens), abs=1e-9)
    assert model.config.num_hashes == 2


def test_up_to_max_length() -> None:
    model = model_of()
    assert len(generate(model, [[3] * 47], length=1)[0].tokens) == 1
    assert len(generate(model, [[3]], length=47)[0].tokens) == 47


def test_half_precision() -> None:
    model = model_of().float()
    exact, rounded = (generate(model, PROMPTS, length=9, greedy=True, precision=name) for name in ("fp32", "bf16"))
    assert all(abs(one.log_probability - other.log_probability) > 0 for one, other in zip(exact, rounded, strict=True))
    for prompt, other in zip(PROMPTS, rounded, strict=True):  # nine tokens, each a little more or less likely
        assert other.log_probability == pytest.approx(log_probability(model, prompt, other.tokens), abs=0.3)


def beams_of(model: ReformerLM, prompts: list[list[int]], **options: Any) -> list[list[Generation]]:
    longest = max(map(len, prompts))
    tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return beam_search(model.eval(), tokens, lengths, computing=lambda: autocast(tokens.device, "fp32"), **options)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_beam_wide_enough_finds_the_best_of_all_texts(length_penalty: float) -> None:
    """With as many beams as there are texts of three tokens nothing is cut off."""
    model = model_of(vocab_size=5)
    found = beams_of(model, [[3], [1, 2, 4]], length=3, num_beams=25, end_token=0, length_penalty=length_penalty)
    for prompt, beams in zip([[3], [1, 2, 4]], found, strict=True):
        every = []
        for length in (1, 2, 3):
            for new in itertools.product(range(5), repeat=length):
                if 0 not in new[:-1] and (length == 3 or new[-1] == 0):
                    every.append(Generation(list(new), log_probability(model, prompt, list(new)), new[-1] == 0))
        every.sort(key=lambda text: -score(text, length_penalty))
        for best, beam in zip(every[:10], beams[:10], strict=True):
            assert beam.tokens == best.tokens
            assert beam.log_probability == pytest.approx(best.log_probability, abs=1e-9)
            assert beam.ended == best.ended


@pytest.mark.parametrize("num_beams", [2, 4])
def test_each_beam_has_the_log_probability_of_its_text(num_beams: int) -> None:
    model = model_of()
    found = beams_of(model, PROMPTS, length=20, num_beams=num_beams, end_token=11)
    for prompt, beams in zip(PROMPTS, found, strict=True):
        assert len(beams) == num_beams
        assert len({tuple(beam.tokens) for beam in beams}) == num_beams
        scores = [beam.log_probability for beam in beams]
        assert scores == sorted(scores, reverse=True)
        for beam in beams:
            assert beam.log_probability == pytest.approx(log_probability(model, prompt, beam.tokens), abs=1e-9)


def test_one_beam_is_greedy() -> None:
    model = model_of()
    for (beam,), greedy in zip(beams_of(model, PROMPTS, length=20, num_beams=1, end_token=11),
                               generate(model, PROMPTS, length=20, greedy=True, end_token=11), strict=True):  # fmt: skip
        assert beam.tokens == greedy.tokens


def test_stopping_early_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(vocab_size=5)
    for penalty in (0.0, 0.6, 2.0):
        options = {"length": 15, "num_beams": 3, "end_token": 2, "length_penalty": penalty}
        early = beams_of(model, [[3], [1, 4]], **options)
        with monkeypatch.context() as patch:
            patch.setattr("reformer_lab.evaluation.beams._settled", lambda *_: False)
            late = beams_of(model, [[3], [1, 4]], **options)
        assert [[beam.tokens for beam in beams] for beams in early] == [[beam.tokens for beam in beams] for beams in late]


@pytest.mark.parametrize(
    ("prompts", "options", "complaint"),
    [
        ([], {}, "no prompt"),
        ([[3], []], {}, "prompt 1 is empty"),
        ([[3, 13]], {}, r"token 13 of prompt 0 .*0\.\.12"),
        ([[-1]], {}, "token -1 of prompt 0"),
        ([[3] * 30], {}, r"30 tokens.*20 new.*max_length=48.*at most 18"),
        ([[3] * 48], {}, "max_length=48.*its last 28"),
        ([[3]], {"length": 0}, "length=0"),
        ([[3]], {"temperature": 0.0}, r"temperature=0\.0.*greedy"),
        ([[3]], {"top_p": 0.0}, r"top_p=0\.0"),
        ([[3]], {"greedy": True, "top_k": 3}, "top_k=3 beside greedy"),
        ([[3]], {"num_beams": 0}, "num_beams=0"),
        ([[3]], {"num_beams": 2, "temperature": 1.0}, "num_beams=2.*leave these out"),
        ([[3]], {"num_beams": 2, "greedy": True}, "num_beams=2"),
        ([[3]], {"end_token": 13}, r"end_token=13.*0\.\.12"),
        ([[3]], {"num_hashes": 0}, "num_hashes=0"),
        ("It was", {}, "prompts 'It was': expected a list of prompts"),
        ([70, 71], {}, r"prompts '\[70, 71\]': expected a list of prompts"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_used_is_named(prompts: list[list[int]], options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        generate(model_of(), prompts, **{"length": 20, **options})
    if "num_beams" not in options:
        with pytest.raises(UserError, match=complaint):  # at the call, not at the first token
            stream(model_of(), prompts, **{"length": 20, **options})


def test_hash_rounds_without_hashing_are_named() -> None:
    with pytest.raises(UserError, match="num_hashes=4: the model has no LSH attention"):
        generate(model_of(attention=("full",)), [[3]], length=2, num_hashes=4)
