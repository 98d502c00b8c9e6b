"""Made-up experiments and made-up results: nothing here was measured, every number is invented for the tests."""

import math
from pathlib import Path

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, MeasurementConfig, Scale, Verdict
from reformer_lab.experiments.claims import C1, C4, C5, C6, C7, C8, C9
from reformer_lab.reporting.records import MissingResult, Suite, write_record
from reformer_lab.reporting.section import Figure, Level, Section, Series, Table
from reformer_lab.reporting.statistics import mean_interval

ENVIRONMENT = {
    "reformer_lab": "0.1.0", "commit": "made-up", "python": "3.11.0", "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "system": "Linux", "cpu": "Made-up CPU @ 2.00GHz", "cpu_count": 2, "memory_bytes": 8_000_000_000, "gpus": [],
}  # fmt: skip
COLUMNS = ("full", "LSH-8", "LSH-4", "LSH-2", "LSH-1")
ACCURACY = {
    "full": (1.0, 0.999, 0.991, 0.952, 0.861),
    "LSH-4": (1.0, 1.0, 0.999, 0.985, 0.902),
    "LSH-2": (0.999, 1.0, 0.998, 0.987, 0.893),
    "LSH-1": (0.982, 0.99, 0.985, 0.966, 0.947),
}


def arms(*names: str, seeds: int = 3) -> tuple[Arm, ...]:
    """Arms with these labels, told apart by a parameter."""
    return tuple(
        Arm(name=name, run=MeasurementConfig(kind="made-up", parameters={"name": name}, seed=seed))
        for name in names
        for seed in range(seeds)
    )


def _judge_table(results: ExperimentResults) -> tuple[Verdict, ...]:
    own = mean_interval([100 * value for value in results.values("LSH-4", "evaluations", "LSH-4", "accuracy")])
    worst = mean_interval([100 * value for value in results.values("LSH-1", "evaluations", "LSH-1", "accuracy")])
    common = {"experiment": "table2", "scale": results.scale, "unit": "%"}
    return (
        Verdict(claim="C7", outcome="supported", summary="full and LSH-4 solve the task on their own setting",
                value=own.value, low=own.low, high=own.high, n=own.n, **common),  # type: ignore[arg-type]
        Verdict(claim="C6", outcome="contradicted" if worst.value < 95 else "inconclusive", value=worst.value,
                summary="LSH-1 stays below the others when trained with one round", n=1, **common),  # type: ignore[arg-type]
    )  # fmt: skip


def _show_table(results: ExperimentResults) -> Section:
    rows = []
    for name in results.names:
        if results.of(name):
            own = [mean_interval([100 * v for v in results.values(name, "evaluations", c, "accuracy")]) for c in COLUMNS]
            rows.append((name, *(estimate.value for estimate in own)))
    table = Table(
        title="Accuracy on the second half, in %",
        header=("trained with", *COLUMNS),
        rows=tuple(rows),
        caption="Mean over seeds. Columns: the attention at evaluation.",
        shade=(50, 100),
    )
    curves = []
    for name in results.names:
        for record in results.of(name)[:1]:
            steps, values = record.curve("eval", "accuracy", name="own")
            curves.append(Series(label=name, x=steps, y=[100 * value for value in values]))
    if not curves:
        raise MissingResult("no finished run of full")
    figure = Figure(
        title="Accuracy while training", x_label="step", y_label="accuracy on the second half (%)",
        series=tuple(curves), caption="Validation sequences, first seed.", levels=(Level(label="chance", y=100 / 126),),
    )  # fmt: skip
    bars = Figure(
        title="Accuracy by rounds at evaluation", x_label="attention at evaluation", y_label="accuracy (%)",
        series=tuple(
            Series(label=str(row[0]), x=COLUMNS, y=[float(v) for v in row[1:]],
                   low=[float(v) - 2 for v in row[1:]], high=[min(100.0, float(v) + 2) for v in row[1:]])
            for row in rows
        ),
        kind="bars", caption="Whiskers: 95 % intervals over seeds.",
    )  # fmt: skip
    return Section(
        text=("Every model was trained on its own setting and evaluated with the five of the paper.",),
        figures=(figure, bars),
        tables=(table,),
    )


