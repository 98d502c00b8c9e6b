"""C9: are deeper Reformers better?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C9
from reformer_lab.experiments.judging import (
    BITS,
    change_per_doubling,
    falls,
    final_table,
    learning_curves,
    mean_of,
    recorded_config,
    signed,
    verdict,
)
from reformer_lab.experiments.ladder import FEW_SEEDS, SETTINGS, context, looks_at, lsh_arms, setting_of
from reformer_lab.reporting.section import Figure, Section, Series

SLACK_BITS = 0.01
"""Bits per byte and doubling of the depth that count as no change."""


def arm_name(num_layers: int) -> str:
    """Name of the arm with so many layers."""
    return f"{num_layers} layer{'s' if num_layers > 1 else ''}"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the Reformer at each depth; at the setting's own depth it is an arm of hash_rounds."""
    setting = SETTINGS[scale]
    return tuple(arm for depth in setting.depths
                 for arm in lsh_arms(setting, setting.reformer_rounds, name=arm_name(depth), num_layers=depth))


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C9 by the change per doubling of the depth."""
    setting = setting_of(results)
    change = change_per_doubling(results, {depth: (arm_name(depth), BITS) for depth in setting.depths})
    text = "on enwik8" if recorded_config(results)["data"]["path"] == "enwik8" else "not on enwik8"
    summary = (f"only \"deeper is better\" is judged, {setting.depths[0]} to {setting.depths[-1]} layers, {text}: "
               f"{signed(change)} bits per byte for each doubling of the depth")
    return (verdict(results, "depth", C9, falls(change, SLACK_BITS), summary, estimate=change, looks=looks_at(results, setting),
                    unit="bits per byte for each doubling of the depth"),)


def show(results: ExperimentResults) -> Section:
    """Show the learning curves and bits against depth."""
    setting = setting_of(results)
    names = [arm_name(depth) for depth in setting.depths]
    ends = {depth: mean_of(results, arm_name(depth), *BITS) for depth in setting.depths}
    found = {depth: end for depth, end in ends.items() if end is not None}
    banded = bool(found) and all(end.has_interval for end in found.values())
    series = Series(label=f"LSH-{setting.reformer_rounds}", x=list(found), y=[end.value for end in found.values()],
                    low=[end.low for end in found.values()] if banded else None,
                    high=[end.high for end in found.values()] if banded else None)
    return Section(
        text=(context(results, layers=False) + ".",),
        figures=(
            Figure(title="Learning curves by depth", x_label="step", y_label="validation bits per byte",
                   series=learning_curves(results, names)),
            Figure(title="Bits per byte at the end by depth", x_label="layers", y_label="bits per byte",
                   series=(series,) if found else (), log_x=True),
        ),
        tables=(final_table(results, names, "depth"),),
    )


EXPERIMENT = Experiment(
    name="depth",
    title="Depth",
    question="Does a deeper Reformer model text better at the same number of steps?",
    claims=(C9,),
    criterion="Judged is only whether deeper is better, up to the deepest that is run (20 layers and more at the scale paper "
    f"alone). Supported if bits per byte at the end fall by more than {SLACK_BITS} for each doubling of the depth (slope over "
    "log2 of the depth, whole 95 % interval over seeds); contradicted if they rise by more than that; inconclusive between. "
    f"{FEW_SEEDS}",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
