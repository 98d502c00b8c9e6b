"""One training step of a model on random tokens: what the speed and the memory benchmark measure."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.seeds import derive_seed


def point_spec(parameters: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the full description of one point of a sweep: the common parameters with the point's own values.

    A point holds "length" and "batch_size" where they differ from point to point; its other keys are model fields.
    """
    model = dict(parameters["model"])
    spec = {name: parameters[name] for name in ("length", "batch_size", "precision", "device") if name in parameters}
    for name, value in point.items():
        if name in ("length", "batch_size"):
            spec[name] = value
        else:
            model[name] = value
    for name in ("length", "batch_size"):
        if name not in spec:
            raise UserError(f"a point of the sweep has no {name}: give it in the point or for all of them")
    model["max_length"] = max(model.get("max_length", 0), spec["length"])
    return {**spec, "model": model}


class TrainingStep:
    """A model, random tokens, and the forward and backward pass over them."""

    def __init__(self, spec: Mapping[str, Any], seed: int, device: torch.device) -> None:
        """`spec`: what `point_spec` returns. `seed` fixes parameters, tokens and every draw of the step."""
        precision = spec.get("precision", "fp32")
        if precision not in ("fp32", "bf16"):
            raise UserError(f"precision {precision!r} does not exist; choose fp32 or bf16")
        self.config = ReformerConfig.from_dict(dict(spec["model"]))
        self.device = device
        self.model = ReformerLM(self.config, seed=seed).to(device).train()
        self._bf16 = precision == "bf16"
        self._seed = seed
        self.tokens = self.random_tokens(spec["batch_size"], spec["length"])

    def random_tokens(self, batch_size: int, length: int) -> Tensor:
        """Return tokens (batch_size, length) drawn uniformly from the vocabulary, the same for the same seed."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "tokens"))
        tokens = torch.randint(self.config.vocab_size, (batch_size, length), generator=generator)
        return tokens.to(self.device)

    def forward(self, tokens: Tensor | None = None) -> Tensor:
        """Return the loss (scalar, nats per token)."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "step"))
        tokens = self.tokens if tokens is None else tokens
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            # With targets, as the training loop calls it: without them the logits would be returned, and never in pieces.
            loss: Tensor = self.model(tokens, targets=tokens, generator=generator).loss
        return loss

    def run(self, tokens: Tensor | None = None) -> Tensor:
        """Compute the loss and fresh gradients; return the loss."""
        self.model.zero_grad(set_to_none=True)
        loss = self.forward(tokens)
        loss.backward()
        return loss.detach()

    def gradient_summary(self) -> dict[str, float]:
        """Return the norm of the whole gradient and its component along a fixed random direction.

        Two steps with the same gradients agree in both; two with other gradients differ in at least the second. The
        direction's entries are standard normal: gradients that differ by d differ in the component by about |d|.
        """
        squares, component = 0.0, 0.0
        for name, parameter in sorted(self.model.named_parameters()):
            if parameter.grad is None:
                continue
            gradient = parameter.grad.detach().to("cpu", torch.float64)
            generator = torch.Generator().manual_seed(derive_seed("direction", name))
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            squares += float(gradient.square().sum())
            component += float((gradient * direction).sum())
        return {"gradient_norm": math.sqrt(squares), "gradient_component": component}
