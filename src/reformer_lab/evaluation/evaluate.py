"""Score a model over a split."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import TYPE_CHECKING

import torch

from reformer_lab.errors import UserError
from reformer_lab.evaluation.metrics import Metrics, Score, Tally

if TYPE_CHECKING:
    from reformer_lab.data.dataset import Batch, Dataset
    from reformer_lab.models.language_model import ReformerLM
    from reformer_lab.training.processes import Processes


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a model computes: bfloat16 where torch finds it safe, or a context without effect.

    A UserError names a precision that is neither "bf16" nor "fp32".
    """
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision={precision!r}: must be fp32 or bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def split_sizes(dataset: "Dataset", limit: int | None = None) -> dict[str, int]:
    """Return the bytes in each split of a corpus, or in `limit` sequences of it; nothing for other data."""
    most = math.inf if limit is None else limit * dataset.length
    return {split: int(min(most, end - first)) for split, (first, end) in getattr(dataset, "bounds", {}).items()}


def groups(batches: "Iterable[Batch]", size: int) -> "Iterator[list[Batch]]":
    """Yield `size` batches at a time; the last group may be smaller."""
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group


@torch.no_grad()
def evaluate(
    model: "ReformerLM",
    dataset: "Dataset",
    split: str,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    generator: torch.Generator | None = None,
    precision: str = "fp32",
    progress: Callable[[Metrics], None] | None = None,
    processes: "Processes | None" = None,
) -> Metrics:
    """Return the scores of `model` over `limit` sequences of `split` (None: all of them).

    The model computes in eval mode: without dropout, with rotations fixed per layer unless `generator` (CPU) draws
    others. Its mode is restored. `progress` is called after each batch with the scores so far; what it raises ends
    the evaluation. A split that holds no target is a `UserError`. `processes` take turns at the batches, and all return
    the scores of all of them, added up in the order of the batches: without `generator`, the bits of one process's.
    """
    device = next(model.parameters()).device
    tally = Tally()
    was_training = model.training
    model.eval()
    try:
        for batches in groups(dataset.eval_batches(split, batch_size, limit), processes.count if processes else 1):
            rank = processes.rank if processes else 0
            score = Score()
            if rank < len(batches):
                batch = batches[rank]
                mask = None if batch.key_padding_mask is None else batch.key_padding_mask.to(device)
                targets = batch.targets.to(device)
                with autocast(device, precision):
                    out = model(batch.tokens.to(device), targets=targets, key_padding_mask=mask, generator=generator)
                score = Score.of(out.loss, out.logits, model.align(targets))
            for one in processes.gather(score) if processes else [score]:
                tally.add_score(one)
            if progress is not None and tally.targets:
                progress(tally.metrics())
    finally:
        model.train(was_training)
    if tally.targets == 0:
        raise UserError(f"the {split} split holds nothing to score: give a longer corpus or a larger split")
    return tally.metrics()
