"""C6: how many hash rounds does LSH attention need to match full attention, in training and at evaluation?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C6
from reformer_lab.experiments.judging import (
    BITS,
    below,
    change_per_doubling,
    falls,
    final_table,
    learning_curves,
    mean_of,
    paired_difference,
    signed,
    together,
    verdict,
)
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    FULL,
    MARGIN_BITS,
    SETTINGS,
    context,
    language_model_arms,
    lsh_arms,
    lsh_name,
    setting_of,
)
from reformer_lab.reporting.section import Figure, Level, Section, Series, Table

FULL_NAME = "full attention"
SLACK_BITS = 0.002
"""Bits per byte and doubling of the rounds that count as no change."""


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return full attention and LSH attention with each number of rounds."""
    lsh = [arm for rounds in SETTINGS[scale].rounds for arm in lsh_arms(scale, rounds)]
    return (*language_model_arms(scale, FULL_NAME, FULL), *lsh)


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C6: 8 rounds against full attention, the most against the fewest, and more rounds at evaluation alone."""
    setting = setting_of(results)
    names = {rounds: lsh_name(rounds) for rounds in setting.rounds}
    fewest, matching, most = names[setting.rounds[0]], names[setting.matching], names[setting.rounds[-1]]
    gap = paired_difference(results, matching, FULL_NAME)
    trained = change_per_doubling(results, {rounds: (name, BITS) for rounds, name in names.items()})
    raised = change_per_doubling(results, {rounds: (fewest, ("evaluations", name, "bits")) for rounds, name in names.items()})
    holds = together(below(gap, MARGIN_BITS), falls(trained, SLACK_BITS), falls(raised, SLACK_BITS))
    summary = (f"{matching} {signed(gap)} bits per byte against full attention; for each doubling of the rounds from {fewest} "
               f"to {most}: {signed(trained)} in training, {signed(raised)} at the evaluation of {fewest} alone")
    return (verdict(results, "hash_rounds", C6, holds, summary, estimate=gap, unit="bits per byte"),)


def show(results: ExperimentResults) -> Section:
    """Show the curves, bits against rounds, and every arm evaluated with every number of rounds."""
    rounds = setting_of(results).rounds
    names = [lsh_name(number) for number in rounds]
    rows = []
    for trained in names:
        cells = [mean_of(results, trained, "evaluations", evaluated, "bits") for evaluated in names]
        rows.append((trained, *(cell.value if cell else None for cell in cells)))
    matrix = Table(title="More rounds at evaluation alone", header=("trained with", *names), rows=tuple(rows),
                   caption="Bits per byte; columns: rounds at evaluation.")
    ends = {number: mean_of(results, lsh_name(number), "evaluations", "own", "bits") for number in rounds}
    found = {number: end for number, end in ends.items() if end is not None}
    banded = bool(found) and all(end.has_interval for end in found.values())
    series = Series(label="LSH attention", x=list(found), y=[end.value for end in found.values()],
                    low=[end.low for end in found.values()] if banded else None,
                    high=[end.high for end in found.values()] if banded else None)
    full = mean_of(results, FULL_NAME, "evaluations", "own", "bits")
    return Section(
        text=(context(results) + ".",),
        figures=(
            Figure(title="Learning curves by hash rounds", x_label="step", y_label="validation bits per byte",
                   series=learning_curves(results, (FULL_NAME, *names))),
            Figure(title="Bits per byte at the end by hash rounds", x_label="hash rounds", y_label="bits per byte",
                   series=(series,) if found else (), levels=(Level(label=FULL_NAME, y=full.value),) if full else (),
                   log_x=True),
        ),
        tables=(final_table(results, (FULL_NAME, *names), "attention"), matrix),
    )


EXPERIMENT = Experiment(
    name="hash_rounds",
    title="Hash rounds",
    question="How close does LSH attention come to full attention as its hash rounds grow, and may they grow after training?",
    claims=(C6,),
    criterion="Supported if three things hold: with 8 rounds (where a scale has no 8: with the most) the bits per byte at the "
    f"end are less than {MARGIN_BITS} above those of full attention (non-inferiority, by the paired difference over seeds); "
    "they fall with the rounds in training; and those of the model trained with the fewest fall with the rounds at evaluation; "
    f"both by more than {SLACK_BITS} for each doubling (trend: slope over log2 of the rounds, one for each seed). Each by the "
    f"whole 95 % interval over seeds. Contradicted if, by the whole interval, the first is above {MARGIN_BITS} or one of the "
    f"trends rises by more than {SLACK_BITS}. {FEW_SEEDS}",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
