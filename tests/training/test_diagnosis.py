"""Where a step leaves the finite numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from reformer_lab.training.diagnosis import first_weight_not_finite, where_not_finite


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(2, 2), nn.Sequential(nn.Tanh(), nn.Linear(2, 2)), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.first(x)))


def said(net: Net, factor: float = 1.0) -> str:
    def steps() -> Tensor:
        loss = net(torch.ones(1, 2)).sum() * factor
        loss.backward()
        return loss

    return where_not_finite(net, steps)


@pytest.mark.parametrize("layer", ["first", "block.0", "block.1", "last"])
def test_the_innermost_layer_is_named(layer: str) -> None:
    net = Net()
    net.get_submodule(layer).register_forward_hook(lambda module, inputs, output: output / 0)
    assert said(net) == f"The first layer whose output is not finite: {layer}."
    assert all(len(module._forward_hooks) == (name == layer) for name, module in net.named_modules())


def test_weights_come_first() -> None:
    net = Net()
    assert first_weight_not_finite(net) is None
    with torch.no_grad():
        net.block[1].bias[1] = math.inf
    assert first_weight_not_finite(net) == "block.1.bias"
    assert said(net) == "The weights are not finite, block.1.bias the first of them."


def test_the_loss_or_the_gradient_alone() -> None:
    assert said(Net(), math.inf) == "Every layer's output is finite, the loss is not."
    net = Net()
    net.block.register_forward_hook(lambda module, inputs, output: output + (output - output.detach()).sqrt())
    assert said(net) == ("Every layer's output is finite, the gradient is not: block.1.bias is the first in the backward pass.")


def test_a_step_that_is_finite_the_second_time() -> None:
    assert said(Net()).startswith("The same step, computed again, is finite: suspect the hardware")
