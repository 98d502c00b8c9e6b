"""Everything that one training run depends on, as data.

Free of torch, so that experiments can declare hundreds of runs at once. Two runs with equal configurations give equal
bits on one machine; `RunConfig.digest` is the name of that equality.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from reformer_lab.data.config import DataConfig, data_config_from_dict
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig, is_whole

OptimizerName = Literal["adam", "adafactor"]
Schedule = Literal["constant", "warmup_constant", "warmup_rsqrt", "warmup_cosine"]
Precision = Literal["fp32", "bf16"]
Split = Literal["validation", "test"]


def require(config: object, condition: bool, name: str, remedy: str) -> None:
    """Raise a `UserError` that names the field, its value and the remedy, unless `condition` holds."""
    if not condition:
        raise UserError(f"{name}={getattr(config, name)!r}: {remedy}")


def known_fields(cls: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return `values` as a dictionary; a key that is no field of `cls` is an error that names it."""
    names = [f.name for f in fields(cls)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise UserError(f"unknown {what} field {unknown[0]!r}; known: {', '.join(names)}")
    return dict(values)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser, learning-rate schedule and gradient clipping."""

    name: OptimizerName = "adam"
    """"adam", or torch's "adafactor": memory linear in a matrix's sides, steps relative to each parameter's size."""
    learning_rate: float = 1e-3
    """The factor that the schedule multiplies. Adafactor: torch never lets the relative step exceed 1/sqrt(step)."""
    schedule: Schedule = "warmup_constant"
    """"warmup_rsqrt" is the authors': factor * min(1, step/w) / sqrt(max(step, w)), steps counted from 1."""
    warmup_steps: int = 100
    """Steps of linear warm-up (w above). "constant" ignores it."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates (those of the tuned enwik8 run)."""
    eps: float = 1e-9
    """Adam's epsilon (that of the tuned enwik8 run)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient. None: no clipping."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has no tuples
        require(self, self.name in ("adam", "adafactor"), "name", "must be adam or adafactor")
        schedules = ("constant", "warmup_constant", "warmup_rsqrt", "warmup_cosine")
        require(self, self.schedule in schedules, "schedule", f"must be one of {', '.join(schedules)}")
        require(self, self.learning_rate > 0, "learning_rate", "must be positive")
        require(self, self.warmup_steps >= 0, "warmup_steps", "must not be negative")
        rates = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(self, rates, "betas", "must be two numbers in [0, 1)")
        require(self, self.eps > 0, "eps", "must be positive")
        require(self, self.weight_decay >= 0, "weight_decay", "must not be negative")
        require(self, self.clip_norm is None or self.clip_norm > 0, "clip_norm", "must be positive, or None")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the trained model: a column of the paper's table 2."""

    name: str = "own"
    """Label in the records."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `ReformerConfig` that differ from the training's, for example {"num_hashes": 8}."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Steps are optimiser steps, counted from 1."""

    model: ReformerConfig
    """The model."""
    data: DataConfig
    """What it is trained and evaluated on."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How it is trained."""
    steps: int
    """Optimiser steps."""
    batch_size: int = 1
    """Sequences of one optimiser step, over all micro-batches."""
    seed: int = 0
    """Seed of the initialisation, the data and every draw."""
    accumulation: int = 1
    """Micro-batches into which a step's batch is cut, over all processes; the gradient is that of the whole batch."""
    precision: Precision = "fp32"
    """"bf16": autocast to bfloat16; weights and optimiser stay in fp32."""
    eval_every: int | None = None
    """Evaluate on the validation split after every so many steps. None: at the end only."""
    eval_limit: int | None = None
    """Sequences of an evaluation. None: the whole split."""
    eval_batch_size: int | None = None
    """Sequences at once in an evaluation. None: as many as in a micro-batch."""
    log_every: int = 10
    """Steps between two lines of metrics; the loss in a line is the mean since the line before."""
    checkpoint_every: int | None = 100
    """Steps between two checkpoints. None: at the end, and when interrupted."""
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    """What to evaluate at the end."""
    final_split: Split = "validation"
    """Split of the evaluations at the end."""
    threads: int | None = None
    """CPU threads of torch, on which the last digits of sums depend. None: as torch chooses when the run starts or goes on."""
    stop_at_accuracy: float | None = None
    """End when an evaluation on the way reaches this accuracy (in [0, 1])."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluations", tuple(self.evaluations))
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            require(self, is_whole(getattr(self, name), 1), name, "must be a whole number, at least 1")
        for name in ("eval_every", "eval_limit", "eval_batch_size", "checkpoint_every", "threads"):
            value = getattr(self, name)
            require(self, value is None or is_whole(value, 1), name, "must be a whole number, at least 1, or None")
        require(self, self.batch_size % self.accumulation == 0, "accumulation",
                f"must divide batch_size={self.batch_size}")
        require(self, self.precision in ("fp32", "bf16"), "precision", "must be fp32 or bf16")
        require(self, self.final_split in ("validation", "test"), "final_split", "must be validation or test")
        names = [evaluation.name for evaluation in self.evaluations]
        if len(set(names)) != len(names):
            raise UserError(f"evaluations {names}: every name may occur once")
        for evaluation in self.evaluations:
            self.model.replace(**known_fields(ReformerConfig, evaluation.model, "model"))
        if self.stop_at_accuracy is not None:
            require(self, 0 < self.stop_at_accuracy <= 1, "stop_at_accuracy", "must be in (0, 1]")
            require(self, self.eval_every is not None, "stop_at_accuracy", "needs eval_every")
            require(self, self.model.loss_chunk_length is None, "stop_at_accuracy",
                    "needs a model with loss_chunk_length=None: a loss in pieces counts no right answers")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["model"] = self.model.to_dict()
        values["data"] = self.data.to_dict()
        values["optimizer"] = asdict(self.optimizer) | {"betas": list(self.optimizer.betas)}
        values["evaluations"] = [asdict(evaluation) for evaluation in self.evaluations]
        return json.loads(json.dumps(values))  # tuples inside the evaluations' changes become lists

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Read what `to_dict` wrote; an unknown field is an error that names it."""
        try:
            return cls._from_dict(values)
        except (TypeError, AttributeError, KeyError, OverflowError) as error:  # JSON may hold anything under a name
            raise UserError(f"a field of the run's configuration is missing or of the wrong kind ({error}): restore its "
                            "config.json, or start a new run") from None

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        parts = known_fields(cls, values, "run")
        parts["model"] = ReformerConfig.from_dict(parts["model"])
        parts["data"] = data_config_from_dict(parts["data"])
        parts["optimizer"] = OptimizerConfig(**known_fields(OptimizerConfig, parts["optimizer"], "optimizer"))
        parts["evaluations"] = tuple(Evaluation(**known_fields(Evaluation, evaluation, "evaluation"))
                                     for evaluation in parts["evaluations"])
        return cls(**parts)

    def digest(self) -> str:
        """Return 12 hexadecimal digits that depend on every field: the identity of the run."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
