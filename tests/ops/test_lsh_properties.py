"""What must hold of LSH attention whatever computes it: nothing leaks, everything is repeatable, bad input is named."""

import math
from typing import Any

import pytest
import torch
from brute_force import padding_mask, random_buckets, usable, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.errors import UserError
from reformer_lab.ops import draw_rotations, lsh_attention
from reformer_lab.ops.lsh_attention import PRESETS, chunked

BACKENDS = usable("reference", "torch", "native", "triton")
KINDS: dict[str, dict[str, Any]] = {
    "chunk": {}, "cross": {"cross_bucket": True}, "bucket": {"coverage": "bucket"},
}  # fmt: skip


@pytest.mark.parametrize("poison", [math.nan, math.inf, -1e30], ids=str)
@pytest.mark.parametrize("padding", ["right", "left", "random", "row"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_padded_value_changes_nothing(backend: str, dropout: float, kind: str, padding: str, poison: float) -> None:
    mask = padding_mask(padding, 2, 43, seed=3)
    assert mask is not None
    rotations = draw_rotations(1, 1, 6, 2, 6, torch.Generator().manual_seed(1))

    def call(filling: float) -> list[torch.Tensor]:
        qk, v = (vectors(2, 2, 43, 6, seed=s).masked_fill(mask[:, None, :, None], filling).requires_grad_() for s in (1, 2))
        result = lsh_attention(
            qk, v, num_hashes=2, num_buckets=6, chunk_length=8, key_padding_mask=mask, rotations=rotations,
            dropout_p=dropout, backend=backend, **KINDS[kind],
        )  # fmt: skip
        (result.output.square().sum() + result.logsumexp.masked_fill(mask[:, None], 0).sum()).backward()
        assert qk.grad is not None
        assert v.grad is not None
        return [result.output.detach(), result.logsumexp.detach(), qk.grad, v.grad]

    for clean, poisoned in zip(call(0.5), call(poison), strict=True):
        assert torch.equal(clean, poisoned)
        assert not clean.isnan().any()


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_the_same_as_leaving_out(backend: str, padding: str) -> None:
    """The kept tokens sort alike with and without padding behind them, so even the paper's windows are the same."""
    qk, v, pad = vectors(1, 2, 29, 6, seed=1), vectors(1, 2, 29, 6, seed=2), vectors(1, 2, 8, 6, seed=3)
    mask = torch.zeros(1, 37, dtype=torch.bool)
    mask[:, 29:] = True
    together = lambda x: torch.cat([x, pad], dim=2)  # noqa: E731
    kept = slice(0, 29)
    if padding == "left":
        mask, kept = mask.flip(1), slice(8, 37)
        together = lambda x: torch.cat([pad, x], dim=2)  # noqa: E731
    rotations = draw_rotations(1, 1, 6, 3, 8, torch.Generator().manual_seed(1))
    options: dict[str, Any] = {
        "num_hashes": 3, "num_buckets": 8, "chunk_length": 8, "rotations": rotations, "backend": backend,
    }  # fmt: skip
    alone = lsh_attention(qk, v, **options)
    padded = lsh_attention(together(qk), together(v), key_padding_mask=mask, **options)
    torch.testing.assert_close(padded.output[:, :, kept], alone.output, rtol=0, atol=1e-13)
    torch.testing.assert_close(padded.logsumexp[:, :, kept], alone.logsumexp, rtol=0, atol=1e-13)


@settings(max_examples=40)
@given(
    length=st.integers(2, 60), rounds=st.integers(1, 4), chunk_length=st.integers(1, 16), seed=st.integers(0, 10**6),
    cut=st.floats(0, 1), num_buckets=st.sampled_from([2, 8, (2, 4)]),
)  # fmt: skip
def test_whole_buckets_are_strictly_causal(
    length: int, rounds: int, chunk_length: int, seed: int, cut: float, num_buckets: Any
) -> None:
    """With given rotations, later tokens never change an earlier output, logsumexp or bucket; nor does the chunk's length."""
    first_changed = min(length - 1, 1 + int(cut * length))
    generator = torch.Generator().manual_seed(seed)
    columns = sum(num_buckets) if isinstance(num_buckets, tuple) else num_buckets
    rotations = torch.randn(1, 1, 4, rounds, columns // 2, generator=generator, dtype=torch.float64)
    qk, v = vectors(1, 1, length, 4, seed=seed), vectors(1, 1, length, 3, seed=seed + 1)
    other_qk, other_v = qk.clone(), v.clone()
    other_qk[:, :, first_changed:] = vectors(1, 1, length - first_changed, 4, seed=seed + 2)
    other_v[:, :, first_changed:] = vectors(1, 1, length - first_changed, 3, seed=seed + 3)
    for backend in BACKENDS:
        options: dict[str, Any] = {
            "num_hashes": rounds, "num_buckets": num_buckets, "rotations": rotations, "coverage": "bucket", "backend": backend,
        }  # fmt: skip
        one = lsh_attention(qk, v, chunk_length=chunk_length, **options)
        two = lsh_attention(other_qk, other_v, chunk_length=chunk_length, **options)
        shorter = lsh_attention(qk[:, :, :first_changed], v[:, :, :first_changed], chunk_length=7, **options)
        early = (slice(None), slice(None), slice(0, first_changed))
        for other in (two, shorter):
            torch.testing.assert_close(other.output[early], one.output[early], rtol=0, atol=1e-12)
            torch.testing.assert_close(other.logsumexp[early], one.logsumexp[early], rtol=0, atol=1e-12)
            assert torch.equal(other.buckets[..., :first_changed], one.buckets[..., :first_changed])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_later_value_is_read(backend: str, kind: str) -> None:
    """With given buckets, the values and the gradients of later tokens have nothing to do with an earlier output."""
    buckets = random_buckets(1, 1, 3, 40, 4)
    qk, v = vectors(1, 1, 40, 4, seed=1).requires_grad_(), vectors(1, 1, 40, 4, seed=2).requires_grad_()
    result = lsh_attention(qk, v, num_hashes=3, num_buckets=4, buckets=buckets, chunk_length=8, backend=backend, **KINDS[kind])
    (result.output[:, :, :20].sum() + result.logsumexp[:, :, :20].sum()).backward()
    for gradient in (qk.grad, v.grad):
        assert gradient is not None
        assert (gradient[:, :, 20:] == 0).all()
        assert (gradient[:, :, :20] != 0).any()


@pytest.mark.parametrize("victim", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_examples_do_not_touch_each_other(backend: str, kind: str, victim: int) -> None:
    """Not even a value that overflowed in one example reaches another, or another head."""
    qk, v = vectors(2, 2, 37, 4, seed=1), vectors(2, 2, 37, 4, seed=2)
    v[1 - victim, 0] = math.inf
    qk[1 - victim, 1] = math.nan
    qk.requires_grad_(), v.requires_grad_()
    result = lsh_attention(qk, v, num_hashes=2, num_buckets=4, chunk_length=8, backend=backend, **KINDS[kind])
    assert result.output[victim].isfinite().all()
    result.output[victim].sum().backward()
    assert qk.grad is not None
    assert v.grad is not None
    assert qk.grad[victim].isfinite().all()
    assert v.grad[victim].isfinite().all()


@pytest.mark.parametrize("coverage", ["chunk", "bucket"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_replayed_buckets_give_the_same(backend: str, coverage: str) -> None:
    qk, v = vectors(2, 2, 50, 8, seed=1), vectors(2, 2, 50, 8, seed=2)
    options: dict[str, Any] = {"chunk_length": 8, "coverage": coverage, "backend": backend}
    first = lsh_attention(qk, v, generator=torch.Generator().manual_seed(9), **options)
    again = lsh_attention(qk, v, buckets=first.buckets, **options)
    assert torch.equal(first.output, again.output)
    assert torch.equal(first.buckets, again.buckets)


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_come_from_the_generator_alone(backend: str) -> None:
    qk, v = vectors(2, 2, 50, 8, seed=1), vectors(2, 2, 50, 8, seed=2)

    def call(generator: torch.Generator | None) -> torch.Tensor:
        return lsh_attention(qk, v, chunk_length=8, dropout_p=0.1, generator=generator, backend=backend).output

    assert torch.equal(call(None), call(None))
    generator = torch.Generator().manual_seed(1)
    first, second = call(generator), call(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, call(torch.Generator().manual_seed(1)))
    assert torch.equal(call(None), call(torch.Generator().manual_seed(0)))


@pytest.mark.usefixtures("global_random_state")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", usable("torch", "native", "triton"))
def test_same_bits_twice(backend: str, kind: str) -> None:
    def call() -> list[torch.Tensor]:
        qk = vectors(2, 4, 200, 16, seed=1, dtype=torch.float32).requires_grad_()
        v = vectors(2, 4, 200, 16, seed=2, dtype=torch.float32).requires_grad_()
        result = lsh_attention(qk, v, chunk_length=16, dropout_p=0.1, backend=backend, **KINDS[kind])
        result.output.square().sum().backward()
        assert qk.grad is not None
        assert v.grad is not None
        return [result.output.detach(), qk.grad, v.grad]

    for one, two in zip(call(), call(), strict=True):
        assert torch.equal(one, two)


def test_rotations_are_independent_for_examples_and_heads() -> None:
    qk = vectors(1, 1, 64, 8, seed=1).expand(2, 2, -1, -1)
    buckets = lsh_attention(qk, qk, num_buckets=16, chunk_length=8).buckets.flatten(0, 1)
    for a in range(4):
        for b in range(a):
            assert not torch.equal(buckets[a], buckets[b])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("backend", usable("torch", "native", "triton"))
def test_dropout_keeps_the_mean_and_is_one_mask_for_all_rounds(backend: str, p: float) -> None:
    """One bucket in every round: a pair that is dropped must be dropped in each, or the union would still see it."""
    qk, v = torch.zeros(1, 1, 400, 4, dtype=torch.float64), torch.eye(400, dtype=torch.float64)[None, None]
    output = lsh_attention(
        qk, v, num_hashes=3, num_buckets=2, chunk_length=400, dropout_p=p, correct_duplicates=False, backend=backend
    ).output[0, 0]
    seen = torch.ones(400, 400).tril(-1).bool()
    kept = output[seen] > 0
    assert kept.double().mean() == pytest.approx(1 - p, abs=0.01)
    expected = kept.double() / (1 - p) / torch.arange(400)[:, None].expand(400, 400)[seen]
    torch.testing.assert_close(output[seen], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True], ids=["no-padding", "padding"])
def test_memory_is_linear_in_the_length_and_holds_one_tile(
    padded: bool, kind: str, saved_bytes: Any, peak_bytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the size length x length is ever allocated, nor the scores of a whole round."""
    monkeypatch.setattr(chunked, "TILE_SCORES", {"cpu": 1 << 12})
    saved, peak = {}, {}
    for length in (256, 1024):
        qk = vectors(1, 1, length, 4, seed=1).requires_grad_()
        mask = padding_mask("right", 1, length) if padded else None
        buckets = torch.arange(length).view(1, 1, 1, length) // 32

        def call(qk: torch.Tensor = qk, mask: Any = mask, buckets: torch.Tensor = buckets) -> torch.Tensor:
            return lsh_attention(
                qk, qk, num_hashes=1, num_buckets=64, chunk_length=64, key_padding_mask=mask, buckets=buckets, backend="torch",
                **KINDS[kind],
            ).output.sum()  # fmt: skip

        saved[length], peak[length] = saved_bytes(call), peak_bytes(lambda call=call: call().backward())
    assert saved[1024] <= 4 * saved[256]
    assert peak[1024] < 4.1 * peak[256]
    scores_of_a_round = 1024 * 128 * 8
    assert peak[1024] < scores_of_a_round


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_the_historic_combinations(preset: str) -> None:
    qk = vectors(1, 1, 30, 4, seed=1)
    assert lsh_attention(qk, qk, chunk_length=8, **PRESETS[preset]).output.isfinite().all()  # type: ignore[arg-type]


def x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("num_buckets=7", {"num_buckets": 7}),
        ("num_buckets=0", {"num_buckets": 0}),
        ("num_buckets=-2", {"num_buckets": -2}),
        (r"num_buckets=\(4, 3\)", {"num_buckets": (4, 3)}),
        (r"num_buckets=\(\)", {"num_buckets": ()}),
        ("num_hashes=0", {"num_hashes": 0}),
        ("chunk_length=0", {"chunk_length": 0, "num_buckets": 4}),
        ("chunk_length=0", {"chunk_length": 0}),
        ("chunks_before=-1", {"chunks_before": -1}),
        ("chunks_after=-3", {"chunks_after": -3}),
        ("coverage='all'", {"coverage": "all"}),
        ("cross_bucket=True.*coverage='bucket'", {"coverage": "bucket", "cross_bucket": True}),
        ("dropout_p=1.0", {"dropout_p": 1.0}),
        ("dropout_p=-0.1", {"dropout_p": -0.1}),
        ("key_scale='raw'", {"key_scale": "raw"}),
        ("backend='cuda'.*reference, torch", {"backend": "cuda"}),
        (r"\(1, 1, 0, 4\)", {"qk": x(1, 1, 0, 4), "v": x(1, 1, 0, 4)}),
        (r"\(1, 10, 4\)", {"qk": x(1, 10, 4)}),
        (r"\(1, 1, 9, 4\)", {"v": x(1, 1, 9, 4)}),
        ("float64", {"v": x(1, 1, 10, 4, dtype=torch.float64)}),
        ("int64", {"qk": x(1, 1, 10, 4, dtype=torch.int64), "v": x(1, 1, 10, 4, dtype=torch.int64)}),
        (r"key_padding_mask of shape \(1, 9\)", {"key_padding_mask": torch.zeros(1, 9, dtype=torch.bool)}),
        ("key_padding_mask.*float32", {"key_padding_mask": torch.zeros(1, 10)}),
        (r"rotations of shape \(1, 1, 5, 4, 2\)", {"rotations": x(1, 1, 5, 4, 2), "num_buckets": 4}),
        (r"rotations of shape \(1, 1, 4, 4, 3\)", {"rotations": x(1, 1, 4, 4, 3), "num_buckets": 4}),
        (r"rotations of shape \(3, 1, 4, 4, 2\)", {"rotations": x(3, 1, 4, 4, 2), "num_buckets": 4}),
        ("num_hashes=4, but.* 2 rounds", {"rotations": x(1, 1, 4, 2, 2), "num_buckets": 4}),
        ("num_hashes=4, but.* 1 rounds", {"buckets": torch.zeros(1, 1, 1, 10, dtype=torch.int64)}),
        (r"buckets of shape \(1, 1, 4, 9\)", {"buckets": torch.zeros(1, 1, 4, 9, dtype=torch.int64)}),
        ("buckets.*int32", {"buckets": torch.zeros(1, 1, 4, 10, dtype=torch.int32)}),
        ("buckets", {"buckets": torch.zeros(4, 10, dtype=torch.int64)}),
        ("rotations", {"rotations": x(4, 2), "num_buckets": 4}),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_errors_name_the_value(message: str, arguments: dict[str, Any]) -> None:
    arguments = {"qk": x(1, 1, 10, 4), "v": x(1, 1, 10, 4)} | arguments
    with pytest.raises(UserError, match=message):
        lsh_attention(**arguments)
