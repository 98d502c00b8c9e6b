"""The table of claims as rows: one for each verdict, and one for each claim that nothing tested."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reformer_lab.experiments.claim import OUTCOMES, SCALES, Claim, Experiment, ExperimentResults, Verdict
from reformer_lab.experiments.claims import CLAIMS
from reformer_lab.reporting.records import Record, Suite
from reformer_lab.reporting.text import interval_text, markdown_text


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """What one experiment found about one claim."""

    claim: Claim
    """The claim."""
    verdict: Verdict
    """The verdict; "not run" with a reason where there is none."""
    command: str
    """The command that runs the experiment again; "" where there is none."""

    @property
    def interval(self) -> str:
        """The judged value with its unit and interval, or ""."""
        verdict = self.verdict
        return interval_text(verdict.value, verdict.low, verdict.high, verdict.unit)

    @property
    def seeds(self) -> str:
        """How many runs are behind the value, or ""."""
        verdict = self.verdict
        if verdict.outcome == "not run" or verdict.n < 1:
            return ""
        return f"n = {verdict.n}" + (", indicative" if verdict.indicative else "")


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
    for experiment in experiments:
        if experiment.name in results:
            in_suite = bool(results[experiment.name].arms)
            commands[experiment.name] = rerun_command(experiment, results[experiment.name].scale)
            judged += [(verdict, in_suite) for verdict in experiment.verdicts(results[experiment.name])]
    rows: list[ClaimRow] = []
    for claim in claims:
        of_claim = [(verdict, in_suite) for verdict, in_suite in judged if verdict.claim == claim.id]
        chosen = [verdict for verdict, in_suite in of_claim if in_suite] or [verdict for verdict, _ in of_claim][:1]
        reason = claim.not_run or "no experiment tests this claim yet"
        for verdict in chosen or [Verdict(claim=claim.id, experiment="", outcome="not run", summary=reason, scale="")]:
            rows.append(ClaimRow(claim=claim, verdict=verdict, command=commands[verdict.experiment]))
    return rows


def rerun_command(experiment: Experiment, scale: str) -> str:
    """Return the command that runs an experiment again, at the first scale that has runs where `scale` has none."""
    with_runs = [known for known in SCALES if experiment.arms(known)]
    if scale not in with_runs and with_runs:
        scale = with_runs[0]
    return f"reformer-lab reproduce --scale {scale} --only {experiment.name}"


def tally(rows: Iterable[ClaimRow]) -> dict[str, int]:
    """Return how many rows have each outcome, in the order of OUTCOMES, those with none left out."""
    counts = Counter(row.verdict.outcome for row in rows)
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def one_line_table_markdown(rows: Sequence[ClaimRow]) -> str:
    """Return the table of claims for a README: one line for each verdict, the paper's number beside ours."""
    lines = ["| | claim | paper | here | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        outcome = row.verdict.outcome
        verdict = f"**{outcome}**" if outcome in ("supported", "contradicted") else outcome
        notes = [text for text in (row.verdict.scale if row.seeds else "", row.seeds) if text]
        verdict += f" ({', '.join(notes)})" if notes else ""
        cells = (row.claim.id, row.claim.statement, row.claim.paper, row.verdict.summary)
        lines.append(f"| {' | '.join(markdown_text(cell) for cell in cells)} | {verdict} |")
    return "\n".join(lines) + "\n"
