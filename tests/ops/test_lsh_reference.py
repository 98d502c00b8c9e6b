"""The definition of right, held against an independent brute force and against facts that need no implementation."""

import math

import pytest
import torch
from brute_force import Sets, brute_force, padding_mask, random_buckets, usable, vectors
from hypothesis import given
from hypothesis import strategies as st

from reformer_lab.ops import lsh_attention, shared_qk_attention

BACKENDS = usable("reference", "torch", "native", "triton")


def options_of(sets: Sets) -> dict[str, object]:
    return dict(vars(sets))


SETS = {
    "paper": Sets(),
    "bidirectional": Sets(causal=False, chunks_after=1),
    "chunk-alone": Sets(chunks_before=0),
    "wide": Sets(chunk_length=3, chunks_before=2, chunks_after=2, causal=False),
    "after-only": Sets(chunk_length=5, chunks_before=0, chunks_after=2, causal=False),
    "cross-bucket": Sets(cross_bucket=True),
    "cross-bucket-both-ways": Sets(cross_bucket=True, causal=False, chunks_after=1, chunk_length=3),
    "whole-bucket": Sets(coverage="bucket"),
    "whole-bucket-both-ways": Sets(coverage="bucket", causal=False),
    "chunk-of-one": Sets(chunk_length=1),
}


@pytest.mark.parametrize("correct_duplicates", [True, False], ids=["corrected", "as-often"])
@pytest.mark.parametrize("padding", ["none", "right", "random", "row"])
@pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
def test_reference_is_the_papers_formula(sets: Sets, padding: str, correct_duplicates: bool) -> None:
    qk, v = vectors(2, 2, 13, 3, seed=1), vectors(2, 2, 13, 2, seed=2)
    buckets = random_buckets(2, 2, 3, 13, num_buckets=4)
    mask = padding_mask(padding, 2, 13)
    expected, z = brute_force(qk, v, buckets, sets, mask, correct_duplicates)
    found = lsh_attention(
        qk, v, num_hashes=3, num_buckets=4, buckets=buckets, key_padding_mask=mask, correct_duplicates=correct_duplicates,
        backend="reference", **options_of(sets),
    )  # fmt: skip
    torch.testing.assert_close(found.output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logsumexp, z, rtol=0, atol=1e-12)


@given(
    length=st.integers(1, 11), rounds=st.integers(1, 4), chunk_length=st.integers(1, 6), before=st.integers(0, 2),
    after=st.integers(0, 2), causal=st.booleans(), kind=st.sampled_from(["chunk", "cross", "bucket"]),
    padding=st.sampled_from(["none", "left", "random"]), corrected=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_both_backends_are_the_papers_formula(
    length: int, rounds: int, chunk_length: int, before: int, after: int, causal: bool, kind: str, padding: str,
    corrected: bool, seed: int,
) -> None:  # fmt: skip
    sets = Sets(
        chunk_length=chunk_length, chunks_before=before, chunks_after=after, causal=causal,
        coverage="bucket" if kind == "bucket" else "chunk", cross_bucket=kind == "cross",
    )  # fmt: skip
    qk, v = vectors(1, 1, length, 2, seed=seed), vectors(1, 1, length, 1, seed=seed + 1)
    buckets = random_buckets(1, 1, rounds, length, 4, seed)
    mask = padding_mask(padding, 1, length, seed)
    expected, z = brute_force(qk, v, buckets, sets, mask, corrected, scale=2**-0.5)
    for backend in BACKENDS:
        found = lsh_attention(
            qk, v, num_hashes=rounds, num_buckets=4, buckets=buckets, key_padding_mask=mask, correct_duplicates=corrected,
            key_scale="unit_over_sqrt_d", backend=backend, **options_of(sets),
        )  # fmt: skip
        torch.testing.assert_close(found.output, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.logsumexp, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 17, 64])
