"""Causal attention side by side: this package's backends, the peers' layers and torch's exact attention.

"operator": queries, keys and values are given; ours hash them. "layer": the whole layer with its projections, as each
package ships it. A contender is a maker of a `Problem`: `OPERATORS` and `LAYERS` are the places to add one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from reformer_lab import __version__
from reformer_lab.benchmarks import peers
from reformer_lab.benchmarks.contest import FINISHED, Job, Progress, climb, hold_contest, summary
from reformer_lab.benchmarks.measure import resolve_device
from reformer_lab.benchmarks.worker import Work
from reformer_lab.errors import UserError
from reformer_lab.layers.attention import LSHSelfAttention
from reformer_lab.ops import lsh_attention
from reformer_lab.ops.hashing import default_num_buckets
from reformer_lab.ops.lsh_attention import BACKENDS, unusable
from reformer_lab.seeds import derive_seed

EXACT = "exact"
"""Name of the contender that the others are compared with."""
PASSES = ("forward", "forward+backward")
WARM_LENGTH = 1024
"""Tokens that a process computes before its memory is measured."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

MACHINE_COLUMNS = ("device", "device_name", "threads", "torch", "reformer_lab", "commit", "date")
COLUMNS = ("what", "contender", "version", "length", "pass", "status", "median", "low", "high", "repeats", "times_faster",
           "ratio_low", "ratio_high", "peak_bytes", "above_baseline_bytes", "batch_size", "num_heads", "d_head", "num_hashes",
           "chunk_length", "buckets", "precision", "error", *MACHINE_COLUMNS)
