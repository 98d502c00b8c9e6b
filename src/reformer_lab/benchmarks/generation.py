"""Seconds that a model takes for one more token, against the length of the text that is there.

Lengths take turns, a few tokens each, so that a slow minute of the machine falls on every length alike.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from reformer_lab.benchmarks.measure import Timing, describe_device, resolve_device, time_call
from reformer_lab.errors import UserError
from reformer_lab.layers.attention import LSHSelfAttention
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

COLUMNS = ("contender", "length", "status", "median", "low", "high", "tokens_per_second", "relative_time", "batch_size",
           "num_layers", "d_model", "num_heads", "d_head", "num_hashes", "chunk_length", "num_buckets", "repeats", "device",
           "device_name", "threads", "torch", "reformer_lab", "commit", "date")  # fmt: skip
CONTENDERS: dict[str, dict[str, Any]] = {
    "lsh": {"attention": ("lsh",)},
    "lsh-bucket": {"attention": ("lsh",), "coverage": "bucket"},
    "local": {"attention": ("local",)},
    "full": {"attention": ("full",)},
}
"""Kinds of attention, in every layer of a model. "lsh-bucket": LSH attention to whole buckets."""
TOKENS_A_TURN = 8


def bench_generation(
    lengths: Sequence[int], contender: str, *, batch_size: int = 1, repeats: int = 5, device: str = "auto"
) -> Iterator[dict[str, Any]]:
    """Yield for each length the seconds of one more token of every text, as median and percentiles over turns.

    A model of 2 layers (d_model 256, 4 heads x 64, 4 rounds, chunk 64) with random weights continues random tokens. Its
    max_length, and so its number of buckets, is that of the text. `relative_time`: over that of the first length.
    """
    if contender not in CONTENDERS:
        raise UserError(f"contender {contender!r} does not exist; choose from {', '.join(CONTENDERS)}")
    where = resolve_device(device)
    more = TOKENS_A_TURN * (repeats + 1)
    turns = []
    for length in lengths:
        config = ReformerConfig(
            d_model=256, d_ff=1024, num_layers=2, num_heads=4, d_head=64, max_length=length + more + 1, num_hashes=4,
            positions="none", ff_chunk_length=4096, **CONTENDERS[contender],
        )  # fmt: skip
        turns.append(_Turn(config, length, batch_size, where))
    seconds: list[list[float]] = [[] for _ in lengths]
    for turn in range(repeats + 1):  # turn 0 warms up
        for index, one in enumerate(turns):
            elapsed = time_call(one.run, where) / TOKENS_A_TURN
            if turn > 0:
                seconds[index].append(elapsed)
    first = Timing(tuple(seconds[0])).median
    for length, one, times in zip(lengths, turns, seconds, strict=True):
        timing = Timing(tuple(times))
        yield {
            "contender": contender, "length": length, "status": "finished", **timing.to_dict(), "repeats": repeats,
            "tokens_per_second": batch_size / timing.median, "relative_time": timing.median / first,
            "batch_size": batch_size, "num_buckets": one.num_buckets,
            **{name: getattr(one.config, name) for name in COLUMNS if hasattr(one.config, name) and name != "num_buckets"},
            **describe_device(where),
        }  # fmt: skip


class _Turn:
    """A model in the midst of texts, and some more tokens of them."""

    def __init__(self, config: ReformerConfig, length: int, batch_size: int, device: torch.device) -> None:
        self.config = config
        self.model = ReformerLM(config, seed=0).to(device).eval()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(2, config.vocab_size, (batch_size, length), generator=generator).to(device)
        self.logits, self.cache = self.model.start(tokens)
        layer = self.model.stack.layers[0].attention.function
        self.num_buckets = layer.buckets_for(config.max_length) if isinstance(layer, LSHSelfAttention) else None

    def run(self) -> None:
        """Continue each text by TOKENS_A_TURN tokens."""
        for _ in range(TOKENS_A_TURN):
            self.logits = self.model.step(self.logits.argmax(-1), self.cache)
