"""Local attention as an operator of torch.library: what torch.compile and torch.export see is what runs."""

from typing import Any

import pytest
import torch
from brute_force import padding_mask, usable, vectors
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.ops import local_attention
from reformer_lab.ops.local_attention import operator
from reformer_lab.ops.local_attention.options import LocalOptions
from reformer_lab.ops.lsh_attention import operator as lsh_operator

BACKENDS = ("torch", *usable("native"))
OPTIONS: dict[str, Any] = {"chunk_length": 8, "chunks_after": 1, "causal": False}


@pytest.fixture(params=BACKENDS)
def behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that stands behind the operator."""
    monkeypatch.setattr(operator, "choose_backend", lambda *_: request.param)
    return str(request.param)


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [vectors(2, 3, 50, width, seed=seed, dtype=dtype).requires_grad_() for seed, width in enumerate((8, 8, 5))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout: str, dtype: torch.dtype, behind: str) -> None:
    """torch's own checks: the schema, the fake implementation (shapes, types, strides), autograd."""
    given = [x.detach() for x in inputs(dtype)]
    if layout == "transposed":
        given = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    options = LocalOptions(chunk_length=8, chunks_before=1, chunks_after=0, causal=True, dropout_p=0.1, dropout_seed=3)
    values, mask = ("auto", *vars(options).values()), padding_mask("random", 2, 50)
    if behind == "torch":
        # The checks look into tensors' memory, and those of torch.func, in its backward pass, have none.
        call, checks = (*given, mask, *values), ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.reformer_lab.local_attention.default, call, test_utils=checks)
        return
    call = (*(x.requires_grad_() for x in given), mask, *values)
    torch.library.opcheck(torch.ops.reformer_lab.local_attention.default, call)
    with torch.no_grad():
        output, logsumexp = torch.ops.reformer_lab.local_attention(*call)
        call = (*given, mask, output, logsumexp, output.contiguous(), *values)
    torch.library.opcheck(torch.ops.reformer_lab.local_attention_backward.default, call, test_utils=(
        "test_schema", "test_faketensor",
    ))  # fmt: skip


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no-dropout", "dropout"])
def test_compiles_into_one_graph(dropout: float) -> None:
    """Nothing is generated: the graph runs as traced."""
    mask = padding_mask("right", 2, 50)
    options = LocalOptions(**{"chunks_before": 1, "dropout_p": dropout, **OPTIONS})

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return operator.attend("auto", q, k, v, mask, options).sin().sum()

    found = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        given = inputs()
        result = call(*given)
        found.append((result.detach(), *torch.autograd.grad(result, given)))
    for plain, compiled in zip(*found, strict=True):
        assert torch.equal(plain, compiled)


class Attention(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return local_attention(q, k, v, **OPTIONS)


def test_the_choice_of_a_backend_is_made_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program exported on one machine runs on another, which may have no compiler."""
    with torch.no_grad():
        program = torch.export.export(Attention(), tuple(inputs()))
        expected = Attention()(*inputs())
        assert torch.equal(program.module()(*inputs()), expected)
        monkeypatch.setattr(operator.native, "forward", None)
        monkeypatch.setattr(lsh_operator, "unusable", lambda *_: "not here")
        torch.testing.assert_close(program.module()(*inputs()), expected)


def test_a_backend_that_cannot_be_used_is_an_error_if_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsh_operator, "unusable", lambda *_: "not here")
    local_attention(*inputs())
    with pytest.raises(UserError, match="backend='native' cannot be used: not here"):
        local_attention(*inputs(), backend="native")


@pytest.mark.usefixtures("behind")
def test_a_second_derivative_is_refused() -> None:
    given = inputs()
    output = local_attention(*given, **OPTIONS)
    (d_q,) = torch.autograd.grad(output.sum(), given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        d_q.sum().backward()
