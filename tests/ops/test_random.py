"""Draws that can be replayed, and the hash that says which attention weights dropout keeps."""

from typing import Any

import pytest
import torch
from brute_force import vectors

from reformer_lab.ops.random import Draws, draw_seed, dropout, keep_pairs

pytestmark = pytest.mark.usefixtures("global_random_state")


def test_generators_follow_from_seed_and_name() -> None:
    def numbers(draws: Draws, name: str) -> list[float]:
        return torch.rand(3, generator=draws.generator(name)).tolist()

    draws = Draws(1)
    assert numbers(draws, "a") == numbers(draws, "a") == numbers(draws.replay(), "a") == numbers(Draws(1), "a")
    assert numbers(draws, "a") != numbers(draws, "b")
    assert numbers(draws, "a") != numbers(Draws(2), "a")


def test_remembered_tensors_come_back_in_a_replay_only() -> None:
    draws = Draws(1)
    values = iter([torch.tensor(1), torch.tensor(2)])
    assert draws.remember("x", lambda: next(values)) == 1
    assert draws.replay().remember("x", lambda: next(values)) == 1
    assert draws.remember("x", lambda: next(values)) == 2
    assert draws.replay().replay().remember("x", lambda: next(values)) == 2
    assert Draws(1, fixed=True).replay().fixed


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_dropout(p: float) -> None:
    x = torch.ones(200, 200)
    y = dropout(x, p, torch.Generator().manual_seed(1))
    assert torch.equal(y, dropout(x, p, torch.Generator().manual_seed(1)))
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.01)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))


def test_dropout_keeps_half_precision() -> None:
    x = vectors(5, 5, dtype=torch.bfloat16)
    assert dropout(x, 0.5, torch.Generator().manual_seed(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_pairs_are_kept_at_the_right_rate_in_every_row_column_and_corner(p: float) -> None:
    at = torch.arange(1000)
    kept = keep_pairs(7, torch.tensor(3), at[:, None], at, p).double()
    spread = (p * (1 - p)) ** 0.5
    assert kept.mean().item() == pytest.approx(1 - p, abs=5 * spread / 1000)
    # Six standard deviations of the mean of a thousand: a line that is always kept or dropped would show.
    for dim in (0, 1):
        assert (kept.mean(dim) - (1 - p)).abs().max() < 6 * spread / 1000**0.5
    neighbours = (kept[:-1] * kept[1:]).mean().item() - (1 - p) ** 2
    assert abs(neighbours) < 6 * spread**2 / 1000


def test_pairs_depend_on_every_part() -> None:
    at = torch.arange(100)
    kept = keep_pairs(7, torch.tensor(3), at[:, None], at, 0.5)
    assert torch.equal(kept, keep_pairs(7, torch.tensor(3), at[:, None], at, 0.5))
    for other in (
        keep_pairs(8, torch.tensor(3), at[:, None], at, 0.5),
        keep_pairs(7, torch.tensor(4), at[:, None], at, 0.5),
        keep_pairs(7, torch.tensor(3), at, at[:, None], 0.5),
        keep_pairs(7, torch.tensor(3), at[:, None] + 1, at, 0.5),
    ):
        assert (other == kept).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_positions_of_a_million_tokens() -> None:
    at = torch.arange(2**20, 2**20 + 300)
    assert keep_pairs(2**31 - 2, torch.tensor(10**6), at[:, None], at, 0.3).double().mean().item() == pytest.approx(
        0.7, abs=0.02
    )


def test_seeds_come_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    seeds = [draw_seed(generator) for _ in range(5)]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_dropout_draws_its_mask_again_for_the_gradient(saved_bytes: Any) -> None:
    x = torch.ones(50, 40).requires_grad_()
    output = dropout(x, 0.3, torch.Generator().manual_seed(1))
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, output.detach())  # of ones: the mask over 1 - p
    assert 0.2 < (output == 0).float().mean() < 0.4
    assert saved_bytes(lambda: dropout(x, 0.3, torch.Generator().manual_seed(1))) == 0
