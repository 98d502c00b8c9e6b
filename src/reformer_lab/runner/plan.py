"""What a suite runs: the arms of the chosen experiments, each once, in the order that fills the workers best."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reformer_lab.data import enwik8
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.experiments.claim import Arm, Experiment, MeasurementConfig, Scale
from reformer_lab.folders import find_data
from reformer_lab.reporting.records import ArmEntry

if TYPE_CHECKING:
    from reformer_lab.training.config import RunConfig

SMALL_STEP = 2e11
"""Multiply-adds of a step's forward pass below which a training leaves a GPU waiting: with the backward pass some 3 ms of work
for an H200-class card, less than the launches of a step's kernels take."""
SMALL_AT_ONCE = 4
"""Trainings of small steps that share one GPU."""


@dataclass(frozen=True)
class Plan:
    """The arms of a suite."""

    scale: Scale
    """The scale of every arm."""
    entries: Mapping[str, tuple[ArmEntry, ...]]
    """The arms of each experiment, shared ones in each of theirs."""
    arms: Mapping[str, Arm]
    """Every different arm, by id."""
    labels: Mapping[str, str]
    """What to call an arm on the screen, by id: its first experiment, its name, its seed where there are several."""
    corpus: str = ""
    """The text that the language models read in the place of the scale's own; "" for that."""

    @property
    def trainings(self) -> tuple[Arm, ...]:
        """Trainings, the longest first: the last to start is then short, and no worker idles for long at the end."""
        found = [arm for arm in self.arms.values() if arm.kind == "training"]
        return tuple(sorted(found, key=lambda arm: -training_cost(arm.run)))

    @property
    def missing_data(self) -> dict[str, tuple[str, ...]]:
        """Names of data that are not here, each with the experiments that ask for it."""
        found: dict[str, list[str]] = {}
        for name, entries in self.entries.items():
            paths = {getattr(getattr(self.arms[entry.id].run, "data", None), "path", None) for entry in entries}
            for path in sorted(filter(None, paths)):
                if not data_is_here(path):
                    found.setdefault(path, []).append(name)
        return {path: tuple(names) for path, names in found.items()}

    @property
    def texts(self) -> frozenset[str]:
        """Names of the data that are texts: another may be read in their place."""
        found = (getattr(arm.run, "data", None) for arm in self.arms.values())
        return frozenset(data.path for data in found if isinstance(data, ByteCorpusConfig) and data.path)

    @property
    def measurements(self) -> tuple[Arm, ...]:
        """Measurements, in the order of declaration."""
        return tuple(arm for arm in self.arms.values() if arm.kind == "measurement")


def make_plan(experiments: Iterable[Experiment], scale: Scale, corpus: str = "") -> Plan:
    """Collect the arms of `experiments` at `scale`; those that read a text read `corpus` instead, if one is given."""
    chosen = tuple(experiments)
    entries: dict[str, tuple[ArmEntry, ...]] = {}
    arms: dict[str, Arm] = {}
    labels: dict[str, str] = {}
    for experiment in chosen:
        declared = tuple(arm.on_corpus(corpus) for arm in experiment.arms(scale))
        entries[experiment.name] = tuple(arm.entry() for arm in declared)
        names = [arm.name for arm in declared]
        for arm in declared:
            arms.setdefault(arm.id, arm)
            seed = f" seed {arm.seed}" if names.count(arm.name) > 1 else ""
            labels.setdefault(arm.id, f"{experiment.name} {arm.name}{seed}")
    return Plan(scale, entries, arms, labels, corpus)


def data_is_here(path: str) -> bool:
    """Whether a configuration's `data.path` means something that can be opened; its content is not checked."""
    if path == "enwik8" and enwik8.cached_path().exists():
        return True
    return find_data(path).exists()


def on_one_gpu(trainings: Iterable[Arm]) -> list[tuple[list[Arm], int]]:
    """Return trainings in two groups, each with how many of it one GPU takes at once: large steps fill it alone."""
    small: list[Arm] = []
    large: list[Arm] = []
    for arm in trainings:
        (small if is_small(arm) else large).append(arm)
    return [(small, SMALL_AT_ONCE), (large, 1)]


def is_small(arm: Arm) -> bool:
    """Whether a training's steps leave a GPU waiting, so that several can share it."""
    assert not isinstance(arm.run, MeasurementConfig)
    return training_cost(arm.run) < SMALL_STEP * arm.run.steps


def training_cost(run: "RunConfig | MeasurementConfig") -> float:
    """Return a rough number of multiply-adds of a training run, to sort runs by; 0 for a measurement."""
    if isinstance(run, MeasurementConfig):
        return 0.0
    model = run.model
    width = model.num_heads * model.d_head
    seen = {  # keys that one query is compared with, gathering counted for LSH
        "full": run.data.length,
        "local": (1 + model.local_chunks_before + model.local_chunks_after) * model.local_chunk_length,
        "lsh": 4 * model.num_hashes * (1 + model.chunks_before + model.chunks_after) * model.chunk_length,
    }
    attention = sum(2 * width * seen[kind] for kind in model.layer_kinds())
    dense = model.num_layers * (4 * model.d_model * width + 2 * model.d_model * model.d_ff)
    recomputed = 4 / 3 if model.reversible else 1.0
    head = 2 * model.d_model * model.vocab_size
    return float(run.steps * run.batch_size * run.data.length * ((dense + attention) * recomputed + head))
