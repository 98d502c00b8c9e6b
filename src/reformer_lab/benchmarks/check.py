"""Before a benchmark: are the results of the backends that it measures right? A fast wrong answer has no time.

Small, odd problems, forward and gradients, against the dense formula in fp64: an error of at most twice that of the naive
formula in the same precision, plus the rounding of the result. Errors are root mean squares, which for so few numbers are
steadier than the greatest error that the tests look at.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reformer_lab.ops import lsh_attention
from reformer_lab.ops.hashing import draw_rotations, hash_vectors
from reformer_lab.ops.lsh_attention.options import LSHOptions
from reformer_lab.ops.lsh_attention.reference import count_rounds

BATCH, HEADS, ROUNDS, BUCKETS, CHUNK = 2, 3, 4, 6, 16
SAME_BUCKETS = 0.99
"""Part of the vectors that must have the reference's bucket: rounding moves one that lies between two."""

CASES: dict[str, dict[str, Any]] = {
    "131 tokens": {"length": 131},
    "1 token": {"length": 1},
    "131 tokens, padding": {"length": 131, "padding": True},
    "131 tokens, padding, both directions": {"length": 131, "padding": True, "causal": False, "chunks_after": 1},
    "131 tokens, whole buckets": {"length": 131, "coverage": "bucket"},
    "77 tokens, duplicates as often": {"length": 77, "correct_duplicates": False},
    "77 tokens, whole windows": {"length": 77, "cross_bucket": True},
}


class CheckFailed(Exception):
    """A backend computes something else than the reference: nothing is measured."""


def check_backends(backends: Sequence[str], device: torch.device, dtype: torch.dtype, d_head: int) -> None:
    """Raise CheckFailed, naming backend, case and error, unless all compute what the reference does."""
    for backend in backends:
        for name, case in CASES.items():
            try:
                _check(backend, case, device, dtype, d_head)
            except AssertionError as wrong:
                place = f"{device.type}, {str(dtype).removeprefix('torch.')}, d_head {d_head}"
                raise CheckFailed(f"backend {backend!r} is wrong ({place}; {name}): {wrong}") from None


def _check(backend: str, case: dict[str, Any], device: torch.device, dtype: torch.dtype, d_head: int) -> None:
    options: dict[str, Any] = {"causal": True, "coverage": "chunk", "correct_duplicates": True, "cross_bucket": False,
                               "chunks_before": 1, "chunks_after": 0, **case}
    length, padded = options.pop("length"), options.pop("padding", False)
    generator = torch.Generator().manual_seed(length)
    qk, v, d_output = (torch.randn(BATCH, HEADS, length, d_head, generator=generator).to(device, dtype) for _ in range(3))
    d_logsumexp = torch.randn(BATCH, HEADS, length, generator=generator).to(device)
    padding = (torch.rand(BATCH, length, generator=generator) < 0.3).to(device) if padded else None
    rotations = draw_rotations(BATCH, HEADS, d_head, ROUNDS, BUCKETS, generator)

    hashed = lsh_attention(qk, v, rotations=rotations, num_hashes=ROUNDS, num_buckets=BUCKETS, chunk_length=CHUNK,
                           backend=backend).buckets
    buckets = hash_vectors(qk, rotations, BUCKETS)
    same = (hashed == buckets).double().mean().item()
    assert same >= SAME_BUCKETS, f"{same:.1%} of the vectors are in the reference's buckets"

    def ours(qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        result = lsh_attention(qk, v, num_hashes=ROUNDS, num_buckets=BUCKETS, chunk_length=CHUNK, buckets=buckets,
                               key_padding_mask=padding, backend=backend, **options)
        return result.output, result.logsumexp

    complete = LSHOptions(num_hashes=ROUNDS, chunk_length=CHUNK, logit_scale=1.0, dropout_p=0.0, **options)
    counts = count_rounds(buckets, padding, complete)

    def naive(qk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return _naive(qk, v, counts, options["correct_duplicates"])

    found = _results(ours, qk, v, d_output, d_logsumexp)
    same_precision = _results(naive, qk, v, d_output, d_logsumexp)
    exact = _results(naive, qk.double(), v.double(), d_output, d_logsumexp)
    for name, fast, plain, true in zip(("output", "logsumexp", "d_qk", "d_v"), found, same_precision, exact, strict=True):
        assert torch.equal(fast.isfinite(), true.isfinite()), f"{name} is not finite where it should be, or the reverse"
        fast, plain, true = (x.double().masked_fill(~true.isfinite(), 0) for x in (fast, plain, true))
        error = _size(fast - true)
        allowed = 2 * _size(plain - true) + torch.finfo(dtype).eps / 2 * _size(true)
        assert error <= allowed, f"{name} is off by {error:.3g}, allowed are {allowed:.3g}"


def _size(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _results(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], qk: Tensor, v: Tensor, d_output: Tensor,
             d_logsumexp: Tensor) -> tuple[Tensor, ...]:
    """Return output, logsumexp and the gradients."""
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    output, logsumexp = function(qk, v)
    seen = logsumexp.isfinite()
    d_logsumexp = d_logsumexp.to(logsumexp.dtype).masked_fill(~seen, 0)
    d_qk, d_v = torch.autograd.grad((output, logsumexp), (qk, v), (d_output.to(output.dtype), d_logsumexp))
    return output.detach(), logsumexp.detach(), d_qk, d_v


def _naive(qk: Tensor, v: Tensor, counts: Tensor, correct_duplicates: bool) -> tuple[Tensor, Tensor]:
    """Return output and logsumexp of the dense formula, every step in the dtype of qk."""
    logits = qk @ (qk / qk.norm(dim=-1, keepdim=True)).transpose(-1, -2)
    if not correct_duplicates:
        logits = logits + counts.clamp(min=1).to(qk.dtype).log()
    visible = counts > 0
    empty = ~visible.any(-1, keepdim=True)
    logits = logits.masked_fill(~visible & ~empty, -math.inf)
    weights = logits.softmax(-1).masked_fill(empty, 0)
    return weights @ v, logits.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
