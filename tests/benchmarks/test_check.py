"""A backend that computes something else is found before it is measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from reformer_lab.benchmarks import check
from reformer_lab.benchmarks.check import CheckFailed, check_backends
from reformer_lab.ops import lsh_attention
from reformer_lab.ops.lsh_attention import LSHAttentionResult, unusable

CPU = torch.device("cpu")
BACKENDS = [name for name in ("native", "torch") if unusable(name) is None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_right_backends_pass(dtype: torch.dtype) -> None:
    check_backends([*BACKENDS, "auto"], CPU, dtype, 32)


def scaled_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor + (x * (1 - factor)).detach()


BROKEN: dict[str, tuple[Callable[[LSHAttentionResult], LSHAttentionResult], str]] = {
    "output": (lambda r: r._replace(output=r.output * 1.001), "output is off"),
    "one row": (lambda r: r._replace(output=r.output.index_fill(2, torch.tensor([r.output.shape[2] - 1]), 0)), "output is off"),
    "logsumexp": (lambda r: r._replace(logsumexp=r.logsumexp + 0.01), "logsumexp is off"),
    "gradient": (lambda r: r._replace(output=scaled_gradient(r.output, 1.001)), "d_qk is off"),
    "not a number": (lambda r: r._replace(output=r.output / 0), "output is not finite"),
    "hashing": (lambda r: r._replace(buckets=r.buckets.roll(1, -1)), "of the vectors are in the reference's buckets"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_ones_are_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks, message = BROKEN[fault]

    def broken(*arguments: Any, **options: Any) -> LSHAttentionResult:
        return breaks(lsh_attention(*arguments, **options))

    monkeypatch.setattr(check, "lsh_attention", broken)
    with pytest.raises(CheckFailed, match=f"backend 'torch' is wrong .*{message}"):
        check_backends(["torch"], CPU, torch.float32, 32)


def test_padding_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(*arguments: Any, **options: Any) -> LSHAttentionResult:
        return lsh_attention(*arguments, **{**options, "key_padding_mask": None})

    monkeypatch.setattr(check, "lsh_attention", blind)
    with pytest.raises(CheckFailed, match="131 tokens, padding"):
        check_backends(["torch"], CPU, torch.float32, 32)
