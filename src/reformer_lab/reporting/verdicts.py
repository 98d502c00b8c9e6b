"""The table of claims as rows: one for each verdict, and one for each claim that nothing tested."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from reformer_lab.experiments.claim import OUTCOMES, SCALES, Claim, Experiment, ExperimentResults, Verdict, check_scale
from reformer_lab.experiments.claims import CLAIMS
from reformer_lab.reporting.records import Record, Suite
from reformer_lab.reporting.statistics import interval_method
from reformer_lab.reporting.text import interval_text, markdown_code, markdown_text, slug


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """What one experiment found about one claim."""

    claim: Claim
    """The claim."""
    verdict: Verdict
    """The verdict; "not run" with a reason where there is none."""
    command: str
    """The command that runs the experiment again; "" where there is none."""
    chapter: str = ""
    """Anchor of the experiment's chapter in the suite's report; "" where it has none there."""
    suite: str = ""
    """Where several suites are shown together: the name of the suite's folder."""
    also: str = ""
    """Title of the experiment where it is not the suite's first that judges this claim: "Images"."""
    others: tuple["ClaimRow", ...] = ()
    """Where several suites are shown together: the same claim and experiment in the weaker ones."""

    @property
    def short(self) -> str:
        """The claim in a few words, with the experiment where another one judges it too."""
        return f"{self.claim.short} ({self.also.lower()})" if self.also else self.claim.short

    @property
    def interval(self) -> str:
        """The judged value with its interval and unit, or ""."""
        verdict = self.verdict
        return interval_text(verdict.value, verdict.low, verdict.high, verdict.unit)

    @property
    def method(self) -> str:
        """What the interval is: "95 % interval over 3 seeds, Student's t"; "" without one."""
        verdict = self.verdict
        if verdict.low is None or verdict.high is None:
            return ""
        return f"95 % interval over {verdict.count.removeprefix('n = ')}, {interval_method(verdict.n)}"

    @property
    def where(self) -> str:
        """The scale, and the suite's folder where that is called otherwise; "" for what was not run."""
        verdict = self.verdict
        if verdict.outcome == "not run":
            return ""
        return f"{verdict.scale}, {self.suite}" if self.suite not in ("", verdict.scale) else verdict.scale

    def link(self, page: str, folder: str = "") -> str:
        """Return the address of the experiment's chapter in the suite's page of this name ("index.html"), or "".

        `folder`: where the results are as seen from the page with the link; "" for the report itself.
        """
        if not self.chapter:
            return ""
        parts = [quote(part) for part in (folder, self.suite) if part]
        return ("/".join([*parts, "report", page]) if parts else "") + f"#{self.chapter}"


def suite_results(
    experiments: Iterable[Experiment], suite: Suite, records: Mapping[str, Record]
) -> dict[str, ExperimentResults]:
    """Return the results of each experiment in a suite, by the experiment's name."""
    return {one.name: ExperimentResults.of_suite(one.name, suite, records) for one in experiments}


def verdict_rows(
    experiments: Sequence[Experiment], results: Mapping[str, ExperimentResults], claims: Sequence[Claim] = CLAIMS
) -> list[ClaimRow]:
    """Return the rows of the table of claims, in the order of the claims.

    An experiment that is no part of the suite gives a row only to a claim that no other experiment of it tests.
    """
    judged: list[tuple[Verdict, bool]] = []
    commands = {"": ""}
    chapters: dict[str, str] = {}
    titles = {experiment.name: experiment.title for experiment in experiments}
    for experiment in experiments:
        if experiment.name in results:
            in_suite = bool(results[experiment.name].arms)
            found = results[experiment.name]
            commands[experiment.name] = rerun_command(experiment, found.scale, found.corpus)
            chapters |= {experiment.name: slug(experiment.title)} if found.arms else {}
            judged += [(verdict, in_suite) for verdict in experiment.verdicts(results[experiment.name])]
    rows: list[ClaimRow] = []
    for claim in claims:
        of_claim = [(verdict, in_suite) for verdict, in_suite in judged if verdict.claim == claim.id]
        chosen = [verdict for verdict, in_suite in of_claim if in_suite] or [verdict for verdict, _ in of_claim][:1]
        reason = claim.not_run or "no experiment tests this claim yet"
        chosen = chosen or [Verdict(claim=claim.id, experiment="", outcome="not run", summary=reason, scale="")]
        for verdict in chosen:
            command = "" if verdict.summary == claim.not_run else commands[verdict.experiment]  # it would not run the claim
            rows.append(ClaimRow(claim=claim, verdict=verdict, command=command,
                                 chapter=chapters.get(verdict.experiment, ""),
                                 also=titles[verdict.experiment] if verdict is not chosen[0] else ""))
    return rows


