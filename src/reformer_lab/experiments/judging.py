"""What the experiments' judges and pages share: paired differences, trends, verdicts, curves."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reformer_lab.experiments.claim import Claim, ExperimentResults, Outcome, Sampling, Verdict
from reformer_lab.reporting.records import MissingResult, Record
from reformer_lab.reporting.section import Series, Table
from reformer_lab.reporting.statistics import Estimate, mean_interval, slope

BITS = ("evaluations", "own", "bits")
"""Where a training run's final bits per token are."""


def verdict(results: ExperimentResults, experiment: str, claim: Claim, holds: bool | None, summary: str, *,
            estimate: Estimate | None = None, unit: str = "", n: int | None = None,
            sampling: Sampling = "seeds", looks: int = 1) -> Verdict:
    """Return a verdict: supported (`holds` True), contradicted (False) or inconclusive (None).

    `estimate`: the number that was judged; `unit`: what it is, said so that the number needs no other words; `n`: runs behind
    it (default: the estimate's); `sampling`: what n counts; `looks`: how often the claim was judged, this time included. The
    scale smoke decides nothing: its verdicts are inconclusive whatever was measured.
    """
    outcome: Outcome = "inconclusive" if holds is None else "supported" if holds else "contradicted"
    found = Verdict(claim=claim.id, experiment=experiment, outcome=outcome, summary=summary, scale=results.scale,
                    unit=unit, n=n if n is not None else estimate.n if estimate else 0, sampling=sampling,
                    looks=looks)
    if estimate is not None:
        found = replace(found, value=estimate.value, low=estimate.low, high=estimate.high)
    if results.scale == "smoke":
        return replace(found, outcome="inconclusive", summary=f"smoke run, decides nothing: {summary}")
    return found


def judge_each(results: ExperimentResults, experiment: str,
               judges: Mapping[Claim, Callable[[], Verdict]]) -> tuple[Verdict, ...]:
    """Judge claims that rest on different arms: one claim's missing results are no reason to leave out the others."""
    found = []
    for claim, judge in judges.items():
        try:
            found.append(judge())
        except MissingResult as missing:
            found.append(Verdict(claim=claim.id, experiment=experiment, outcome="not run", summary=str(missing.args[0]),
                                 scale=results.scale))
    return tuple(found)


def paired_difference(results: ExperimentResults, arm: str, baseline: str, path: Sequence[str] = BITS) -> Estimate:
    """Return the mean over seeds of arm - baseline: runs with one seed saw the same data in the same order.

    Raises MissingResult when the two have no finished seed in common.
    """
    ours = {record.seed: float(record.value(*path)) for record in results.require(arm)}
    theirs = {record.seed: float(record.value(*path)) for record in results.require(baseline)}
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise MissingResult(f"{arm} and {baseline} have no finished seed in common")
    return mean_interval([ours[seed] - theirs[seed] for seed in seeds])


def below(estimate: Estimate, bound: float) -> bool | None:
    """Whether a number is below a bound: by its whole interval, or None when the interval holds the bound.

    A single run has no interval; its value decides, and the verdict is marked as indicative by its n.
    """
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    if high < bound:
        return True
    return False if low > bound else None


def above(estimate: Estimate, bound: float) -> bool | None:
    """Whether a number is above a bound, as `below`."""
    under = below(estimate, bound)
    return None if under is None else not under


def falls(change: Estimate, slack: float) -> bool | None:
    """Whether a change is a fall of more than `slack`: True, None for one within the slack or in doubt, False for a rise."""
    if below(change, -slack):
        return True
    return False if above(change, slack) else None


def together(*parts: bool | None) -> bool | None:
    """Join the parts of a criterion: False when one is False, True when all are True, else None."""
    if False in parts:
        return False
    return None if None in parts else True


def change_per_doubling(results: ExperimentResults, values: Mapping[int, tuple[str, Sequence[str]]]) -> Estimate:
    """Return the trend of a final value: its least-squares slope over log2 of the keys, one slope for each seed.

    `values`: for each size (depth, rounds) the arm and the path of the value in its final event. Seeds that lack one are
    left out. Raises MissingResult when none has them all.
    """
    by_seed: dict[int, dict[int, float]] = defaultdict(dict)
    for size, (arm, path) in values.items():
        for record in results.require(arm):
            by_seed[record.seed][size] = float(record.value(*path))
    whole = [found for found in by_seed.values() if len(found) == len(values)]
    if not whole:
        raise MissingResult(f"no seed finished all of {', '.join(arm for arm, _ in values.values())}")
    return mean_interval([slope([math.log2(size) for size in found], list(found.values())).value for found in whole])


