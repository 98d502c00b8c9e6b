"""C6: how many hash rounds does LSH attention need to match full attention, in training and at evaluation?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C6
from reformer_lab.experiments.judging import (
    below,
    final_table,
    learning_curves,
    mean_of,
    paired_difference,
    signed,
    together,
    verdict,
)
from reformer_lab.experiments.ladder import (
    FULL,
    MARGIN_BITS,
    SETTINGS,
    language_model_arms,
    lsh_arms,
    lsh_name,
    setting_of,
)
from reformer_lab.reporting.section import Figure, Level, Section, Series, Table

FULL_NAME = "full attention"
SLACK_BITS = 0.01
"""Bits per byte by which more rounds may be worse and still not count as worse."""


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return full attention and LSH attention with each number of rounds."""
    lsh = [arm for rounds in SETTINGS[scale].rounds for arm in lsh_arms(scale, rounds)]
    return (*language_model_arms(scale, FULL_NAME, FULL), *lsh)


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C6: the most rounds against full attention, against the fewest, and more rounds at evaluation alone."""
    rounds = setting_of(results).rounds
    fewest, most = lsh_name(rounds[0]), lsh_name(rounds[-1])
    gap = paired_difference(results, most, FULL_NAME)
    gain = paired_difference(results, most, fewest)
    raised = paired_difference(results, fewest, fewest, ("evaluations", most, "bits"), ("evaluations", fewest, "bits"))
    holds = together(below(gap, MARGIN_BITS), _no_worse(gain.value), _no_worse(raised.value))
    summary = (f"{most} {signed(gap)} bits per byte against full attention; {signed(gain)} against {fewest}; "
               f"trained {fewest}, evaluated {most}: {signed(raised)}")
    return (verdict(results, "hash_rounds", C6, holds, summary, estimate=gap, unit="bits per byte"),)


def _no_worse(change: float) -> bool | None:
    """True for a gain, None for a loss within the slack, False for a loss."""
    if change < 0:
        return True
    return None if change <= SLACK_BITS else False


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
        text=(setting_of(results).context + ".",),
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
    criterion="Supported if three things hold: with the most rounds the bits per byte at the end are less than "
    f"{MARGIN_BITS} above those of full attention (whole 95 % interval of the paired difference; the value, with one "
    "seed); the most rounds are better than the fewest; and the model trained with the fewest is better when evaluated "
    f"with the most. Contradicted if the first is {MARGIN_BITS} or more by the whole interval, or one of the other two "
    f"is worse by more than {SLACK_BITS}.",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
