"""Drawing tokens: the distributions that options leave, and draws that follow from generators."""

import math

import pytest
import torch

from reformer_lab.errors import UserError
from reformer_lab.evaluation.sampling import Sampling

FIVE = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]), ({"top_k": 1}, [1]), ({"top_k": 3}, [1, 3, 4]), ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]), ({"top_p": 0.39}, [1]), ({"top_p": 0.41}, [1, 3]), ({"top_p": 0.84}, [1, 3, 4]),
        ({"top_p": 0.86}, [0, 1, 3, 4]), ({"top_p": 1.0}, [0, 1, 2, 3, 4]), ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_kept_keeps_its_proportions(options: dict[str, float], kept: list[int]) -> None:
    found = Sampling(**options).probabilities(FIVE.log() + 3)
    expected = torch.zeros_like(FIVE)
    expected[0, kept] = FIVE[0, kept] / FIVE[0, kept].sum()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature: float) -> None:
    expected = FIVE ** (1 / temperature) / (FIVE ** (1 / temperature)).sum()
    torch.testing.assert_close(Sampling(temperature=temperature).probabilities(FIVE.log()), expected)


def test_rows_do_not_mix() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    options = Sampling(temperature=0.7, top_k=9, top_p=0.8)
    for row, found in zip(logits, options.probabilities(logits), strict=True):
        assert torch.equal(options.probabilities(row[None])[0], found)


@pytest.mark.usefixtures("global_random_state")
def test_draws_have_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    number = 20000
    options = Sampling(top_k=4)
    tokens = options.draw(FIVE.log().expand(number, -1), [generator] * number)
    counts = torch.bincount(tokens, minlength=5) / number
    expected = options.probabilities(FIVE.log())[0]
    assert counts[2] == 0
    assert ((counts - expected).abs() <= 5 * (expected * (1 - expected) / number).sqrt()).all()
    once_more = torch.Generator().manual_seed(1)
    assert torch.equal(tokens, options.draw(FIVE.log().expand(number, -1), [once_more] * number))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0.*greedy"), ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"temperature": math.nan}, "temperature=nan"), ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0.*at least 1"), ({"top_p": 0.0}, r"top_p=0\.0.*\(0, 1\]"), ({"top_p": 1.5}, r"top_p=1\.5"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_used_is_named(options: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Sampling(**options)
