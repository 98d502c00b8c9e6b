"""C5: does the reversible Transformer learn as the regular one does? And does reversing change anything at all?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C5
from reformer_lab.experiments.judging import final_table, mean_of, paired_difference, signed
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    MARGIN_BITS,
    SETTINGS,
    TRANSFORMER,
    TWO_STREAMS,
    Setting,
    context,
    curves_figure,
    judge_not_worse,
    language_model_arms,
    setting_of,
)
from reformer_lab.experiments.ladder import REVERSIBLE as REVERSIBLE_MODEL
from reformer_lab.reporting.section import Section

REGULAR, REVERSIBLE, STORED = "regular", "reversible", "two streams, stored"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the regular Transformer (one run with that of shared_qk), the reversible one, and its twin that stores."""
    setting = SETTINGS[scale]
    return (
        *language_model_arms(setting, REGULAR, TRANSFORMER, paired=True),
        *language_model_arms(setting, REVERSIBLE, REVERSIBLE_MODEL, paired=True),
        *language_model_arms(setting, STORED, TWO_STREAMS),
    )


def judge_reversible(results: ExperimentResults, experiment: str, setting: Setting) -> Verdict:
    """Judge C5 by the difference in bits."""
    return judge_not_worse(results, experiment, C5, setting, REVERSIBLE, REGULAR, "reversible {} against regular")


def show(results: ExperimentResults) -> Section:
    """Show the learning curves, the final values and what reversing itself changes."""
    names = (REGULAR, REVERSIBLE, STORED)
    text = [context(results) + "."]
    if results.of(REVERSIBLE) and results.of(STORED):
        drift = paired_difference(results, REVERSIBLE, STORED)
        text.append(f"Reversing alone (the same two streams, recomputed instead of stored) changes {signed(drift, 4)} bits "
                    "per byte: the gradients are the same up to rounding, which training amplifies.")
    ours, theirs = mean_of(results, REVERSIBLE, "parameters"), mean_of(results, REGULAR, "parameters")
    if ours and theirs:
        more = 100 * (ours.value / theirs.value - 1)
        text.append(f"The reversible model has {more:.1f} % more parameters: its last norm and its output layer read both "
                    "streams.")
    return Section(
        text=tuple(text),
        figures=(curves_figure(results, setting_of(results), "Reversible and regular Transformer", names),),
        tables=(final_table(results, names, "residual stream"),),
    )


EXPERIMENT = Experiment(
    name="reversible",
    title="Reversible layers",
    question="Does a reversible Transformer learn as well as a regular one of the same size?",
    claims=(C5,),
    criterion=f"Supported if the reversible model's bits per byte at the end are less than {MARGIN_BITS} above the regular "
    "one's, by the whole 95 % interval of the paired difference over seeds; contradicted if the whole interval is above "
    f"{MARGIN_BITS}. {FEW_SEEDS} The twin that stores its activations is a control: it tells what "
    "two streams do from what reversing does.",
    arms=arms,
    judge=lambda results: (judge_reversible(results, "reversible", setting_of(results)),),
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
