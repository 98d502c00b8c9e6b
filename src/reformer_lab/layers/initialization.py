"""Initial values of parameters: they depend on the seed and on the parameter's name alone.

Two models that share a parameter's name, shape and role start it alike, whatever else differs between them: arms of one
experiment differ in the thing under test. The values are those of the authors' code: Glorot uniform matrices (one for
each attention head), standard normal embeddings and positions, zero biases.
"""

import math

import torch
from torch import Tensor, nn

from reformer_lab.layers.attention import SelfAttention
from reformer_lab.layers.positions import AxialPositions, LearnedPositions
from reformer_lab.seeds import derive_seed


def initialize(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` in place."""
    fans: dict[str, int] = {}
    normal: set[str] = set()
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        if isinstance(module, SelfAttention):
            d_model = module.output.out_features
            fans |= {f"{prefix}{name}.weight": d_model + module.d_head for name, _ in module.named_children()}
        elif isinstance(module, (nn.Embedding, AxialPositions, LearnedPositions)):
            normal |= {f"{prefix}{name}" for name, _ in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = _initial_values(parameter, name in normal, fans.get(name), derive_seed(seed, "parameter", name))
            # A norm's scale is the one vector that is not a bias.
            parameter.copy_(values + 1 if name.endswith("norm.weight") else values)


def _initial_values(parameter: Tensor, normal: bool, fans: int | None, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if normal:
        return torch.randn(parameter.shape, generator=generator, device="cpu")  # whatever the default device
    if parameter.dim() == 1:
        return torch.zeros(parameter.shape, device="cpu")
    bound = math.sqrt(6 / (sum(parameter.shape) if fans is None else fans))
    return torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound, generator=generator)
