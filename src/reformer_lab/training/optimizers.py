"""Optimisers and learning-rate schedules. The rate is a pure function of the step, so there is no scheduler to save."""

import math

import torch
from torch import nn

from reformer_lab.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (1, 2, ..., `steps`); "warmup_rsqrt" is the authors'."""
    assert step >= 1, "steps are counted from 1"
    warmup = config.warmup_steps
    rising = min(1.0, step / warmup) if warmup else 1.0
    match config.schedule:
        case "constant":
            shape = 1.0
        case "warmup_constant":
            shape = rising
        case "warmup_rsqrt":
            shape = rising / math.sqrt(max(step, warmup))
        case "warmup_cosine":
            done = max(0, step - warmup) / max(1, steps - warmup + 1)  # the last step still counts
            shape = rising * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.learning_rate * shape


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser over the model's trainable parameters, which must be on their device already.

    Adam is the fused one where torch has it: one pass over the memory. Adafactor is torch's: beta2 = 1 - step^-0.8,
    step relative to the parameter's root mean square, update clipped at 1, no momentum, as in the authors' code; the
    relative step is min(learning rate, 1/sqrt(step)), a bound that the authors' does not have.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, eps=config.eps,
                             weight_decay=config.weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
