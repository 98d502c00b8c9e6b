"""C7, table 2: the duplication task, each way of training evaluated in each way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, Scale, Verdict, check_scale
from reformer_lab.experiments.claims import C7
from reformer_lab.experiments.judging import learning_curves, mean_of, percent, recorded_config, seeds_of, verdict
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.presets import get_preset
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.section import Figure, Level, Section, Table
from reformer_lab.reporting.statistics import Estimate, slope
from reformer_lab.training.config import Evaluation, OptimizerConfig, Precision, RunConfig

TRAINED: dict[str, dict[str, Any]] = {
    "full": {"attention": ("full",), "self_attention": "last_resort"},
    "LSH-4": {"attention": ("lsh",), "num_hashes": 4},
    "LSH-2": {"attention": ("lsh",), "num_hashes": 2},
    "LSH-1": {"attention": ("lsh",), "num_hashes": 1},
}
"""Rows: how a model was trained. Full attention has shared queries and keys, as LSH attention has."""
EVALUATED: dict[str, dict[str, Any]] = {
    "full": TRAINED["full"],
    "full, raw keys": {"attention": ("full",), "self_attention": "allowed"},
    "LSH-8": {"attention": ("lsh",), "num_hashes": 8},
    **{name: TRAINED[name] for name in ("LSH-4", "LSH-2", "LSH-1")},
}
"""Columns: how it is evaluated. "full" is convention b (unit keys, a token sees itself as a last resort), "full, raw keys"
convention a (raw keys over sqrt(d), itself allowed: the authors' full attention at evaluation)."""
PAPER: dict[str, dict[str, float]] = {
    "full": {"full": 100, "LSH-8": 94.8, "LSH-4": 92.5, "LSH-2": 76.9, "LSH-1": 52.5},
    "LSH-4": {"full, raw keys": 0.8, "LSH-8": 100, "LSH-4": 99.9, "LSH-2": 99.4, "LSH-1": 91.9},
    "LSH-2": {"full, raw keys": 0.8, "LSH-8": 100, "LSH-4": 99.9, "LSH-2": 98.1, "LSH-1": 86.8},
    "LSH-1": {"full, raw keys": 0.8, "LSH-8": 99.9, "LSH-4": 99.6, "LSH-2": 94.8, "LSH-1": 77.9},
}
"""The paper's table 2 in per cent. Which convention its full column follows is not said; 0.8 is chance, which points to a
for the models trained with LSH attention. The one trained with full attention was evaluated as it was trained."""

ROUNDS = {"LSH-1": 1, "LSH-2": 2, "LSH-4": 4, "LSH-8": 8}
"""Columns that differ in their rounds alone."""
NOISE = 0.005
"""Accuracy by which more rounds may be worse without counting as a fall."""
UNSOLVED, LOST, FALL = 0.9, 0.8, 0.02
"""Below the first a model has not solved the task; below the second the one trained with full attention has not kept it at
LSH-8; a fall of the third with more rounds contradicts the claim."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Accuracies that the criterion asks for; by default for words that are shorter, and easier, than the paper's."""

    solved: float = 0.99
    """Of the models trained with full attention, LSH-4 and LSH-2."""
    solved_by_one_round: float = 0.93
    """Of the model trained with LSH-1."""
    kept: float = 0.95
    """Of the model trained with full attention, evaluated with LSH-8."""
    unsolved_by_one_round: float = 0.8
    """Below this LSH-1 in its own setting contradicts the claim."""


AT_256 = Thresholds(solved=0.985, solved_by_one_round=0.84, kept=0.935, unsolved_by_one_round=0.72)
"""Halfway, on the scale of log length, from 64 tokens to 1,024."""
AT_THE_PAPERS_LENGTH = Thresholds(solved=0.98, solved_by_one_round=0.75, kept=0.92, unsolved_by_one_round=0.65)
"""A little below the paper's own 98.1, 77.9 and 94.8 %."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The task at one scale."""

    model: ReformerConfig
    """Before the rows' changes."""
    optimizer: OptimizerConfig
    """For every row."""
    steps: int
    """At most; a run ends early once it has solved the task."""
    batch_size: int = 64
    """Sequences of a step."""
    eval_every: int = 100
    """Steps between two points of the curve."""
    eval_sequences: int = 512
    """Sequences of an evaluation."""
    stop_at_accuracy: float | None = None
    """Validation accuracy, in the row's own setting, that ends the training."""
    seeds: tuple[int, ...] = (0,)
    """One run of each row for each."""
    asked: Thresholds = Thresholds()
    """What the criterion asks for at this length."""
    precision: Precision = "fp32"
    """Of the arithmetic."""
    threads: int | None = None
    """CPU threads of a run."""
    looks: int = 1
    """How often the claim was judged, this setting included."""
    cuts: str
    """What was cut against the paper."""

    @property
    def length(self) -> int:
        """Tokens of a sequence: 0 w 0 w."""
        return self.model.max_length


_ADAM = OptimizerConfig(learning_rate=2e-3, schedule="warmup_cosine", warmup_steps=100)
_CPU_CUTS = ("Length {length} instead of 1,024, chunk and buckets with it; Adam for at most {steps} steps instead of "
             "Adafactor for 150,000.")

SETTINGS: dict[Scale, Setting] = {
    "smoke": Setting(model=get_preset("duplication_cpu").replace(max_length=32, d_model=32, d_ff=32, num_heads=2, d_head=16,
                                                                 num_buckets=None),
                     optimizer=_ADAM, steps=10, batch_size=4, eval_every=5, eval_sequences=8, threads=1,
                     cuts="Everything: ten steps of a toy model."),
    "quick": Setting(model=get_preset("duplication_cpu"), optimizer=_ADAM, steps=1500, batch_size=32, stop_at_accuracy=0.998,
                     threads=1,
                     cuts=_CPU_CUTS.format(length=64, steps="1,500") + " One seed."),
    "small": Setting(model=get_preset("duplication_cpu").replace(max_length=256, num_buckets=None, chunk_length=32),
                     optimizer=_ADAM, steps=2000, batch_size=16, stop_at_accuracy=0.998, seeds=(0, 1, 2), asked=AT_256,
                     threads=1, looks=2, cuts=_CPU_CUTS.format(length=256, steps="2,000") + " They were 1,000 at first, "
                     "after which the worst seed of LSH-2 was at 96.5 % and the claim open."),
    "gpu": Setting(model=get_preset("duplication"), optimizer=_ADAM, steps=20_000, batch_size=32, eval_every=250,
                   stop_at_accuracy=0.998, asked=AT_THE_PAPERS_LENGTH, precision="bf16",
                   cuts="Adam for at most 20,000 steps instead of Adafactor for 150,000, in bf16. Learned positions are our "
                   "choice: the paper does not describe its own. One seed."),
    "paper": Setting(model=get_preset("duplication"),
                     optimizer=OptimizerConfig(name="adafactor", learning_rate=1.0, schedule="warmup_rsqrt",
                                               warmup_steps=8000, clip_norm=None),
                     steps=150_000, batch_size=32, eval_every=2500, eval_sequences=1024, asked=AT_THE_PAPERS_LENGTH,
                     cuts="Nothing in size. Adafactor is torch's, which limits the relative step as the authors' does not "
                     "(docs/decisions/0009); learned positions are our choice: the paper does not describe its own. "
                     "One seed."),
}
"""The optimiser's settings stand here and nowhere else."""


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Return the four rows, for each seed."""
    setting = SETTINGS[scale]
    data = DuplicationConfig(length=setting.length, eval_sequences=setting.eval_sequences)
    evaluations = tuple(Evaluation(name=name, model=changes) for name, changes in EVALUATED.items())
    return tuple(
        Arm(name=name, run=RunConfig(
            model=setting.model.replace(**changes), data=data, optimizer=setting.optimizer, steps=setting.steps,
            batch_size=setting.batch_size, seed=seed, precision=setting.precision, threads=setting.threads,
            eval_every=setting.eval_every, eval_batch_size=setting.batch_size, checkpoint_every=setting.eval_every,
            log_every=min(20, setting.eval_every), evaluations=(Evaluation(), *evaluations),
            final_split="test",  # the validation split decides when a run stops
            stop_at_accuracy=setting.stop_at_accuracy,
        ))
        for name, changes in TRAINED.items()
        for seed in setting.seeds
    )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The numbers of one seed that the criterion asks about."""

    cells: Mapping[str, Mapping[str, float]]
    """Accuracy as a fraction, by row and column."""

    @property
    def solving(self) -> float:
        """The lowest accuracy of the rows that must solve the task, in their own setting or under full attention."""
        return min(self.cells[row][column] for row in TRAINED if row != "LSH-1" for column in (row, "full"))

    @property
    def by_one_round(self) -> float:
        """The same of the row trained with LSH-1."""
        return min(self.cells["LSH-1"][column] for column in ("LSH-1", "full"))

    @property
    def kept(self) -> float:
        """What the row trained with full attention has at LSH-8."""
        return self.cells["full"]["LSH-8"]

    @property
    def largest_fall(self) -> float:
        """The largest loss of accuracy, over the rows, from some rounds at evaluation to twice as many."""
        return max(row[fewer] - row[more] for row in self.cells.values() for fewer, more in pairwise(ROUNDS))

    @property
    def trends(self) -> dict[str, float]:
        """By row: accuracy gained with each doubling of the rounds at evaluation (least squares over log2 of the rounds)."""
        logs = [math.log2(rounds) for rounds in ROUNDS.values()]
        return {row: slope(logs, [cells[column] for column in ROUNDS]).value for row, cells in self.cells.items()}

    @property
    def rises(self) -> bool:
        """Whether accuracy rises with the rounds in every row; one that one round solves has nothing to gain."""
        solved = {row for row, cells in self.cells.items() if cells["LSH-1"] >= 1 - NOISE}
        return self.largest_fall <= NOISE and all(trend > 0 or row in solved for row, trend in self.trends.items())

    def holds(self, asked: Thresholds) -> bool | None:
        """Judge this seed alone: True, False, or None between."""
        if (self.solving < UNSOLVED or self.cells["LSH-1"]["LSH-1"] < asked.unsolved_by_one_round or self.kept < LOST
                or self.largest_fall > FALL):
            return False
        met = (self.solving >= asked.solved and self.by_one_round >= asked.solved_by_one_round and self.kept >= asked.kept
               and self.rises)
        return True if met else None


def scores(results: ExperimentResults) -> list[Scores]:
    """Return the scores of each seed that all rows have finished. Raises MissingResult when there is none."""
    rows = {row: {record.seed: record for record in results.require(row)} for row in TRAINED}
    seeds = sorted(set.intersection(*(set(found) for found in rows.values())))
    if not seeds:
        raise MissingResult(f"no seed finished all of {', '.join(TRAINED)}")
    columns = ("full", *ROUNDS)
    return [Scores(cells={row: {column: float(found[seed].value("evaluations", column, "accuracy")) for column in columns}
                          for row, found in rows.items()})
            for seed in seeds]


def judge(results: ExperimentResults) -> tuple[Verdict, ...]:
    """Judge C7 by the criterion: every seed must agree."""
    found = scores(results)
    outcomes = {score.holds(SETTINGS[check_scale(results.scale)].asked) for score in found}
    holds = outcomes.pop() if len(outcomes) == 1 else None

    def lowest(row: str, column: str) -> str:
        return percent(min(score.cells[row][column] for score in found))

    fall = max(score.largest_fall for score in found)
    trends = [trend for score in found for trend in score.trends.values()]
    summary = (f"in %{f', lowest of {len(found)} seeds' if len(found) > 1 else ''}: in their own setting "
               f"{', '.join(f'{row} {lowest(row, row)}' for row in TRAINED)}; trained LSH-1, evaluated full: "
               f"{lowest('LSH-1', 'full')}; trained full, evaluated LSH-8: {lowest('full', 'LSH-8')}; "
               f"trained LSH-4, evaluated LSH-8: {lowest('LSH-4', 'LSH-8')}, LSH-1: {lowest('LSH-4', 'LSH-1')}; "
               + ("accuracy rises with rounds in every row, by "
                  f"{percent(min(trends))} to {percent(max(trends))} points for each doubling"
                  if all(score.rises for score in found) else
                  f"accuracy falls by up to {percent(fall)} points with twice the rounds" if fall > NOISE else
                  f"accuracy does not rise with rounds in every row (from {percent(min(trends))} points for each doubling)"))
    worst = Estimate(value=100 * min(score.solving for score in found), n=len(found))
    unit = "% accuracy, the lowest of full, LSH-4, LSH-2" + (" and of the seeds" if len(found) > 1 else "")
    setting = SETTINGS[check_scale(results.scale)]
    looks = setting.looks if recorded_config(results)["steps"] == setting.steps else 1
    return (verdict(results, "table2", C7, holds, summary.replace("-0", "−0"), estimate=worst, unit=unit, looks=looks),)


def _ends(config: Mapping[str, Any]) -> str:
    """Say what an early end means for the columns with fewer rounds; "" where runs do not end early."""
    solved = config["stop_at_accuracy"]
    return "" if solved is None else (
        f"A run ends when {percent(solved)} % are right in its own setting. The paper trained on, for 150,000 steps, to which "
        "its columns with fewer rounds than in training may owe something.")


def show(results: ExperimentResults) -> Section:
    """Show the matrix beside the paper's, and the learning curves with their plateau."""
    ours, lowest, theirs = [], [], []
    for row in TRAINED:
        cells = [mean_of(results, row, "evaluations", column, "accuracy") for column in EVALUATED]
        ours.append((row, *(round(100 * cell.value, 2) if cell else None for cell in cells)))
        lowest.append((row, *(round(100 * min(results.values(row, "evaluations", column, "accuracy")), 2) if cell else None
                              for column, cell in zip(EVALUATED, cells, strict=True))))
        theirs.append((row, *(PAPER[row].get(column) for column in EVALUATED)))
    steps = []
    for row in TRAINED:
        for record in results.of(row):
            final = record.final or {}
            steps.append((row, record.seed, final.get("step"), "yes" if final.get("stopped_early") else "no"))
    if not steps:
        raise MissingResult("no row of the table is finished")
    header = ("trained with", *EVALUATED)
    config = recorded_config(results)
    model = config["model"]
    return Section(
        text=(f"Length {config['data']['length']:,}, one layer, {model['num_heads']} heads x {model['d_head']}, chunk "
              f"{model['chunk_length']}, batch {config['batch_size']}, at most {config['steps']:,} steps, "
              f"{seeds_of(results)}. Accuracy is counted on the second half alone. {_ends(config)}",
              "Full attention is evaluated under two conventions. \"full\" follows LSH attention's rules: keys of unit "
              "length, a token sees itself only if it sees nothing else. \"full, raw keys\" follows the authors' full "
              "attention at evaluation: raw keys, a token may see itself. A model trained under the first rule then attends "
              "to itself, which is very likely why the paper's column reads 0.8 % (chance)."),
        figures=(Figure(title="Accuracy on the second half", x_label="step", y_label="validation accuracy",
                        series=learning_curves(results, tuple(TRAINED), "accuracy"),
                        levels=(Level(label="chance", y=1 / 126),),
                        caption="A run that ended early keeps its last value."),),
        tables=(
            Table(title="Accuracy in %", header=header, rows=tuple(ours), shade=(0, 100),
                  caption=f"At the end of training, on the {config['final_split']} split; mean over {seeds_of(results)}."),
            *((Table(title="Lowest accuracy of the seeds, in %", header=header, rows=tuple(lowest), shade=(0, 100),
                     caption="What the criterion judges."),) if len({arm.seed for arm in results.arms}) > 1 else ()),
            Table(title="The paper's table 2, in %", header=header, rows=tuple(theirs), shade=(0, 100),
                  caption="The paper has one column of full attention. The 0.8 of the models trained with LSH attention "
                  "stands under raw keys, which it points to; the model trained with full attention was evaluated as it was "
                  "trained, so that its 100 stands under the other convention."),
            Table(title="Steps to the end", header=("trained with", "seed", "steps", "stopped early"), rows=tuple(steps)),
        ),
    )


EXPERIMENT = Experiment(
    name="table2",
    title="The duplication task",
    question="Can a one-layer Transformer with LSH attention copy a random word exactly, and what do rounds at evaluation do?",
    claims=(C7,),
    criterion="The thresholds depend on the length: at 64 tokens (quick) the task is easier than the paper's, at 1,024 (gpu, "
    "paper) they are a little below the paper's own numbers, at 256 (small) they are halfway: given here for 64, 256 and "
    "1,024. Supported if the models trained with full attention, LSH-4 and LSH-2 reach 99 % (98.5 %, 98 %) both in their own "
    "setting and under full attention (unit keys, self as a last resort), the one trained with LSH-1 reaches 93 % (84 %, 75 %) "
    "in both, the one trained with full attention keeps 95 % (93.5 %, 92 %) at LSH-8, and in every row accuracy rises with the "
    "rounds at evaluation (trend: its slope over log2 of the rounds is above 0, or one round has 99.5 % already; and no "
    "doubling loses more than 0.5 points). Contradicted if one of the first five accuracies is below 90 %, LSH-1's own is "
    "below 80 % (72 %, 65 %), full's at LSH-8 is below 80 %, or a doubling loses more than 2 points. All on the test split; "
    "the validation split decides when a run stops. The worst seed decides, not a mean: accuracies end at 100 %, where an "
    "interval around the mean of a few says little. Supported only if every seed meets all of it, contradicted only if every "
    "seed does something that contradicts, else inconclusive; with fewer than three seeds the verdict is called indicative.",
    arms=arms,
    judge=judge,
    show=show,
    cuts=lambda scale: SETTINGS[scale].cuts,
)
