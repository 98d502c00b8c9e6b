"""Seconds of one attention layer with its projections: this package's backends against exact attention, side by side.

A contender is a named maker of a layer: `CONTENDERS` is the place to add one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reformer_lab.benchmarks.measure import describe_device, is_out_of_memory, resolve_device, time_repeats
from reformer_lab.errors import UserError
from reformer_lab.ops import lsh_attention
from reformer_lab.seeds import derive_seed

Layer = Callable[[Tensor], Tensor]
"""(batch, length, heads * d_head) to the same shape."""

EXACT = "exact"
"""Name of the contender that the others are compared with."""

COLUMNS = ("contender", "length", "pass", "status", "median", "low", "high", "repeats", "times_faster", "batch_size",
           "num_heads", "d_head", "num_hashes", "chunk_length", "precision", "device", "device_name", "threads", "torch")


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


def _projections(count: int, shape: LayerShape, device: torch.device, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "projections"))
    weights = [torch.randn(shape.width, shape.width, generator=generator) * shape.width**-0.5 for _ in range(count)]
    return [weight.to(device, dtype).requires_grad_() for weight in weights]


def _split(x_BLD: Tensor, shape: LayerShape) -> Tensor:
    batch, length, _ = x_BLD.shape
    return x_BLD.view(batch, length, shape.num_heads, shape.d_head).transpose(1, 2)


def _merge(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.transpose(1, 2).flatten(2)


def exact_layer(shape: LayerShape, device: torch.device, dtype: torch.dtype, seed: int) -> Layer:
    """Causal exact attention through torch's scaled_dot_product_attention: four projections."""
    query, key, value, out = _projections(4, shape, device, dtype, seed)

    def layer(x_BLD: Tensor) -> Tensor:
        q, k, v = (_split(x_BLD @ weight, shape) for weight in (query, key, value))
        return _merge(scaled_dot_product_attention(q, k, v, is_causal=True)) @ out

    return layer


def lsh_layer(backend: str) -> Callable[[LayerShape, torch.device, torch.dtype, int], Layer]:
    """Causal LSH attention by one backend of `ops.lsh_attention`: three projections, hashing included."""

    def make(shape: LayerShape, device: torch.device, dtype: torch.dtype, seed: int) -> Layer:
        shared, value, out = _projections(3, shape, device, dtype, seed)
        generator = torch.Generator().manual_seed(derive_seed(seed, "rotations"))

        def layer(x_BLD: Tensor) -> Tensor:
            result = lsh_attention(_split(x_BLD @ shared, shape), _split(x_BLD @ value, shape), causal=True,
                                   num_hashes=shape.num_hashes, chunk_length=shape.chunk_length, backend=backend,
                                   generator=generator)
            return _merge(result.output) @ out

        return layer

    return make


CONTENDERS: dict[str, Callable[[LayerShape, torch.device, torch.dtype, int], Layer]] = {
    EXACT: exact_layer,
    "lsh-torch": lsh_layer("torch"),
}


def bench_attention(lengths: Sequence[int], *, contenders: Sequence[str] = tuple(CONTENDERS), shape: LayerShape | None = None,
                    device: str = "auto", precision: str = "fp32", repeats: int = 5, max_seconds: float = 60.0,
                    seed: int = 0) -> Iterator[dict[str, Any]]:
    """Time each contender at each length and yield one row (see COLUMNS) for the forward pass and one with the backward pass.

    `max_seconds`: no new repeat starts once this much time has gone into one row.
    Raises UserError for an unknown contender, a length below 1, or an unusable device or precision.
    """
    for name in contenders:
        if name not in CONTENDERS:
            raise UserError(f"contender {name!r} does not exist; choose from {', '.join(CONTENDERS)}")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r} does not exist; choose fp32 or bf16")
    shape = shape or LayerShape()
    place = resolve_device(device)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    header = {**asdict(shape), "precision": precision, **describe_device(place), "torch": torch.__version__}
    for length in lengths:
        exact: dict[str, float] = {}
        for name in sorted(contenders, key=lambda name: name != EXACT):  # first what the others are compared with
            for direction in ("forward", "forward+backward"):
                row: dict[str, Any] = {"contender": name, "length": length, "pass": direction, "status": "finished", **header}
                try:
                    layer = CONTENDERS[name](shape, place, dtype, seed)
                    call = _call(layer, length, shape, place, dtype, seed, backward=direction != "forward")
                    timing = time_repeats(call, place, repeats=repeats, max_seconds=max_seconds)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    row["status"] = "out of memory"
                else:
                    row |= {"median": timing.median, "low": timing.low, "high": timing.high,
                            "repeats": len(timing.seconds)}
                    if name == EXACT:
                        exact[direction] = timing.median
                    if direction in exact:
                        row["times_faster"] = exact[direction] / timing.median
                yield row


def _call(layer: Layer, length: int, shape: LayerShape, device: torch.device, dtype: torch.dtype, seed: int, *,
          backward: bool) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "input"))
    x_BLD = torch.randn(shape.batch_size, length, shape.width, generator=generator).to(device, dtype)
    x_BLD.requires_grad_(backward)

    def call() -> None:
        if backward:
            layer(x_BLD).sum().backward()
        else:
            with torch.no_grad():
                layer(x_BLD)

    return call
