"""The backend in C++, beyond what every backend is held to: threads, odd sizes, and machines without a compiler."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import padding_mask, random_buckets, vectors
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import lsh_attention
from reformer_lab.ops.lsh_attention import choose_backend, native, unusable
from reformer_lab.ops.lsh_attention.native import build
from reformer_lab.ops.lsh_attention.options import LSHOptions

WHY_NOT = unusable("native")
needs_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=f"backend='native' cannot be used here: {WHY_NOT}")
KINDS: dict[str, dict[str, Any]] = {"chunk": {}, "cross": {"cross_bucket": True}, "bucket": {"coverage": "bucket"}}


def call(qk: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    result = lsh_attention(qk, v, **options)
    (result.output.sin().sum() + result.logsumexp.nan_to_num(neginf=0).sin().sum()).backward()
    assert qk.grad is not None
    assert v.grad is not None
    return [result.output.detach(), result.logsumexp.detach(), qk.grad, v.grad]


def assert_as_the_reference(qk: Tensor, v: Tensor, **options: Any) -> None:
    expected, found = (call(qk, v, backend=backend, **options) for backend in ("reference", "native"))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_buckets", [2, (8, 8)], ids=str)
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_same_bits_for_any_number_of_threads(
    heads: int, num_buckets: int | tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few heads, or one left over: several threads share one. Windows reach from one segment into the next."""
    monkeypatch.setattr(native, "ROWS_PER_THREAD", 1)
    length = 5000
    qk, v = (vectors(1, heads, length, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    mask = padding_mask("random", 1, length)
    found = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(call(qk, v, num_buckets=num_buckets, chunk_length=32, key_padding_mask=mask, dropout_p=0.1,
                          backend="native", **KINDS[kind]))  # fmt: skip
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@needs_compiler
@pytest.mark.parametrize("widths", [(8, 8), (5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_with_and_without_records(
    kind: str, dtype: torch.dtype, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read and written where they lie in the tensors, where these allow it."""
    qk, v = (vectors(2, 300, 3, width, seed=width, dtype=dtype).transpose(1, 2) for width in widths)
    mask, found = padding_mask("random", 2, 300), []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(native, "RECORDS_BYTES", limit)
        found.append(call(qk, v, chunk_length=16, key_padding_mask=mask, backend="native", **KINDS[kind]))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@needs_compiler
def test_any_strides() -> None:
    contiguous = [vectors(2, 3, 100, 8, seed=seed) for seed in (1, 2)]
    strided = [x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for x in contiguous]
    shared = [x[:1, :1].expand(2, 3, 100, 8) for x in contiguous]
    buckets, options = random_buckets(2, 3, 2, 100, 8), LSHOptions(
        num_hashes=2, chunk_length=16, chunks_before=1, chunks_after=0, causal=True, coverage="chunk", cross_bucket=False,
        correct_duplicates=True, logit_scale=1.0, dropout_p=0.0,
    )  # fmt: skip
    for given in (strided, shared):
        results = []
        for qk, v in (given, [x.contiguous() for x in given]):
            output, logsumexp, maximum, total = native.forward(qk, v, buckets, None, options)
            d_output = v.flip(2) if v.is_contiguous() else strided_like(v, v.flip(2))
            gradients = native.backward(qk, v, buckets, None, output, maximum, total, options, d_output, logsumexp)
            results.append((output, logsumexp, maximum, total, *gradients))
        for one, two in zip(*results, strict=True):
            assert one.is_contiguous()
            assert torch.equal(one, two)


def strided_like(x: Tensor, values: Tensor) -> Tensor:
    """Return the values in memory of another order of dimensions."""
    assert not x.is_contiguous()
    return values.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


@needs_compiler
@pytest.mark.parametrize("size", [1e-7, 1, 1.5e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_single_precision_rounded_once(dtype: torch.dtype, size: float) -> None:
    """Sizes: below the smallest normal number of fp16, ordinary, and gradients beyond its largest."""
    qk = vectors(1, 2, 200, 8, seed=1, dtype=dtype)
    v, weight = (vectors(1, 2, 200, 8, seed=seed).abs().mul(size).to(dtype) for seed in (2, 3))
    results = []
    for precision in (dtype, torch.float32):
        a, b = (x.to(precision).clone().requires_grad_() for x in (qk, v))
        output = lsh_attention(a, b, num_buckets=2, chunk_length=100, backend="native").output
        output.backward(weight.to(precision))
        assert b.grad is not None
        results.append((output.detach().to(dtype), b.grad.to(dtype)))
    if dtype == torch.float16 and size > 1:
        assert results[0][1].isinf().any()
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@needs_compiler
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_many_blocks_of_keys(kind: str, causal: bool) -> None:
    """Buckets and windows longer than a block of queries and than one of keys."""
    buckets = random_buckets(1, 1, 2, 700, 2)
    assert_as_the_reference(
        vectors(1, 1, 700, 8, seed=1), vectors(1, 1, 700, 8, seed=2), num_hashes=2, buckets=buckets, chunk_length=150,
        chunks_after=1, causal=causal, **KINDS[kind],
    )  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_many_blocks_in_single_precision(kind: str) -> None:
    """A vector has twice the keys of double precision: other columns begin and end a block."""
    options: dict[str, Any] = {
        "num_hashes": 2, "buckets": random_buckets(1, 1, 2, 700, 2), "chunk_length": 150, "causal": False, **KINDS[kind],
    }  # fmt: skip
    qk, v = (vectors(1, 1, 700, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    expected = call(qk.double(), v.double(), backend="reference", **options)
    for one, two in zip(call(qk, v, backend="native", **options), expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=0, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("widths", [(1, 1), (3, 64), (17, 5), (64, 64), (70, 130), (128, 33)], ids=str)
def test_widths(widths: tuple[int, int]) -> None:
    assert_as_the_reference(vectors(1, 2, 150, widths[0], seed=1), vectors(1, 2, 150, widths[1], seed=2), chunk_length=16)


@needs_compiler
@pytest.mark.parametrize("size", [1e-160, 1e-6, 30, 1e3, 1e6], ids=str)
def test_logits_of_any_size(size: float) -> None:
    """Weights that underflow, and a softmax that is one-hot; d_qk is large where qk is small, so outputs alone."""
    qk, v = vectors(1, 2, 200, 8, seed=1) * size, vectors(1, 2, 200, 8, seed=2)
    found, expected = (lsh_attention(qk, v, chunk_length=32, backend=backend) for backend in ("native", "reference"))
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.logsumexp, expected.logsumexp, rtol=1e-12, atol=1e-12)


@needs_compiler
def test_nan_stays_nan() -> None:
    qk, v = vectors(1, 1, 20, 4, seed=1), vectors(1, 1, 20, 4, seed=2)
    qk[0, 0, 3, 1] = math.nan
    buckets = torch.zeros(1, 1, 1, 20, dtype=torch.int64)
    result = lsh_attention(qk, v, num_hashes=1, buckets=buckets, chunk_length=32, backend="native")
    assert result.output[0, 0, 3:].isnan().all()
    assert result.output[0, 0, :3].isfinite().all()


@needs_compiler
def test_bucket_ids_far_apart() -> None:
    """Such ids are not counted but compared while sorting."""
    buckets = (random_buckets(1, 2, 3, 90, 5) - 2) * 10**15
    for options in KINDS.values():
        assert_as_the_reference(vectors(1, 2, 90, 4, seed=1), vectors(1, 2, 90, 4, seed=2), num_hashes=3, buckets=buckets,
                                chunk_length=8, **options)  # fmt: skip


@needs_compiler
def test_window_wider_than_the_sequence() -> None:
    assert_as_the_reference(vectors(1, 1, 50, 4, seed=1), vectors(1, 1, 50, 4, seed=2), chunk_length=8, chunks_before=10**12)


@needs_compiler
def test_too_many_codes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CODE_LIMIT", 100)
    with pytest.raises(UserError, match=r"length=50 .*backend='torch'"):
        lsh_attention(vectors(1, 1, 50, 4), vectors(1, 1, 50, 4), backend="native")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_auto_takes_it_on_a_cpu(dtype: torch.dtype) -> None:
    assert choose_backend("auto", torch.device("cpu"), dtype) == "native"


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """Forget the loaded kernel before and after."""
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_without_a_compiler_auto_is_torch_and_native_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert choose_backend("auto", torch.device("cpu"), torch.float32) == "torch"
    qk = vectors(1, 1, 10, 4)
    lsh_attention(qk, qk, chunk_length=4)
    with pytest.raises(UserError, match=r"backend='native' cannot be used: no C\+\+ compiler found .*\$CXX"):
        lsh_attention(qk, qk, chunk_length=4, backend="native")


@pytest.mark.usefixtures("fresh_library")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'kernel.cpp:1: error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "cache"))
    why_not = unusable("native")
    assert why_not is not None
    assert "no such luck" in why_not
    assert not list((tmp_path / "cache").rglob("*.*"))


COMPILER_THAT_COUNTS = """#!/bin/sh
[ "$1" = --version ] && exit 0
echo run >> "$COUNT"
sleep 1
[ -n "$KILL" ] && kill -9 $PPID
while [ "$1" != -o ]; do shift; done
cp "$LIBRARY" "$2"
"""


def start_process(tmp_path: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a process that asks for the kernel, with a compiler that copies a library and counts its runs."""
    compiler = tmp_path / "slow"
    compiler.write_text(COMPILER_THAT_COUNTS)
    compiler.chmod(0o755)
    library = build.library()[0]
    assert library is not None
    environment |= {
        "CXX": str(compiler), "LIBRARY": library._name, "COUNT": str(tmp_path / "count"),
        "REFORMER_LAB_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    code = "from reformer_lab.ops.lsh_attention.native import build; assert build.library()[0], build.library()[1]"
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment)


@needs_compiler
def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    processes = [start_process(tmp_path) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text().split() == ["run"]


@needs_compiler
def test_a_process_killed_while_it_compiles_holds_up_no_other(tmp_path: Path) -> None:
    assert start_process(tmp_path, KILL="1").wait(timeout=120) < 0
    assert start_process(tmp_path, KILL="").wait(timeout=120) == 0


@pytest.mark.usefixtures("fresh_library")
@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "file" / "cache"))
    why_not = unusable("native")
    assert why_not is not None
    assert "REFORMER_LAB_CACHE" in why_not


def test_the_kernel_is_named_after_all_it_follows_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho version 1\n")
    compiler.chmod(0o755)
    names = {build.identity([str(compiler)])}
    assert names == {build.identity([str(compiler)])}
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    names.add(build.identity([str(compiler)]))
    compiler.write_text("#!/bin/sh\necho version 2\n")
    names.add(build.identity([str(compiler)]))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    names.add(build.identity([str(compiler)]))
    assert len(names) == 4


def test_other_devices_are_refused() -> None:
    with pytest.raises(UserError, match="computes on CPUs, the tensors are on cuda"):
        choose_backend("native", torch.device("cuda"), torch.float32)