SCALING_COLUMNS = ("what", "contender", "version", "length", "pass", "status", "median", "low", "high", "repeats",
                   "seconds_per_token", "relative_time", "peak_bytes", "above_baseline_bytes", "bytes_per_token",
                   "relative_memory", "batch_size", "num_heads", "d_head", "num_hashes", "chunk_length", "buckets", "precision",
                   "error", *MACHINE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What every contender is asked to compute."""

    batch_size: int = 1
    """Sequences."""
    num_heads: int = 8
    """Attention heads."""
    d_head: int = 64
    """Width of one head; the layer is num_heads * d_head wide."""
    num_hashes: int = 4
    """Hash rounds; exact attention has none."""
    chunk_length: int = 64
    """Chunk of sorted tokens."""

    @property
    def width(self) -> int:
        """Width of the layer's input and output."""
        return self.num_heads * self.d_head


@dataclass(frozen=True)
class Problem:
    """One contender at one length."""

    function: Callable[..., Tensor]
    """Of `inputs` random tensors of the problem's size."""
    inputs: int
    """How many."""
    parameters: Sequence[Tensor] = ()
    """Of a layer: gradients for them are asked for too."""
    facts: Callable[[], dict[str, Any]] = dict
    """Columns that are known once it has run: "version", "buckets"."""


def _exact_operator(shape: LayerShape, length: int) -> Problem:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    return Problem(attend, 3, facts=lambda: {"version": f"torch {torch.__version__}"})


def _lsh_operator(backend: str) -> Callable[[LayerShape, int], Problem]:
    def make(shape: LayerShape, length: int) -> Problem:
        generator = torch.Generator().manual_seed(0)  # new rotations at each call, as in training

        def attend(qk: Tensor, v: Tensor) -> Tensor:
            return lsh_attention(qk, v, causal=True, num_hashes=shape.num_hashes, chunk_length=shape.chunk_length,
                                 backend=backend, generator=generator).output

        return Problem(attend, 2, facts=lambda: _our_facts(shape, length))

    return make


def _our_facts(shape: LayerShape, length: int) -> dict[str, Any]:
    return {"version": f"reformer-lab {__version__}", "buckets": _buckets(default_num_buckets(length, shape.chunk_length))}


def _buckets(number: int | Sequence[int]) -> str:
    return str(number) if isinstance(number, int) else "x".join(map(str, number))


def _exact_layer(shape: LayerShape, length: int) -> Problem:
    """Projections to queries, keys and values, torch's exact attention, a projection back."""
    projections = nn.ModuleList(nn.Linear(shape.width, shape.width, bias=False) for _ in range(4))
    *given, back = projections

    def attend(x: Tensor) -> Tensor:
        q, k, v = (projection(x).unflatten(-1, (shape.num_heads, shape.d_head)).transpose(1, 2) for projection in given)
        result: Tensor = back(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return result

    return _of_layer(projections, attend, lambda: {"version": f"torch {torch.__version__}"})


def _lsh_layer(backend: str) -> Callable[[LayerShape, int], Problem]:
    def make(shape: LayerShape, length: int) -> Problem:
        layer = LSHSelfAttention(shape.width, shape.num_heads, shape.d_head, num_hashes=shape.num_hashes,
                                 chunk_length=shape.chunk_length, backend=backend)
        return _of_layer(layer, layer, lambda: _our_facts(shape, length))

    return make


def _peer_layer(name: str) -> Callable[[LayerShape, int], Problem]:
    def make(shape: LayerShape, length: int) -> Problem:
        layer, buckets = peers.attention_layer(name, num_heads=shape.num_heads, d_head=shape.d_head,
                                               num_hashes=shape.num_hashes, chunk_length=shape.chunk_length, length=length)
        return _of_layer(layer, layer, lambda: {"version": peers.version(name), "buckets": _buckets(buckets())})

    return make


def _of_layer(layer: nn.Module, function: Callable[[Tensor], Tensor], facts: Callable[[], dict[str, Any]]) -> Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    layer.train()
    return Problem(function, 1, [*layer.parameters()], facts)


_OURS = {"lsh-native": "native", "lsh-torch": "torch", "lsh-triton": "triton"}
OPERATORS: dict[str, Callable[[LayerShape, int], Problem]] = {
    EXACT: _exact_operator,
    **{name: _lsh_operator(backend) for name, backend in _OURS.items()},
}
LAYERS: dict[str, Callable[[LayerShape, int], Problem]] = {
    EXACT: _exact_layer,
    **{name: _lsh_layer(backend) for name, backend in _OURS.items()},
    **{name: _peer_layer(name) for name in peers.DISTRIBUTIONS},
}
KINDS = {"operator": OPERATORS, "layer": LAYERS}


def why_not(contender: str, device: torch.device, precision: str) -> str | None:
    """Return in one line why a contender cannot run on this device in this precision; None if it can."""
    if contender in peers.DISTRIBUTIONS:
        return peers.why_not(contender)
    if contender not in _OURS:
        return None
    backend = _OURS[contender]
    if backend not in BACKENDS:
        return f"this version has no backend {backend!r}"
    return unusable(backend, device, PRECISIONS[precision])


def choose_contenders(what: str, device: torch.device, precision: str, only: Sequence[str] | None = None,
                      say: Callable[[str], None] = print) -> list[str]:
    """Return the contenders that can run, all of them or those of `only`; `say` is told who is left out and why.

    Raises UserError for a name that does not exist, or one of `only` that cannot run.
    """
    if what not in KINDS:
        raise UserError(f"--what {what}: choose operator or layer, or both with a comma")
    known = [name for kind in KINDS.values() for name in kind]
    for name in only or ():
        if name not in known:
            raise UserError(f"contender {name!r} does not exist; choose from {', '.join(dict.fromkeys(known))}")
    chosen = []
    elsewhere = "lsh-triton" if device.type == "cpu" else "lsh-native"  # no news that it computes on other devices
    for name in KINDS[what]:
        if only is not None and name not in only:
            continue
        reason = why_not(name, device, precision)
        if reason is None:
            chosen.append(name)
        elif only is not None:
            raise UserError(f"contender {name!r} cannot run: {reason}")
        elif name != elsewhere:
            say(f"without {name}: {reason}")
    return chosen


def backends_of(contenders: Sequence[str]) -> list[str]:
    """Return this package's backends among contenders."""
    return [_OURS[name] for name in contenders if name in _OURS]


def build(job: Job) -> Work:
    """Build what a job of `bench_attention` or `bench_scaling` names."""
    shape = LayerShape(**job["shape"])
    device, dtype, length = resolve_device(job["device"]), PRECISIONS[job["precision"]], job["length"]
    torch.manual_seed(0)  # the peers draw their rotations from the global generator
    problem = KINDS[job["what"]][job["contender"]](shape, length)
    size = (shape.batch_size, length, shape.width) if job["what"] == "layer" else (
        shape.batch_size, shape.num_heads, length, shape.d_head)

    def draw(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("attention", name))
        return torch.randn(size, generator=generator).to(device, dtype)

    inputs = [draw(f"input {index}").requires_grad_() for index in range(problem.inputs)]
    for parameter in problem.parameters:
        parameter.data = parameter.data.to(device, dtype)
    wanted = [*inputs, *problem.parameters]
    d_output = draw("gradient") if job["pass"] == "forward+backward" else None
    facts: dict[str, Any] = {}

    def run() -> None:
        with torch.set_grad_enabled(d_output is not None):
            output = problem.function(*inputs)
        if d_output is not None:
            torch.autograd.grad(output, wanted, d_output)
        if not facts:
            facts.update(problem.facts())

    return Work(run, device, facts)


def bench_attention(lengths: Sequence[int], contenders: Sequence[str], *, what: str = "layer", direction: str = PASSES[-1],
                    shape: LayerShape | None = None, device: str = "cpu", precision: str = "fp32", repeats: int = 5,
                    max_seconds: float = 60.0, threads: int | None = None,
                    progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Let the contenders take turns at each length and yield a row (see COLUMNS) for each, ratios against EXACT.

    `direction`: "forward" or "forward+backward". `contenders`: of `choose_contenders`.
    """
    shape = shape or LayerShape()
    common = _common_columns(what, direction, shape, precision)

    def jobs_at(length: int) -> dict[str, Job]:
        return {name: _job(name, length, what, direction, shape, device, precision, threads) for name in contenders}

    for length, outcomes in climb(lengths, jobs_at, repeats=repeats, max_seconds=max_seconds, progress=progress):
        for name, outcome in outcomes.items():
            yield {**common, "contender": name, "length": length, **summary(outcome, outcomes.get(EXACT))}


def bench_scaling(lengths: Sequence[int], contender: str, *, what: str = "operator", direction: str = PASSES[-1],
                  shape: LayerShape | None = None, device: str = "cpu", precision: str = "fp32", repeats: int = 5,
                  max_seconds: float = 300.0, threads: int | None = None,
                  progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Let the lengths of one contender take turns and yield a row (see SCALING_COLUMNS) for each.

    "relative_time" and "relative_memory": per token, over the same of the smallest length; 1 is linear.
    """
    shape = shape or LayerShape()
    common = {**_common_columns(what, direction, shape, precision), "contender": contender}
    jobs = {str(length): _job(contender, length, what, direction, shape, device, precision, threads)
            for length in sorted(set(lengths))}
    first: dict[str, Any] = {}
    for text, outcome in hold_contest(jobs, repeats=repeats, max_seconds=max_seconds, progress=progress).items():
        row = {**common, "length": int(text), **summary(outcome)}
        if row["status"] == FINISHED:
            row["seconds_per_token"] = row["median"] / row["length"]
            if "above_baseline_bytes" in row:
                row["bytes_per_token"] = row["above_baseline_bytes"] / row["length"]
            first = first or row
            for column, relative in (("seconds_per_token", "relative_time"), ("bytes_per_token", "relative_memory")):
                if row.get(column) and first.get(column):
                    row[relative] = row[column] / first[column]
        yield row


def _common_columns(what: str, direction: str, shape: LayerShape, precision: str) -> dict[str, Any]:
    return {"what": what, "pass": direction, "precision": precision, **asdict(shape)}


def _job(contender: str, length: int, what: str, direction: str, shape: LayerShape, device: str, precision: str,
         threads: int | None) -> Job:
    return {"kind": "attention", "contender": contender, "length": length, "what": what, "pass": direction,
            "shape": asdict(shape), "device": device, "precision": precision, "threads": threads, "warm_length": WARM_LENGTH}
