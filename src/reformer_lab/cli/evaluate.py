"""`reformer-lab evaluate`: what a run's model scores over a whole split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reformer_lab.cli.options import parse_options
from reformer_lab.data.config import DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.terminal import visible
from reformer_lab.training.config import Precision, RunConfig, Split

DESCRIPTION = """\
Score a run's model over a whole split: total nats over total bytes. An unfinished run is scored at its newest checkpoint.

examples:
  reformer-lab evaluate runs/novel
  reformer-lab evaluate runs/novel --split test --num-hashes 8
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Options of `reformer-lab evaluate`."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder that `train` has made."""
    split: Split = "validation"
    """Split to score."""
    num_hashes: int | None = None
    """Hash rounds of LSH attention. Left out: as in training."""
    limit: int | None = None
    """Sequences to score, spread over the split. Left out: all."""
    batch_size: int = 1
    """Sequences at once."""
    corpus: str | None = None
    """The corpus, if it has moved since."""
    precision: Precision | None = None
    """Left out: as in training."""


def main(argv: list[str]) -> int:
    """Parse, evaluate, print the scores."""
    arguments = parse_options(EvaluateArguments, argv, prog="reformer-lab evaluate", description=DESCRIPTION)

    import torch

    from reformer_lab.data.dataset import open_dataset
    from reformer_lab.evaluation.evaluate import evaluate, split_sizes
    from reformer_lab.models.language_model import ReformerLM
    from reformer_lab.training.checkpoint import trained_weights
    from reformer_lab.training.display import Display, scores
    from reformer_lab.training.run_folder import check_fingerprint, read_config_file

    recorded = read_config_file(arguments.run)
    config = RunConfig.from_dict(recorded["config"])
    data = config.data
    if arguments.corpus is not None:
        if isinstance(data, DuplicationConfig):
            raise UserError(f"--corpus {arguments.corpus}: the duplication task has no corpus; leave the option out")
        data = data.replace(path=arguments.corpus)
    dataset = open_dataset(data, config.seed)
    check_fingerprint(arguments.run, recorded, dataset.fingerprint)

    weights, state = trained_weights(arguments.run, config.steps, lambda line: print(visible(line)))
    model = ReformerLM.from_pretrained(weights)
    hashing = "lsh" in model.config.layer_kinds()
    if arguments.num_hashes is not None:
        if not hashing:
            raise UserError(f"--num-hashes {arguments.num_hashes}: the model has no LSH attention; leave the option out")
        model = model.with_config(num_hashes=arguments.num_hashes)
    model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    total = split_sizes(dataset, arguments.limit).get(arguments.split)
    print(visible(f"{arguments.run}: {state}") + (f", {model.config.num_hashes} hash rounds" if hashing else ""))
    print(visible(f"{dataset.name}, {arguments.split} split") + (f", {total:,} {dataset.unit}s" if total else ""))
    with Display(config.steps, dataset.unit) as display:
        metrics = evaluate(
            model, dataset, arguments.split, batch_size=arguments.batch_size, limit=arguments.limit,
            precision=arguments.precision or config.precision,
            progress=lambda so_far: display({"event": "scoring", "name": "own", "split": arguments.split,
                                             "total": total, **so_far.to_dict()}),
        )
    print(f"{scores(metrics.to_dict(), dataset.unit)}, loss {metrics.loss:.4f} nats, "
          f"{metrics.targets:,} {dataset.unit}s scored")
    return 0
