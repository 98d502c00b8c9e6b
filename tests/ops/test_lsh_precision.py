"""Half and single precision: no more than twice the error of the naive formula in the same precision."""

from typing import Any

import pytest
import torch
from brute_force import DEVICE, assert_as_exact_as_naive, naive, padding_mask, random_buckets, usable, vectors
from torch import Tensor

from reformer_lab.ops import lsh_attention
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.lsh_attention.reference import count_rounds

FAST_BACKENDS = usable("torch", "native", "triton")
ROUNDS, NUM_BUCKETS, CHUNK = 4, 8, 16


def naive_call(qk: Tensor, v: Tensor, buckets: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    complete = LSHOptions(
        num_hashes=ROUNDS, chunk_length=CHUNK, chunks_before=1, chunks_after=0, causal=options["causal"],
        coverage=options["coverage"], cross_bucket=False, correct_duplicates=options["correct_duplicates"], logit_scale=1.0,
        dropout_p=0.0,
    )  # fmt: skip
    return naive(qk, v, count_rounds(buckets, mask, complete), options["correct_duplicates"])


def with_gradients(function: Any, qk: Tensor, v: Tensor, d_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    output = function(qk, v)
    output.backward(d_output.to(output.dtype))
    return output.detach(), qk.grad, v.grad  # type: ignore[return-value]


@pytest.mark.parametrize("sharpness", [0.5, 1, 3], ids=lambda s: f"sharpness{s}")
@pytest.mark.parametrize("padding", ["none", "random"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("coverage", ["chunk", "bucket"])
@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "as-often"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_error_at_most_twice_the_naive_one(
    backend: str, dtype: torch.dtype, corrected: bool, coverage: str, causal: bool, padding: str, sharpness: float
) -> None:
    length = 141
    qk = vectors(2, 2, length, 32, seed=1, dtype=dtype) * sharpness
    v, d_output = vectors(2, 2, length, 16, seed=2, dtype=dtype), vectors(2, 2, length, 16, seed=3, dtype=dtype)
    buckets, mask = random_buckets(2, 2, ROUNDS, length, NUM_BUCKETS), padding_mask(padding, 2, length, seed=5)
    options: dict[str, Any] = {"causal": causal, "coverage": coverage, "correct_duplicates": corrected}

    def fast(qk: Tensor, v: Tensor) -> Tensor:
        return lsh_attention(
            qk, v, num_hashes=ROUNDS, num_buckets=NUM_BUCKETS, chunk_length=CHUNK, buckets=buckets, key_padding_mask=mask,
            backend=backend, **options,
        ).output  # fmt: skip

    def plain(qk: Tensor, v: Tensor) -> Tensor:
        return naive_call(qk, v, buckets, mask, options)

    found = with_gradients(fast, qk, v, d_output)
    same_precision = with_gradients(plain, qk, v, d_output)
    exact = with_gradients(plain, qk.double(), v.double(), d_output)
    for name, *three in zip(("output", "d_qk", "d_v"), found, same_precision, exact, strict=True):
        assert three[0].isfinite().all()
        assert_as_exact_as_naive(*three, what=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_logsumexp_is_single_precision(backend: str, dtype: torch.dtype) -> None:
    result = lsh_attention(*vectors(2, 1, 2, 30, 8, dtype=dtype), chunk_length=8, backend=backend)
    assert result.logsumexp.dtype == torch.float32
    assert result.output.dtype == dtype


@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_half_precision_under_autocast_equals_that_without(backend: str) -> None:
    """Softmax in fp32 or better: autocast must not reach inside, neither forward nor backward."""
    qk, v = vectors(1, 2, 50, 8, seed=1, dtype=torch.float32), vectors(1, 2, 50, 8, seed=2, dtype=torch.float32)

    def call(enabled: bool) -> tuple[Tensor, ...]:
        a, b = qk.clone().requires_grad_(), v.clone().requires_grad_()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=enabled):
            output = lsh_attention(a, b, chunk_length=8, backend=backend).output
            if backend != "reference":  # its backward pass is autograd's own, which autocast does reach
                output.sum().backward()
        if backend == "reference":
            output.sum().backward()
        return output.detach(), a.grad, b.grad  # type: ignore[return-value]

    for plain, under_autocast in zip(call(False), call(True), strict=True):
        assert torch.equal(plain, under_autocast)