def signed(estimate: Estimate, digits: int = 3) -> str:
    """Write a difference with its sign, and its interval where there is one."""
    text = f"{estimate.value:+.{digits}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    return text.replace("-", "−")


def learning_curve(label: str, records: Sequence[Record], key: str = "bits") -> Series | None:
    """Return the mean over seeds of the validation curve, with the range of the seeds as its band; None without points.

    A run that ended earlier than another keeps its last value, as its model does.
    """
    curves = [dict(zip(*record.curve("eval", key), strict=True)) for record in records]
    points: dict[float, list[float]] = defaultdict(list)
    for step in sorted(set().union(*curves)):
        for curve in curves:
            if step in curve:
                points[step].append(curve[step])
            elif curve and step > max(curve):
                points[step].append(curve[max(curve)])
    steps = sorted(step for step, values in points.items() if len(values) == len(records))
    if not steps:
        return None
    several = len(records) > 1
    return Series(
        label=label, x=steps, y=[sum(points[step]) / len(points[step]) for step in steps],
        low=[min(points[step]) for step in steps] if several else None,
        high=[max(points[step]) for step in steps] if several else None,
    )


def learning_curves(results: ExperimentResults, names: Sequence[str], key: str = "bits") -> tuple[Series, ...]:
    """Return the validation curves of the arms that have one."""
    curves = (learning_curve(name, results.of(name), key) for name in names)
    return tuple(curve for curve in curves if curve is not None)


def mean_of(results: ExperimentResults, name: str, *path: str) -> Estimate | None:
    """Return the mean over seeds of a final value of an arm, or None while there is none."""
    try:
        return mean_interval(results.values(name, *path))
    except MissingResult:
        return None


def by_contender(results: ExperimentResults, arm: str,
                 contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the events of a measurement in which contenders took turns, grouped; empty where it is not finished.

    `contenders`: by name, the model fields that make each, as its points were given them.
    """
    def key(fields: Mapping[str, Any]) -> str:
        return json.dumps(fields, sort_keys=True)  # a tuple comes back from a file as a list

    events = [event for record in results.of(arm)[:1] for event in record.measurements]
    return {name: [event for event in events if key(event["model"]) == key(fields)] for name, fields in contenders.items()}


def recorded_config(results: ExperimentResults) -> Mapping[str, Any]:
    """Return the configuration of the first finished run, as its result file holds it. Raises MissingResult."""
    for name in results.names:
        for record in results.of(name):
            config = record.header.get("config")
            if isinstance(config, Mapping):
                return config
    raise MissingResult("no run is finished")


def seeds_of(results: ExperimentResults, names: Sequence[str] = ()) -> str:
    """Write how many seeds of each arm the suite set out to run: "3 seeds", "3 to 5 seeds". `names`: of these alone."""
    wanted = names or results.names
    numbers = [len({arm.seed for arm in results.arms if arm.name == name}) for name in wanted]
    fewest, most = min(numbers), max(numbers)
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' if most > 1 else ''}"


def final_table(results: ExperimentResults, names: Sequence[str], what: str, unit: str = "bits per byte") -> Table:
    """Return the final bits of the arms, in `unit`, `what` heading the column of their names."""
    rows = []
    for name in names:
        bits, parameters = mean_of(results, name, *BITS), mean_of(results, name, "parameters")
        interval = (bits.value, bits.low, bits.high) if bits else (None, None, None)
        rows.append((name, *interval, int(parameters.value) if parameters else None, bits.n if bits else None))
    limit = next((record.header["config"]["eval_limit"] for name in names for record in results.of(name)), None)
    scored = f"{limit} sequences spread evenly over the validation split" if limit else "the validation split"
    return Table(
        title="At the end of training", header=(what, unit, "low", "high", "parameters", "seeds"), rows=tuple(rows),
        caption=f"Means over seeds with their 95 % interval, on {scored}. The interval says what another seed would do, not "
        "what other text or images would.",
    )


def percent(fraction: float) -> str:
    """Write a fraction as per cent: 99.8."""
    return f"{100 * fraction:.1f}"
