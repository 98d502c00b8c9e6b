"""C8 and C1: seconds of a training step against length, at a fixed number of tokens."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
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
from reformer_lab.experiments.claims import C1, C8
from reformer_lab.experiments.judging import above, below, by_contender, signed, together, verdict
from reformer_lab.models.config import ReformerConfig
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.section import Figure, Section, Series, Table
from reformer_lab.reporting.statistics import Estimate, mean_interval, slope

FULL = "full attention"
MEASUREMENT = "a step at every length"
"""The one arm: all contenders in turn."""
FLAT = 0.15
"""Exponent of time over length, at a fixed number of tokens, up to which time counts as flat: 11 % a doubling."""
QUADRATIC_PART = 0.3
"""Exponent from which full attention counts as slowing down: 23 % a doubling. Projections dilute the square."""
_RESAMPLES = 2000
"""Of the interval of a ratio of medians."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The measurement at one scale."""

    lengths: tuple[int, ...]
    """Tokens of a sequence."""
    tokens: int
    """Tokens of a batch, at every length."""
    rounds: tuple[int, ...]
    """Hash rounds of LSH attention."""
    repeats: int
    """Rounds in which all take turns."""
    model: ReformerConfig
    """One layer; the contenders change its attention."""
    device: str
    """"cpu", or "auto": CUDA where there is one."""
    precision: str = "fp32"
    """Of the arithmetic."""
    cuts: str
    """What was cut against the paper."""


def _one_layer(**changes: Any) -> ReformerConfig:
    """The measured model: by default one layer, of which attention is the larger part (the feed-forward layer is no wider
    than the model). `changes`: other fields; gpu and paper take the ablations' three layers."""
    base = ReformerConfig(d_model=256, d_ff=256, num_layers=1, num_heads=4, d_head=64, positions="none", chunk_length=64,
                          loss_chunk_length=1024)
    return base.replace(**changes)


_PAPER_LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(lengths=(128, 256, 512), tokens=512, rounds=(1,), repeats=2,
                     model=_one_layer(d_model=64, d_ff=64, num_heads=2, d_head=32, chunk_length=32), device="cpu",
                     cuts="Everything: 512 tokens of a toy model."),
    "quick": Setting(lengths=(1024, 2048, 4096, 8192), tokens=8192, rounds=(1, 2, 4), repeats=5, model=_one_layer(),
                     device="cpu", cuts="8,192 tokens a batch instead of 32,768, lengths up to 8,192 instead of 32,768, one "
                     "layer, on a CPU."),
    "small": Setting(lengths=_PAPER_LENGTHS, tokens=32_768, rounds=(1, 2, 4, 8), repeats=5, model=_one_layer(), device="cpu",
                     cuts="One layer, on a CPU."),
    "gpu": Setting(lengths=_PAPER_LENGTHS, tokens=32_768, rounds=(1, 2, 4, 8), repeats=20,
                   model=_one_layer(d_model=1024, d_ff=4096, num_layers=3, num_heads=8, d_head=128, loss_chunk_length=None),
                   device="auto", precision="bf16", cuts="Nothing in size; another accelerator."),
    "paper": Setting(lengths=_PAPER_LENGTHS, tokens=32_768, rounds=(1, 2, 4, 8), repeats=20,
                     model=_one_layer(d_model=1024, d_ff=4096, num_layers=3, num_heads=8, d_head=128, loss_chunk_length=None),
                     device="auto", cuts="Nothing in size; another accelerator."),
}


def contenders(scale: Scale) -> dict[str, dict[str, Any]]:
    """Return the model fields that make full attention, and LSH attention with each number of rounds, by name."""
    lsh = {f"LSH-{rounds}": {"attention": ("lsh",), "num_hashes": rounds} for rounds in SETTINGS[scale].rounds}
    return {FULL: {"attention": ("full",), "shared_qk": False}, **lsh}


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return one measurement of all contenders at all lengths, in turn: a slow minute of the machine falls on all of them."""
    setting = SETTINGS[scale]
    points = [{"length": length, "batch_size": setting.tokens // length, **changes}
              for length in setting.lengths for changes in contenders(scale).values()]
    return (Arm(name=MEASUREMENT, run=MeasurementConfig(kind="speed", parameters={
        "model": setting.model.replace(max_length=max(setting.lengths), reversible=False).to_dict(), "points": points,
        "rounds": setting.repeats, "device": setting.device, "precision": setting.precision, "max_seconds": 120,
    })),)


def measured(results: ExperimentResults) -> dict[str, list[Mapping[str, Any]]]:
    """Return the measurement's events by contender, one for each length."""
    return by_contender(results, MEASUREMENT, contenders(check_scale(results.scale)))


def times(results: ExperimentResults, name: str) -> dict[int, list[float]]:
    """Return the seconds of each round by length, of the points that finished. Raises MissingResult without two."""
    events = measured(results)[name]
    found = {int(event["length"]): list(event["seconds"]) for event in events if event["status"] == "finished"}
    if len(found) < 2:
        raise MissingResult(f"{name}: fewer than two lengths could be measured")
    return found


def exponent(seconds: Mapping[int, list[float]]) -> Estimate:
    """Return the slope of log time over log length: each round of the measurement, over all lengths, gives one."""
    lengths = sorted(seconds)
    logs = [math.log2(length) for length in lengths]
    rounds = zip(*(seconds[length] for length in lengths), strict=False)
    return mean_interval([slope(logs, [math.log2(value) for value in values]).value for values in rounds])