def _judge_reversible(results: ExperimentResults) -> tuple[Verdict, ...]:
    sides = [results.values(name, "evaluations", "own", "bits") for name in ("reversible", "regular")]
    gap = mean_interval([ours - theirs for ours, theirs in zip(*sides, strict=False)])
    return (
        Verdict(claim="C5", experiment="reversible", outcome="inconclusive", scale=results.scale, value=gap.value,
                low=gap.low, high=gap.high, unit="bits per byte", n=gap.n,
                summary="reversible minus regular, by less than the margin of 0.02 in the mean"),
    )  # fmt: skip


def _show_reversible(results: ExperimentResults) -> Section:
    series = []
    for name in ("regular", "reversible"):
        steps, values = results.require(name)[0].curve("train", "bits")
        band = 0.08
        series.append(Series(label=name, x=steps, y=values, low=[v - band for v in values], high=[v + band for v in values]))
    paper = Series(label="paper (figure 3, read off)", x=[0, 1000], y=[2.9, 2.1], dashed=True)
    return Section(
        figures=(
            Figure(title="Learning curves", x_label="step", y_label="bits per byte", series=(*series, paper),
                   caption="Band: lowest and highest seed. The two curves lie on one another."),
        )
    )  # fmt: skip


def _judge_speed(results: ExperimentResults) -> tuple[Verdict, ...]:
    ratio = results.require("full")[0].measurements[-1]["seconds_per_step"] / 0.07
    common = {"experiment": "speed", "scale": results.scale, "n": 1}
    return (
        Verdict(claim="C8", outcome="supported", value=ratio, unit="times slower at 16 times the length",
                summary="full attention slows down, LSH-4 does not", **common),  # type: ignore[arg-type]
        Verdict(claim="C1", outcome="supported", summary="time over length: exponent 1.04 for LSH-4, 1.9 for full", **common),  # type: ignore[arg-type]
    )  # fmt: skip


def _show_speed(results: ExperimentResults) -> Section:
    lengths = [1024 * 2**i for i in range(5)]
    full = [0.07 * 1.9**i for i in range(5)]
    figure = Figure(
        title="Time of a step at 16,384 tokens", x_label="length (tokens)", y_label="seconds per step",
        series=(
            Series(label="full", x=lengths, y=full, low=[0.9 * v for v in full], high=[1.2 * v for v in full]),
            Series(label="LSH-1", x=lengths, y=[0.11, 0.11, 0.112, 0.115, 0.12]),
            Series(label="LSH-4", x=lengths, y=[0.3, 0.3, None, 0.31, 0.32]),
        ),
        log_x=True, log_y=True, caption="Median of five repeats; band: 20th to 80th percentile. Both axes logarithmic.",
    )  # fmt: skip
    rows = tuple((f"{length:,}", length, time, "out of memory" if length > 8192 else 1_234_567) for length, time in
                 zip(lengths, full, strict=True))  # fmt: skip
    table = Table(title="Measured", header=("length", "tokens", "seconds", "bytes"), rows=rows)
    return Section(figures=(figure,), tables=(table,))


def _nothing(results: ExperimentResults) -> tuple[Verdict, ...]:
    raise MissingResult("no finished run of 12 layers")


def _no_section(results: ExperimentResults) -> Section:
    raise MissingResult("no finished run of 12 layers")


def _arms(*names: str, seeds: int = 3, scales: tuple[Scale, ...] = ("smoke", "quick")):  # type: ignore[no-untyped-def]
    return lambda scale: arms(*names, seeds=seeds) if scale in scales else ()


