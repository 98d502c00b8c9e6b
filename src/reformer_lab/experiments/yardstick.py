"""Is LSH attention worth it beside exact attention as people run it today? Time, memory, and quality for each second.

The paper's yardstick was attention that holds L x L scores. torch's scaled_dot_product_attention holds none. No claim of the
paper is judged here: the chapter says from which length on LSH attention wins, and by how much.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from reformer_lab.experiments import hash_rounds, ladder, reversible, shared_qk
from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, MeasurementConfig, Scale, check_scale
from reformer_lab.experiments.judging import by_contender, learning_curves, mean_of, paired_difference, seeds_of, signed
from reformer_lab.reporting.records import MissingResult, Record
from reformer_lab.reporting.section import Figure, Section, Series, Table
from reformer_lab.reporting.statistics import Estimate, mean_interval

EXACT, EXACT_REVERSIBLE = "exact attention", "exact, reversible"
STEP = "one step of the training"
"""Name of the measurement that turns steps of the trainings into seconds."""
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The measurements at one scale. Model, rounds and trainings are the ladder's."""

    lengths: tuple[int, ...]
    """Tokens of a sequence where seconds are measured."""
    memory_lengths: tuple[int, ...]
    """Tokens of a sequence where activations are measured."""
    tokens: int
    """Tokens of a batch, at every length."""
    repeats: int
    """Rounds in which all take turns."""
    device: str
    """"cpu", or "auto": CUDA where there is one."""
    cuts: str
    """What was cut."""


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**power for power in range(first.bit_length() - 1, last.bit_length()))


_TRAININGS = " The trainings are those of the hash rounds and of the reversible layers: what is cut there is cut here."

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(lengths=(128, 256), memory_lengths=(), tokens=256, repeats=2, device="cpu",
                     cuts="Everything: 256 tokens of a toy model."),
    "small": Setting(lengths=_powers(512, 16_384), memory_lengths=_powers(512, 16_384), tokens=16_384, repeats=10, device="cpu",
                     cuts="A small model on a CPU, up to 16,384 tokens." + _TRAININGS),
    "gpu": Setting(lengths=_powers(1024, 262_144), memory_lengths=_powers(1024, 262_144), tokens=262_144, repeats=10,
                   device="auto", cuts="One layer size and one batch size." + _TRAININGS),
    "paper": Setting(lengths=_powers(1024, 262_144), memory_lengths=_powers(1024, 262_144), tokens=262_144, repeats=10,
                     device="auto", cuts="One layer size and one batch size." + _TRAININGS),
}
"""Not at the scale quick, whose time is used up."""


def contenders(scale: Scale) -> dict[str, dict[str, Any]]:
    """Return the fields of the ladder's model that make each contender, by name: in trainings and measurements alike."""
    setting = ladder.SETTINGS[scale]
    found = {EXACT: ladder.TRANSFORMER, EXACT_REVERSIBLE: ladder.REVERSIBLE,
             **{ladder.lsh_name(number): ladder.lsh(number) for number in setting.rounds}}
    return {name: ladder.with_local_layers(setting, changes) for name, changes in found.items()}


def seconds_name(length: int) -> str:
    """Name of the arm that measures seconds at a length."""
    return f"seconds at {length:,} tokens"


