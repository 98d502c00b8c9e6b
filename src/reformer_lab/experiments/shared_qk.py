"""C4: does sharing queries and keys hurt? Two regular Transformers that differ in this alone."""

from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict
from reformer_lab.experiments.claims import C4
from reformer_lab.experiments.judging import final_table
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    MARGIN_BITS,
    SETTINGS,
    SHARED_QK,
    TRANSFORMER,
    Setting,
    context,
    curves_figure,
    judge_not_worse,
    language_model_arms,
    setting_of,
)
from reformer_lab.reporting.section import Section

SEPARATE_NAME, SHARED_NAME = "separate Q and K", "shared QK"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the two arms, for each seed."""
    setting = SETTINGS[scale]
    return (
        *language_model_arms(setting, SEPARATE_NAME, TRANSFORMER, paired=True),
        *language_model_arms(setting, SHARED_NAME, SHARED_QK, paired=True),
    )


def judge_sharing(results: ExperimentResults, experiment: str, setting: Setting, baseline: str = SEPARATE_NAME) -> Verdict:
    """Judge C4 by the difference in bits. `baseline`: the arm with separate queries and keys."""
    return judge_not_worse(results, experiment, C4, setting, SHARED_NAME, baseline, "shared QK {} against separate ones")


def show(results: ExperimentResults) -> Section:
    """Show the learning curves and the final values."""
    names = (SEPARATE_NAME, SHARED_NAME)
    return Section(
        text=(context(results) + ".",),
        figures=(curves_figure(results, setting_of(results), "Shared and separate queries and keys", names),),
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
    judge=lambda results: (judge_sharing(results, "shared_qk", setting_of(results)),),
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
