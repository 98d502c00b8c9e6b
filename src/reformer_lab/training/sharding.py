"""Parameters, gradients and optimiser state shared out over the processes (FSDP2, torch's `fully_shard`).

The model is one group: all parameters are gathered before a forward pass and let go after the backward pass. Groups of
layers would gather and let go as each layer is called; but the reversible stack undoes its layers inside one autograd
function, which has taken their parameters as its inputs, and calls no layer. What is saved in between is two thirds of Adam's
memory and more; what a step needs for activations is what the reversible stack keeps small.

Checkpoints hold whole parameters and whole optimiser states, as of one process: they fit any number of processes.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reformer_lab.errors import UserError


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Share out the parameters, in place, by the values of the first process."""
    from torch.distributed import broadcast, get_world_size, init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tensor in [*model.parameters(), *model.buffers()]:
        broadcast(tensor.detach(), src=0)
    fully_shard(model, mesh=init_device_mesh(device.type, (get_world_size(),)))
    return model


@contextlib.contextmanager
def computing(model: nn.Module, last: bool) -> Iterator[None]:
    """Compute one micro-batch within: gradients are exchanged after the `last` alone, and kept here until then."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    with warnings.catch_warnings():
        # The logits are a view of a product, as nn.Linear makes it. Nobody writes into them.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        yield


def full(value: Any) -> Any:
    """Return the whole of a sharded tensor; anything else as it is. All processes must ask at once."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Any) -> Any:
    """Return this process's part of a sharded tensor; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def whole(model: nn.Module, plain: nn.Module) -> nn.Module:
    """Return `plain`, a model of the same parameters, with the whole values of the sharded one."""
    plain.load_state_dict({name: full(value) for name, value in model.state_dict().items()})
    return plain


class WholeState:
    """A sharded optimiser as a checkpoint sees it: its state is whole when it leaves, and is shared out when it comes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises `UserError` for an optimiser whose state cannot be shared out as its parameters are."""
        if isinstance(optimizer, torch.optim.Adafactor):
            raise UserError("optimizer adafactor keeps sums over rows and columns, which cannot be shared out: "
                            "choose --optimizer.name adam, or leave --shard out")
        self.optimizer = optimizer
        self._gathered: dict[str, Any] | None = None

    def gather(self) -> None:
        """Collect the whole state for the next `state_dict`. All processes must ask at once."""
        content = self.optimizer.state_dict()
        content["state"] = {number: {name: full(value) for name, value in values.items()}
                            for number, values in content["state"].items()}
        self._gathered = content

    def state_dict(self) -> dict[str, Any]:
        """Return what `gather` collected: the state of an optimiser of the whole parameters."""
        assert self._gathered is not None, "gather first, in all processes"
        content, self._gathered = self._gathered, None
        return content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take this process's part of a whole state."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

        def part(number: int, value: Any) -> Any:
            parameter = parameters[number]
            if not isinstance(value, Tensor) or value.shape != parameter.shape or not isinstance(parameter, DTensor):
                return value
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

        state = {number: {name: part(number, value) for name, value in values.items()}
                 for number, values in content["state"].items()}
        self.optimizer.load_state_dict({**content, "state": state})
