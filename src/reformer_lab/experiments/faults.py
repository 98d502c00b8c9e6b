"""The faults of the 2021 reproduction that can change quality, and runs that carry some of them. Free of torch.

The reproduction is the fast.ai community's (ML Reproducibility Challenge 2020, github.com/arampacha/reformer_fastai, release
0.0.2). The faults were found by reading and measuring its code; `faulty` says in code what each does. They are switches of
the experiment `autopsy` and of nothing else: no operator and no model has an option for them.
"""

from dataclasses import dataclass, fields
from typing import Any

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.training.config import RunConfig

FIXED_SEQUENCES = 1280
"""Training sequences of the duplication task where they are few: a tenth of theirs, which they saw 750 times."""
ROTATION_SEED = 123
"""Their seed of every hash."""

FLAT, RAW, FROZEN, FEW, WRONG, LINES, SEEN, REPEATED = (
    "flat logits", "raw keys in full attention", "frozen rotations", "as many buckets as chunks", "wrong buckets backward",
    "shuffled lines", "validation from training", "few training sequences",
)  # fmt: skip

FAULTS: dict[str, str] = {
    FLAT: "keys of unit length and a factor 1/sqrt(d) as well, in LSH and in full attention",
    RAW: "full attention alone takes the keys as they are, over sqrt(d); a token sees itself as a last resort, as theirs does",
    FROZEN: f"the generator is reset to seed {ROTATION_SEED} before every hash: one set of rotations for every layer, head, "
            "sequence and step, in training and evaluation; another number of rounds has others",
    FEW: "as many buckets as chunks, half as many as the paper's",
    WRONG: "the backward pass of a reversible model recomputes every head with the buckets of the last one",
    LINES: "the lines of the training text in a random order: no context reaches beyond a line; held-out text as it is",
    SEEN: "the validation set is the first part of the training set",
    REPEATED: f"the training set of the duplication task is {FIXED_SEQUENCES:,} sequences again and again, and the validation "
              "set is its first part",
}  # fmt: skip
"""What each fault does, by its name."""


@dataclass(frozen=True, kw_only=True)
class FaultyRunConfig(RunConfig):
    """A training run with faults. Its test split is always the clean one."""

    faults: tuple[str, ...] = ()
    """Names in `FAULTS`. Those that the model's configuration can express stand in `model` as well: see `with_faults`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "faults", tuple(self.faults))  # JSON has no tuples
        for name in self.faults:
            if name not in FAULTS:
                raise UserError(f"faults={list(self.faults)}: {name!r} is not known; known: {', '.join(FAULTS)}")
        if LINES in self.faults and not isinstance(self.data, ByteCorpusConfig):
            raise UserError(f"faults={list(self.faults)}: {LINES!r} needs a text, not {self.data.kind}")
        if REPEATED in self.faults and not isinstance(self.data, DuplicationConfig):
            raise UserError(f"faults={list(self.faults)}: {REPEATED!r} is the duplication task's, not {self.data.kind}'s; "
                            f"{SEEN!r} is for every data set")
        if WRONG in self.faults and not self.model.reversible:
            raise UserError(f"faults={list(self.faults)}: {WRONG!r} needs reversible=True, nothing is recomputed without")
        super().__post_init__()


def with_faults(run: RunConfig, names: tuple[str, ...]) -> RunConfig:
    """Return the run with the faults of these names; the run itself for none."""
    if not names:
        return run
    values = {field.name: getattr(run, field.name) for field in fields(run)}
    return FaultyRunConfig(**values | {"model": run.model.replace(**model_changes(run.model, names)), "faults": names})


def model_changes(model: ReformerConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the changes to a model of one length that express the faults which its configuration can express."""
    changes: dict[str, Any] = {}
    if FLAT in names:
        changes["key_scale"] = "unit_over_sqrt_d"
    if FEW in names:
        changes["num_buckets"] = model.max_length // model.chunk_length
    return changes
