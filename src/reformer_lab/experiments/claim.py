"""The parts of an experiment's declaration: claim, arm, criterion, verdict. Free of torch.

An experiment is a value of `Experiment`: it says which runs it wants at each scale, and turns their result files into
verdicts and into a section of the report. It runs nothing itself (see `runner`) and draws nothing itself (see
`reporting`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.errors import UserError
from reformer_lab.reporting.records import ArmEntry, MissingResult, Record, Suite
from reformer_lab.reporting.section import Section

if TYPE_CHECKING:
    from reformer_lab.training.config import RunConfig

Scale = Literal["smoke", "quick", "small", "gpu", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
"""From a few minutes in all to the authors' setting."""

NOT_UNDERSTOOD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a judge or a figure may meet in result files of another version, or made by hand."""
SCALE_NOTES: dict[str, str] = {
    "smoke": "a few minutes in all; shows that everything runs, decides nothing",
    "quick": "about 15 minutes in all on 2 CPU cores",
    "small": "up to two and a half hours for each experiment on 2 CPU cores, 3 seeds or more",
    "gpu": "up to 25 minutes for each experiment on one H200-class GPU",
    "paper": "the authors' setting",
}

Outcome = Literal["supported", "contradicted", "inconclusive", "not run"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
ENOUGH_SEEDS = 3
"""With fewer a verdict is at most "indicative"."""

Sampling = Literal["seeds", "repeats", "deterministic"]
"""What is counted by a verdict's n: trainings that differ in their seed; repeats of one measurement on one machine; or nothing,
because a repeat gives the same number (docs/decisions/0018)."""


def check_scale(scale: str) -> Scale:
    """Return `scale`, or raise UserError with the names that exist."""
    for known in SCALES:
        if scale == known:
            return known
    raise UserError(f"scale {scale!r} does not exist; choose one of {', '.join(SCALES)}")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper."""

    id: str
    """ "C1" to "C13"."""
    short: str
    """What is claimed, in a line of a table."""
    statement: str
    """What is claimed, in our words."""
    source: str
    """Where it stands in the paper."""
    paper: str
    """The paper's number, or what the paper shows instead of one."""
    reproduction_2021: str
    """What the fast.ai community's reproduction of 2021 found."""
    not_run: str = ""
    """Why no experiment of ours tests it, where none does."""


