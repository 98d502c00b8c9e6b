"""A whole training step (forward, backward, Adam) of a language model side by side: this package's and the peers'."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from reformer_lab import __version__
from reformer_lab.benchmarks import peers
from reformer_lab.benchmarks.attention import MACHINE_COLUMNS
from reformer_lab.benchmarks.contest import FINISHED, Job, Progress, climb, summary
from reformer_lab.benchmarks.measure import resolve_device
from reformer_lab.benchmarks.worker import Work
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.models.presets import get_preset
from reformer_lab.seeds import derive_seed

OURS = "reformer-lab"
CONTENDERS = (OURS, *peers.DISTRIBUTIONS)

PIECES = ("ff_chunk_length", "projection_chunk_length", "heads_at_once", "loss_chunk_length")
"""Fields of our model that trade time for memory and change no result: a peer has no such column."""

COLUMNS = ("contender", "version", "model", "length", "status", "tokens_per_second", "median", "low", "high", "repeats",
           "times_faster", "ratio_low", "ratio_high", "against", "peak_bytes", "above_baseline_bytes", "parameters", "loss",
           "batch_size", "num_layers", "d_model", "d_ff", "num_heads", "d_head", "num_hashes", "chunk_length",
           *PIECES, "precision", "error", *MACHINE_COLUMNS)

MODEL = ReformerConfig(
    vocab_size=258, d_model=512, d_ff=2048, num_layers=6, num_heads=8, d_head=64, max_length=16384, attention=("local", "lsh"),
    num_hashes=4, chunk_length=64, local_chunk_length=64, positions="axial", axial_shape=(128, 128), axial_dims=(128, 384),
    dropout=0.0, ff_chunk_length=1024, loss_chunk_length=1024,
)  # fmt: skip
"""The model of the published comparison, without a preset."""


def model_at(config: ReformerConfig, length: int) -> ReformerConfig:
    """Return the model for exactly `length` tokens: the axial grid has as many places, which transformers asks for."""
    if config.positions != "axial":
        return config.replace(max_length=length)
    assert config.axial_shape is not None
    shape = config.axial_shape
    if math.prod(shape) != length:
        if len(shape) != 2:
            raise UserError(f"the model's axial grid has {len(shape)} sides: give the length {math.prod(shape)}")
        side = next(side for side in range(math.isqrt(length), 0, -1) if length % side == 0)
        shape = (side, length // side)
    return config.replace(max_length=length, axial_shape=shape)


def choose_contenders(preset: str | None, only: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the contenders that can run and a line for each that cannot.

    With a preset reformer-pytorch takes part only when named. Raises UserError for a name that does not exist, or one of
    `only` that cannot run.
    """
    for name in only or ():
        if name not in CONTENDERS:
            raise UserError(f"contender {name!r} does not exist; choose from {', '.join(CONTENDERS)}")
    wanted = only or [name for name in CONTENDERS if preset is None or name != "reformer-pytorch"]
    missing = {name: reason for name in wanted if name != OURS and (reason := peers.why_not(name))}
    if only is not None and missing:
        raise UserError("; ".join(f"contender {name!r} cannot run: {reason}" for name, reason in missing.items()))
    return [name for name in wanted if name not in missing], [f"without {name}: {reason}" for name, reason in missing.items()]


def build(job: Job) -> Work:
    """Build what a job of `bench_step` names."""
    device = resolve_device(job["device"])
    config = ReformerConfig.from_dict(dict(job["model"]))
    torch.manual_seed(0)  # the peers draw everything from the global generator
    generator = torch.Generator().manual_seed(derive_seed("training step", "tokens"))
    tokens = torch.randint(config.vocab_size, (job["batch_size"], job["length"]), generator=generator).to(device)
    if job["contender"] == OURS:
        ours = ReformerLM(config).train()
        model: torch.nn.Module = ours
        version = f"reformer-lab {__version__}"
        loss_of: Callable[[torch.Tensor], torch.Tensor] = lambda tokens: ours(tokens, targets=tokens).loss  # noqa: E731
    else:
        model, loss_of = peers.language_model(job["contender"], config, job["length"])
        version = peers.version(job["contender"])
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts: dict[str, Any] = {"version": version, "parameters": parameters}

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=job["precision"] == "bf16"):
            loss = loss_of(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if "loss" not in facts:  # of the first step, where the models have learned nothing yet; it waits for the device
            facts["loss"] = float(loss.detach())
            if not math.isfinite(facts["loss"]):
                raise ValueError(f"the loss of the first step is {facts['loss']}")

    return Work(run, device, facts)


def bench_step(lengths: Sequence[int], contenders: Sequence[str], *, config: ReformerConfig = MODEL, name: str = "",
               batch_size: int = 1, device: str = "cpu", precision: str = "fp32", repeats: int = 5, max_seconds: float = 600.0,
               threads: int | None = None, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Let the contenders take turns at each length and yield a row (see COLUMNS) for each.

    Ratios are against the first peer among the contenders. `name` of the model goes into the column "model".
    """
    against = next((name for name in contenders if name != OURS), None)
    shape = ("num_layers", "d_model", "d_ff", "num_heads", "d_head", "num_hashes", "chunk_length")
    common = {"model": name, "batch_size": batch_size, "precision": precision, "against": against,
              **{field: getattr(config, field) for field in shape}}
    pieces = {field: getattr(config, field) for field in PIECES}

    def jobs_at(length: int) -> dict[str, Job]:
        model = model_at(config, length).to_dict()
        return {contender: {"kind": "step", "contender": contender, "model": model, "length": length, "batch_size": batch_size,
                            "device": device, "precision": precision, "threads": threads} for contender in contenders}

    for length, outcomes in climb(lengths, jobs_at, repeats=repeats, max_seconds=max_seconds, progress=progress):
        for contender, outcome in outcomes.items():
            row = {**common, "contender": contender, "length": length, **(pieces if contender == OURS else {}),
                   **summary(outcome, outcomes.get(against or ""))}
            if row["status"] == FINISHED:
                row["tokens_per_second"] = batch_size * length / row["median"]
            yield row


def preset_model(preset: str | None, pieces: Mapping[str, int | None]) -> ReformerConfig:
    """Return the model of a preset, or MODEL, with those of PIECES that are given and not None."""
    config = MODEL if preset is None else get_preset(preset)
    return config.replace(**{name: value for name, value in pieces.items() if value is not None})
