"""DistributedDataParallel over two processes gives the gradients of one process."""

import pytest
import torch
from ddp_worker import CASES, batch, model_of, work
from small_models import relative_error

Gradients = dict[str, torch.Tensor | None]


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, ...], Gradients]:
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2, join=True)  # type: ignore[attr-defined]
    return torch.load(folder / "gradients.pt")


@pytest.mark.parametrize(("find_unused", "tied", "reversible"), CASES, ids=lambda value: str(value))
def test_gradients_are_those_of_one_process(
    distributed: dict[tuple[bool, ...], Gradients], find_unused: bool, tied: bool, reversible: bool
) -> None:
    """transformers, reformer-pytorch: a nested backward breaks find_unused_parameters and weight tying."""
    model = model_of(tied, reversible).eval()
    loss = model(batch(), targets=batch()).loss
    assert loss is not None
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert sum(gradient is None for gradient in expected.values()) == 1
    assert relative_error(distributed[find_unused, tied, reversible], expected) < 1e-10
