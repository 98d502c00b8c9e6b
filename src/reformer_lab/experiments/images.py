"""C4, C5 and C6 on images: the second data set of the paper's figures 3 and 4, raster after raster as text is byte after byte.

The arms and the criteria are those of shared_qk, reversible and hash_rounds.
"""

import contextlib
from dataclasses import replace
from typing import Any

from reformer_lab.data.config import ImagesConfig
from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict, check_scale
from reformer_lab.experiments.claims import C4, C5, C6
from reformer_lab.experiments.hash_rounds import FULL_NAME, LOCAL_NAME, SLACK_BITS, judge_rounds, rounds_arms, show_rounds
from reformer_lab.experiments.judging import above, below, final_table, judge_each, mean_of, paired_difference, signed
from reformer_lab.experiments.ladder import (
    FEW_SEEDS,
    LOCAL,
    MARGIN_BITS,
    REVERSIBLE,
    SHARED_QK,
    TRANSFORMER,
    Setting,
    context,
    curves_figure,
    language_model_arms,
    lsh_name,
)
from reformer_lab.experiments.reversible import REGULAR, judge_reversible
from reformer_lab.experiments.reversible import REVERSIBLE as REVERSIBLE_NAME
from reformer_lab.experiments.shared_qk import SHARED_NAME, judge_sharing
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.section import Section
from reformer_lab.training.config import OptimizerConfig

SAMPLE = "images/imagenet64-sample.zip"
"""Images in folders train/ and val/, looked for where the data are."""
OFFICIAL = "imagenet64"
"""The folder of the downsampled ImageNet's archives, or of the authors' train_64x64/ and valid_64x64/."""


def _model(side: int, **changes: Any) -> ReformerConfig:
    """Return the small model for rasters of this side: an axial table for the rows, the columns and the channels."""
    base = ReformerConfig(vocab_size=256, d_model=128, d_ff=512, num_layers=3, num_heads=2, d_head=64, chunk_length=16,
                          max_length=3 * side**2, positions="axial", axial_shape=(side, side, 3), axial_dims=(48, 48, 32))
    return base.replace(**changes)


_CPU_OPTIMIZER = OptimizerConfig(learning_rate=2e-3, schedule="warmup_cosine", warmup_steps=50)
_SAMPLE_CUTS = ("The images are a sample of tiny-imagenet, 8,000 to train on, and were JPEG files: a stand-in of imagenet64, "
                "whose archives are not free to download. ")

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(
        model=_model(4, d_model=32, d_ff=64, num_layers=2, d_head=16, chunk_length=8, axial_dims=(12, 12, 8)),
        data=ImagesConfig(side=4), optimizer=_CPU_OPTIMIZER, steps=6, batch_size=2, eval_points=2, eval_limit=4,
        eval_batch_size=4, seeds=(0,), rounds=(1, 2), threads=1,
        cuts="Everything: a handful of steps of a toy model on drawn shapes of 4 x 4 pixels.",
    ),
    "small": Setting(
        model=_model(16), data=ImagesConfig(path=SAMPLE, side=16), optimizer=_CPU_OPTIMIZER, steps=1000, batch_size=4,
        eval_points=8, eval_limit=128, eval_batch_size=8, seeds=(0, 1, 2), paired_seeds=tuple(range(8)), rounds=(1, 2, 4, 8),
        precision="bf16", threads=1,
        cuts=_SAMPLE_CUTS + "They are reduced to 16 x 16 pixels (768 tokens instead of 12,288), the chunks are 16 instead of "
        "128, the model 8 times narrower with 2 heads of 64 instead of 8 of 128, the training 1,000 steps of 4 images in bf16 "
        "instead of 500,000 of 8; 1 to 8 hash rounds instead of 2 to 16. With 8 rounds a query compares itself with up to a "
        "third of all tokens (the paper: a sixth). Adam instead of Adafactor. Three seeds; the regular and the reversible "
        "model have eight, five of them added once the first three had left C5 open (+0.002 [−0.090, +0.094]).",
    ),
    "gpu": Setting(
        model=get_preset("imagenet64").replace(d_model=512, d_ff=2048, d_head=64, axial_dims=(192, 192, 128)),
        data=ImagesConfig(path=SAMPLE, side=64),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="warmup_cosine", warmup_steps=100), steps=600, batch_size=8,
        eval_points=6, eval_limit=32, eval_batch_size=8, seeds=(0,), rounds=(2, 4, 8, 16), precision="bf16",
        cuts=_SAMPLE_CUTS + "The model is half as wide with 8 heads of 64 instead of 128, the training 600 steps instead of "
        "500,000; Adam instead of Adafactor. One seed.",
    ),
    "paper": Setting(
        model=get_preset("imagenet64"), data=ImagesConfig(path=OFFICIAL, side=64),
        optimizer=OptimizerConfig(name="adafactor", learning_rate=2.0, schedule="warmup_rsqrt", warmup_steps=8000,
                                  clip_norm=None),
        steps=500_000, batch_size=8, eval_points=100, eval_limit=500, eval_batch_size=4, seeds=(0,), rounds=(2, 4, 8, 16),
        precision="bf16",
        cuts="The archives of the downsampled ImageNet hold another reduction of the same photographs than the authors' PNG "
        "files. 500 images of the validation are scored, of 50,000. Axial positions: the ablations' own are not recorded. "
        "torch's Adafactor limits the relative step (docs/decisions/0009). One seed.",
    ),
}
"""No images at the scale quick, whose time is used up."""

