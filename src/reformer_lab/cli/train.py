"""`reformer-lab train`: any text file, or the tasks of the paper, into a run folder."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reformer_lab.cli.options import parse_options
from reformer_lab.data.config import ByteCorpusConfig, DataConfig, DuplicationConfig, ImagesConfig
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.terminal import visible
from reformer_lab.training.config import OptimizerConfig, Precision, RunConfig

DEFAULT_PRESET = "cpu_small"
DESCRIPTION = """\
Train a model. The same call goes on where an earlier one was interrupted, and gives the same bits.

examples:
  reformer-lab train --corpus novel.txt
  reformer-lab train --corpus novel.txt --output runs/novel --steps 5000 --model.num-hashes 8
  reformer-lab train --preset duplication_cpu --batch-size 32 --steps 1000
  torchrun --nproc-per-node 4 -m reformer_lab train --corpus novel.txt --batch-size 8   # four processes, two sequences each
"""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Options of `reformer-lab train`."""

    corpus: str | None = None
    """A UTF-8 file, plain or as .zip, .gz, .bz2 or .xz; or "enwik8". For an image preset: a folder or archive of images.
    Left out: the source files of Python's standard library."""
    preset: str = DEFAULT_PRESET
    """Model to start from (`reformer-lab list` shows all); --model.* changes single fields."""
    output: Path | None = None
    """Run folder. Left out: runs/<corpus>-<digest of all options>."""
    steps: int = 2500
    """Optimiser steps."""
    batch_size: int = 1
    """Sequences of one step."""
    length: int | None = None
    """Tokens of a sequence. Left out: the model's max_length."""
    split_by: Literal["characters", "bytes"] = "characters"
    """Unit in which the validation and the test split (5 % each) are measured."""
    seed: int = 0
    """Seed of everything."""
    accumulation: int = 1
    """Micro-batches of one step: less memory, the same gradient."""
    precision: Precision = "fp32"
    """"bf16" computes in bfloat16 where it is safe."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    eval_every: int = 500
    """Steps between two evaluations on the validation split."""
    eval_limit: int | None = 32
    """Sequences of these evaluations, spread over the split; "None": the whole split."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    threads: int | None = None
    """CPU threads. Left out: as torch chooses."""
    shard: bool = False
    """Under a launcher: the processes share out parameters, gradients and Adam's state (FSDP2)."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=2e-3, schedule="warmup_cosine"))
    """Optimiser and schedule."""
    model: ReformerConfig = field(default_factory=ReformerConfig)
    """Fields of the preset to change."""


def main(argv: list[str]) -> int:
    """Parse, train, say how to go on."""
    arguments = parse(argv)
    config = run_config(arguments)
    name = Path(arguments.corpus).stem if arguments.corpus else arguments.preset
    output = arguments.output or Path("runs") / f"{name}-{config.digest()}"
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
        print(visible(f"run folder: {output}"))

    from reformer_lab.training.display import Display, scores
    from reformer_lab.training.loop import train
    from reformer_lab.training.processes import Processes

    processes, display = Processes(), None
    with contextlib.ExitStack() as showing:
        if processes.is_first:
            display = showing.enter_context(Display(config.steps, config.data.unit))
        final = train(config, output, display, shard=arguments.shard or sharding_launcher())
        if display is not None:
            own = final["evaluations"]["own"]
            display.say(f"{config.final_split}, {own['targets']:,} {display.unit}s: {scores(own, display.unit)}")
            display.say(f"next: reformer-lab evaluate {output} --split test")
    return 0


def sharding_launcher() -> bool:
    """Whether `accelerate launch --use_fsdp` has started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def parse(argv: list[str]) -> TrainArguments:
    """Return the options, the model's defaults taken from the preset that they name."""
    preset = DEFAULT_PRESET
    for i, word in enumerate(argv):
        if word == "--preset" and i + 1 < len(argv):
            preset = argv[i + 1]
        elif word.startswith("--preset="):
            preset = word.partition("=")[2]
    defaults = TrainArguments(preset=preset, model=get_preset(preset))
    return parse_options(TrainArguments, argv, prog="reformer-lab train", description=DESCRIPTION, default=defaults)


def run_config(arguments: TrainArguments) -> RunConfig:
    """Return the run that the options describe."""
    return RunConfig(
        model=arguments.model, data=data_config(arguments), optimizer=arguments.optimizer, steps=arguments.steps,
        batch_size=arguments.batch_size, seed=arguments.seed, accumulation=arguments.accumulation,
        precision=arguments.precision, eval_every=arguments.eval_every, eval_limit=arguments.eval_limit,
        log_every=arguments.log_every, checkpoint_every=arguments.checkpoint_every, threads=arguments.threads,
    )


def data_config(arguments: TrainArguments) -> DataConfig:
    """Return the data: the duplication task or images for the presets that are made for them, else a byte corpus."""
    length = arguments.model.max_length if arguments.length is None else arguments.length
    # The full path, so that the run is found to be the same, and can be evaluated, from any folder.
    path = arguments.corpus
    if path is not None and (path != "enwik8" or Path(path).exists()):
        path = os.path.abspath(os.path.expanduser(path))
    if arguments.preset.startswith("duplication"):
        if path is not None:
            raise UserError(f"--corpus {arguments.corpus}: the duplication task has none; leave it out")
        return DuplicationConfig(length=length, vocab_size=arguments.model.vocab_size)
    if arguments.preset.endswith("imagenet64"):
        images = ImagesConfig(path=path)
        if arguments.length not in (None, images.length):
            raise UserError(f"--length {arguments.length}: these images have {images.length} tokens; leave it out")
        return images
    return ByteCorpusConfig(path=path, length=length, split_by=arguments.split_by)
