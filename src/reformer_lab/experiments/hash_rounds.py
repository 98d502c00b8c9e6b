"""C6: how many hash rounds does LSH attention need to match full attention, in training and at evaluation?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C6
from reformer_lab.experiments.judging import (
    BITS,
    above,
    below,
    change_per_doubling,
    falls,
    final_table,
    mean_of,
    paired_difference,
    signed,
    together,
    verdict,
)
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    FULL,
    LOCAL,
    MARGIN_BITS,
    SETTINGS,
    Setting,
    context,
    curves_figure,
    language_model_arms,
    looks_at,
    lsh_arms,
    lsh_name,
    setting_of,
)
from reformer_lab.reporting.section import Figure, Level, Section, Series, Table

FULL_NAME = "full attention"
LOCAL_NAME = "local attention alone"
"""Where every other layer is local in all arms: the arm without the layers under test."""
SLACK_BITS = 0.002
"""Bits per byte and doubling of the rounds that count as no change."""


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the arms on text."""
    return rounds_arms(SETTINGS[scale])


def rounds_arms(setting: Setting) -> tuple[Arm, ...]:
    """Return full attention, LSH attention with each number of rounds, and what local layers do alone where there are any."""
    lsh = [arm for rounds in setting.rounds for arm in lsh_arms(setting, rounds)]
    local = language_model_arms(setting, LOCAL_NAME, LOCAL) if setting.local_layers else ()
    return (*language_model_arms(setting, FULL_NAME, FULL), *lsh, *local)


def shown_names(setting: Setting) -> tuple[str, ...]:
    """Return the arms in the order of tables and legends."""
    local = (LOCAL_NAME,) if setting.local_layers else ()
    return (FULL_NAME, *(lsh_name(number) for number in setting.rounds), *local)


def judge_rounds(results: ExperimentResults, experiment: str, setting: Setting) -> Verdict:
    """Judge C6: 8 rounds against full attention, the trend over the rounds, and over the rounds at evaluation alone."""
    names = {rounds: lsh_name(rounds) for rounds in setting.rounds}
    fewest, matching, most = names[setting.rounds[0]], names[setting.matching], names[setting.rounds[-1]]
    gap = paired_difference(results, matching, FULL_NAME)
    trained = change_per_doubling(results, {rounds: (name, BITS) for rounds, name in names.items()})
    raised = change_per_doubling(results, {rounds: (fewest, ("evaluations", name, "bits")) for rounds, name in names.items()})
    holds = together(below(gap, MARGIN_BITS), falls(trained, SLACK_BITS), falls(raised, SLACK_BITS))
    summary = (f"{setting.subject}{matching} {signed(gap)} {setting.unit} against full attention; for each doubling of the "
               f"rounds from {fewest} to {most}: {signed(trained)} in training, {signed(raised)} at the evaluation of {fewest} "
               "alone")
    if setting.local_layers:
        reach = paired_difference(results, LOCAL_NAME, FULL_NAME)
        holds = None if holds and not above(reach, 0) else holds
        summary += f"; without these layers {signed(reach)}"
    return verdict(results, experiment, C6, holds, summary, estimate=gap, looks=looks_at(results, setting),
                   unit=f"{setting.unit} above full attention, {matching}")


def show_rounds(results: ExperimentResults, setting: Setting) -> tuple[tuple[Figure, ...], Table]:
    """Return the curves, bits against rounds, and every arm evaluated with every number of rounds."""
    rounds = setting.rounds
    names = [lsh_name(number) for number in rounds]
    rows = []
    for trained in names:
        cells = [mean_of(results, trained, "evaluations", evaluated, "bits") for evaluated in names]
        rows.append((trained, *(cell.value if cell else None for cell in cells)))
    matrix = Table(title="More rounds at evaluation alone", header=("trained with", *names), rows=tuple(rows),
                   caption=f"{setting.unit.capitalize()}; columns: rounds at evaluation.")
    ends = {number: mean_of(results, lsh_name(number), "evaluations", "own", "bits") for number in rounds}
    found = {number: end for number, end in ends.items() if end is not None}
    banded = bool(found) and all(end.has_interval for end in found.values())
    series = Series(label="LSH attention", x=list(found), y=[end.value for end in found.values()],
                    low=[end.low for end in found.values()] if banded else None,
                    high=[end.high for end in found.values()] if banded else None)
    levels = {name: mean_of(results, name, *BITS) for name in (FULL_NAME, LOCAL_NAME)}
    curves = curves_figure(results, setting, "Learning curves by hash rounds", shown_names(setting))
    at_the_end = Figure(title=f"{setting.unit.capitalize()} at the end by hash rounds", x_label="hash rounds",
                        y_label=setting.unit, series=(series,) if found else (),
                        levels=tuple(Level(label=name, y=end.value) for name, end in levels.items() if end), log_x=True)
    return (curves, at_the_end), matrix


def show(results: ExperimentResults) -> Section:
    """Show the curves, bits against rounds, the final values and every arm evaluated with every number of rounds."""
    setting = setting_of(results)
    figures, matrix = show_rounds(results, setting)
    return Section(text=(context(results) + ".",), figures=figures,
                   tables=(final_table(results, shown_names(setting), "attention"), matrix))


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
    f"trends rises by more than {SLACK_BITS}. Where local layers alternate with those under test, the claim is supported only "
    "if local layers alone are worse than full attention, by the whole interval: else equal arms would say nothing. "
    f"{FEW_SEEDS}",
    arms=arms,
    judge=lambda results: (judge_rounds(results, "hash_rounds", setting_of(results)),),
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