@dataclass(frozen=True, kw_only=True)
class MeasurementConfig:
    """A measurement that trains nothing: one point of a benchmark."""

    kind: str
    """Which benchmark measures it: "speed", "memory"."""
    parameters: Mapping[str, Any]
    """What the benchmark is given; JSON values only."""
    seed: int = 0
    """Seed of parameters and inputs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {"kind": self.kind, "parameters": dict(self.parameters), "seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MeasurementConfig":
        """The inverse of `to_dict`."""
        return cls(kind=values["kind"], parameters=dict(values["parameters"]), seed=values["seed"])

    def digest(self) -> str:
        """Return 12 hexadecimal digits that depend on every value."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of an experiment. The seeds of one arm are several `Arm`s with the same name."""

    name: str
    """Label inside its experiment, such as "LSH-4"."""
    run: "RunConfig | MeasurementConfig"
    """What is run."""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.run.seed

    @property
    def kind(self) -> Literal["training", "measurement"]:
        """How the runner treats it: trainings run side by side, measurements alone."""
        return "measurement" if isinstance(self.run, MeasurementConfig) else "training"

    @property
    def id(self) -> str:
        """Identity of the run: its name in the file system.

        It depends on the run alone, not on the arm's label, so that two experiments share what they both ask for.
        """
        run = self.run
        if isinstance(run, MeasurementConfig):
            words = [run.kind]
        else:
            attention = [f"lsh{run.model.num_hashes}" if kind == "lsh" else kind for kind in run.model.attention]
            words = [run.data.kind, *dict.fromkeys(attention)]
        slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
        return f"{slug}-seed{run.seed}-{run.digest()}"

    def on_corpus(self, corpus: str) -> "Arm":
        """Return the arm with another text; itself where it reads no text, or where `corpus` is ""."""
        run = self.run
        if not corpus or isinstance(run, MeasurementConfig) or not isinstance(run.data, ByteCorpusConfig):
            return self
        return replace(self, run=replace(run, data=run.data.replace(path=corpus)))

    def entry(self) -> ArmEntry:
        """Return what `Suite` records of the arm."""
        return ArmEntry(id=self.id, name=self.name, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an experiment found about a claim: computed from result files, never typed."""

    claim: str
    """Id of the claim."""
    experiment: str
    """Name of the experiment."""
    outcome: Outcome
    """By the experiment's criterion."""
    summary: str
    """One line with the numbers, or the reason why there are none."""
    scale: str
    """The scale of the runs."""
    value: float | None = None
    """The number that the criterion judges."""
    low: float | None = None
    """Lower end of its 95 % interval; None without one (n = 1)."""
    high: float | None = None
    """Upper end."""
    unit: str = ""
    """Unit of the three."""
    n: int = 0
    """Number of seeds, or of repeats, behind the value."""
    sampling: Sampling = "seeds"
    """What `n` counts."""
    looks: int = 1
    """How often the claim was judged at this scale, this time included: with fewer seeds or steps before."""

    def __post_init__(self) -> None:
        assert self.outcome in OUTCOMES, self.outcome

    @property
    def indicative(self) -> bool:
        """Whether there are too few seeds to call the outcome more than a hint."""
        return self.outcome != "not run" and self.sampling != "deterministic" and self.n < ENOUGH_SEEDS

    @property
    def strength(self) -> str:
        """The outcome, called indicative where it is no more than that: "supported (indicative)"."""
        decided = self.outcome in ("supported", "contradicted")
        return f"{self.outcome} (indicative)" if decided and self.indicative else self.outcome

    @property
    def count(self) -> str:
        """How many runs are behind the outcome: "n = 3 seeds", "n = 1, deterministic"; "" where there are none."""
        if self.outcome == "not run" or self.n < 1:
            return ""
        if self.sampling == "deterministic":
            return f"n = {self.n}, deterministic"
        return f"n = {self.n} {self.sampling if self.n > 1 else self.sampling.removesuffix('s')}"

    @property
    def label(self) -> str:
        """The outcome and how sure it is: "supported (indicative, n = 1 seed)", "supported (n = 8 seeds, 2 looks)"."""
        notes = ["indicative"] if self.strength != self.outcome else []
        notes += [self.count] if self.count else []
        notes += [f"{self.looks} looks"] if self.looks > 1 else []
        return f"{self.outcome} ({', '.join(notes)})" if notes else self.outcome


@dataclass(frozen=True, kw_only=True)
class ExperimentResults:
    """The records of one experiment at one scale, finished or not."""

    scale: str
    """The scale of the runs."""
    arms: tuple[ArmEntry, ...]
    """Every arm that the suite set out to run for this experiment."""
    records: Mapping[str, Record] = field(default_factory=dict)
    """Result files by arm id; other experiments' may be among them."""
    corpus: str = ""
    """The text that the suite read in the place of the scale's own; "" for that."""

    @classmethod
    def of_suite(cls, experiment: str, suite: Suite, records: Mapping[str, Record]) -> "ExperimentResults":
        """Return the results of the experiment called `experiment` in a suite."""
        return cls(scale=suite.scale, arms=suite.arms.get(experiment, ()), records=records,
                   corpus=suite.corpus)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the arms, in the order of declaration, each once."""
        return tuple(dict.fromkeys(arm.name for arm in self.arms))

    def of(self, name: str) -> list[Record]:
        """Return the finished records of an arm, one for each seed; empty when none is finished."""
        found = (self.records.get(arm.id) for arm in self.arms if arm.name == name)
        return [record for record in found if record is not None and record.finished]

    def require(self, name: str) -> list[Record]:
        """Return the finished records of an arm. Raises MissingResult when there is none."""
        records = self.of(name)
        if not records:
            raise MissingResult(f"no finished run of {name}")
        return records

    def values(self, name: str, *path: str) -> list[float]:
        """Return the number at `record.value(*path)` of each finished run of an arm.

        Raises MissingResult when no run is finished, or when one of them has no number there.
        """
        values = [record.value(*path) for record in self.require(name)]
        if not all(isinstance(value, (int, float)) for value in values):
            raise MissingResult(f"{name}: no number in {'.'.join(path)} of its result")
        return [float(value) for value in values]

    @property
    def failed(self) -> tuple[Record, ...]:
        """Records of runs that ended in an error."""
        found = (self.records.get(arm.id) for arm in self.arms)
        return tuple(record for record in found if record is not None and not record.finished)

    @property
    def missing(self) -> tuple[ArmEntry, ...]:
        """Arms without a result file."""
        return tuple(arm for arm in self.arms if arm.id not in self.records)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, the runs that answer it, and how their results are judged."""

    name: str
    """What `--only` takes."""
    title: str
    """Heading in the report."""
    question: str
    """One or two sentences."""
    claims: tuple[Claim, ...]
    """The claims that it tests."""
    criterion: str
    """When a claim counts as supported or contradicted, in plain words, stated before the run."""
    arms: Callable[[Scale], tuple[Arm, ...]]
    """The runs at a scale; empty where the experiment has none."""
    judge: Callable[[ExperimentResults], tuple[Verdict, ...]]
    """Verdicts from results. May raise MissingResult: the verdicts are then "not run"."""
    show: Callable[[ExperimentResults], Section]
    """The experiment's figures and tables. May raise MissingResult."""
    cuts: Callable[[Scale], str]
    """What was cut at this scale against the paper."""

    def verdicts(self, results: ExperimentResults) -> tuple[Verdict, ...]:
        """Judge the results: at least one verdict for each claim, "not run" where results are missing."""
        if not results.arms:
            here = self.arms(check_scale(results.scale))
            reason = "the experiment was no part of this suite" if here else f"no runs at the scale {results.scale}"
            return tuple(self._not_run(claim, claim.not_run or reason, results.scale) for claim in self.claims)
        try:
            found = self.judge(results) if any(results.of(name) for name in results.names) else ()
            reason = _what_is_missing(results) or "the results decide nothing about this claim"
        except MissingResult as missing:
            found = ()
            reason = "; ".join(filter(None, (str(missing.args[0]), _what_is_missing(results))))
        except NOT_UNDERSTOOD as error:
            found, reason = (), not_understood(error)
        found = tuple(_without_lost_seeds(verdict, results) for verdict in found)
        judged = {verdict.claim for verdict in found}
        missing_verdicts = (claim for claim in self.claims if claim.id not in judged)
        return found + tuple(self._not_run(claim, claim.not_run or reason, results.scale) for claim in missing_verdicts)

    def _not_run(self, claim: Claim, reason: str, scale: str) -> Verdict:
        return Verdict(claim=claim.id, experiment=self.name, outcome="not run", summary=reason, scale=scale)


def not_understood(error: Exception) -> str:
    """Return the sentence for result files whose values are not those that this version writes."""
    return f"the result files hold values that this version does not understand ({type(error).__name__}: {error})"


def _without_lost_seeds(verdict: Verdict, results: ExperimentResults) -> Verdict:
    """Return the verdict, which supports nothing while an arm lacks some of its seeds: the ones that diverge are the lost."""
    lost = sorted({arm.name for arm in results.arms
                   if results.of(arm.name) and not (arm.id in results.records and results.records[arm.id].finished)})
    if not lost or verdict.outcome == "not run":
        return verdict
    outcome = "inconclusive" if verdict.outcome == "supported" else verdict.outcome
    return replace(verdict, outcome=outcome, summary=f"{verdict.summary}; seeds failed or missing: {', '.join(lost)}")


def _what_is_missing(results: ExperimentResults) -> str:
    parts = [f"{len(results.missing)} of {len(results.arms)} runs missing"] if results.missing else []
    parts += [f"{len(results.failed)} of {len(results.arms)} runs failed"] if results.failed else []
    return ", ".join(parts)
