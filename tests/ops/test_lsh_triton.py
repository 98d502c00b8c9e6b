"""The backend in Triton: a sample of what every backend is held to, small enough for triton's interpreter, and what is its own.

On a GPU the other files' whole grids run on it too (scripts/gpu.sh).
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_lsh_backends
import test_lsh_precision
import test_lsh_properties
import torch
from brute_force import DEVICE, padding_mask, random_buckets, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import draw_rotations, hash_vectors, lsh_attention
from reformer_lab.ops.lsh_attention import choose_backend, chunked, operator, triton, unusable
from reformer_lab.ops.lsh_attention.options import LSHOptions

WHY_NOT = unusable("triton", DEVICE)
needs_triton = pytest.mark.skipif(WHY_NOT is not None, reason=f"backend='triton' cannot be used here: {WHY_NOT}")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
KINDS: dict[str, dict[str, Any]] = {"chunk": {}, "cross": {"cross_bucket": True}, "bucket": {"coverage": "bucket"}}
PADDINGS = ("none", "right", "left", "random", "row")


def call(qk: Tensor, v: Tensor, **options: Any) -> list[Tensor]:
    qk, v = qk.clone().requires_grad_(), v.clone().requires_grad_()
    result = lsh_attention(qk, v, **options)
    (result.output.sin().sum() + result.logsumexp.nan_to_num(neginf=0).sin().sum()).backward()
    assert qk.grad is not None
    assert v.grad is not None
    return [result.output.detach(), result.logsumexp.detach(), qk.grad, v.grad]


def assert_as_the_reference(qk: Tensor, v: Tensor, **options: Any) -> None:
    seed = options.pop("generator_seed", 0)
    expected, found = (
        call(qk, v, backend=backend, generator=torch.Generator().manual_seed(seed), **options)
        for backend in ("reference", "triton")
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def assert_same_bits(one: list[Tensor], two: list[Tensor]) -> None:
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@needs_triton
@pytest.mark.parametrize("case", range(20))
def test_every_pair_of_options(case: int) -> None:
    """Every two settings of padding, kind, causality, correction, dropout and key scale meet in one of the cases."""
    corrected, causal = bool(case % 2), bool(case // 2 % 2)
    before, after = test_lsh_backends.WINDOWS[case % 9]
    length = (130, 61, 97, 7, 1)[case // 4]
    assert_as_the_reference(
        vectors(1, 2, length, 6, seed=case), vectors(1, 2, length, 5, seed=case + 50), num_hashes=(3, 2, 1)[case // 4 % 3],
        num_buckets=(6, (2, 4), 12, (4, 2, 2))[case % 4], chunk_length=(7, 16, 40)[case % 3], chunks_before=before,
        chunks_after=after, causal=causal, correct_duplicates=corrected,
        key_padding_mask=padding_mask(PADDINGS[case % 5], 1, length),
        dropout_p=0.3 * (case // 3 % 2), key_scale=("unit", "unit_over_sqrt_d")[case // 5 % 2],
        generator_seed=case, **KINDS[tuple(KINDS)[case % 3]],
    )  # fmt: skip


@needs_triton
@settings(max_examples=8 if interpreted else 60)
@given(
    length=st.integers(1, 150), rounds=st.integers(1, 4), num_buckets=st.sampled_from([2, 16, (4, 6)]),
    chunk_length=st.integers(1, 40), window=st.sampled_from(test_lsh_backends.WINDOWS), causal=st.booleans(),
    kind=st.sampled_from(tuple(KINDS)), padding=st.sampled_from(PADDINGS), corrected=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]), d_head=st.integers(1, 33), d_value=st.integers(1, 33), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_combination(
    length: int, rounds: int, num_buckets: Any, chunk_length: int, window: tuple[int, int], causal: bool, kind: str,
    padding: str, corrected: bool, dropout: float, d_head: int, d_value: int, seed: int,
) -> None:  # fmt: skip
    assert_as_the_reference(
        vectors(1, 1, length, d_head, seed=seed), vectors(1, 1, length, d_value, seed=seed + 1), num_hashes=rounds,
        num_buckets=num_buckets, chunk_length=chunk_length, chunks_before=window[0], chunks_after=window[1], causal=causal,
        key_padding_mask=padding_mask(padding, 1, length, seed), correct_duplicates=corrected, dropout_p=dropout,
        generator_seed=seed, **KINDS[kind],
    )  # fmt: skip


@needs_triton
@pytest.mark.parametrize("widths", [(1, 1), (3, 64), (17, 5), (16, 16), (32, 32), (64, 64), (70, 128), (128, 128)], ids=str)
def test_widths(widths: tuple[int, int]) -> None:
    qk, v = vectors(1, 1, 150, widths[0], seed=1), vectors(1, 1, 150, widths[1], seed=2)
    assert_as_the_reference(qk, v, num_hashes=2, chunk_length=16)


@needs_triton
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_many_blocks(kind: str, causal: bool) -> None:
    """Buckets and windows longer than the block that a program owns and the block that it looks at."""
    buckets = random_buckets(1, 1, 2, 300, 2)
    assert_as_the_reference(
        vectors(1, 1, 300, 8, seed=1), vectors(1, 1, 300, 8, seed=2), num_hashes=2, buckets=buckets, chunk_length=100,
        chunks_after=1, causal=causal, **KINDS[kind],
    )  # fmt: skip


@needs_triton
def test_gradcheck() -> None:
    test_lsh_backends.test_gradcheck_of_output_and_logsumexp("triton", 0.3, "chunk", "random")


PRECISION_CASES = [
    (torch.float32, True, "chunk", True, "random", 1), (torch.float32, False, "bucket", True, "none", 3),
    (torch.bfloat16, True, "chunk", True, "none", 3), (torch.bfloat16, False, "bucket", False, "random", 0.5),
    (torch.bfloat16, True, "bucket", True, "random", 1), (torch.float16, True, "chunk", False, "none", 1),
    (torch.float16, False, "bucket", True, "random", 3),
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize("case", PRECISION_CASES, ids=str)
def test_error_at_most_twice_the_naive_one(case: Any) -> None:
    test_lsh_precision.test_error_at_most_twice_the_naive_one("triton", *case)


@needs_triton
def test_precisions_of_the_results() -> None:
    test_lsh_precision.test_logsumexp_is_single_precision("triton", torch.bfloat16)
    test_lsh_precision.test_half_precision_under_autocast_equals_that_without("triton")


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_value_changes_nothing(kind: str) -> None:
    test_lsh_properties.test_a_padded_value_changes_nothing("triton", 0.2, kind, "random", float("nan"))


@needs_triton
def test_padding_gets_nothing_from_the_kernels_themselves() -> None:
    """`lsh_attention` hides padding before and after; called directly, the kernels do too."""
    qk, v, mask = vectors(2, 2, 40, 8, seed=1), vectors(2, 2, 40, 5, seed=2), padding_mask("random", 2, 40)
    buckets = random_buckets(2, 2, 2, 40, 4)
    options = LSHOptions(
        num_hashes=2, chunk_length=8, chunks_before=1, chunks_after=0, causal=True, coverage="chunk", cross_bucket=False,
        correct_duplicates=True, logit_scale=1.0, dropout_p=0.1, dropout_seed=3,
    )  # fmt: skip
    d_output, d_logsumexp = vectors(2, 2, 40, 5, seed=3), vectors(2, 2, 40, seed=4)
    found = []
    for backend in (triton, chunked):
        output, *kept = backend.forward(qk, v, buckets, mask, options)
        gradients = backend.backward(qk, v, buckets, mask, output, *kept[1:], options, d_output, d_logsumexp)
        found.append([output, *kept, *gradients])
        for x in (output, *gradients):
            assert (x[mask[:, None].expand(2, 2, 40)] == 0).all()
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@needs_triton
def test_neither_examples_nor_later_values_leak() -> None:
    test_lsh_properties.test_examples_do_not_touch_each_other("triton", "cross", 0)
    test_lsh_properties.test_no_later_value_is_read("triton", "chunk")


@needs_triton
@pytest.mark.parametrize("size", [1e-160, 1e-6, 1e3, 1e6], ids=str)
def test_logits_of_any_size(size: float) -> None:
    """Weights that underflow, and a softmax that is one-hot; d_qk is large where qk is small, so outputs alone."""
    qk, v = vectors(1, 1, 100, 8, seed=1) * size, vectors(1, 1, 100, 8, seed=2)
    found, expected = (lsh_attention(qk, v, chunk_length=32, backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.logsumexp, expected.logsumexp, rtol=1e-12, atol=1e-12)


@needs_triton
def test_short_vectors_in_half_precision() -> None:
    """1 / |x| is beyond fp16; the gradient by x of logits of about 0 is finite all the same, as the reference's."""
    qk = vectors(1, 1, 80, 8, seed=1, dtype=torch.float16) * 1e-4
    v = vectors(1, 1, 80, 8, seed=2, dtype=torch.float16)
    found, expected = (call(qk, v, chunk_length=32, backend=backend) for backend in ("triton", "reference"))
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found[2], expected[2], rtol=0.02, atol=0.02 * expected[2].abs().max().item())


