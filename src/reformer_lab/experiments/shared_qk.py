"""C4: does sharing queries and keys hurt? Two regular Transformers that differ in this alone."""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C4
from reformer_lab.experiments.judging import below, final_table, learning_curves, paired_difference, signed, verdict
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    MARGIN_BITS,
    SETTINGS,
    SHARED_QK,
    TRANSFORMER,
    context,
    language_model_arms,
)
from reformer_lab.reporting.section import Figure, Section

SEPARATE_NAME, SHARED_NAME = "separate Q and K", "shared QK"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the two arms, for each seed."""
    return (*language_model_arms(scale, SEPARATE_NAME, TRANSFORMER), *language_model_arms(scale, SHARED_NAME, SHARED_QK))


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C4 by the difference in bits per byte."""
    harm = paired_difference(results, SHARED_NAME, SEPARATE_NAME)
    summary = f"shared QK {signed(harm)} bits per byte against separate ones"
    return (verdict(results, "shared_qk", C4, below(harm, MARGIN_BITS), summary, estimate=harm, unit="bits per byte"),)


def show(results: ExperimentResults) -> Section:
    """Show the learning curves and the final values."""
    names = (SEPARATE_NAME, SHARED_NAME)
    return Section(
        text=(context(results) + ".",),
        figures=(Figure(title="Shared and separate queries and keys", x_label="step", y_label="validation bits per byte",
                        series=learning_curves(results, names)),),
        tables=(final_table(results, names, "attention"),),
    )


EXPERIMENT = Experiment(
    name="shared_qk",
    title="Shared queries and keys",
    question="Does a Transformer lose anything when queries and keys are one projection, with keys of unit length?",
    claims=(C4,),
    criterion=f"Supported if the shared-QK model's bits per byte at the end are less than {MARGIN_BITS} above those of "
    "the model with separate queries and keys, by the whole 95 % interval of the paired difference over seeds; "
    f"contradicted if the whole interval is above {MARGIN_BITS}. {FEW_SEEDS}",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
