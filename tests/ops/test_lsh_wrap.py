"""The look-back from one hash round into another, and the epsilon in the keys' length, as trax and transformers have them."""

import math
from typing import Any

import pytest
import torch
from brute_force import padding_mask, random_buckets, vectors
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import lsh_attention
from reformer_lab.ops.lsh_attention import PRESETS, choose_backend, unusable
from reformer_lab.ops.lsh_attention.options import LSHOptions

HISTORIC: dict[str, Any] = {"cross_bucket": True, "correct_duplicates": False, "wrap_rounds": True}


def literal(qk: Tensor, v: Tensor, buckets: Tensor, padding: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Return the output (L, D_v) of one example and head: one softmax over the places of all of a token's windows."""
    length = buckets.shape[1]
    size, before, after = options["chunk_length"], options["chunks_before"], options["chunks_after"]
    padded = [False] * length if padding is None else padding.tolist()
    circle: list[list[int]] = []
    for ids in buckets.tolist():
        order = sorted(range(length), key=lambda i: (padded[i], ids[i], i))
        circle += [order[start : start + size] for start in range(0, length, size)]
    rows = []
    for i in range(length):
        seen = [
            j
            for at, chunk in enumerate(circle) if i in chunk
            for offset in range(-before, after + 1)
            for j in circle[(at + offset) % len(circle)]
            if j != i and not padded[j] and (j < i or not options["causal"])
        ]  # fmt: skip
        if padded[i]:
            rows.append(torch.zeros_like(v[0]))
            continue
        seen = seen or [i]
        logits = torch.stack([qk[i] @ qk[j] / ((qk[j] ** 2).mean() + options["key_epsilon"]).sqrt() for j in seen])
        rows.append((logits / math.sqrt(qk.shape[1])).softmax(0) @ v[seen])
    return torch.stack(rows)


def results(backend: str, qk: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    found = lsh_attention(qk, v, backend=backend, **options)
    weight, z_weight = vectors(*found.output.shape, seed=8), vectors(*found.logsumexp.shape, seed=9)
    seen = found.logsumexp.isfinite()
    ((found.output * weight).sum() + (found.logsumexp.masked_fill(~seen, 0) * z_weight).sum()).backward()
    assert qk.grad is not None
    assert v.grad is not None
    return [found.output.detach(), found.logsumexp.detach(), qk.grad, v.grad]


@pytest.mark.parametrize("padding", ["none", "right", "random", "row"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_every_place_of_the_windows_counts(rounds: int, causal: bool, padding: str) -> None:
    """Window shapes go beyond the circle; lengths leave the last chunk short."""
    for n, (length, before, after) in enumerate([(16, 1, 0), (13, 2, 1), (5, 1, 1), (1, 1, 0), (30, 1, 0)]):
        qk, v = vectors(2, 2, length, 6, seed=n), vectors(2, 2, length, 5, seed=n + 10)
        buckets = random_buckets(2, 2, rounds, length, 4, seed=n)
        mask = padding_mask(padding, 2, length, seed=n)
        options = {"chunk_length": 4, "chunks_before": before, "chunks_after": after, "causal": causal, "key_epsilon": 0.3}
        call = {"buckets": buckets, "num_hashes": rounds, "key_padding_mask": mask, **options, **HISTORIC}
        expected, torchs = results("reference", qk, v, **call), results("torch", qk, v, **call)
        for name, one, other in zip(("output", "logsumexp", "d_qk", "d_v"), torchs, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        for b in range(2):
            for h in range(2):
                row = literal(qk[b, h], v[b, h], buckets[b, h], None if mask is None else mask[b], options)
                torch.testing.assert_close(expected[0][b, h], row, rtol=0, atol=1e-9)


def test_it_changes_something() -> None:
    qk, v, buckets = vectors(1, 1, 32, 4), vectors(1, 1, 32, 4, seed=1), random_buckets(1, 1, 2, 32, 4)
    options = {"buckets": buckets, "num_hashes": 2, "chunk_length": 4, "backend": "torch"}
    plain = lsh_attention(qk, v, **options, **HISTORIC | {"wrap_rounds": False}).output
    wrapped = lsh_attention(qk, v, **options, **HISTORIC).output
    assert (plain - wrapped).abs().max() > 1e-3
    changed = (plain != wrapped).any(-1)[0, 0]
    first_chunks = {int(i) for ids in buckets[0, 0] for i in ids.argsort(stable=True)[:4]}
    assert set(changed.nonzero().flatten().tolist()) <= first_chunks


def test_dropout_is_the_references() -> None:
    qk, v = vectors(1, 2, 40, 4), vectors(1, 2, 40, 4, seed=1)
    options = {"num_hashes": 2, "chunk_length": 8, "dropout_p": 0.4, **PRESETS["huggingface"]}
    for one, other in zip(results("torch", qk, v, **options), results("reference", qk, v, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{"wrap_rounds": True}, {"key_epsilon": 1e-6}], ids=str)
def test_other_backends_refuse_and_auto_does_without_them(changes: dict[str, Any]) -> None:
    options = LSHOptions(
        num_hashes=2, chunk_length=4, chunks_before=1, chunks_after=0, causal=True, coverage="chunk", cross_bucket=True,
        correct_duplicates=False, logit_scale=1.0, dropout_p=0.0, **changes,
    )  # fmt: skip
    for backend in ("native", "triton"):
        assert next(iter(changes)) in str(unusable(backend, options=options))
    assert choose_backend("auto", torch.device("cpu"), torch.float32, options=options) == "torch"
    assert choose_backend("auto", torch.device("cuda"), torch.float32, options=options) == "torch"
    qk = vectors(1, 1, 20, 4, dtype=torch.float32)
    with pytest.raises(UserError, match=next(iter(changes))):
        lsh_attention(qk, qk, backend="native", chunk_length=4, **HISTORIC | {"wrap_rounds": False} | changes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"wrap_rounds": True}, "cross_bucket=True"), ({"wrap_rounds": True, "cross_bucket": True}, "correct_duplicates=False"),
        ({"key_epsilon": -1.0}, r"key_epsilon=-1\.0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        lsh_attention(vectors(1, 1, 8, 4), vectors(1, 1, 8, 4), **options)