LONGER: dict[Scale, int] = {"small": 2}
"""Where C4 is looked at again after so many times the steps: a harm of 1,000 steps may be a delay. Not judged."""
LONGER_REGULAR, LONGER_SHARED = f"{REGULAR}, longer", f"{SHARED_NAME}, longer"


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the Transformer, that with shared queries and keys, the reversible one, and the Reformers; none at quick.

    Local attention alone is a control, not judged: every layer of the other arms sees as far as the image reaches.
    """
    setting = SETTINGS.get(scale)
    if setting is None:
        return ()
    return (
        *language_model_arms(setting, REGULAR, TRANSFORMER, paired=True),
        *language_model_arms(setting, SHARED_NAME, SHARED_QK),
        *language_model_arms(setting, REVERSIBLE_NAME, REVERSIBLE, paired=True),
        *rounds_arms(setting),
        *language_model_arms(setting, LOCAL_NAME, LOCAL),
        *_longer_arms(scale, setting),
    )


def _longer_arms(scale: Scale, setting: Setting) -> tuple[Arm, ...]:
    if scale not in LONGER:
        return ()
    longer = replace(setting, steps=LONGER[scale] * setting.steps, paired_seeds=())
    return (*language_model_arms(longer, LONGER_REGULAR, TRANSFORMER), *language_model_arms(longer, LONGER_SHARED, SHARED_QK))


def _setting_of(results: ExperimentResults) -> Setting:
    setting = SETTINGS.get(check_scale(results.scale))
    if setting is None:
        raise MissingResult(f"no runs at the scale {results.scale}")
    return setting


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C4, C5 and C6 as on text. The paired seeds were added after a first look at C5."""
    setting = _setting_of(results)
    added = replace(setting, looks=2) if setting.paired_seeds else setting
    return judge_each(results, "images", {
        C4: lambda: judge_sharing(results, "images", setting, REGULAR),
        C5: lambda: judge_reversible(results, "images", added),
        C6: lambda: _judge_rounds_beside_the_control(results, setting),
    })


def _judge_rounds_beside_the_control(results: ExperimentResults, setting: Setting) -> Verdict:
    found = judge_rounds(results, "images", setting)
    with contextlib.suppress(MissingResult):
        control = paired_difference(results, LOCAL_NAME, REVERSIBLE_NAME)
        found = replace(found, summary=f"{found.summary}; {LOCAL_NAME}, a control with separate queries and keys, "
                        f"{signed(control)} against the reversible Transformer")
    return found


def show(results: ExperimentResults) -> Section:
    """Show the learning curves, bits against rounds, the final values and more rounds at evaluation alone."""
    setting = _setting_of(results)
    figures, matrix = show_rounds(results, setting)
    names: tuple[str, ...] = (REGULAR, SHARED_NAME, REVERSIBLE_NAME, FULL_NAME, *map(lsh_name, setting.rounds), LOCAL_NAME)
    if results.of(LONGER_SHARED):
        names += (LONGER_REGULAR, LONGER_SHARED)
    data = setting.data
    assert isinstance(data, ImagesConfig)
    text = (f"Images of {data.side} x {data.side} pixels, row by row, red, green and blue of a pixel one after the other: "
            f"{context(results)}. \"{REGULAR}\" is the Transformer with separate queries and keys, \"{FULL_NAME}\" the "
            "Reformer with full attention in the place of LSH attention.")
    return Section(
        text=(text, _bundled(results, setting), *_control_in_words(results, setting), *_added_in_words(results, setting),
              *_longer_in_words(results, setting)),
        figures=(curves_figure(results, setting, "Shared queries and keys, reversible layers", names[:3]), *figures),
        tables=(final_table(results, names, "model", setting.unit), matrix),
    )


