"""What went wrong in 2021, as numbers, and what one fault does to each: the criterion of the experiment `autopsy`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reformer_lab.experiments.claim import ExperimentResults
from reformer_lab.experiments.faults import FAULTS, RAW, SEEN
from reformer_lab.experiments.judging import above, below, mean_of, paired_difference, signed
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.section import Table
from reformer_lab.reporting.statistics import Estimate

COPY_LSH, COPY_FULL, TEXT = "copying with LSH-4", "copying with full attention", "text with LSH"
"""Ways of training."""
NONE, ALL, CONTROL = "none", "all", "local attention alone"
BOTH_SCALES = "flat logits and raw keys"
"""Their two attentions as they were: over sqrt(d) both, with keys of unit length in LSH attention alone."""

Finding = Literal["explains it", "contributes", "works against it", "does not matter", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """One number that was wrong."""

    name: str
    """In a few words, for a row of a table."""
    title: str
    """In words, with the number of 2021."""
    task: str
    """Way of training that shows it."""
    path: tuple[str, ...]
    """Where the number is in the final event."""
    unit: str
    factor: float = 1.0
    """From the recorded number to the unit."""
    target: float | None = None
    """The number of 2021. None: `change` away from the run without faults."""
    change: float | None = None
    """By how much the number was off. None: by as much as it is, that is, twice the number without faults."""
    margin: float = 5.0
    """A change within this margin does not matter."""
    needs_attention: bool = False
    """Whether a fault of LSH attention can show only in a model to which its LSH layers are worth something."""
    relative: bool = False
    """Whether the margin is a share of the number without faults."""
    untouched: tuple[str, ...] = ()
    """Faults that cannot change the number, whatever they do elsewhere."""
    limited: bool = False
    """Whether a run that does not solve the task counts with the limit."""
    digits: int = 1


SYMPTOMS = (
    Symptom(
        name="their row \"full\"", task=COPY_FULL, path=("evaluations", "LSH-8", "accuracy"), unit="%", factor=100, target=1.37,
        title="their row \"full\" (1 to 5 %): trained with full attention, evaluated with LSH-8; 1.37 % in 2021, 94.8 % in the "
        "paper",
    ),
    Symptom(
        name="their column \"full\"", task=COPY_LSH, path=("evaluations", "full", "accuracy"), unit="%", factor=100,
        target=46.54,
        title="their column \"full\" (46 to 76 %): trained with LSH-4, evaluated with full attention; 46.54 % in 2021",
    ),
    Symptom(
        name="bits per byte", task=TEXT, path=("evaluations", "own", "bits"), unit="bits", change=0.11, margin=0.03, digits=3,
        needs_attention=True, untouched=(SEEN,),
        title="\"could not achieve the performance of a Transformer\", as bits per byte of a language model; 0.11 more in 2021",
    ),
    Symptom(
        name="steps to solve", task=COPY_LSH, path=("step",), unit="steps", margin=0.25, relative=True, digits=0,
        untouched=(RAW,), limited=True,
        title="the same, as steps to solve the duplication task with LSH-4 (no number in 2021)",
    ),
)

CRITERION = (
    "Each number is compared with that of the run without faults and the same seed; intervals are 95 % intervals of the mean "
    "difference over seeds (Student's t). A fault explains a symptom if it alone moves the number at least half of the way to "
    "that of 2021, by its whole interval. It contributes if it moves the number that way by more than a margin, by its whole "
    "interval, and works against it if it moves it the other way by more than the margin. It does not matter if the whole "
    "interval lies within the margin. Otherwise the finding is inconclusive. Two arms carry several faults: flat logits with "
    "raw keys in full attention, which together are their two attentions, and all (on the duplication task without wrong "
    "buckets backward: their model there recomputed nothing). Margins: 5 points of accuracy, 0.03 bits "
    "per byte, a quarter of the steps. The way to 2021: to its own accuracy; 0.11 bits per byte, by which its reversible "
    "language model was worse than its Transformer; for the steps, which it did not publish, twice as many. Runs that do not "
    "solve the task count with the limit. A language model can show that a fault does not matter only if its LSH layers are "
    "worth more to it than those 0.11 bits, by the whole interval: a control with local attention in their place measures "
    "that; otherwise what would not matter is inconclusive. With one seed there is no interval "
    "and the value alone decides; smoke decides nothing."
)


@dataclass(frozen=True, kw_only=True)
class FaultFinding:
    """What one fault does to one symptom."""

    fault: str
    change: Estimate
    """Against the run without faults."""
    value: float
    """Mean over seeds, with the fault."""
    finding: Finding
    unsolved: int = 0
    """Runs that count with the limit: the change is a lower bound."""


def arm_name(task: str, fault: str) -> str:
    """Return the label of an arm."""
    return f"{task}: {fault}"


def faults_of(results: ExperimentResults, task: str) -> list[str]:
    """Return the faults of the arms of a way of training that have a finished run, "none" and "all" among them."""
    names = (NONE, *FAULTS, BOTH_SCALES, ALL)
    return [fault for fault in names if results.of(arm_name(task, fault))]


def judge_change(change: Estimate, way: float, margin: float) -> Finding:
    """Return what a change means, where `way` is the whole way from the run without faults to the number of 2021."""
    toward = change if way >= 0 else _negative(change)
    if above(toward, max(abs(way) / 2, margin)):
        return "explains it"
    if above(toward, -margin) and below(toward, margin):
        return "does not matter"
    if above(toward, margin):
        return "contributes"
    return "works against it" if below(toward, -margin) else "inconclusive"


def findings(results: ExperimentResults, symptom: Symptom) -> list[FaultFinding]:
    """Return what each fault, and all of them, do to a symptom; those without a finished run are left out.

    Raises MissingResult when there is no run without faults.
    """
    clean = _mean(results, symptom, NONE)
    change = clean if symptom.change is None else symptom.change
    way = change if symptom.target is None else symptom.target - clean
    margin = symptom.margin * clean if symptom.relative else symptom.margin
    worth = worth_of_lsh(results) if symptom.needs_attention else None
    shows = not symptom.needs_attention or (worth is not None and above(worth, way) is True)
    found = []
    for fault in faults_of(results, symptom.task):
        if fault == NONE or fault in symptom.untouched:
            continue
        difference = paired_difference(results, arm_name(symptom.task, fault), arm_name(symptom.task, NONE), symptom.path)
        scaled = _scaled(difference, symptom.factor)
        finding = judge_change(scaled, way, margin)
        if results.scale == "smoke" or (finding == "does not matter" and not shows):
            finding = "inconclusive"
        runs = results.of(arm_name(symptom.task, fault)) if symptom.limited else ()
        found.append(FaultFinding(fault=fault, change=scaled, value=_mean(results, symptom, fault), finding=finding,
                                  unsolved=sum(not record.value("stopped_early") for record in runs)))
    return found


def worth_of_lsh(results: ExperimentResults) -> Estimate | None:
    """Return the bits per byte by which local attention alone is worse than the run without faults, None unmeasured."""
    try:
        return paired_difference(results, arm_name(TEXT, CONTROL), arm_name(TEXT, NONE))
    except MissingResult:
        return None


def findings_table(results: ExperimentResults) -> Table:
    """Return every finding as a row."""
    rows = []
    for symptom in SYMPTOMS:
        try:
            for found in findings(results, symptom):
                rows.append((symptom.name, found.fault, round(found.value, symptom.digits),
                             _change(found, symptom), symptom.unit, found.change.n, found.finding))
        except MissingResult:
            continue
    return Table(title="What each fault does to each symptom",
                 header=("symptom", "fault", "with it", "against the run without faults", "unit", "seeds", "finding"),
                 rows=tuple(rows), caption="By the criterion above. Left out is what cannot change a number: validation from "
                 "training leaves the model of text as it is, and training with LSH attention never meets raw keys in full "
                 "attention.")


def answers(results: ExperimentResults) -> tuple[str, ...]:
    """Return one paragraph for each symptom: which faults explain it, and which do not matter."""
    paragraphs = []
    for symptom in SYMPTOMS:
        try:
            found = findings(results, symptom)
            clean = _mean(results, symptom, NONE)
        except MissingResult:
            continue
        single = [one for one in found if one.fault not in _TOGETHER]
        parts = [f"{_capital(symptom.title)}. Without faults {clean:.{symptom.digits}f} {symptom.unit}."]
        worth = worth_of_lsh(results) if symptom.needs_attention else None
        if worth is not None:
            enough = above(worth, abs(symptom.change or 0.0))
            parts.append(f"Its LSH layers are worth {signed(worth)} bits to it, against local attention in their place"
                         + ("." if enough else ": too little to say of any of their faults that it does not matter."))
        for finding, phrase in _PHRASES.items():
            which = [one for one in single if one.finding == finding]
            if which:
                parts.append(f"{phrase}: {_listed(which, symptom)}.")
        if single and not any(one.finding == "explains it" for one in single):
            parts.append("No fault explains it alone.")
        parts += [f"{_TOGETHER[one.fault]} together: {_numbers(one, symptom)}, which {_TOGETHER_PHRASES[one.finding]}."
                  for one in found if one.fault in _TOGETHER]
        paragraphs.append(" ".join(parts))
    return tuple(paragraphs)


def in_short(results: ExperimentResults) -> str:
    """Say in one sentence what explains each symptom; "" where none was measured."""
    causes = []
    for symptom in SYMPTOMS:
        try:
            causes.append(f"{symptom.name}: {_cause(findings(results, symptom))}")
        except MissingResult:
            continue
    return f"In short, what explains it. {_capital('; '.join(causes))}." if causes else ""


def _cause(found: Sequence[FaultFinding]) -> str:
    def alone(finding: Finding) -> list[str]:
        return [one.fault for one in found if one.finding == finding and one.fault not in _TOGETHER]

    def together(finding: Finding) -> str | None:
        names = [one.fault if one.fault != ALL else "all of them" for one in found
                 if one.finding == finding and one.fault in _TOGETHER]
        return names[0] if names else None

    if explaining := alone("explains it"):
        return " or ".join(explaining)
    if several := together("explains it"):
        return f"no fault alone, but {several} together"
    if contributing := alone("contributes"):
        return f"no fault is shown to do half of it; {' and '.join(contributing)} a part at least"
    if several := together("contributes"):
        return f"no fault alone; {several} together a part at least"
    return "undecided" if alone("inconclusive") else "none of these faults"


_PHRASES: dict[Finding, str] = {
    "explains it": "Explained by", "contributes": "Contributing, half of the way is not shown",
    "works against it": "Moving it the other way", "does not matter": "Of no matter", "inconclusive": "Undecided",
}  # fmt: skip
_TOGETHER = {BOTH_SCALES: "Flat logits and raw keys in full attention", ALL: "All faults"}
_TOGETHER_PHRASES: dict[Finding, str] = {
    "explains it": "explains it", "contributes": "contributes, half of the way is not shown",
    "works against it": "is the other way",
    "does not matter": "is no change that matters", "inconclusive": "decides nothing",
}  # fmt: skip


def last_validation(results: ExperimentResults, name: str) -> float | None:
    """Return the mean over seeds of the last bits per byte that the arm's own validation split said, None without one."""
    curves = [record.curve("eval", "bits")[1] for record in results.of(name)]
    last = [curve[-1] for curve in curves if curve]
    return sum(last) / len(last) if last else None


def _mean(results: ExperimentResults, symptom: Symptom, fault: str) -> float:
    name = arm_name(symptom.task, fault)
    estimate = mean_of(results, name, *symptom.path)
    if estimate is None:
        raise MissingResult(f"no finished run of {name}")
    return symptom.factor * estimate.value


def _listed(found: Sequence[FaultFinding], symptom: Symptom) -> str:
    return "; ".join(f"{one.fault} ({_numbers(one, symptom)})" for one in found)


def _numbers(one: FaultFinding, symptom: Symptom) -> str:
    return f"{one.value:.{symptom.digits}f} {symptom.unit}, {_change(one, symptom)}"


def _change(one: FaultFinding, symptom: Symptom) -> str:
    change = signed(one.change, symptom.digits)
    return f"at least {change}, {one.unsolved} of {one.change.n} at the limit" if one.unsolved else change


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    ends = [None if end is None else factor * end for end in (estimate.low, estimate.high)]
    return Estimate(value=factor * estimate.value, low=ends[0], high=ends[1], n=estimate.n)


def _negative(estimate: Estimate) -> Estimate:
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return Estimate(value=-estimate.value, low=low, high=high, n=estimate.n)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