def speedup(results: ExperimentResults, name: str) -> tuple[int, Estimate] | None:
    """Return the longest length that both could do, and how many times faster than full attention `name` is there."""
    full, other = times(results, FULL), times(results, name)
    common = sorted(set(full) & set(other))
    if not common:
        return None
    length = common[-1]
    return length, ratio_of_medians(list(zip(full[length], other[length], strict=True)))


def ratio_of_medians(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Return the ratio of the medians of the first and of the second values, with its 95 % bootstrap interval over rounds.

    `pairs`: the seconds of two contenders, round by round. One round alone has no interval.
    """
    def ratio(chosen: Sequence[tuple[float, float]]) -> float:
        return median(value for value, _ in chosen) / median(baseline for _, baseline in chosen)

    if len(pairs) == 1:
        return Estimate(value=ratio(pairs))
    generator = random.Random(0)
    ratios = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    tail = _RESAMPLES // 40
    return Estimate(value=ratio(pairs), low=ratios[tail], high=ratios[-tail - 1], n=len(pairs))


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C8 by the exponents, C1 by the exponent for one sequence and by the speed at the longest length."""
    results.require(MEASUREMENT)
    lsh = [name for name in contenders(check_scale(results.scale)) if name != FULL]
    full = exponent(times(results, FULL))
    slopes = {name: exponent(times(results, name)) for name in lsh}
    steepest = max(slopes, key=lambda name: slopes[name].value)
    flat = together(*(below(estimate, FLAT) for estimate in slopes.values()))
    listed = ", ".join(f"{name} {signed(estimate, 2)}" for name, estimate in slopes.items())
    found = [verdict(results, "speed", C8, together(flat, above(full, QUADRATIC_PART)),
                     f"exponent of time over length: full {signed(full, 2)}; {listed}", estimate=slopes[steepest],
                     unit=f"exponent of time over length at a fixed number of tokens, {steepest} (full: {full.value:.2f})",
                     sampling="repeats")]
    fastest = speedup(results, lsh[0])
    if fastest is not None:
        length, ratio = fastest
        worst = slopes[steepest]
        one_sequence = Estimate(value=1 + worst.value, n=worst.n,
                                low=None if worst.low is None else 1 + worst.low,
                                high=None if worst.high is None else 1 + worst.high)
        holds = together(below(one_sequence, 1 + FLAT), above(ratio, 1.0))
        summary = (f"time of one sequence grows as L^{one_sequence.value:.2f} ({steepest}), full attention "
                   f"L^{1 + full.value:.2f}; at {length:,} tokens {lsh[0]} is {_factor(ratio)} times as fast as full "
                   "(interval: bootstrap over rounds)")
        found.append(verdict(results, "speed", C1, holds, summary, estimate=one_sequence,
                             unit="exponent of time over length for one sequence of the same batches (C8's plus 1), "
                             f"{steepest}", sampling="repeats"))
    return tuple(found)


def _factor(ratio: Estimate) -> str:
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}{interval}"


def show(results: ExperimentResults) -> Section:
    """Show seconds a step against length, and the table behind it."""
    setting = SETTINGS[check_scale(results.scale)]
    series, rows, device = [], [], ""
    for name, events in measured(results).items():
        if not events:
            continue
        done = [event for event in events if event["status"] == "finished"]
        device = f"{events[0]['device_name']}, {events[0]['threads']} threads"
        if done:
            series.append(Series(label=name, x=[event["length"] for event in done], y=[event["median"] for event in done],
                                 low=[event["low"] for event in done], high=[event["high"] for event in done]))
        cells = {event["length"]: event["median"] if event["status"] == "finished" else event["status"] for event in events}
        rows.append((name, *(cells.get(length) for length in setting.lengths)))
    if not rows:
        raise MissingResult("nothing was measured")
    return Section(
        text=(f"Forward and backward pass of {setting.model.num_layers} layer{'s' if setting.model.num_layers > 1 else ''}, "
              f"d_model {setting.model.d_model}, {setting.model.num_heads} heads x {setting.model.d_head}, "
              f"{setting.tokens:,} tokens a batch, {setting.precision}; {device}. Full attention is torch's "
              "scaled_dot_product_attention, which the paper did not have: it is faster, and linear in memory.",),
        figures=(Figure(title="Seconds a step at a fixed number of tokens", x_label="length (tokens)", y_label="seconds a step",
                        series=tuple(series), log_x=True, log_y=True,
                        caption=f"Median of {setting.repeats} rounds in which all took turns, band from the 20th to the 80th "
                        "percentile."),),
        tables=(Table(title="Median seconds a step", header=("attention", *(f"{length:,}" for length in setting.lengths)),
                      rows=tuple(rows)),),
    )


EXPERIMENT = Experiment(
    name="speed",
    title="Speed against length",
    question="With as many tokens in each batch, does a step take longer when the sequences are longer?",
    claims=(C8, C1),
    criterion="The exponent of time over length at a fixed number of tokens is the slope of log time over log length, one "
    f"slope for each round of measurements. C8 is supported if it is below {FLAT} for LSH attention with every number of "
    f"rounds and above {QUADRATIC_PART} for full attention, both by the whole 95 % interval; contradicted if one interval is "
    "wholly on the wrong side. C1 is supported if the time of one sequence (its share of the same batches: the exponent is "
    f"C8's plus 1) grows with an exponent below {1 + FLAT} (linear up to logarithms) and LSH attention with the fewest rounds "
    "is faster than full attention at the greatest length that both can do (ratio of the medians), both by the whole 95 % "
    "interval; contradicted if the exponent's whole interval is above that, or LSH attention is slower there by the whole "
    "interval: torch's full attention is faster than the one that the paper had.",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
