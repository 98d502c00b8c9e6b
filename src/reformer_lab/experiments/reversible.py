"""C5: does the reversible Transformer learn as the regular one does? And does reversing change anything at all?"""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C5
from reformer_lab.experiments.judging import (
    below,
    final_table,
    learning_curves,
    mean_of,
    paired_difference,
    signed,
    verdict,
)
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    MARGIN_BITS,
    SETTINGS,
    TRANSFORMER,
    TWO_STREAMS,
    context,
    language_model_arms,
)
from reformer_lab.experiments.ladder import REVERSIBLE as REVERSIBLE_MODEL
from reformer_lab.reporting.section import Figure, Section

REGULAR, REVERSIBLE, STORED = "regular", "reversible", "two streams, stored"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the regular Transformer (one run with that of shared_qk), the reversible one, and its twin that stores."""
    return (
        *language_model_arms(scale, REGULAR, TRANSFORMER),
        *language_model_arms(scale, REVERSIBLE, REVERSIBLE_MODEL),
        *language_model_arms(scale, STORED, TWO_STREAMS),
    )


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C5 by the difference in bits per byte."""
    harm = paired_difference(results, REVERSIBLE, REGULAR)
    summary = f"reversible {signed(harm)} bits per byte against regular"
    return (verdict(results, "reversible", C5, below(harm, MARGIN_BITS), summary, estimate=harm, unit="bits per byte"),)


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
        figures=(Figure(title="Reversible and regular Transformer", x_label="step", y_label="validation bits per byte",
                        series=learning_curves(results, names)),),
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
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
