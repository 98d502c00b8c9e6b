"""Local attention in C++, beyond what every backend is held to: threads, segments, blocks, strides and widths."""

import importlib
import math
from typing import Any

import pytest
import torch
from brute_force import padding_mask, vectors
from torch import Tensor

from reformer_lab.ops import local_attention
from reformer_lab.ops.local_attention import native
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.lsh_attention import unusable

WHY_NOT = unusable("native")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"backend='native' cannot be used here: {WHY_NOT}")


def call(inputs: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = local_attention(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, vectors(*output.shape, seed=9).to(output.dtype))]


def assert_as_torch(inputs: list[Tensor], tolerance: float = 1e-11, **options: Any) -> None:
    found, expected = (call(inputs, backend=backend, **options) for backend in ("native", "torch"))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("chunk_length", [16, 30, 64])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_blocks_begin_and_end_anywhere(length: int, chunk_length: int, before: int, after: int, causal: bool) -> None:
    """In both precisions: a vector holds as many queries again in the lower one."""
    mask = padding_mask("random", 2, length, seed=chunk_length)
    options: dict[str, Any] = {
        "chunk_length": chunk_length, "chunks_before": before, "chunks_after": after, "causal": causal,
        "key_padding_mask": mask,
    }  # fmt: skip
    inputs = [vectors(2, 2, length, width, seed=width) for width in (8, 8, 5)]
    assert_as_torch(inputs, **options)
    assert_as_torch([x.float() for x in inputs], 1e-5, **options)


@pytest.mark.parametrize("chunk_length", [150, 300])
def test_windows_of_many_blocks_of_keys(chunk_length: int) -> None:
    for causal in (True, False):
        inputs = [vectors(1, 1, 1400, 4, seed=seed) for seed in (1, 2, 3)]
        assert_as_torch(inputs, chunk_length=chunk_length, chunks_after=1, causal=causal, dropout_p=0.2)


@pytest.mark.parametrize("options", [{}, {"chunk_length": 100, "chunks_after": 1, "causal": False}], ids=["usual", "wide"])
def test_segments_see_beyond_their_ends(options: dict[str, Any]) -> None:
    """A segment has 1,024 positions and more."""
    mask = padding_mask("random", 1, 3500)
    assert_as_torch([vectors(1, 1, 3500, 4, seed=seed) for seed in (1, 2, 3)], key_padding_mask=mask, **options)


def test_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ROWS_PER_THREAD", 1)
    inputs = [vectors(1, 3, 5000, 8, seed=seed, dtype=torch.float32) for seed in (1, 2, 3)]
    mask, found = padding_mask("random", 1, 5000), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(call(inputs, chunk_length=32, chunks_after=1, causal=False, key_padding_mask=mask, dropout_p=0.1,
                          backend="native"))  # fmt: skip
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(dtype: torch.dtype) -> None:
    """Heads of one projection, rows in another order, rows that are all the same; gradients of an output in any order."""
    options = LocalOptions(chunk_length=16, chunks_before=1, chunks_after=1, causal=False)
    plain = [vectors(2, 3, 100, 8, seed=seed, dtype=dtype) for seed in (1, 2, 3, 4)]
    projection = torch.cat(plain, -1).transpose(1, 2).contiguous().transpose(1, 2)
    for given in (
        list(projection.split(8, -1)),
        [x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for x in plain],
        [x[:1, :1].expand(2, 3, 100, 8) for x in plain],
        [x[:, :, :1].expand(2, 3, 100, 8) for x in plain],
    ):
        results = []
        for q, k, v, d_output in (given, [x.contiguous() for x in given]):
            output, logsumexp = native.forward(q, k, v, None, options)
            results.append((output, logsumexp, *native.backward(q, k, v, None, output, logsumexp, options, d_output)))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)
            assert one.isfinite().all()


def test_heads_are_joined_without_a_copy() -> None:
    inputs = [vectors(2, 3, 50, 4, seed=seed).requires_grad_() for seed in (1, 2, 3)]
    output = local_attention(*inputs, backend="native")
    gradients = torch.autograd.grad(output.sum(), inputs)
    for x in (output, *gradients):
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("widths", [(1, 1), (3, 64), (17, 5), (64, 64), (70, 130)], ids=str)
def test_widths(widths: tuple[int, int]) -> None:
    width, width_v = widths
    inputs = [vectors(1, 2, 150, w, seed=seed) for seed, w in enumerate((width, width, width_v))]
    assert_as_torch(inputs, chunk_length=16)
    assert_as_torch([x.float() for x in inputs], 2e-5, chunk_length=16)


@pytest.mark.parametrize("size", [1e-160, 1e-6, 30, 1e3, 1e6], ids=str)
def test_logits_of_any_size(size: float) -> None:
    """Weights that underflow, and a softmax that is one-hot."""
    q, k, v = (vectors(1, 2, 200, 8, seed=seed) for seed in (1, 2, 3))
    found, expected = (local_attention(q * size, k, v, chunk_length=32, backend=backend) for backend in ("native", "torch"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_nan_stays_nan_and_where_it_is() -> None:
    q, k, v = (vectors(1, 1, 20, 4, seed=seed) for seed in (1, 2, 3))
    k[0, 0, 3, 1] = math.nan
    output = local_attention(q, k, v, chunk_length=32, backend="native")
    assert output[0, 0, 3:].isnan().all()
    assert output[0, 0, :3].isfinite().all()


def test_window_wider_than_the_sequence() -> None:
    inputs = [vectors(1, 1, 50, 4, seed=seed) for seed in (1, 2, 3)]
    found, expected = (call(inputs, chunk_length=8, chunks_before=n, backend="native") for n in (10**12, 7))
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("size", [1e-7, 1, 1.5e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_single_precision_rounded_once(dtype: torch.dtype, size: float) -> None:
    """Sizes: below the smallest normal number of fp16, ordinary, and gradients beyond its largest."""
    q, k = (vectors(1, 2, 200, 8, seed=seed, dtype=dtype) for seed in (1, 2))
    v, weight = (vectors(1, 2, 200, 8, seed=seed).abs().mul(size).to(dtype) for seed in (3, 4))
    results = []
    for precision in (dtype, torch.float32):
        leaves = [x.to(precision).clone().requires_grad_() for x in (q, k, v)]
        output = local_attention(*leaves, chunk_length=100, backend="native")
        d_v = torch.autograd.grad(output, leaves, weight.to(precision))[2]
        results.append((output.detach().to(dtype), d_v.to(dtype)))
    if dtype == torch.float16 and size > 1:
        assert results[0][1].isinf().any()
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_the_memory_is_that_of_the_results(peak_bytes: Any) -> None:
    inputs = [vectors(1, 4, 4096, 16, seed=seed, dtype=torch.float32).requires_grad_() for seed in (1, 2, 3)]
    one = inputs[0].nbytes

    def step() -> None:
        output = local_attention(*inputs, backend="native")
        torch.autograd.grad(output, inputs, output.detach())

    step()
    assert peak_bytes(step) < 4.2 * one  # output, three gradients, and a number for each row


def test_auto_takes_it_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("reformer_lab.ops.local_attention.operator")
    used = []
    forward = native.forward
    monkeypatch.setattr(module.native, "forward", lambda *values: used.append(1) or forward(*values))
    q = vectors(1, 1, 9, 4)
    for backend in ("auto", "native", "torch"):
        local_attention(q, q, q, backend=backend)
    assert len(used) == 2