def memory_name(length: int) -> str:
    """Name of the arm that measures activations at a length."""
    return f"memory at {length:,} tokens"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the trainings, shared with the experiments that judge them, and one measurement for each length.

    Contenders take turns in one measurement: a slow minute of the machine falls on all of them.
    """
    if scale not in SETTINGS:
        return ()
    setting, language = SETTINGS[scale], ladder.SETTINGS[scale]
    # No positions: a table of the greatest length would be larger than the rest of the model. Buckets follow the length.
    model = language.model.replace(positions="none", axial_shape=None, axial_dims=None, num_buckets=None,
                                   max_length=max(setting.lengths))
    common = {"device": setting.device, "precision": language.precision}

    def points(length: int, batch_size: int) -> list[dict[str, Any]]:
        return [{"length": length, "batch_size": batch_size, **changes} for changes in contenders(scale).values()]

    def measurement(name: str, kind: str, **parameters: Any) -> Arm:
        return Arm(name=name, run=MeasurementConfig(kind=kind, parameters={**common, **parameters}))

    step = measurement(STEP, "speed", model=language.model.to_dict(), rounds=setting.repeats, max_seconds=120,
                       points=points(language.model.max_length, language.batch_size))
    seconds = [measurement(seconds_name(length), "speed", model=model.to_dict(), rounds=setting.repeats, max_seconds=120,
                           points=points(length, setting.tokens // length)) for length in setting.lengths]
    memory = [measurement(memory_name(length), "memory", model=model.to_dict(), max_seconds=600,
                          points=points(length, setting.tokens // length)) for length in setting.memory_lengths]
    return (*trainings(scale), step, *seconds, *memory)


def trainings(scale: Scale) -> tuple[Arm, ...]:
    """Return the contenders' trainings under their names here: the very runs of the experiments on text."""
    shared = {shared_qk.SEPARATE_NAME: EXACT, reversible.REVERSIBLE: EXACT_REVERSIBLE,
              **{name: name for name in contenders(scale) if name not in (EXACT, EXACT_REVERSIBLE)}}
    found = (*shared_qk.arms(scale), *reversible.arms(scale), *hash_rounds.arms(scale))
    return tuple(replace(arm, name=shared[arm.name]) for arm in found if arm.name in shared)


def measured(results: ExperimentResults, name: str) -> dict[str, Mapping[str, Any]]:
    """Return a measurement's events by contender, whatever their status; none where it is not finished."""
    found = by_contender(results, name, contenders(check_scale(results.scale)))
    return {contender: events[0] for contender, events in found.items() if events}


def seconds_of(results: ExperimentResults, name: str) -> dict[str, list[float]]:
    """Return the seconds of each round by contender, of those that finished."""
    return {contender: list(event["seconds"]) for contender, event in measured(results, name).items()
            if event["status"] == "finished"}