def _bundled(results: ExperimentResults, setting: Setting) -> str:
    """Say what the arms differ in besides what they are named after."""
    parts = ["What comes with shared queries and keys in the paper comes with them here: keys of unit length, a token that "
             "sees itself only where it sees nothing else, fewer parameters. One learning rate served all arms."]
    ours, theirs = mean_of(results, REVERSIBLE_NAME, "parameters"), mean_of(results, REGULAR, "parameters")
    if ours and theirs:
        more = 100 * (ours.value / theirs.value - 1)
        parts.append(f"The reversible model has {more:.1f} % more parameters than the regular one.")
    best = lsh_name(setting.matching)
    with contextlib.suppress(MissingResult):
        parts.append(f"{best} shares queries and keys as the full attention of C6 does; against the regular Transformer it has "
                     f"{signed(paired_difference(results, best, REGULAR))} {setting.unit}.")
    return " ".join(parts)


def _control_in_words(results: ExperimentResults, setting: Setting) -> tuple[str, ...]:
    """Compare local attention with the arm that differs in its reach alone: local attention never shares queries and keys."""
    try:
        reach = paired_difference(results, LOCAL_NAME, REVERSIBLE_NAME)
    except MissingResult:
        return ()
    words = (f"A control, not judged: {LOCAL_NAME}, whose queries and keys are separate, {signed(reach)} {setting.unit} "
             f"against the arm \"{REVERSIBLE_NAME}\", which sees the whole image so.")
    if below(reach, 0):
        words += " A model this young learns fastest from what is near: that seeing far is worth anything here, no arm shows."
    elif above(reach, 0):
        words += " Seeing far is worth that much here."
    return (words,)


def _added_in_words(results: ExperimentResults, setting: Setting) -> tuple[str, ...]:
    """Say what the seeds that were added after a first look at C5 say alone."""
    added = replace(results, arms=tuple(arm for arm in results.arms if arm.seed not in setting.seeds))
    try:
        harm = paired_difference(added, REVERSIBLE_NAME, REGULAR)
    except MissingResult:
        return ()
    return (f"C5 by the seeds alone that were added after a first look: {signed(harm)} {setting.unit} ({harm.n} seeds).",)


def _longer_in_words(results: ExperimentResults, setting: Setting) -> tuple[str, ...]:
    try:
        harm = paired_difference(results, LONGER_SHARED, LONGER_REGULAR)
    except MissingResult:
        return ()
    times = LONGER[check_scale(results.scale)]
    return (f"C4 once more, after {times} times the steps, with a schedule made for them: shared QK {signed(harm)} "
            f"{setting.unit} against separate ones ({harm.n} seeds).",)


EXPERIMENT = Experiment(
    name="images",
    title="Images",
    question="Do shared queries and keys, reversible layers and LSH attention do on images what they do on text?",
    claims=(C4, C5, C6),
    criterion="As on text (the experiments shared_qk, reversible, hash_rounds), in bits per dimension: a dimension is one "
    f"channel of a pixel. C4 and C5 are supported if the model's bits at the end are less than {MARGIN_BITS} above the regular "
    "Transformer's; C6 if those of LSH attention with 8 rounds (where a scale has no 8: with the most) are less than "
    f"{MARGIN_BITS} above those of full attention, and if bits fall by more than {SLACK_BITS} for each doubling of the "
    "rounds, both in training and, for the model trained with the fewest, at evaluation alone. By the "
    "whole 95 % interval of the paired difference over seeds, or of the seeds' slopes; contradicted if by the whole interval a "
    f"difference is above {MARGIN_BITS} or a trend rises by more than {SLACK_BITS}. {FEW_SEEDS} On text local "
    "attention alone must be worse than full attention; here that was never asked, because every layer is under test: the "
    "control was run once the first verdicts were there, and is shown beside C6.",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts if scale in SETTINGS else "Everything: no runs at this scale.",
)
