"""Every backend is the reference: outputs, logsumexp, and the gradients of qk and v, in fp64."""

import itertools
from typing import Any

import pytest
import torch
from brute_force import DEVICE, padding_mask, random_buckets, usable, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.ops import draw_rotations, lsh_attention
from reformer_lab.ops.lsh_attention import chunked

FAST_BACKENDS = usable("torch", "native", "triton")
LIMIT = 1e-9


def gradients(qk: Tensor, v: Tensor, **options: Any) -> dict[str, Tensor]:
    """Return everything that a call gives, with the gradients of a function of both outputs."""
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    result = lsh_attention(qk, v, **options)
    seen = result.logsumexp.isfinite()
    weight = vectors(*result.output.shape, seed=77)
    z_weight = vectors(*result.logsumexp.shape, seed=78)
    ((result.output * weight).sum() + (result.logsumexp.masked_fill(~seen, 0) * z_weight).sum()).backward()
    assert qk.grad is not None
    assert v.grad is not None
    return {
        "output": result.output.detach(), "logsumexp": result.logsumexp.detach(), "buckets": result.buckets,
        "d_qk": qk.grad, "d_v": v.grad,
    }  # fmt: skip


def assert_backends_agree(qk: Tensor, v: Tensor, **options: Any) -> None:
    generator = options.pop("generator_seed", None)

    def call(backend: str) -> dict[str, Tensor]:
        more = {} if generator is None else {"generator": torch.Generator().manual_seed(generator)}
        return gradients(qk, v, backend=backend, **options, **more)

    expected = call("reference")
    for backend in FAST_BACKENDS:
        found = call(backend)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=LIMIT, msg=lambda m, n=name: f"{n}: {m}")


WINDOWS = list(itertools.product((0, 1, 2), (0, 1, 2)))


@pytest.mark.parametrize("kind", ["chunk", "cross", "bucket"])
@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "as-often"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", ["none", "right", "left", "random", "row"])
def test_grid(padding: str, causal: bool, corrected: bool, kind: str) -> None:
    """Chunk borders, window shapes, rounds and lengths change along the grid, so that every pair of them meets an option."""
    for n, length in enumerate((1, 7, 61, 130)):
        before, after = WINDOWS[(n * 4 + causal + 2 * corrected) % 9]
        rounds = (1, 2, 8, 3)[n]
        assert_backends_agree(
            vectors(2, 2, length, 6, seed=n), vectors(2, 2, length, 5, seed=n + 10), num_hashes=rounds,
            num_buckets=(6, (2, 4), 12, (4, 2, 2))[n], chunk_length=(4, 3, 16, 7)[n], chunks_before=before, chunks_after=after,
            causal=causal, key_padding_mask=padding_mask(padding, 2, length, seed=n),
            coverage="bucket" if kind == "bucket" else "chunk", cross_bucket=kind == "cross", correct_duplicates=corrected,
        )  # fmt: skip


