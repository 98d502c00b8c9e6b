"""LSH attention as an operator of torch.library: what torch.compile and torch.export see is what runs."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from brute_force import padding_mask, random_buckets, usable, vectors
from torch import Tensor

from reformer_lab.ops import draw_rotations, lsh_attention
from reformer_lab.ops.lsh_attention import operator
from reformer_lab.ops.lsh_attention.options import LSHOptions

BACKENDS = usable("torch", "native", "triton")
OPTIONS: dict[str, Any] = {"num_hashes": 3, "num_buckets": (4, 2), "chunk_length": 8}


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    qk, v = vectors(2, 3, 50, 8, seed=1, dtype=dtype), vectors(2, 3, 50, 5, seed=2, dtype=dtype)
    rotations = draw_rotations(2, 3, 8, 3, (4, 2), torch.Generator().manual_seed(1))
    return qk.requires_grad_(), v.requires_grad_(), rotations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str, layout: str, dtype: torch.dtype) -> None:
    """torch's own checks: the schema, the fake implementation (shapes, types, strides), autograd."""
    qk, v, rotations = (x.detach() for x in inputs(dtype))
    if layout == "transposed":
        qk, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (qk, v))
    torch.library.opcheck(torch.ops.reformer_lab.lsh_hash.default, (qk, rotations, (4, 2), backend))
    options = LSHOptions(
        num_hashes=3, chunk_length=8, chunks_before=1, chunks_after=0, causal=True, coverage="chunk", cross_bucket=False,
        correct_duplicates=True, logit_scale=1.0, dropout_p=0.1, dropout_seed=3,
    )  # fmt: skip
    buckets, mask = random_buckets(2, 3, 3, 50, 8), padding_mask("random", 2, 50)
    values = tuple(vars(options).values())
    call = (qk.requires_grad_(), v.requires_grad_(), buckets, mask, backend, *values)
    torch.library.opcheck(torch.ops.reformer_lab.lsh_attention.default, call)
    with torch.no_grad():
        output, _, maximum, total = torch.ops.reformer_lab.lsh_attention(*call)
        gradients = (output.transpose(1, 2).contiguous().transpose(1, 2), total)
        call = (qk, v, buckets, mask, output, maximum, total, *gradients, backend, *values)
    torch.library.opcheck(
        torch.ops.reformer_lab.lsh_attention_backward.default, call, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_into_one_graph(backend: str, dtype: torch.dtype) -> None:
    """Rotations given: drawing them is not the graph's. Nothing is generated: the graph runs as traced."""
    mask = padding_mask("right", 2, 50)

    def function(qk: Tensor, v: Tensor, rotations: Tensor) -> Tensor:
        result = lsh_attention(qk, v, rotations=rotations, key_padding_mask=mask, backend=backend, **OPTIONS)
        return result.output.sin().sum() + result.logsumexp.masked_fill(mask[:, None], 0).sum()

    found = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        qk, v, rotations = inputs(dtype)
        result = call(qk, v, rotations)
        result.backward()
        found.append((result.detach(), qk.grad, v.grad))
    for plain, compiled in zip(*found, strict=True):
        assert torch.equal(plain, compiled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_exports(backend: str) -> None:
    class Attention(torch.nn.Module):
        def forward(self, qk: Tensor, v: Tensor, rotations: Tensor) -> Tensor:
            return lsh_attention(qk, v, rotations=rotations, backend=backend, **OPTIONS).output

    with torch.no_grad():
        program = torch.export.export(Attention(), inputs())
        assert torch.equal(program.module()(*inputs()), Attention()(*inputs()))


def test_the_choice_of_a_backend_is_made_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program exported on one machine runs on another, which may have no compiler."""

    class Attention(torch.nn.Module):
        def forward(self, qk: Tensor, v: Tensor, rotations: Tensor) -> Tensor:
            return lsh_attention(qk, v, rotations=rotations, **OPTIONS).output

    with torch.no_grad():
        program = torch.export.export(Attention(), inputs())
        expected = Attention()(*inputs())
        monkeypatch.setattr(operator, "unusable", lambda *_: "not here")
        torch.testing.assert_close(program.module()(*inputs()), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend: str) -> None:
    qk, v, rotations = inputs()
    output = lsh_attention(qk, v, rotations=rotations, backend=backend, **OPTIONS).output
    (d_qk,) = torch.autograd.grad(output.sum(), qk, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; backend='reference' has"):
        d_qk.sum().backward()


def test_loading_the_operators_does_not_load_the_compiler() -> None:
    """It takes a second or two, and nobody who does not compile needs it."""

    code = (
        "import sys, torch; from reformer_lab.ops import lsh_attention; x = torch.randn(1, 1, 9, 4, requires_grad=True);"
        "lsh_attention(x, x, backend='torch').output.sum().backward(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
