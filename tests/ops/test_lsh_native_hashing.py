"""Hashing in C++ against `reformer_lab.ops.hash_vectors`, which defines it."""

import math

import pytest
import torch
from brute_force import vectors
from torch import Tensor

from reformer_lab.ops import draw_rotations, hash_vectors
from reformer_lab.ops.lsh_attention import unusable
from reformer_lab.ops.lsh_attention.native import hashing

WHY_NOT = unusable("native")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"backend='native' cannot be used here: {WHY_NOT}")

FACTORS = [(2,), (6,), (64,), (130,), (16, 16), (32, 16), (2, 34), (2, 4, 6), (2, 2, 2, 2), (18, 2)]


def rotations(batch: int, heads: int, width: int, rounds: int, factors: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return draw_rotations(batch, heads, width, rounds, factors, torch.Generator().manual_seed(5), dtype)


def assert_the_same(x: Tensor, given: Tensor, factors: tuple[int, ...]) -> None:
    assert torch.equal(hashing.hash_vectors(x, given, factors), hash_vectors(x, given, factors))


@pytest.mark.parametrize("factors", FACTORS, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_double_precision(width: int, factors: tuple[int, ...]) -> None:
    """Lengths of less than a group of rows, of several, and of more than a slab."""
    for length in (1, 49, 1100):
        x = vectors(2, 3, length, width, seed=length)
        assert_the_same(x, rotations(2, 3, width, 3, factors, x.dtype), factors)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
def test_rotations_shared_by_examples_or_heads(shape: tuple[int, int]) -> None:
    assert_the_same(vectors(2, 3, 90, 8), rotations(*shape, 8, 2, (6, 4), torch.float64), (6, 4))


def test_any_strides() -> None:
    x, given = vectors(2, 90, 16, 3), rotations(2, 3, 8, 2, (6, 4), torch.float64)
    assert_the_same(x.permute(0, 3, 1, 2)[..., ::2], given, (6, 4))
    assert_the_same(x.permute(0, 3, 1, 2)[..., 1:9], given.transpose(2, 4).contiguous().transpose(2, 4), (6, 4))
    assert_the_same(x[:1, ..., :8, 0].unsqueeze(1).expand(2, 3, 90, 8), given, (6, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factors", [(10,), (6, 4)], ids=str)
def test_whole_numbers_are_exact_and_tie(factors: tuple[int, ...], dtype: torch.dtype) -> None:
    """Small whole numbers: every product is exact in any precision, and many columns are equally good."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-2, 3, (1, 2, 500, 5), generator=generator).to(dtype)
    given = torch.randint(-1, 2, (1, 2, 5, 3, sum(factors) // 2), generator=generator).float()
    assert_the_same(x, given, factors)


def test_the_first_of_equal_columns_wins() -> None:
    given = torch.tensor([1.0, -1.0, 1.0]).expand(1, 1, 4, 1, 3)
    x = torch.tensor([[1.0] * 4, [-1.0] * 4, [0.0] * 4]).reshape(1, 1, 3, 4)
    assert hashing.hash_vectors(x, given, (6,)).tolist() == [[[[0, 1, 0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_single_precision_differs_by_rounding_alone(dtype: torch.dtype) -> None:
    """Where ids differ, the chosen column is as good as the best one to 64 roundings of |x| |column|."""
    factor, width = 64, 32
    x = vectors(1, 4, 3000, width, dtype=dtype)
    given = rotations(1, 4, width, 2, (factor,), torch.float32)
    found = hashing.hash_vectors(x, given, (factor,))
    projected = torch.einsum("bhld,bhdrf->bhrlf", x.double(), given.double())
    both = torch.cat([projected, -projected], -1)
    best, chosen = both.max(-1).values, both.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    size = x.double().norm(dim=-1).unsqueeze(2) * given.double().norm(dim=2).amax()
    assert (best - chosen <= 64 * torch.finfo(torch.float32).eps * size).all()
    assert (found == both.argmax(-1)).double().mean() > 0.999


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_what_is_not_finite_gets_a_valid_id(value: float) -> None:
    x, factors = vectors(1, 1, 100, 8, dtype=torch.float32), (6, 4)
    given = rotations(1, 1, 8, 2, factors, torch.float32)
    clean = hashing.hash_vectors(x, given, factors)
    x[0, 0, 7, 3] = x[0, 0, 50] = value
    found = hashing.hash_vectors(x, given, factors)
    assert ((found >= 0) & (found < 24)).all()
    others = [i for i in range(100) if i not in (7, 50)]
    assert torch.equal(found[..., others], clean[..., others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_half_precision_is_read_right(dtype: torch.dtype) -> None:
    """A rotation by 1 tells the sign alone; one column of ones against a threshold tells the number."""
    half = dtype if dtype != torch.float32 else torch.float16
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
    numbers = numbers[numbers.isfinite()].to(dtype)
    x = torch.stack([numbers, torch.ones_like(numbers)], -1)[None, None]
    given = torch.stack([torch.tensor([1.0, -t]) for t in (0.0, 1.0, 6e-8, 1e-5, 1024.5, -3.25)], -1)[None, None, :, :, None]
    assert_the_same(x, given, (2,))


def test_same_ids_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "ROWS_PER_THREAD", 1)
    x, given = vectors(1, 2, 3000, 8, dtype=torch.float32), rotations(1, 2, 8, 2, (16,), torch.float32)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(hashing.hash_vectors(x, given, (16,)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