EXPERIMENTS = (
    Experiment(name="table2", title="Table 2: rounds at training and at evaluation",
               question="Does a one-layer model solve the duplication task with each kind of attention, and how much of it is "
               "left when the number of hash rounds changes at evaluation?",
               claims=(C7, C6), criterion="Supported if full and LSH-4 reach 99 % on their own setting and "
               "accuracy rises with the rounds in every row; contradicted if one of them stays below 90 % on all seeds.",
               arms=_arms(*ACCURACY), judge=_judge_table, show=_show_table,
               cuts=lambda scale: "Length 64 instead of 1024, 2000 steps instead of 150,000."),
    Experiment(name="reversible", title="Reversible and regular layers",
               question="Does a reversible Transformer learn as well as a regular one with the same parameters?",
               claims=(C5,), criterion="Supported if the interval of the difference lies below 0.02 bits per byte.",
               arms=_arms("regular", "reversible"), judge=_judge_reversible, show=_show_reversible,
               cuts=lambda scale: "3 layers of width 128 at length 512 on 200 KB of text."),
    Experiment(name="speed", title="Speed against length", question="What does a step cost as sequences get longer?",
               claims=(C8, C1), criterion="Supported if the slope of LSH's time over length is below 0.1 on logarithmic axes.",
               arms=_arms("full", "LSH-1", "LSH-4", seeds=1), judge=_judge_speed, show=_show_speed,
               cuts=lambda scale: "CPU, up to 16,384 tokens."),
    Experiment(name="depth", title="Depth", question="Are deeper models better?", claims=(C9,),
               criterion="Bits fall with depth.",
               arms=_arms("3 layers", "12 layers", seeds=2), judge=_nothing, show=_no_section,
               cuts=lambda scale: "Everything but the idea."),
    Experiment(name="shared_qk", title="Shared queries and keys", question="Does sharing hurt?", claims=(C4,),
               criterion="The interval of the difference lies below 0.02 bits per byte.",
               arms=_arms("shared", "separate", scales=("gpu",)), judge=_nothing, show=_no_section,
               cuts=lambda scale: "Nothing."),
)  # fmt: skip


def _events(name: str, seed: int) -> list[dict[str, object]]:
    """Made-up events of a training, or of a measurement."""
    jitter = 0.004 * seed
    if name in ("regular", "reversible"):
        train = [
            {"event": "train", "step": step, "bits": 2.1 + 3 * math.exp(-step / 150) + jitter + 0.02 * math.sin(step)}
            for step in range(0, 1000, 2)
        ]
        bits = (2.11 if name == "reversible" else 2.105) + jitter * (-1) ** seed
        return [*train, {"event": "final", "step": 1000, "evaluations": {"own": {"bits": bits}}}]
    if name in ACCURACY:
        evals: list[dict[str, object]] = [
            {
                "event": "eval",
                "name": "own",
                "step": step,
                "accuracy": 0.99 / (1 + math.exp((500 - step + 50 * len(name)) / 40)),
            }
            for step in range(0, 2001, 100)
        ]
        cells = {column: {"accuracy": max(0.0, value - jitter)} for column, value in zip(COLUMNS, ACCURACY[name], strict=True)}
        return [*evals, {"event": "final", "step": 2000, "evaluations": cells}]
    return []


def write_suite(folder: Path, *, skip: tuple[str, ...] = (), fail: tuple[str, ...] = ()) -> Suite:
    """Write made-up results for every arm at the scale quick, but those called in `skip`; those in `fail` as failed."""
    entries = {one.name: tuple(arm.entry() for arm in one.arms("quick")) for one in EXPERIMENTS}
    suite = Suite(
        scale="quick", started="2020-01-02T03:04:05+00:00", seconds=812.0, arms=entries, environment=ENVIRONMENT,
        command="reformer-lab reproduce --scale quick --output made-up",
    )  # fmt: skip
    suite.write(folder)
    for arm_entries in entries.values():
        for arm in arm_entries:
            if arm.name in skip:
                continue
            header = {"arm": arm.id, "name": arm.name, "seed": arm.seed, "scale": "quick", "environment": ENVIRONMENT}
            if arm.name in fail:
                write_record(folder, {**header, "status": "failed", "error": "loss is not finite at step 12 <b>&"}, [])
                continue
            events = _events(arm.name, arm.seed)
            if "layers" in arm.name or (not events and arm.name == "LSH-1"):
                events = []
            events.append({"event": "measurement", "seconds_per_step": 0.91})
            write_record(folder, {**header, "status": "finished", "seconds": 61.5 + 10 * arm.seed}, events)
    return suite