def combined_rows(suites: Mapping[str, Sequence[ClaimRow]], claims: Sequence[Claim] = CLAIMS) -> list[ClaimRow]:
    """Return one row for each claim and experiment, of the strongest suite; those of the others are in its `others`.

    `suites`: the rows of each suite by its folder's name. A claim that the strongest suite did not run falls back to the
    next; one that none ran has the strongest suite's reason. An experiment that no suite tried has no row of its own.
    """
    rows: list[ClaimRow] = []
    for claim in claims:
        found = [replace(row, suite=name) for name, of_suite in suites.items() for row in of_suite if row.claim.id == claim.id]
        found.sort(key=_strength, reverse=True)
        by_experiment: dict[str, list[ClaimRow]] = {}
        for row in found:
            by_experiment.setdefault(row.verdict.experiment, []).append(row)
        for lead, *rest in by_experiment.values():
            if lead.verdict.outcome != "not run":
                rows.append(replace(lead, others=tuple(row for row in rest if row.chapter)))
            elif lead is found[0] or (lead.chapter and found[0].verdict.outcome != "not run"):
                rows.append(lead)  # no suite ran it; where another experiment decides, those that none tried are left out
    return rows


def _strength(row: ClaimRow) -> tuple[bool, bool, bool, int, int]:
    """Order rows of one claim: run; more than a smoke test; with enough seeds; then the larger scale, then more seeds."""
    verdict = row.verdict
    scale = SCALES.index(check_scale(verdict.scale)) if verdict.scale else -1
    return verdict.outcome != "not run", verdict.scale != "smoke", not verdict.indicative, scale, verdict.n


def rerun_command(experiment: Experiment, scale: str, corpus: str = "") -> str:
    """Return the command that runs an experiment again: at the next larger scale that has runs where `scale` has none."""
    with_runs = [known for known in SCALES if experiment.arms(known)]
    if scale not in with_runs and with_runs:
        larger = [known for known in with_runs if SCALES.index(known) > SCALES.index(check_scale(scale))]
        scale = (larger or with_runs[::-1])[0]
    command = f"reformer-lab reproduce --scale {scale} --only {experiment.name}"
    reads = any(arm.on_corpus(corpus) is not arm for arm in experiment.arms(check_scale(scale)))
    if reads:
        return f"{command} --corpus {shlex.quote(corpus)}"
    files = any(getattr(getattr(arm.run, "data", None), "path", None) for arm in experiment.arms(check_scale(scale)))
    return f"{command} --data DIR" if files else command


def tally(rows: Iterable[ClaimRow]) -> dict[str, int]:
    """Return how many rows have each outcome, indicative ones by themselves, in the order of OUTCOMES, without zeros."""
    counts = Counter(row.verdict.strength for row in rows)
    kinds = (kind for outcome in OUTCOMES for kind in (outcome, f"{outcome} (indicative)"))
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def one_line_table_markdown(rows: Sequence[ClaimRow], folder: str = "") -> str:
    """Return the table of claims for a README: one short line for each verdict, the paper's number beside ours.

    `folder`: the address of the results from there; the verdicts then lead to their chapters.
    """
    lines = ["| | claim | verdict | here | paper | again: `reformer-lab reproduce` |", "|---|---|---|---|---|---|"]
    for row in rows:
        label, where = markdown_text(row.verdict.label), markdown_text(row.where)
        if row.verdict.strength in ("supported", "contradicted"):
            label = label.replace(row.verdict.outcome, f"**{row.verdict.outcome}**", 1)
        if where and folder and (link := row.link("REPRODUCTION.md", folder)):
            where = f"[{where}]({link})"
        others = [markdown_text(f"{other.where or other.suite}: {other.verdict.label}") for other in row.others]
        verdict = "; ".join([", ".join(filter(None, (label, where))), *others])
        number = markdown_text(row.interval or row.verdict.summary)
        again = markdown_code(row.command.removeprefix("reformer-lab reproduce "))
        lines.append(f"| {row.claim.id} | {markdown_text(row.short)} | {verdict} | {number} | "
                     f"{markdown_text(row.claim.paper)} | {again} |")
    return "\n".join(lines) + "\n"