@pytest.mark.parametrize("padding", ["none", "right", "left", "random", "row"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_chunk_over_everything_is_full_attention(backend: str, causal: bool, padding: str, length: int) -> None:
    qk, v = vectors(2, 3, length, 8, seed=1), vectors(2, 3, length, 5, seed=2)
    mask = padding_mask(padding, 2, length)
    hashed = lsh_attention(
        qk, v, num_hashes=2, num_buckets=8, cross_bucket=True, chunk_length=64, causal=causal, key_padding_mask=mask,
        backend=backend,
    )  # fmt: skip
    full = shared_qk_attention(qk, v, causal=causal, key_padding_mask=mask)
    torch.testing.assert_close(hashed.output, full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coverage", ["chunk", "bucket"])
def test_one_bucket_for_everything_is_full_attention(coverage: str) -> None:
    qk, v = vectors(2, 2, 50, 8, seed=1), vectors(2, 2, 50, 8, seed=2)
    buckets = torch.zeros(2, 2, 3, 50, dtype=torch.int64)
    hashed = lsh_attention(qk, v, num_hashes=3, num_buckets=2, chunk_length=64, buckets=buckets, coverage=coverage)
    torch.testing.assert_close(hashed.output, shared_qk_attention(qk, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("key_scale", ["unit", "unit_over_sqrt_d"])
def test_many_rounds_approach_full_attention(key_scale: str) -> None:
    qk, v = vectors(1, 2, 48, 6, seed=1), vectors(1, 2, 48, 6, seed=2)
    full = shared_qk_attention(qk, v, key_scale=key_scale)
    errors = []
    for rounds in (1, 4, 16, 64):
        hashed = lsh_attention(qk, v, num_hashes=rounds, num_buckets=4, chunk_length=16, chunks_before=2, key_scale=key_scale)
        errors.append((hashed.output - full).square().mean().item() ** 0.5)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", ["none", "random", "row"])
@pytest.mark.parametrize("correct_duplicates", [True, False], ids=["corrected", "as-often"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_sum_to_one(backend: str, correct_duplicates: bool, padding: str, dtype: torch.dtype) -> None:
    qk, v = vectors(3, 2, 45, 16, seed=3, dtype=dtype) * 4, torch.ones(3, 2, 45, 4, dtype=dtype)
    mask = padding_mask(padding, 3, 45)
    output = lsh_attention(
        qk, v, num_hashes=4, num_buckets=8, chunk_length=8, key_padding_mask=mask, correct_duplicates=correct_duplicates,
        backend=backend,
    ).output  # fmt: skip
    expected = torch.ones(3, 45) if mask is None else (~mask).float()
    # Half precision: one rounding of the output alone. The others: a sum of up to 45 products.
    eps = torch.finfo(dtype).eps
    atol = eps / 2 if dtype.itemsize == 2 else 4 * eps
    torch.testing.assert_close(output.double(), expected[:, None, :, None].expand_as(output).double(), rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_sees_nothing_gives_zero(backend: str) -> None:
    qk, v = vectors(2, 1, 9, 4, seed=1), vectors(2, 1, 9, 4, seed=2)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0], mask[1, 5:] = True, True
    found = lsh_attention(qk, v, chunk_length=4, key_padding_mask=mask, backend=backend)
    assert (found.output[0] == 0).all()
    assert (found.logsumexp[0] == -math.inf).all()
    assert (found.output[1, :, 5:] == 0).all()
    assert (found.logsumexp[1, :, 5:] == -math.inf).all()
    assert found.logsumexp[1, :, :5].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_sees_itself_only_as_a_last_resort(backend: str) -> None:
    qk, v = vectors(1, 1, 4, 4, seed=1), vectors(1, 1, 4, 4, seed=2)
    # Token 2 is alone in round 0 and meets token 1 in round 1; token 3 is alone in both.
    buckets = torch.tensor([[[[0, 0, 1, 2], [0, 1, 1, 2]]]])
    found = lsh_attention(qk, v, num_hashes=2, num_buckets=4, buckets=buckets, backend=backend)
    torch.testing.assert_close(found.output[0, 0, [1, 2]], v[0, 0, [0, 1]], rtol=0, atol=1e-14)
    torch.testing.assert_close(found.output[0, 0, [0, 3]], v[0, 0, [0, 3]], rtol=0, atol=0)
    itself = (qk.norm(dim=-1))[0, 0, [0, 3]]  # q . q/|q|
    torch.testing.assert_close(found.logsumexp[0, 0, [0, 3]], itself, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_look_back_from_one_round_into_another(backend: str) -> None:
    """With trax's wrap, the first chunk of a round sees the last chunk of the round before: here token 1 would see token 7."""
    qk, v = vectors(1, 1, 8, 4, seed=1), torch.eye(8, dtype=torch.float64)[None, None]
    first, last = [0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]
    output = lsh_attention(
        qk, v, num_hashes=2, num_buckets=2, buckets=torch.tensor([[[first, last]]]), chunk_length=4, causal=False,
        cross_bucket=True, chunks_before=1, backend=backend,
    ).output  # fmt: skip
    # Round 0: chunk (4..7) sees (0..3). Round 1: chunk (0..3) sees (4..7). Nothing else, and one round alone is one-sided:
    one_round = lsh_attention(
        qk, v, num_hashes=1, num_buckets=2, buckets=torch.tensor([[[first]]]), chunk_length=4, causal=False,
        cross_bucket=True, chunks_before=1, backend=backend,
    ).output  # fmt: skip
    assert (one_round[0, 0, :4, 4:] == 0).all()
    assert (one_round[0, 0, 4:, :4] > 0).all()
    assert (output[0, 0] > 0).sum() == 8 * 7


@pytest.mark.parametrize("rounds", [2, 5])
def test_a_pair_found_in_every_round_counts_once_or_as_often_as_found(rounds: int) -> None:
    qk, v = vectors(1, 1, 3, 4, seed=1), vectors(1, 1, 3, 4, seed=2)
    # Token 2 meets token 1 in every round and token 0 in the first alone.
    buckets = torch.tensor([[[[0, 0, 0]] + [[1, 0, 0]] * (rounds - 1)]])
    logits = (qk[0, 0, 2] * torch.nn.functional.normalize(qk[0, 0, :2], dim=-1)).sum(-1)
    for corrected, weights in ((True, logits), (False, logits + torch.tensor([1.0, rounds], dtype=torch.float64).log())):
        found = lsh_attention(qk, v, num_hashes=rounds, num_buckets=2, buckets=buckets, correct_duplicates=corrected).output[
            0, 0, 2
        ]
        torch.testing.assert_close(found, weights.softmax(-1) @ v[0, 0, :2], rtol=0, atol=1e-13)
