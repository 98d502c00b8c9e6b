"""The language models that the ablations compare: one setting for each scale, each arm one change away from the next.

Five experiments draw on it: shared_qk, reversible, hash_rounds and depth on text, images. Arms with equal configurations are
one run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from reformer_lab.data.config import BITS_UNITS, ByteCorpusConfig, ImagesConfig
from reformer_lab.experiments.claim import Arm, Claim, ExperimentResults, Scale, Verdict, check_scale
from reformer_lab.experiments.judging import (
    below,
    learning_curves,
    paired_difference,
    recorded_config,
    seeds_of,
    signed,
    verdict,
)
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.section import Figure
from reformer_lab.training.config import Evaluation, OptimizerConfig, Precision, RunConfig

FEW_SEEDS = ("With one seed there is no interval and the value alone decides; with fewer than three the verdict is called "
             "indicative.")
"""Part of every criterion over seeds."""
PAPERS_ROUNDS = 8
"""Hash rounds with which the paper almost matches full attention."""
MARGIN_BITS = 0.05
"""Bits per byte, or per sub-pixel, by which a model may be worse and still count as "not worse". Under half of the 0.11 bits by
which the reversible model of 2021 was worse: the least that was called a failure."""

TRANSFORMER = {"attention": ("full",), "shared_qk": False, "residual_streams": 1, "reversible": False}
"""The regular Transformer."""
SHARED_QK = {**TRANSFORMER, "shared_qk": True}
"""Queries and keys shared, keys of unit length."""
TWO_STREAMS = {**TRANSFORMER, "residual_streams": 2}
"""The reversible network's arithmetic, activations stored."""
REVERSIBLE = {**TWO_STREAMS, "reversible": True}
"""The reversible Transformer, with separate queries and keys."""
FULL = {**REVERSIBLE, "shared_qk": True}
"""The Reformer with full attention in the place of LSH attention."""


LOCAL = {**FULL, "attention": ("local",)}
"""The Reformer with local attention in every layer: what the others gain on it, they gain by seeing further."""


def lsh(num_hashes: int) -> dict[str, Any]:
    """The Reformer with LSH attention in every layer."""
    return {**FULL, "attention": ("lsh",), "num_hashes": num_hashes}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a scale that its arms share."""

    model: ReformerConfig
    """Of which the arms are variations."""
    data: ByteCorpusConfig | ImagesConfig
    """Text, or images."""
    optimizer: OptimizerConfig
    """The same for every arm."""
    steps: int
    """Optimiser steps."""
    batch_size: int
    """Sequences of a step."""
    eval_points: int
    """Points of the learning curve."""
    eval_limit: int | None
    """Sequences of the validation split that are scored. None: all of them."""
    eval_batch_size: int
    """Sequences scored at once."""
    seeds: tuple[int, ...]
    """One run of each arm for each."""
    paired_seeds: tuple[int, ...] = ()
    """Those of the arms that should be "not worse" than another, and of that one. Empty: `seeds`."""
    rounds: tuple[int, ...]
    """Hash rounds of the LSH arms. Those that should match full attention are 8, as in the paper; without 8, the last."""
    reformer_rounds: int = 2
    """Hash rounds where depth is varied."""
    depths: tuple[int, ...] = ()
    """Numbers of layers where depth is varied."""
    local_layers: bool = False
    """Put a layer of local attention before each layer of the arm's own kind. Depth counts both."""
    precision: Precision = "fp32"
    """Of the arithmetic."""
    threads: int | None = None
    """CPU threads of a run."""
    looks: int = 1
    """How often its claims were judged, this setting included: 2 after an earlier one with fewer steps or seeds."""
    cuts: str = ""
    """What was cut against the paper."""

    @property
    def matching(self) -> int:
        """The number of rounds that should match full attention."""
        return PAPERS_ROUNDS if PAPERS_ROUNDS in self.rounds else self.rounds[-1]

    @property
    def unit(self) -> str:
        """What the bits are counted by: "bits per byte", "bits per dimension"."""
        return BITS_UNITS[self.data.unit]

    @property
    def subject(self) -> str:
        """What the summary of a verdict begins with: nothing for text."""
        return "on images: " if isinstance(self.data, ImagesConfig) else ""


def _small_model(**changes: Any) -> ReformerConfig:
    base = ReformerConfig(d_model=128, d_ff=512, num_layers=3, num_heads=2, d_head=64, max_length=512, chunk_length=32)
    return base.replace(**changes)


_CPU_OPTIMIZER = OptimizerConfig(learning_rate=2e-3, schedule="warmup_cosine", warmup_steps=50)
_CPU_CUTS = ("The model is 8 times narrower with 2 heads of 64 instead of 8 of 128, the "
             "sequences {length} bytes instead of 65,536 in chunks of 32 instead of 128, the training {steps} of {batch} "
             "instead of 60,000 steps of 8; 1 to 8 hash rounds instead of 2 to 16, 1 to 6 layers instead of 3 to 24; Adam "
             "instead of Adafactor; learned positions instead of axial ones; no dropout.")
