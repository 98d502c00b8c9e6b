"""LSH attention once more, as literal as Python can say it: loops over the sets P_i of PAPER section 2, for small sizes.

Also the naive dense formula in any precision, and the rule by which fast results are judged.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_lab.ops.lsh_attention import unusable

DEVICE = torch.device(os.environ.get("REFORMER_LAB_TEST_DEVICE", "cpu"))
"""Where the tests of LSH attention compute: "cuda" on a machine with a GPU (scripts/gpu.sh)."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Who sees whom: the options of `lsh_attention` that decide it."""

    chunk_length: int = 4
    chunks_before: int = 1
    chunks_after: int = 0
    causal: bool = True
    coverage: str = "chunk"
    cross_bucket: bool = False

    def of(self, buckets: Sequence[int], padding: Sequence[bool]) -> list[set[int]]:
        """Return P_i of one round for every i: without i itself."""
        length = len(buckets)
        order = sorted(range(length), key=lambda i: (padding[i], buckets[i], i))
        chunk = {position: place // self.chunk_length for place, position in enumerate(order)}
        sets = []
        for i in range(length):
            found = set()
            for j in range(length):
                near = -self.chunks_after <= chunk[i] - chunk[j] <= self.chunks_before
                if i == j or padding[i] or padding[j] or (self.causal and j > i):
                    continue
                if self.coverage == "chunk" and not near:
                    continue
                if buckets[i] != buckets[j] and not self.cross_bucket:
                    continue
                found.add(j)
            sets.append(found)
        return sets


def brute_force(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    sets: Sets,
    padding: Tensor | None = None,
    correct_duplicates: bool = True,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return output (B, H, L, D_v) and logsumexp (B, H, L): o_i = sum_r exp(z_r - z) o_r, with log N_ij inside round r."""
    batch, heads, length, _ = qk.shape
    output = torch.zeros(batch, heads, length, v.shape[-1], dtype=torch.float64)
    logsumexp = torch.full((batch, heads, length), -math.inf, dtype=torch.float64)
    for b in range(batch):
        padded = [False] * length if padding is None else padding[b].tolist()
        for h in range(heads):
            queries, values = qk[b, h].double().tolist(), v[b, h].double().tolist()
            rounds = [sets.of(ids, padded) for ids in buckets[b, h].tolist()]
            for i in range(length):
                if padded[i]:
                    continue
                found = [round_sets[i] for round_sets in rounds]
                if not any(found):
                    found = [{i}]
                    correct = False
                else:
                    correct = correct_duplicates
                z_rounds, o_rounds = [], []
                for in_round in found:
                    if not in_round:
                        continue
                    logits = {
                        j: scale * dot(queries[i], unit(queries[j])) - math.log(sum(j in s for s in found) if correct else 1)
                        for j in in_round
                    }
                    z = log_sum_exp(list(logits.values()))
                    z_rounds.append(z)
                    o_rounds.append([sum(math.exp(logits[j] - z) * values[j][c] for j in in_round) for c in range(v.shape[-1])])
                z = log_sum_exp(z_rounds)
                logsumexp[b, h, i] = z
                for z_round, o_round in zip(z_rounds, o_rounds, strict=True):
                    output[b, h, i] += math.exp(z_round - z) * torch.tensor(o_round, dtype=torch.float64)
    return output, logsumexp


def dot(x: Sequence[float], y: Sequence[float]) -> float:
    """Return x . y."""
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def unit(x: Sequence[float]) -> list[float]:
    """Return x / |x|; zero stays zero."""
    norm = math.sqrt(dot(x, x))
    return [a / norm if norm else 0.0 for a in x]


def log_sum_exp(x: Sequence[float]) -> float:
    """Return log(sum(exp(x)))."""
    largest = max(x)
    return largest + math.log(math.fsum(math.exp(a - largest) for a in x))


def naive(qk: Tensor, v: Tensor, counts: Tensor, correct_duplicates: bool = True, scale: float = 1.0) -> Tensor:
    """Return the dense formula with every step in the dtype of qk. counts (B, H, L, L): in how many rounds i sees j."""
    k = qk / qk.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(qk.dtype).tiny) * scale
    logits = qk @ k.transpose(-1, -2)
    if not correct_duplicates:
        logits = logits + counts.clamp(min=1).to(qk.dtype).log()
    visible = counts > 0
    empty = ~visible.any(-1, keepdim=True)
    weights = logits.masked_fill(~visible & ~empty, -math.inf).softmax(-1).masked_fill(empty, 0)
    return weights @ v


def assert_as_exact_as_naive(fast: Tensor, same_precision: Tensor, exact: Tensor, what: str) -> None:
    """Check |fast - fp64| <= 2 |naive, same precision - fp64| + rounding floor.

    The floor is what writing the result down in its precision costs: half a unit in the last place of the largest number.
    """
    assert exact.dtype == torch.float64
    assert fast.dtype == same_precision.dtype
    error = (fast.double() - exact).abs().max().item()
    allowed = 2 * (same_precision.double() - exact).abs().max().item()
    allowed += torch.finfo(fast.dtype).eps / 2 * exact.abs().max().item()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers that follow from the shape and the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)


def random_buckets(batch: int, heads: int, rounds: int, length: int, num_buckets: int, seed: int = 0) -> Tensor:
    """Return bucket ids (batch, heads, rounds, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_buckets, (batch, heads, rounds, length), generator=generator, device="cpu").to(DEVICE)


def padding_mask(kind: str, batch: int, length: int, seed: int = 0) -> Tensor | None:
    """Return a mask (batch, length): "none", "right", "left", "random", or "row" (a whole example)."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, length, dtype=torch.bool, device="cpu")
    for b in range(batch):
        some = int(torch.randint(length + 1, (), generator=generator, device="cpu"))
        if kind == "right":
            mask[b, length - some :] = True
        elif kind == "left":
            mask[b, :some] = True
        elif kind == "random":
            mask[b] = torch.rand(length, generator=generator, device="cpu") < 0.4
        elif kind == "row":
            mask[b] = b == batch - 1
    return mask.to(DEVICE)


def usable(*backends: str) -> tuple[str, ...]:
    """Return those of the backends that can be used here; their own files of tests, where they cannot, skip and say why."""
    return tuple(name for name in backends if unusable(name, DEVICE) is None)
