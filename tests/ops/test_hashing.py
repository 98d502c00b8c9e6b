"""Angular hashing: digits, factors, ties, and that close vectors meet."""

import pytest
import torch
from brute_force import vectors
from hypothesis import given
from hypothesis import strategies as st

from reformer_lab.errors import UserError
from reformer_lab.ops import default_num_buckets, draw_rotations, hash_vectors
from reformer_lab.ops.hashing import hash_few
from reformer_lab.ops.lsh_attention import lsh_attention
from reformer_lab.ops.lsh_attention.chunked import _Layout
from reformer_lab.ops.lsh_attention.options import LSHOptions


@pytest.mark.parametrize("factors", [(2,), (8,), (4, 6), (6, 4), (2, 2, 10)], ids=str)
def test_digits_are_the_argmax_of_both_signs_with_the_first_factor_least_significant(factors: tuple[int, ...]) -> None:
    x = vectors(2, 3, 20, 5, seed=1)
    rotations = vectors(2, 3, 5, 4, sum(factors) // 2, seed=2)
    found = hash_vectors(x, rotations, factors)
    for b, h, r, i in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 4, 20))).tolist():
        projected = (x[b, h, i] @ rotations[b, h, :, r]).tolist()
        bucket, radix, column = 0, 1, 0
        for factor in factors:
            own = projected[column : column + factor // 2]
            both = own + [-p for p in own]
            bucket += radix * both.index(max(both))
            radix, column = radix * factor, column + factor // 2
        assert found[b, h, r, i] == bucket
    assert found.max() < torch.tensor(factors).prod()
    assert found.dtype == torch.int64


@pytest.mark.parametrize("factors", [(2,), (8,), (4, 6), (2, 2, 10)], ids=str)
@pytest.mark.parametrize("shared", [(2, 3), (1, 1)], ids=str)
def test_all_rounds_at_once(shared: tuple[int, int], factors: tuple[int, ...]) -> None:
    x, rotations = vectors(2, 3, 20, 5, seed=1), vectors(*shared, 5, 4, sum(factors) // 2, seed=2)
    assert torch.equal(hash_few(x, rotations, factors), hash_vectors(x, rotations, factors))
    with pytest.raises(UserError, match="do not fit"):
        hash_few(x[..., :4], rotations, factors)


def test_the_first_index_wins_a_tie() -> None:
    identity = torch.eye(3)[None, None, :, None]
    x = torch.tensor([[0.0, 0, 0], [1, 1, 0], [-1, -1, 0], [1, -1, 0], [-1, 1, 0], [0, 0, -2]])[None, None]
    assert hash_vectors(x, identity, 6).flatten().tolist() == [0, 0, 3, 0, 1, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hash_is_that_of_the_vector_in_single_precision_and_does_not_scale(dtype: torch.dtype) -> None:
    x = vectors(1, 2, 50, 8, seed=1, dtype=dtype)
    rotations = draw_rotations(1, 2, 8, 3, (4, 8), torch.Generator().manual_seed(1))
    found = hash_vectors(x, rotations, (4, 8))
    assert torch.equal(found, hash_vectors(x.float(), rotations, (4, 8)))
    assert torch.equal(found, hash_vectors(x * 4, rotations, (4, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, hash_vectors(x, rotations, (4, 8)))


def test_close_vectors_meet_more_often_than_far_ones() -> None:
    """The chance to share a bucket falls with the angle, all the way from 0 to 180 degrees."""
    rotations = draw_rotations(1, 1, 16, 2000, 8, torch.Generator().manual_seed(3), dtype=torch.float64)
    a = torch.nn.functional.normalize(vectors(16, seed=1), dim=0)
    b = vectors(16, seed=2)
    b = torch.nn.functional.normalize(b - (a @ b) * a, dim=0)
    angles = torch.linspace(0, torch.pi, 7, dtype=torch.float64)[:, None]
    x = angles.cos() * a + angles.sin() * b
    buckets = hash_vectors(x[None, None], rotations, 8)[0, 0]
    meet = (buckets == buckets[:, :1]).double().mean(0).tolist()
    assert meet[0] == 1
    assert meet[-1] == 0
    # At 90 degrees two vectors are independent up to the sign structure: about one in 8.
    assert meet[3] == pytest.approx(1 / 8, abs=0.04)
    assert meet == sorted(meet, reverse=True)


@pytest.mark.parametrize(
    ("length", "chunk_length", "expected"),
    [
        (1, 64, 2), (63, 64, 2), (64, 64, 2), (128, 64, 4), (1024, 32, 64), (4096, 64, 128), (4160, 64, (16, 8)),
        (65536, 128, (32, 32)), (65536, 64, (64, 32)), (524288, 64, (128, 128)),
    ],
)  # fmt: skip
def test_default_number_of_buckets_is_twice_the_chunks(length: int, chunk_length: int, expected: object) -> None:
    assert default_num_buckets(length, chunk_length) == expected


@given(length=st.integers(1, 2**21), chunk_length=st.integers(1, 512))
def test_default_number_of_buckets_can_always_be_used(length: int, chunk_length: int) -> None:
    found = default_num_buckets(length, chunk_length)
    wanted = 2 * max(1, length // chunk_length)
    if isinstance(found, int):
        assert found == wanted <= 128
    else:
        assert all(factor >= 2 and factor % 2 == 0 for factor in found)
        assert wanted / 2 < found[0] * found[1] <= wanted


@given(
    rounds=st.integers(1, 3), length=st.integers(1, 70), num_buckets=st.integers(1, 9), chunk_length=st.integers(1, 9),
    padded=st.integers(0, 70), seed=st.integers(0, 999),
)  # fmt: skip
def test_sorting_is_a_permutation_by_bucket_then_position_with_padding_behind(
    rounds: int, length: int, num_buckets: int, chunk_length: int, padded: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randint(num_buckets, (1, 2, rounds, length), generator=generator)
    padding = (torch.arange(length) < padded)[None]
    options = LSHOptions(
        num_hashes=rounds, chunk_length=chunk_length, chunks_before=1, chunks_after=0, causal=True, coverage="chunk",
        cross_bucket=False, correct_duplicates=True, logit_scale=1.0, dropout_p=0.0,
    )  # fmt: skip
    order = _Layout(buckets, padding, options, torch.float32).order_NRL
    for head in range(2):
        for r in range(rounds):
            ids = buckets[0, head, r].tolist()
            expected = sorted(range(length), key=lambda i: (bool(padding[0, i]), 0 if padding[0, i] else ids[i], i))
            assert order[head, r].tolist() == expected


def test_keys_beyond_31_bits_do_not_overflow() -> None:
    """2^20 tokens with 2^14 buckets need keys of 34 bits: large bucket ids make such keys from few tokens."""
    small = torch.randint(4, (1, 1, 2, 60), generator=torch.Generator().manual_seed(1))
    qk, v = vectors(1, 1, 60, 4, seed=1), vectors(1, 1, 60, 4, seed=2)
    for backend in ("reference", "torch"):
        for coverage in ("chunk", "bucket"):
            results = [
                lsh_attention(
                    qk, v, num_hashes=2, num_buckets=4, buckets=buckets, chunk_length=8, coverage=coverage, backend=backend
                ).output
                for buckets in (small, small + 2**30)
            ]
            assert torch.equal(*results)


@pytest.mark.parametrize("num_buckets", [7, 0, -4, (4, 5), ()], ids=str)
def test_an_impossible_number_of_buckets_is_named(num_buckets: object) -> None:
    with pytest.raises(UserError, match=r"num_buckets=.*even"):
        draw_rotations(1, 1, 4, 1, num_buckets, torch.Generator())  # type: ignore[arg-type]