@needs_triton
def test_tied_vectors_zero_vectors_and_bucket_ids_far_apart() -> None:
    qk = vectors(1, 1, 70, 4, seed=1)
    qk[..., 5:9, :] = qk[..., 4:5, :]
    qk[..., ::7, :] = 0
    assert_as_the_reference(qk, vectors(1, 1, 70, 4, seed=2), num_hashes=2, num_buckets=4, chunk_length=8)
    buckets = (random_buckets(1, 1, 2, 70, 5) - 2) * 10**15
    mask = padding_mask("random", 1, 70)
    assert_as_the_reference(qk, qk, num_hashes=2, buckets=buckets, chunk_length=8, key_padding_mask=mask)


@needs_triton
def test_window_wider_than_the_sequence_and_codes_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    qk, v = vectors(1, 1, 70, 4, seed=1), vectors(1, 1, 70, 4, seed=2)
    assert_as_the_reference(qk, v, num_hashes=2, chunk_length=8, chunks_before=2**62)
    assert_as_the_reference(qk, v, num_hashes=2, chunk_length=2**62, chunks_after=1, causal=False)
    monkeypatch.setattr(triton, "MAX_CODE", 100)
    assert_as_the_reference(qk, v, num_hashes=2, chunk_length=8)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_result_does_not_depend_on_how_many_sequences_go_together(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on how the rows lie in memory: strides of every kind, gradients that are one number repeated."""
    qk, v = (vectors(2, 50, 3, 8, seed=seed, dtype=dtype).transpose(1, 2) for seed in (1, 2))
    options: dict[str, Any] = {
        "num_hashes": 2, "chunk_length": 8, "key_padding_mask": padding_mask("random", 2, 50), "dropout_p": 0.2,
        "backend": "triton",
    }  # fmt: skip

    def gradients(qk: Tensor, v: Tensor) -> list[Tensor]:
        qk, v = qk.detach().requires_grad_(), v.detach().requires_grad_()
        result = lsh_attention(qk, v, **options)
        result.output.sum().backward()
        assert qk.grad is not None
        assert v.grad is not None
        return [result.output.detach(), result.logsumexp.detach(), qk.grad, v.grad]

    expected = gradients(qk.contiguous(), v.contiguous())
    assert_same_bits(gradients(qk, v), expected)
    assert_same_bits(gradients(*(torch.stack([x, x], -1)[..., 0] for x in (qk, v))), expected)
    bytes_each = 50 * 300
    for sequences in (1, 4):
        monkeypatch.setattr(triton, "SCRATCH_BYTES", sequences * bytes_each)
        assert_same_bits(gradients(qk, v), expected)


@needs_triton
@pytest.mark.skipif(not interpreted, reason="only triton's interpreter lets programs be reordered")
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_in_any_order_of_the_programs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program reads what another one of its launch writes, and no sum depends on which comes first."""
    from triton.runtime.interpreter import interpreter_builder

    qk, v = vectors(1, 2, 150, 8, seed=1, dtype=torch.bfloat16), vectors(1, 2, 150, 8, seed=2, dtype=torch.bfloat16)
    options: dict[str, Any] = {"num_hashes": 2, "chunk_length": 32, "dropout_p": 0.1, "backend": "triton", **KINDS[kind]}
    first = call(qk, v, **options)
    assert_same_bits(call(qk, v, **options), first)
    in_order = interpreter_builder.set_grid_idx

    def reversed_order(x: int, y: int, z: int) -> None:
        in_order(interpreter_builder.grid_dim[0] - 1 - x, y, z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", reversed_order)
    assert_same_bits(call(qk, v, **options), first)


@needs_triton
@pytest.mark.skipif(interpreted, reason="the interpreter runs programs one by one")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_every_time_on_a_gpu(dtype: torch.dtype, kind: str) -> None:
    qk, v = (vectors(2, 4, 5000, 64, seed=seed, dtype=dtype) for seed in (1, 2))
    first = call(qk, v, dropout_p=0.1, backend="triton", **KINDS[kind])
    for _ in range(5):
        assert_same_bits(call(qk, v, dropout_p=0.1, backend="triton", **KINDS[kind]), first)


@needs_triton
@pytest.mark.parametrize("factors", [(2,), (6,), (4, 2, 2), (64, 34), (130, 6)], ids=str)
def test_hashing_is_that_of_the_definition(factors: tuple[int, ...]) -> None:
    """Whole numbers: products are exact, so that many are equal and the first must win. Half precisions are hashed in fp32."""
    x = (vectors(2, 2, 70, 8, seed=1) * 2).round().transpose(2, 3).contiguous().transpose(2, 3)
    rotations = (draw_rotations(1, 2, 8, 3, factors, torch.Generator().manual_seed(1)) * 2).round().to(DEVICE)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        found = operator.hash_vectors("triton", x.to(dtype), rotations, factors)
        assert torch.equal(found, hash_vectors(x, rotations, factors))
        assert found.max() < math.prod(factors)
    # Any numbers: a vector on the border of two buckets may go to either.
    rotations = draw_rotations(2, 1, 8, 3, factors, torch.Generator().manual_seed(1)).to(DEVICE)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = vectors(2, 2, 70, 8, seed=1, dtype=dtype)
        found = operator.hash_vectors("triton", x, rotations, factors)
        assert (found != hash_vectors(x, rotations, factors)).sum() <= 1


@needs_triton
def test_it_is_an_operator_of_torch() -> None:
    """What torch.compile and torch.export see of it is what runs; test_lsh_operator.py says the same of all backends."""
    from test_lsh_operator import test_compiles_into_one_graph, test_opcheck

    test_opcheck("triton", "transposed", torch.bfloat16)
    test_compiles_into_one_graph("triton", torch.float32)


def test_why_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    qk = vectors(1, 1, 10, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"backend='triton' cannot be used: .*pip install"):
        lsh_attention(qk, qk, backend="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert "the tensors are on cpu" in str(unusable("triton", torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in str(unusable("triton"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert unusable("triton", torch.device("cpu"), torch.float16, 128) is None
    assert "130" in str(unusable("triton", torch.device("cpu"), torch.float16, 130))
    assert "int8" in str(unusable("triton", torch.device("cpu"), torch.int8))


def test_auto_takes_it_on_a_gpu_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unusable", lambda device, dtype, width: "too wide" if width > 128 else None)
    gpu = torch.device("cuda")
    assert choose_backend("auto", gpu, torch.bfloat16, 128) == "triton"
    assert choose_backend("auto", gpu, torch.bfloat16, 256) == "torch"
    assert choose_backend("auto", torch.device("cpu"), torch.bfloat16, 128) != "triton"


COMPILED = [
    ("bfloat16 x 64", "bfloat16 x 128", "odd widths, eight rounds"), ("float32 x 64", "float32 x 128", "float16 x 128"),
    ("float64 x 64", "float64 x 128"), ("cross, both ways, dropout", "bucket, as often", "one round"),
]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("cases", COMPILED, ids=lambda cases: cases[0])
def test_compiles_for_an_h200(cases: tuple[str, ...]) -> None:
    """To machine code, with what a multiprocessor has of shared memory, without TF32, and without fp64 where none is asked."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    process = subprocess.run([sys.executable, script, *cases], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    kernels = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(kernels) == 5 * len(cases)
    for facts in kernels:
        assert facts["machine_code"] > 0, facts
        assert facts["shared"] <= 227 * 1024, facts
        assert not facts["tf32"], facts
        assert not facts["double"] or facts["case"].startswith("float64"), facts
        if facts["kernel"] in ("forward", "backward", "hash_digit"):
            assert facts["tensor_cores"] == (not facts["case"].startswith("float32")), facts