_QUICK_CUTS = (" One seed. After so few steps the arms are close: quick shows that nothing is broken rather than settles the "
               "claim.")

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(
        model=_small_model(d_model=32, d_ff=64, num_layers=2, num_heads=2, d_head=16, max_length=128, chunk_length=16),
        data=ByteCorpusConfig(length=128), optimizer=_CPU_OPTIMIZER, steps=6, batch_size=2, eval_points=2, eval_limit=4,
        eval_batch_size=4, seeds=(0,), rounds=(1, 2), reformer_rounds=2, depths=(1, 2), threads=1,
        cuts="Everything: a handful of steps of a toy model.",
    ),
    "quick": Setting(
        model=_small_model(), data=ByteCorpusConfig(length=512), optimizer=_CPU_OPTIMIZER, steps=200, batch_size=4,
        eval_points=5, eval_limit=64, eval_batch_size=8, seeds=(0,), rounds=(1, 2, 4, 8), reformer_rounds=2,
        depths=(1, 3, 6), threads=1,
        cuts=_CPU_CUTS.format(length=512, steps="200 steps", batch="4 sequences") + _QUICK_CUTS,
    ),
    "small": Setting(
        model=_small_model(num_layers=4, max_length=2048, local_chunk_length=32, positions="axial", axial_shape=(32, 64),
                           axial_dims=(32, 96)),
        data=ByteCorpusConfig(path="books.zip", length=2048), optimizer=_CPU_OPTIMIZER, steps=3000, batch_size=1,
        eval_points=10, eval_limit=64, eval_batch_size=4, seeds=(0, 1, 2), paired_seeds=tuple(range(5)), rounds=(1, 2, 4, 8),
        reformer_rounds=2, depths=(2, 4, 8), local_layers=True, precision="bf16", threads=1, looks=2,
        cuts="The model is 8 times narrower with 2 heads of 64 instead of 8 of 128, the sequences 2,048 bytes instead of "
        "65,536 in chunks of 32 instead of 128, the training 3,000 steps of one sequence in bf16 instead of 60,000 of "
        "8; 1 to 8 hash rounds instead of 2 to 16, 2 to 8 layers instead of 3 to 24; Adam instead of Adafactor; no "
        "dropout. Every other layer is local attention in chunks of 32, as in the authors' tuned model: without them "
        "every arm of a pilot was still at the entropy of pairs of bytes after as many steps (results/pilots.csv), "
        "where arms can only be equal. Three seeds; shared queries and keys and reversible layers have five. They were "
        "1,000 steps of three seeds at first, after which seeds differed by more than the margin "
        "(results/earlier/ladder-1000-steps.jsonl).",
    ),
    "gpu": Setting(
        model=_small_model(d_model=512, d_ff=2048, num_heads=8, d_head=64, max_length=16_384, chunk_length=64,
                         positions="axial", axial_shape=(128, 128), axial_dims=(128, 384), dropout=0.1,
                         loss_chunk_length=8192),
        data=ByteCorpusConfig(path="enwik8", length=16_384),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="warmup_cosine", warmup_steps=200), steps=2000,
        batch_size=4, eval_points=10, eval_limit=64, eval_batch_size=4, seeds=(0,), rounds=(2, 4, 8, 16),
        reformer_rounds=4, depths=(3, 6, 12), precision="bf16",
        cuts="The model is half as wide with 8 heads of 64 instead of 128, the sequences 16,384 bytes instead of 65,536 in "
        "chunks of 64 instead of 128, the training 2,000 steps of 4 instead of 60,000 of 8; Adam instead of Adafactor; depth "
        "up to 12 layers instead of 24. One seed.",
    ),
    "paper": Setting(
        model=get_preset("ablation_enwik8"), data=ByteCorpusConfig(path="enwik8", length=65_536, stride=16_384),
        optimizer=OptimizerConfig(name="adafactor", learning_rate=2.0, schedule="warmup_rsqrt", warmup_steps=8000,
                                  clip_norm=None),
        steps=60_000, batch_size=8, eval_points=60, eval_limit=None, eval_batch_size=1, seeds=(0,),
        rounds=(2, 4, 8, 16), reformer_rounds=4, depths=(3, 12, 16, 20, 24), precision="bf16",
        cuts="The curves on imagenet64 are the experiment images. Depth uses the ablations' "
        "schedule; the authors' sweep had constant rates. torch's Adafactor limits the relative step, so that the factor 2.0 "
        "acts as 1.0 once the warm-up is over (docs/decisions/0009). Axial positions are those of the tuned model: the "
        "ablations' own are not recorded. One seed.",
    ),
}