@settings(max_examples=60)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 2), length=st.integers(1, 300), rounds=st.integers(1, 8),
    num_buckets=st.sampled_from([2, 6, 16, (2, 2), (4, 6), (2, 2, 4), None]), chunk_length=st.integers(1, 40),
    window=st.sampled_from(WINDOWS), causal=st.booleans(), kind=st.sampled_from(["chunk", "cross", "bucket"]),
    padding=st.sampled_from(["none", "right", "left", "random", "row"]), corrected=st.booleans(),
    key_scale=st.sampled_from(["unit", "unit_over_sqrt_d"]), dropout=st.sampled_from([0.0, 0.0, 0.3]),
    d_head=st.integers(1, 9), d_value=st.integers(1, 9), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_combination(
    batch: int, heads: int, length: int, rounds: int, num_buckets: Any, chunk_length: int, window: tuple[int, int],
    causal: bool, kind: str, padding: str, corrected: bool, key_scale: str, dropout: float, d_head: int, d_value: int,
    seed: int,
) -> None:  # fmt: skip
    assert_backends_agree(
        vectors(batch, heads, length, d_head, seed=seed), vectors(batch, heads, length, d_value, seed=seed + 1),
        num_hashes=rounds, num_buckets=num_buckets, chunk_length=chunk_length, chunks_before=window[0],
        chunks_after=window[1], causal=causal, key_padding_mask=padding_mask(padding, batch, length, seed),
        coverage="bucket" if kind == "bucket" else "chunk", cross_bucket=kind == "cross", correct_duplicates=corrected,
        key_scale=key_scale, dropout_p=dropout, generator_seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("length", [255, 256, 257, 300])
@pytest.mark.parametrize("coverage", ["chunk", "bucket"])
def test_default_chunks_at_lengths_around_a_multiple(length: int, coverage: str) -> None:
    assert_backends_agree(vectors(1, 2, length, 16, seed=1), vectors(1, 2, length, 16, seed=2), num_hashes=4, coverage=coverage)


@pytest.mark.parametrize("num_buckets", [2, 64])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_buckets_far_from_evenly_filled(num_buckets: int, causal: bool) -> None:
    """One bucket holds most tokens, so it spans many chunks; many others hold one token or none."""
    buckets = random_buckets(1, 2, 3, 90, num_buckets).masked_fill(torch.arange(90) % 5 > 0, 1)
    for coverage in ("chunk", "bucket"):
        assert_backends_agree(
            vectors(1, 2, 90, 4, seed=1), vectors(1, 2, 90, 4, seed=2), num_hashes=3, num_buckets=num_buckets,
            buckets=buckets, chunk_length=8, causal=causal, coverage=coverage,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=lambda s: f"batch{s[0]}-heads{s[1]}")
def test_injected_rotations_broadcast(shape: tuple[int, int]) -> None:
    rotations = draw_rotations(*shape, 6, 3, (4, 6), torch.Generator().manual_seed(5), dtype=torch.float64)
    options: dict[str, Any] = {"num_hashes": 3, "num_buckets": (4, 6), "chunk_length": 8}
    qk, v = vectors(2, 3, 40, 6, seed=1), vectors(2, 3, 40, 6, seed=2)
    assert_backends_agree(qk, v, rotations=rotations, **options)
    for backend in ("reference", *FAST_BACKENDS):
        broadcast = lsh_attention(qk, v, rotations=rotations, backend=backend, **options)
        spread = lsh_attention(qk, v, rotations=rotations.expand(2, 3, -1, -1, -1), backend=backend, **options)
        assert torch.equal(broadcast.buckets, spread.buckets)
        assert torch.equal(broadcast.output, spread.output)


def test_tied_vectors_and_zero_vectors() -> None:
    """Equal vectors share every bucket; a zero vector hashes to 0, has no direction and gets a finite gradient."""
    qk = vectors(1, 1, 33, 4, seed=1)
    qk[..., 5:9, :] = qk[..., 4:5, :]
    qk[..., ::7, :] = 0
    assert_backends_agree(qk, vectors(1, 1, 33, 4, seed=2), num_hashes=2, num_buckets=4, chunk_length=8)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_not_contiguous_inputs_and_gradients(backend: str) -> None:
    qk, v, d_output = (vectors(2, 40, 3, 6, seed=seed).transpose(1, 2) for seed in (1, 2, 3))
    assert not d_output.is_contiguous()
    found = []
    for permuted in (True, False):
        inputs = [x.detach().clone(memory_format=torch.preserve_format) for x in (qk, v)] if permuted else [
            qk.contiguous(), v.contiguous()]
        assert inputs[0].is_contiguous() != permuted
        for x in inputs:
            x.requires_grad_()
        output = lsh_attention(*inputs, num_hashes=2, num_buckets=4, chunk_length=8, backend=backend).output
        output.backward(d_output if permuted else d_output.contiguous())
        found.append([output, *(x.grad for x in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tile_scores", [1, 200, 1 << 30])
@pytest.mark.parametrize("kind", ["chunk", "cross", "bucket"])
def test_result_does_not_depend_on_the_size_of_a_tile(kind: str, tile_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "num_hashes": 3, "num_buckets": 6, "chunk_length": 8, "coverage": "bucket" if kind == "bucket" else "chunk",
        "cross_bucket": kind == "cross", "key_padding_mask": padding_mask("random", 2, 75), "dropout_p": 0.2,
    }  # fmt: skip
    qk, v = vectors(2, 2, 75, 6, seed=1), vectors(2, 2, 75, 6, seed=2)
    expected = gradients(qk, v, backend="torch", **options)
    monkeypatch.setattr(chunked, "TILE_SCORES", {"cpu": tile_scores})
    found = gradients(qk, v, backend="torch", **options)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    qk, v = vectors(1, 2, 300, 16, seed=1), vectors(1, 2, 300, 16, seed=2)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gradients(qk, v, num_hashes=2, chunk_length=32, backend="torch"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name in other:
            torch.testing.assert_close(other[name], found[0][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["none", "random"])
@pytest.mark.parametrize("kind", ["chunk", "cross", "bucket"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_gradcheck_of_output_and_logsumexp(backend: str, dropout: float, kind: str, padding: str) -> None:
    mask = padding_mask(padding, 1, 8, seed=3)
    buckets = random_buckets(1, 1, 2, 8, 4)

    def function(qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        result = lsh_attention(
            qk, v, num_hashes=2, num_buckets=4, buckets=buckets, chunk_length=4, key_padding_mask=mask, dropout_p=dropout,
            coverage="bucket" if kind == "bucket" else "chunk", cross_bucket=kind == "cross", correct_duplicates=False,
            backend=backend,
        )  # fmt: skip
        return result.output, result.logsumexp.masked_fill(result.logsumexp.isinf(), 0)

    qk, v = vectors(1, 1, 8, 3, seed=1).requires_grad_(), vectors(1, 1, 8, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(function, (qk, v), atol=1e-7)


@pytest.mark.parametrize("cross_bucket", [False, True])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_windows_wider_than_the_sequence_are_the_sequence(backend: str, cross_bucket: bool) -> None:
    """Without tiles, or lists of chunks, of that size."""
    generator = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(1, 2, 10, 8, generator=generator, dtype=torch.float64).to(DEVICE) for _ in range(2))
    common = {"num_hashes": 2, "num_buckets": 2, "cross_bucket": cross_bucket, "backend": backend}
    whole = lsh_attention(qk, v, chunk_length=10, **common).output
    for wide in ({"chunk_length": 10**9}, {"chunk_length": 3, "chunks_before": 10**12, "chunks_after": 10**12}):
        torch.testing.assert_close(lsh_attention(qk, v, **wide, **common).output, whole, rtol=0, atol=1e-12)


def test_a_chunk_longer_than_the_sequence_on_the_circle() -> None:
    generator = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(1, 2, 10, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    common = {"num_hashes": 3, "num_buckets": 2, "cross_bucket": True, "correct_duplicates": False, "wrap_rounds": True,
              "backend": "torch"}
    torch.testing.assert_close(lsh_attention(qk, v, chunk_length=10**9, **common).output,
                               lsh_attention(qk, v, chunk_length=10, **common).output, rtol=0, atol=1e-12)


def test_operators_are_there_on_every_device() -> None:
    """The backend "torch" needs nothing but torch, so no device may lack the operators that lead to it."""
    for name in ("lsh_hash", "lsh_attention", "lsh_attention_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"reformer_lab::{name}", "CompositeExplicitAutograd")


def test_buckets_from_another_device_are_brought_over_and_not_read_where_they_are() -> None:
    qk = torch.randn(1, 1, 10, 8)
    buckets = torch.zeros(1, 1, 2, 10, dtype=torch.int64, device="meta")
    with pytest.raises(NotImplementedError, match="meta"):
        lsh_attention(qk, qk, num_hashes=2, buckets=buckets)