def crossing(times: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> Estimate:
    """Return the length from which on the first of two is faster than the second at every greater measured length.

    `times`: for each length the seconds of both, round by round. Interpolated: log of the ratio of medians over log length.
    0: faster at every length; infinite: not at the greatest. The interval is the 95 % bootstrap over rounds, in which both
    took turns. Raises MissingResult without two lengths.
    """
    if len(times) < 2:
        raise MissingResult("fewer than two lengths could be measured")
    lengths = sorted(times)
    rounds = {length: list(zip(*times[length], strict=True)) for length in lengths}
    value = _crosses(lengths, [_log_ratio(rounds[length]) for length in lengths])
    n = min(len(pairs) for pairs in rounds.values())
    if n == 1:
        return Estimate(value=value)
    generator = random.Random(0)
    found = sorted(_crosses(lengths, [_log_ratio(generator.choices(rounds[length], k=len(rounds[length])))
                                      for length in lengths]) for _ in range(_RESAMPLES))
    tail = _RESAMPLES // 40
    return Estimate(value=value, low=found[tail], high=found[-tail - 1], n=n)


def _log_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return math.log(median(one for one, _ in pairs) / median(other for _, other in pairs))


def _crosses(lengths: Sequence[int], ratios: Sequence[float]) -> float:
    slower = [index for index, ratio in enumerate(ratios) if ratio >= 0]
    if not slower:
        return 0.0
    last = slower[-1]
    if last == len(lengths) - 1:
        return math.inf
    share = ratios[last] / (ratios[last] - ratios[last + 1])
    return float(lengths[last] * (lengths[last + 1] / lengths[last]) ** share)


def crossing_of(results: ExperimentResults, name: str, baseline: str) -> Estimate:
    """Return the length from which on a step of `name` takes less time than one of `baseline`. Raises MissingResult."""
    by_length = {length: seconds_of(results, seconds_name(length)) for length in _setting(results).lengths}
    return crossing({length: (seconds[name], seconds[baseline]) for length, seconds in by_length.items()
                     if name in seconds and baseline in seconds})


def crossing_text(found: Estimate, lengths: Sequence[int]) -> str:
    """Write a crossing: "from about 1,870 tokens on [1,790, 1,950]"."""
    first, last = min(lengths), max(lengths)
    if found.value == 0:
        text = f"at every length from {first:,} to {last:,} tokens"
    elif math.isinf(found.value):
        text = f"at no length up to {last:,} tokens"
    else:
        text = f"from about {found.value:,.0f} tokens on"
    if found.low is None or found.high is None or found.low == found.high:
        return text
    ends = [f"below {first:,}" if end == 0 else f"above {last:,}" if math.isinf(end) else f"{end:,.0f}"
            for end in (found.low, found.high)]
    return f"{text} [{', '.join(ends)}]"


def at_equal_time(results: ExperimentResults, name: str, baseline: str = EXACT) -> tuple[float, Estimate]:
    """Return when the shorter of two trainings ends, in seconds, and bits(name) - bits(baseline) then, over common seeds.

    Seconds are steps times the median seconds of a step. Raises MissingResult.
    """
    seconds = {contender: median(values) for contender, values in seconds_of(results, STEP).items()}
    if name not in seconds or baseline not in seconds:
        raise MissingResult(f"a step of {name} or of {baseline} could not be timed")
    ours, theirs = ({record.seed: record for record in results.require(one)} for one in (name, baseline))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise MissingResult(f"{name} and {baseline} have no finished seed in common")
    ends = [min(_last_step(ours[seed]) * seconds[name], _last_step(theirs[seed]) * seconds[baseline]) for seed in seeds]
    differences = [bits_at(ours[seed], end / seconds[name]) - bits_at(theirs[seed], end / seconds[baseline])
                   for seed, end in zip(seeds, ends, strict=True)]
    return max(ends), mean_interval(differences)


def _last_step(record: Record) -> float:
    steps, _ = record.curve("eval", "bits")
    if not steps:
        raise MissingResult(f"{record.arm}: no point of the learning curve")
    return steps[-1]


def bits_at(record: Record, step: float) -> float:
    """Return the validation bits at a step, on the line between two points of the curve.

    Raises MissingResult before the first point.
    """
    steps, values = record.curve("eval", "bits")
    if not steps or step < steps[0]:
        raise MissingResult(f"{record.arm}: no point of the learning curve before step {step:.0f}")
    for index in range(1, len(steps)):
        if step <= steps[index]:
            share = (step - steps[index - 1]) / (steps[index] - steps[index - 1])
            return values[index - 1] + share * (values[index] - values[index - 1])
    return values[-1]


def _setting(results: ExperimentResults) -> Setting:
    scale = check_scale(results.scale)
    if scale not in SETTINGS:
        raise MissingResult(f"no runs at the scale {scale}")
    return SETTINGS[scale]


def show(results: ExperimentResults) -> Section:
    """Show time and memory against length, bits against seconds, and what follows from them in words."""
    setting, language = _setting(results), ladder.SETTINGS[check_scale(results.scale)]
    names = list(contenders(check_scale(results.scale)))
    lsh = [name for name in names if name not in (EXACT, EXACT_REVERSIBLE)]
    seconds = {length: measured(results, seconds_name(length)) for length in setting.lengths}
    memory = {length: measured(results, memory_name(length)) for length in setting.memory_lengths}
    if not any((*seconds.values(), *memory.values(), *(results.of(name) for name in names))):
        raise MissingResult("nothing was measured")
    device = next((f"; {event['device_name']}, {event['threads']} threads" for found in seconds.values()
                   for event in found.values()), "")
    model = language.model
    opening = (
        f"A training step (forward and backward) of the language model that the trainings use: {model.num_layers} layers, "
        f"{'every other one local, ' if language.local_layers else ''}d_model {model.d_model}, d_ff {model.d_ff}, "
        f"{model.num_heads} heads x {model.d_head}, chunk {model.chunk_length}, "
        f"{setting.tokens:,} tokens a batch, {language.precision}{device}. It is that model, not the one layer that the "
        "chapter on speed measures, because its quality is known. Exact attention is a regular Transformer with separate "
        "queries and keys on torch's scaled_dot_product_attention, causal, activations stored: the fused kernel, which never "
        "holds L x L scores. The same with reversible layers tells what reversing costs from what hashing brings; the LSH "
        "models are reversible.")
    curves = _curves_in_seconds(results, names)
    return Section(
        text=(opening, *_time_in_words(results, lsh), *_memory_in_words(memory), *_quality_in_words(results, lsh)),
        figures=(
            Figure(title="Seconds a step against length", x_label="length (tokens)", y_label="seconds a step",
                   series=tuple(_line(name, seconds, "median", 1.0, banded=True) for name in names), log_x=True, log_y=True,
                   caption=f"{setting.tokens:,} tokens a batch. Median of {setting.repeats} rounds in which all took turns, "
                   "band from the 20th to the 80th percentile."),
            Figure(title="Activations against length", x_label="length (tokens)", y_label="MB of activations",
                   series=tuple(_line(name, memory, "activation_bytes", 1e-6) for name in names), log_x=True, log_y=True,
                   caption=f"{setting.tokens:,} tokens a batch. Peak of a step minus parameters, gradients and optimiser "
                   "states."),
            Figure(title="Quality against training time", x_label="seconds of training", y_label="validation bits per byte",
                   series=curves, caption="Seconds are steps times the median seconds of a step, measured alone, all in turn: "
                   f"the trainings themselves shared the machine{_threads(results)}. The optimiser, the same for all, is not "
                   "counted."),
        ),
        tables=(
            _table("Median seconds a step", names, seconds, "median", 1.0),
            _table("MB of activations", names, memory, "activation_bytes", 1e-6),
            *((_quality_table(results, names),) if any(results.of(name) for name in names) else ()),
        ),
    )


def _threads(results: ExperimentResults) -> str:
    """Say on how many threads a step of the trainings was timed: ", 2 threads a step"; "" before it was."""
    threads = next((event["threads"] for event in measured(results, STEP).values()), None)
    return "" if threads is None else f", here {threads} thread{'s' if threads > 1 else ''} computed a step"


def _line(name: str, found: Mapping[int, Mapping[str, Mapping[str, Any]]], key: str, unit: float, *,
          banded: bool = False) -> Series:
    done = {length: events[name] for length, events in found.items() if name in events and events[name]["status"] == "finished"}
    return Series(label=name, x=list(done), y=[event[key] * unit for event in done.values()],
                  low=[event["low"] * unit for event in done.values()] if banded else None,
                  high=[event["high"] * unit for event in done.values()] if banded else None)


def _table(title: str, names: Sequence[str], found: Mapping[int, Mapping[str, Mapping[str, Any]]], key: str,
           unit: float) -> Table:
    rows = []
    for name in names:
        events = [events.get(name) for events in found.values()]
        rows.append((name, *(None if event is None else event[key] * unit if event["status"] == "finished" else event["status"]
                             for event in events)))
    return Table(title=title, header=("model", *(f"{length:,}" for length in found)), rows=tuple(rows))


def _curves_in_seconds(results: ExperimentResults, names: Sequence[str]) -> tuple[Series, ...]:
    seconds = {name: median(values) for name, values in seconds_of(results, STEP).items()}
    curves = learning_curves(results, [name for name in names if name in seconds])
    return tuple(replace(curve, x=[float(step) * seconds[curve.label] for step in curve.x]) for curve in curves)


def _quality_table(results: ExperimentResults, names: Sequence[str]) -> Table:
    seconds, rows = seconds_of(results, STEP), []
    for name in names:
        bits = mean_of(results, name, "evaluations", "own", "bits")
        cells: list[float | None] = [None] * 4
        if name != EXACT and (found := _differences(results, name)) is not None:
            end, equal_time, equal_steps = found
            cells = [end, equal_time.value, equal_time.low, equal_time.high]
            cells.append(equal_steps.value)
        else:
            cells.append(None)
        rows.append((name, median(seconds[name]) if name in seconds else None, bits.value if bits else None, *cells))
    return Table(title="Quality at equal training time", rows=tuple(rows),
                 header=("model", "seconds a step", "bits per byte at the end", "compared at (s)", "difference", "low", "high",
                         "at equal steps"),
                 caption=f"Difference: bits per byte minus {EXACT}'s when the shorter of the two trainings ends, paired over "
                 "seeds, with its 95 % interval.")


def _differences(results: ExperimentResults, name: str) -> tuple[float, Estimate, Estimate] | None:
    """Return seconds, the difference to exact attention at them, and that at equal steps; None where runs are missing."""
    try:
        return (*at_equal_time(results, name), paired_difference(results, name, EXACT))
    except MissingResult:
        return None


def _time_in_words(results: ExperimentResults, lsh: Sequence[str]) -> tuple[str, ...]:
    sentences = []
    for name in lsh:
        try:
            found = [crossing_text(crossing_of(results, name, baseline), _setting(results).lengths)
                     for baseline in (EXACT, EXACT_REVERSIBLE)]
        except MissingResult:
            continue
        sentences.append(f"{name}: {found[0]}; against the reversible one {found[1]}.")
    if not sentences:
        return ()
    return ("Where a step with LSH attention takes less time than one with exact attention on this machine (95 % interval over "
            "rounds). " + " ".join(sentences),)


def _memory_in_words(memory: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> tuple[str, ...]:
    for length in sorted(memory, reverse=True):
        sizes = {name: event["activation_bytes"] / 1e6 for name, event in memory[length].items()
                 if event["status"] == "finished"}
        if EXACT in sizes and len(sizes) > 1:
            listed = ", ".join(f"{name} {size:,.0f} MB ({100 * size / sizes[EXACT]:.0f} %)" for name, size in sizes.items())
            return (f"Activations at {length:,} tokens a sequence: {listed}. Per cent are of {EXACT}'s. None holds L x L "
                    "scores: what separates the exact models is reversing, not hashing.",)
    return ()


def _quality_in_words(results: ExperimentResults, lsh: Sequence[str]) -> tuple[str, ...]:
    language, sentences = ladder.SETTINGS[check_scale(results.scale)], []
    for name in lsh:
        found = _differences(results, name)
        if found is not None:
            end, equal_time, equal_steps = found
            sentences.append(f"{name}, after {end:,.0f} s: {signed(equal_time)} ({_judgement(equal_time)}); at equal steps "
                             f"{signed(equal_steps)}.")
    if not sentences:
        return ()
    return (f"Bits per byte against {EXACT} at equal training time, {language.model.max_length:,} tokens a sequence, "
            f"{seeds_of(results, (EXACT, *lsh))}. " + " ".join(sentences),
            "The slower model is stopped before its learning rate has come down, which counts against it; at equal steps it "
            "had more time. What a schedule made for the shorter time would give should lie between the two.")


def _judgement(difference: Estimate) -> str:
    """Say what a difference in bits means, by its whole interval."""
    if difference.low is None or difference.high is None:
        return "one seed, no interval"
    return "better" if difference.high < 0 else "worse" if difference.low > 0 else "no difference shown"


EXPERIMENT = Experiment(
    name="yardstick",
    title="LSH attention beside today's exact attention",
    question="Is LSH attention worth it beside exact attention as torch computes it today, and from which length on?",
    claims=(),
    criterion="The paper makes no claim here, and nothing is judged. LSH attention counts as faster from the length on from "
    "which its median seconds a step are below exact attention's at every greater measured length; between two lengths the log "
    "of the ratio is interpolated over the log of the length, and the interval is the bootstrap over rounds. At equal training "
    "time it counts as better or worse only by the whole 95 % interval of the paired difference over seeds.",
    arms=arms,
    judge=lambda results: (),
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts if scale in SETTINGS else "Everything: it has no runs at this scale.",
)