def setting_of(results: ExperimentResults) -> Setting:
    """Return the setting of the scale that the results are of."""
    return SETTINGS[check_scale(results.scale)]


def context(results: ExperimentResults, *, layers: bool = True) -> str:
    """Write the recorded setting in a phrase; `layers`: with the number of layers. Raises MissingResult."""
    config = recorded_config(results)
    model = config["model"]
    depth = f"{model['num_layers']} layers, " if layers else ""
    depth += "every other one local, " if layers and "local" in model["attention"] else ""
    return (f"{depth}d_model {model['d_model']}, d_ff {model['d_ff']}, {model['num_heads']} heads x {model['d_head']}, "
            f"length {model['max_length']:,}, {config['steps']:,} steps of {config['batch_size']} sequences, "
            f"{seeds_of(results)}{text_of(config)}")


def text_of(config: Mapping[str, Any]) -> str:
    """Name the text of a recorded run, ", on enwik8", which need not be the one that its scale declares; "" without a text."""
    if config["data"].get("kind") != ByteCorpusConfig.kind:
        return ""
    path = config["data"]["path"]
    if path is None:
        return ", on the source code of Python's standard library (the paper: enwik8)"
    if path == "enwik8":
        return ", on enwik8"
    about = " (247 public-domain books, 100 MB: a stand-in of enwik8's size)" if path == "books.zip" else " (the paper: enwik8)"
    return f", on {PurePath(path).name}{about}"


def with_local_layers(setting: Setting, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that make an arm's model: where the setting has local layers, with one before each of its own kind."""
    if not setting.local_layers:
        return changes
    return {**changes, "attention": tuple(layer for kind in changes["attention"] for layer in ("local", kind))}


def looks_at(results: ExperimentResults, setting: Setting) -> int:
    """Return the setting's looks, 1 for results that another setting left or that are of another text. Raises MissingResult."""
    return setting.looks if recorded_config(results)["steps"] == setting.steps and not results.corpus else 1


def language_model_arms(setting: Setting, name: str, changes: dict[str, Any],
                        evaluations: tuple[Evaluation, ...] = (Evaluation(),), *, paired: bool = False) -> tuple[Arm, ...]:
    """Return one arm for each seed of the setting: its model with `changes`, which name the kinds of attention.

    `paired`: for each of its paired seeds.
    """
    changes = with_local_layers(setting, changes)
    return tuple(
        Arm(name=name, run=RunConfig(
            model=setting.model.replace(**changes), data=setting.data, optimizer=setting.optimizer, steps=setting.steps,
            batch_size=setting.batch_size, seed=seed, precision=setting.precision, threads=setting.threads,
            eval_every=max(1, setting.steps // setting.eval_points), eval_limit=setting.eval_limit,
            eval_batch_size=setting.eval_batch_size, checkpoint_every=max(50, setting.steps // 20),
            log_every=max(1, setting.steps // 100), evaluations=evaluations,
        ))
        for seed in (setting.paired_seeds if paired and setting.paired_seeds else setting.seeds)
    )


def lsh_name(num_hashes: int) -> str:
    """Name of the arm, and of the evaluation, with so many rounds."""
    return f"LSH-{num_hashes}"


def lsh_arms(setting: Setting, num_hashes: int, *, name: str | None = None, num_layers: int | None = None) -> tuple[Arm, ...]:
    """Return the Reformer with `num_hashes` rounds in training, evaluated with every number of rounds too.

    `name`: the arm's label, by default "LSH-<rounds>"; `num_layers`: by default those of the setting.
    """
    changes = {**lsh(num_hashes), "num_layers": num_layers or setting.model.num_layers}
    others = tuple(Evaluation(name=lsh_name(rounds), model={"num_hashes": rounds}) for rounds in setting.rounds)
    return language_model_arms(setting, name or lsh_name(num_hashes), changes, (Evaluation(), *others))


def judge_not_worse(results: ExperimentResults, experiment: str, claim: Claim, setting: Setting, arm: str, baseline: str,
                    summary: str) -> Verdict:
    """Judge a claim that `arm` is not worse than `baseline`, by the paired difference of their bits at the end.

    `summary`: with {} in the place of the difference. Raises MissingResult.
    """
    harm = paired_difference(results, arm, baseline)
    words = setting.subject + summary.format(f"{signed(harm)} {setting.unit}")
    return verdict(results, experiment, claim, below(harm, MARGIN_BITS), words, estimate=harm, looks=looks_at(results, setting),
                   unit=f"{setting.unit} above {baseline} after {recorded_config(results)['steps']:,} steps")


def curves_figure(results: ExperimentResults, setting: Setting, title: str, names: Sequence[str]) -> Figure:
    """Return the learning curves of the arms in one figure."""
    return Figure(title=title, x_label="step", y_label=f"validation {setting.unit}", series=learning_curves(results, names))
