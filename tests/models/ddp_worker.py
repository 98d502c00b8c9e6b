"""One of two processes of test_distributed.py; importable, as processes are spawned."""

import itertools
from pathlib import Path

import torch
from small_models import config_of, tokens_of
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from reformer_lab.models.language_model import ReformerLM

CASES = list(itertools.product((False, True), (False, True), (True, False)))
"""find_unused_parameters, tied, reversible."""


def model_of(tied: bool, reversible: bool) -> ReformerLM:
    """Return a model whose frozen parameter and shared layer are traps for distributed training."""
    model = ReformerLM(
        config_of(
            attention=("local", "lsh", "full"), tie_embeddings=tied, reversible=reversible, ff_chunk_length=9,
            loss_chunk_length=10,
        )
    ).double()  # fmt: skip
    model.stack.layers[0].feed_forward.function.dense_in.weight.requires_grad_(False)
    return model


def batch() -> Tensor:
    """Return the whole batch (4, L), of which each process takes a half."""
    return tokens_of(batch=4)


def work(rank: int, folder: str) -> None:
    """Compute the gradients of every case and write those of rank 0."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for case in CASES:
        find_unused, tied, reversible = case
        model = DistributedDataParallel(model_of(tied, reversible), find_unused_parameters=find_unused)
        # In evaluation the rotations do not depend on the place in the batch: the halves hash as the whole does.
        model.eval()
        tokens = batch()[2 * rank : 2 * rank + 2]
        for _ in range(2):  # a second step: leftovers of the first would show
            model.zero_grad(set_to_none=True)
            model(tokens, targets=tokens).loss.backward()
        found[case] = {n: p.grad for n, p in model.module.named_parameters()}
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    torch.distributed.destroy_process_group()
