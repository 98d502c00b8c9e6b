"""Exact attention against its formula written out, with every option."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from brute_force import assert_as_exact_as_naive, padding_mask, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import full_attention, local_attention, lsh_attention, shared_qk_attention
from reformer_lab.ops.local_attention.wrapped import wrapped_local_attention
from reformer_lab.ops.random import draw_seed, keep_pairs


def dense(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, padding: Tensor | None, self_allowed: bool, scale: float,
    keep: Tensor | None = None, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return softmax over the visible keys, row by row."""
    batch, heads, length, _ = q.shape
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(length) if (j < i or (j > i and not causal)) or (j == i and self_allowed)]
                if padding is not None:
                    seen = [] if padding[b, i] else [j for j in seen if not padding[b, j]]
                if not seen and not self_allowed and not (padding is not None and padding[b, i]):
                    seen = [i]
                weights = (k[b, h, seen] @ q[b, h, i] * scale).softmax(0)
                if keep is not None:
                    weights = weights * keep[b * heads + h, i, seen] / (1 - dropout_p)
                rows.append(weights @ v[b, h, seen])
    return torch.stack(rows).view(batch, heads, length, -1)


def compare(call: Any, formula: Any, *inputs: Tensor) -> None:
    results = []
    for function in (call, formula):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        output.backward(vectors(*output.shape, seed=9))
        results.append([output.detach(), *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def drops(dropout: float, seed: int, rows: int, length: int) -> Tensor | None:
    """Return what `generator` seeded with `seed` keeps, (rows, length, length)."""
    if dropout == 0:
        return None
    position = torch.arange(length)
    drawn = draw_seed(torch.Generator().manual_seed(seed))
    return keep_pairs(drawn, torch.arange(rows)[:, None, None], position[:, None], position[None, :], dropout)


OPTIONS: dict[str, Any] = {
    "batch": st.integers(1, 2), "heads": st.integers(1, 2), "length": st.integers(1, 14), "causal": st.booleans(),
    "padding": st.sampled_from(["none", "right", "left", "random", "row"]), "dropout": st.sampled_from([0.0, 0.3]),
    "seed": st.integers(0, 999),
}  # fmt: skip


@settings(max_examples=40)
@given(scale=st.sampled_from([None, 0.7]), **OPTIONS)
def test_separate_keys(
    batch: int, heads: int, length: int, causal: bool, padding: str, dropout: float, seed: int, scale: float | None
) -> None:
    mask, keep = padding_mask(padding, batch, length, seed), drops(dropout, seed, batch * heads, length)
    compare(
        lambda q, k, v: full_attention(
            q, k, v, causal=causal, key_padding_mask=mask, scale=scale, dropout_p=dropout,
            generator=torch.Generator().manual_seed(seed),
        ),
        lambda q, k, v: dense(q, k, v, causal, mask, True, scale or 5**-0.5, keep, dropout),
        *(vectors(batch, heads, length, d, seed=seed + d) for d in (5, 5, 3)),
    )  # fmt: skip


@settings(max_examples=40)
@given(key_scale=st.sampled_from(["unit", "unit_over_sqrt_d"]), **OPTIONS)
def test_shared_keys(
    batch: int, heads: int, length: int, causal: bool, padding: str, dropout: float, seed: int, key_scale: str
) -> None:
    mask, keep = padding_mask(padding, batch, length, seed), drops(dropout, seed, batch * heads, length)
    scale = 1.0 if key_scale == "unit" else 5**-0.5
    compare(
        lambda qk, v: shared_qk_attention(
            qk, v, causal=causal, key_padding_mask=mask, key_scale=key_scale, dropout_p=dropout,
            generator=torch.Generator().manual_seed(seed),
        ),
        lambda qk, v: dense(qk, qk / qk.norm(dim=-1, keepdim=True), v, causal, mask, False, scale, keep, dropout),
        *(vectors(batch, heads, length, d, seed=seed + d) for d in (5, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_self_allowed_is_the_authors_layer_at_evaluation(causal: bool) -> None:
    """Raw keys over sqrt(d), and no rule about itself."""
    compare(
        lambda qk, v: shared_qk_attention(qk, v, causal=causal, self_attention="allowed"),
        lambda qk, v: dense(qk, qk, v, causal, None, True, 4**-0.5),
        vectors(1, 2, 11, 4, seed=1), vectors(1, 2, 11, 3, seed=2),
    )  # fmt: skip


@pytest.mark.parametrize("length", [511, 512, 513, 1025])
def test_blocks_of_queries_meet_without_a_seam(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = padding_mask("random", 1, length)
    qk, v = vectors(1, 1, length, 4, seed=1), vectors(1, 1, length, 2, seed=2)
    found = shared_qk_attention(qk, v, key_padding_mask=mask, dropout_p=0.1)
    monkeypatch.setattr(sys.modules["reformer_lab.ops.full_attention"], "QUERY_BLOCK", 10**6)
    torch.testing.assert_close(found, shared_qk_attention(qk, v, key_padding_mask=mask, dropout_p=0.1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["none", "random", "row"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
def test_gradcheck(dropout: float, padding: str) -> None:
    mask = padding_mask(padding, 1, 6)
    qk, k, v = (vectors(1, 1, 6, 3, seed=s).requires_grad_() for s in (1, 2, 3))
    options: dict[str, Any] = {"key_padding_mask": mask, "dropout_p": dropout}
    assert torch.autograd.gradcheck(lambda q, k, v: full_attention(q, k, v, **options), (qk, k, v))
    assert torch.autograd.gradcheck(lambda qk, v: shared_qk_attention(qk, v, **options), (qk, v))


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_a_padded_value_changes_nothing(shared: bool, causal: bool, poison: float) -> None:
    mask = padding_mask("random", 2, 21, seed=3)
    assert mask is not None

    def call(filling: float) -> list[Tensor]:
        leaves = [vectors(2, 2, 21, 4, seed=s).masked_fill(mask[:, None, :, None], filling).requires_grad_() for s in (1, 2, 3)]
        function: Any = shared_qk_attention if shared else full_attention
        leaves = leaves[1:] if shared else leaves
        output = function(*leaves, causal=causal, key_padding_mask=mask)
        output.square().sum().backward()
        return [output.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]

    for clean, poisoned in zip(call(0.5), call(poison), strict=True):
        assert torch.equal(clean, poisoned)
        assert clean.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", ["none", "random"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_error_at_most_twice_the_naive_one(shared: bool, causal: bool, padding: str, dtype: torch.dtype) -> None:
    length = 33
    inputs = [vectors(1, 2, length, 16, seed=s, dtype=dtype) for s in (1, 2, 3)]
    mask = padding_mask(padding, 1, length, seed=2)
    hidden = (
        torch.ones(length, length, dtype=torch.bool).triu(0 if shared else 1) if causal else torch.eye(length).bool() & shared
    )
    hidden = hidden[None].expand(1, -1, -1).clone()
    if mask is not None:
        hidden |= mask[:, None, :] | mask[:, :, None]
    if shared:  # the last resort
        alone = hidden.all(-1) & (torch.ones(1, length).bool() if mask is None else ~mask)
        hidden &= ~torch.diag_embed(alone)
    hidden = hidden[:, None]

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if shared:
            return shared_qk_attention(q, v, causal=causal, key_padding_mask=mask)
        return full_attention(q, k, v, causal=causal, key_padding_mask=mask)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = q / q.norm(dim=-1, keepdim=True) if shared else k * k.shape[-1] ** -0.5
        empty = hidden.all(-1, keepdim=True)
        logits = (q @ k.transpose(-1, -2)).masked_fill(hidden & ~empty, -math.inf)
        return logits.softmax(-1).masked_fill(empty, 0) @ v

    results = []
    for function, precision in ((fast, dtype), (naive, dtype), (naive, torch.float64)):
        leaves = [x.to(precision).requires_grad_() for x in (x.detach().clone() for x in inputs)]
        output = function(*leaves)
        output.backward(vectors(*output.shape, seed=9, dtype=dtype).to(precision))
        results.append([output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for three in zip(*results, strict=True):
        assert_as_exact_as_naive(*three, what="full attention")  # type: ignore[arg-type]


@pytest.mark.usefixtures("global_random_state")
def test_dropout_repeats_with_its_generator_and_leaves_the_global_one_alone() -> None:
    qk = vectors(1, 2, 30, 4, seed=1)

    def call(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return shared_qk_attention(qk, qk, dropout_p=0.4, generator=generator)

    assert torch.equal(call(None), call(None))
    assert torch.equal(call(1), call(1))
    assert not torch.equal(call(1), call(2))


def test_weights_of_one() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        qk, v = vectors(1, 2, 40, 8, seed=1, dtype=dtype), torch.ones(1, 2, 40, 3, dtype=dtype)
        for mask in (None, padding_mask("left", 1, 40)):
            output = shared_qk_attention(qk, v, key_padding_mask=mask).float()
            expected = torch.ones(40) if mask is None else (~mask[0]).float()
            atol = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(output, expected[None, None, :, None].expand_as(output), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("message", "options"),
    [("self_attention='never'", {"self_attention": "never"}), ("key_scale='raw'", {"key_scale": "raw"})],
)
def test_errors_name_the_value(message: str, options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        shared_qk_attention(vectors(1, 1, 4, 2), vectors(1, 1, 4, 2), **options)


@pytest.mark.parametrize("attend", [
    lambda q, v, **options: full_attention(q, q, v, **options), shared_qk_attention,
    lambda q, v, **options: local_attention(q, q, v, **options),
    lambda q, v, **options: wrapped_local_attention(q, q, v, **options),
    lambda q, v, **options: lsh_attention(q, v, **options),
], ids=["full", "shared QK", "local", "wrapped", "LSH"])
def test_every_attention_names_what_it_cannot_take(attend: Callable[..., object]) -> None:
    q = torch.zeros(2, 3, 5, 4)
    for v, options, message in (
        (q[0], {}, r"v \(3, 5, 4\): expected \(batch, heads, length, width\)"), (q[:, :, :4], {}, "alike but for the width"),
        (q.double(), {}, "v is torch.float64 on cpu: all must have one floating-point type"),
        (q[..., :0], {}, "every size, the length too, must be at least 1"),
        (q, {"key_padding_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"key_padding_mask of shape \(2, 4\)"),
        (q, {"key_padding_mask": torch.zeros(2, 5)}, r"torch.float32: expected \(2, 5\), torch.bool, True = padding"),
        (q, {"dropout_p": 1.0}, r"dropout_p=1.0: must be in \[0, 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            attend(q, v, **options)
