"""C2, C3, C13 and table 3: bytes of activations against depth, length and the feed-forward chunk."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reformer_lab.experiments.claim import (
    Arm,
    Experiment,
    ExperimentResults,
    MeasurementConfig,
    Scale,
    Verdict,
    check_scale,
)
from reformer_lab.experiments.claims import C2, C3, C13
from reformer_lab.experiments.judging import judge_each, together, verdict
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.section import Figure, Section, Series, Table
from reformer_lab.reporting.statistics import Estimate, slope

DEPTH_REVERSIBLE, DEPTH_STORED = "depth, reversible", "depth, stored"
LENGTH_LSH, LENGTH_FULL = "length, LSH", "length, full"
CHUNK = "feed-forward chunk"
HALF_MILLION = "half a million tokens"
FLAT_SHARE, GROWING_SHARE = 0.05, 0.10
"""Bytes per layer of the reversible model as a share of the stored one's: below the first it counts as flat in depth, above
the second as growing."""
IDENTICAL = 1e-5
"""Relative difference up to which two results are the same but for rounding in fp32."""
SAVING, COST = 0.9, 1.1
"""Activations of the smallest chunk as a share of the whole's: below the first a saving, above the second a cost."""
EIGHT_GB = 8e9

Point = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The measurement at one scale."""

    model: ReformerConfig
    """Of which the points are variations."""
    depths: tuple[int, ...]
    """Layers."""
    depth_length: int
    """Tokens where depth is varied."""
    lengths: tuple[int, ...]
    """Tokens where length is varied."""
    chunks: tuple[int | None, ...]
    """Pieces of the feed-forward layer; None is the whole sequence at once."""
    d_ff: int
    """Width of the feed-forward layer where its chunk is varied."""
    device: str
    """"cpu", or "auto": CUDA where there is one."""
    precision: str = "fp32"
    """Of the arithmetic."""
    half_million: bool = False
    """Also measure the model of half a million tokens."""
    cuts: str
    """What was cut against the paper."""


_BASE = ReformerConfig(d_model=64, d_ff=256, num_layers=2, num_heads=2, d_head=32, num_hashes=1, positions="none",
                       loss_chunk_length=1024)
_LARGE = _BASE.replace(d_model=512, d_ff=2048, num_heads=8, d_head=64, num_hashes=4)

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(model=_BASE, depths=(2, 4), depth_length=512, lengths=(512, 1024), chunks=(None, 64), d_ff=8192,
                     device="cpu", cuts="Everything: up to 1,024 tokens of a toy model."),
    "quick": Setting(model=_BASE, depths=(2, 4, 8), depth_length=4096, lengths=(4096, 8192, 16_384),
                     chunks=(None, 512, 128), d_ff=4096, device="cpu",
                     cuts="d_model 64, up to 8 layers and 16,384 tokens, on a CPU."),
    "small": Setting(model=_BASE.replace(num_hashes=4), depths=(2, 4, 8, 16), depth_length=8192,
                     lengths=(4096, 8192, 16_384, 32_768, 65_536), chunks=(None, 2048, 512, 128), d_ff=4096, device="cpu",
                     cuts="d_model 64, on a CPU."),
    "gpu": Setting(model=_LARGE, depths=(2, 4, 8, 16), depth_length=32_768, lengths=(8192, 16_384, 32_768, 65_536),
                   chunks=(None, 4096, 1024, 256), d_ff=8192, device="auto", half_million=True,
                   cuts="Nothing: the paper gives complexities, no numbers."),
    "paper": Setting(model=_LARGE.replace(d_model=1024, d_ff=4096, d_head=128), depths=(3, 6, 12, 20), depth_length=65_536,
                     lengths=(8192, 16_384, 32_768, 65_536), chunks=(None, 4096, 1024, 256), d_ff=16_384, device="auto",
                     half_million=True, cuts="Nothing: the paper gives complexities, no numbers."),
}


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return one arm for each line of the figures."""
    setting = SETTINGS[scale]
    depth_points = [{"num_layers": depth, "length": setting.depth_length} for depth in setting.depths]
    length_points = [{"length": length} for length in setting.lengths]
    chunk_points = [{"ff_chunk_length": chunk, "length": setting.depth_length} for chunk in setting.chunks]
    lsh = setting.model.replace(attention=("lsh",))
    sweeps: dict[str, tuple[ReformerConfig, list[dict[str, Any]]]] = {
        DEPTH_REVERSIBLE: (lsh, depth_points),
        DEPTH_STORED: (lsh.replace(reversible=False), depth_points),
        LENGTH_LSH: (lsh, length_points),
        LENGTH_FULL: (lsh.replace(attention=("full",)), length_points),
        # No hashing here: a near-tie between buckets can fall either way on another rounding, and changes the result.
        CHUNK: (setting.model.replace(attention=("local",), d_ff=setting.d_ff), chunk_points),
    }
    if setting.half_million:
        model = get_preset("crime_and_punishment")
        sweeps[HALF_MILLION] = (model, [{"length": model.max_length}])
    return tuple(
        Arm(name=name, run=MeasurementConfig(kind="memory", parameters={
            "model": model.to_dict(), "points": points, "batch_size": 1, "device": setting.device,
            "precision": setting.precision, "max_seconds": 600,
        }))
        for name, (model, points) in sweeps.items()
    )


def points(results: ExperimentResults, name: str) -> list[Point]:
    """Return the points of an arm that finished. Raises MissingResult when there is none."""
    found = [event for event in results.require(name)[0].measurements if event["status"] == "finished"]
    if not found:
        raise MissingResult(f"{name}: no point could be measured")
    return found


def per_layer(results: ExperimentResults, name: str) -> Estimate:
    """Return the slope of activation bytes over the number of layers."""
    found = points(results, name)
    if len(found) < 2:
        raise MissingResult(f"{name}: fewer than two depths could be measured")
    return slope([event["model"]["num_layers"] for event in found], [event["activation_bytes"] for event in found])


def growth(results: ExperimentResults, name: str) -> Estimate | None:
    """Return the exponent of activation bytes over length, or None without two points."""
    found = [(event["length"], event["activation_bytes"]) for event in points(results, name) if event["activation_bytes"] > 0]
    if len(found) < 2:
        return None
    return slope([math.log2(length) for length, _ in found], [math.log2(size) for _, size in found])


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C2 by the bytes per layer, C3 by results and bytes over the chunk, C13 by the half million tokens."""
    return judge_each(results, "memory", {C2: lambda: _judge_depth(results), C3: lambda: _judge_chunk(results),
                                          C13: lambda: _judge_half_million(results)})


def _judge_depth(results: ExperimentResults) -> Verdict:
    stored, reversible = per_layer(results, DEPTH_STORED), per_layer(results, DEPTH_REVERSIBLE)
    if stored.value <= 0:
        return verdict(results, "memory", C2, None, "no baseline: the storing model's activations did not grow with depth "
                       f"({_megabytes(stored.value)} a layer)".replace("-", "−"), n=1, sampling="deterministic")
    share = reversible.value / stored.value
    holds = True if share < FLAT_SHARE else False if share > GROWING_SHARE else None
    summary = (f"reversible {_megabytes(reversible.value)} a layer, stored {_megabytes(stored.value)}: "
               f"{100 * share:.1f} %").replace("-", "−")
    return verdict(results, "memory", C2, holds, summary, estimate=Estimate(value=100 * share),
                   unit="% of the storing model's bytes a layer", sampling="deterministic")


def _judge_chunk(results: ExperimentResults) -> Verdict:
    found = points(results, CHUNK)
    whole = next((event for event in found if event["model"]["ff_chunk_length"] is None), None)
    pieces = [event for event in found if event["model"]["ff_chunk_length"] is not None]
    if not pieces:
        raise MissingResult(f"{CHUNK}: no piece of the sequence could be measured")
    pieces.sort(key=lambda event: int(event["model"]["ff_chunk_length"]))
    reference, others = (pieces[-1], pieces[:-1]) if whole is None else (whole, pieces)
    difference = max((_difference(event, reference) for event in others), default=None)
    same = None if difference is None else difference <= IDENTICAL
    words = f"chunk {pieces[0]['model']['ff_chunk_length']} takes "
    saving: bool | None = True
    estimate = None
    if whole is None:
        if not _out_of_memory(results):
            raise MissingResult(f"{CHUNK}: the whole sequence at once was not measured")
        words += f"{_megabytes(pieces[0]['activation_bytes'])}, the whole sequence at once runs out of memory"
    else:
        share = pieces[0]["activation_bytes"] / whole["activation_bytes"]
        saving, estimate = True if share < SAVING else False if share > COST else None, Estimate(value=100 * share)
        words += f"{100 * share:.0f} % of the whole's activations"
    if difference is not None:
        words += f"; loss and gradients differ by {difference:.0e} at most"
    return verdict(results, "memory", C3, together(same, saving), words, estimate=estimate, n=1,
                   unit=f"% of the activations of the whole sequence at once, d_ff {_times_wider(results)} times d_model"
                   if estimate else "", sampling="deterministic")


def _times_wider(results: ExperimentResults) -> int:
    """Return how many times wider than the model the feed-forward layer is where its chunk varies; in the paper 4 times."""
    setting = SETTINGS[check_scale(results.scale)]
    return setting.d_ff // setting.model.d_model


def _out_of_memory(results: ExperimentResults) -> bool:
    """Whether the feed-forward layer over the whole sequence at once ran out of memory."""
    return any(event["model"]["ff_chunk_length"] is None and event["status"] == "out of memory"
               for event in results.require(CHUNK)[0].measurements)


def _judge_half_million(results: ExperimentResults) -> Verdict:
    if HALF_MILLION not in results.names:
        raise MissingResult(C13.not_run)
    event = results.require(HALF_MILLION)[0].measurements[0]
    if event["status"] != "finished":
        return verdict(results, "memory", C13, None, f"only half a million tokens are tried: {event['status']}", n=1,
                       sampling="deterministic")
    total = _whole_step(event)
    summary = (f"only half a million tokens are tried: a training step on {event['length']:,} takes {total / 1e9:.2f} GB, "
               f"activations {_megabytes(event['activation_bytes'])}")
    return verdict(results, "memory", C13, total < EIGHT_GB, summary, estimate=Estimate(value=total / 1e9),
                   unit="GB for half a million tokens", sampling="deterministic")


def _whole_step(event: Point) -> float:
    """Return the bytes of a training step with parameters, gradients and optimiser states."""
    return float(sum(event[f"{part}_bytes"] for part in ("activation", "parameter", "gradient", "optimizer")))


def _difference(event: Point, reference: Point) -> float:
    """Return the largest relative difference of two steps' results. The gradient's component may be near zero: it is
    compared by the size of the whole gradient."""
    norm = max(abs(reference["gradient_norm"]), 1e-30)
    return max(abs(event["loss"] - reference["loss"]) / max(abs(reference["loss"]), 1e-30),
               abs(event["gradient_norm"] - reference["gradient_norm"]) / norm,
               abs(event["gradient_component"] - reference["gradient_component"]) / norm)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def show(results: ExperimentResults) -> Section:
    """Show activations against depth, length and chunk, and how the lines grow."""
    setting = SETTINGS[check_scale(results.scale)]
    figures, rows = [], []
    for title, x_label, key, names in (
        ("Activations against depth", "layers", "num_layers", (DEPTH_STORED, DEPTH_REVERSIBLE)),
        ("Activations against length", "length (tokens)", "length", (LENGTH_FULL, LENGTH_LSH)),
        ("Activations against the feed-forward chunk", "positions at once", "ff_chunk_length", (CHUNK,)),
    ):
        series = []
        for name in names:
            if not results.of(name):
                continue
            events = results.of(name)[0].measurements
            done = [(_x(event, key, setting), event["activation_bytes"] / 1e6)
                    for event in events if event["status"] == "finished"]
            if done:
                series.append(Series(label=name, x=[x for x, _ in done], y=[y for _, y in done]))
            for event in events:
                size = event["activation_bytes"] / 1e6 if event["status"] == "finished" else event["status"]
                rows.append((name, _x(event, key, setting), size, event.get("seconds")))
        figures.append(Figure(title=title, x_label=x_label, y_label="MB of activations", series=tuple(series),
                              log_x=key != "num_layers", log_y=key == "length"))
    if not rows:
        raise MissingResult("nothing was measured")
    text = [f"d_model {setting.model.d_model}, {setting.model.num_heads} heads x {setting.model.d_head}, LSH-"
            f"{setting.model.num_hashes}, chunk {setting.model.chunk_length}, batch 1, {setting.precision}. Peak of a "
            "training step minus parameters, gradients and optimiser states; each point in a process of its own. Where the "
            f"feed-forward chunk varies, attention is local and d_ff is {setting.d_ff:,}, {_times_wider(results)} "
            "times d_model (the paper: 4 times), so that the feed-forward layer is what fills the memory."]
    for name in (LENGTH_LSH, LENGTH_FULL):
        if results.of(name) and (exponent := growth(results, name)) is not None:
            text.append(f"{name}: activations grow as L^{exponent.value:.2f} (1 is linear). "
                        + ("Full attention never holds its L x L scores here: torch computes it in tiles, which the paper's "
                           "table 3 predates." if name == LENGTH_FULL else ""))
    for event in results.of(HALF_MILLION)[0].measurements if results.of(HALF_MILLION) else ():
        done = event["status"] == "finished"
        rows.append((HALF_MILLION, event["length"], event["activation_bytes"] / 1e6 if done else event["status"],
                     event.get("seconds")))
        if done:
            text.append(f"{HALF_MILLION}: a model of its own (preset crime_and_punishment); a training step takes "
                        f"{_whole_step(event) / 1e9:.2f} GB with parameters, gradients and optimiser states.")
    table = Table(title="Every point", header=("line", "at", "MB of activations", "seconds"), rows=tuple(rows))
    return Section(text=tuple(text), figures=tuple(figures), tables=(table,))


def _x(event: Point, key: str, setting: Setting) -> int:
    if key == "length":
        return int(event["length"])
    value = event["model"][key]
    return int(setting.depth_length if value is None else value)


EXPERIMENT = Experiment(
    name="memory",
    title="Memory",
    question="What do depth, length and the feed-forward chunk cost in activations?",
    claims=(C2, C3, C13),
    criterion=f"C2 is supported if the reversible model's bytes per additional layer are below {FLAT_SHARE:.0%} of the "
    f"storing model's, contradicted above {GROWING_SHARE:.0%}. Where the storing model does not grow with depth there is no "
    f"baseline, and the outcome is inconclusive. C3 is supported if the smallest chunk takes less than {SAVING:.0%} of the "
    "activations of the whole sequence at once (or the whole runs out of memory where the pieces do not) and loss and "
    f"gradients, the latter relative to the whole gradient, agree within {IDENTICAL:.0e} in fp32; contradicted if they do "
    f"not, or the chunk takes more than {COST:.0%}. C13 is judged for half a million tokens alone, not for a million: "
    "supported if a training step of the model takes less than 8 GB with parameters and optimiser, else contradicted. "
    "No seeds: each claim rests on one measurement, which a repeat gives again (n = 1, deterministic; docs/decisions/0018).",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
