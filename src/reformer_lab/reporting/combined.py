"""One report over several suites: the strongest verdict on each claim, the others beside it, links to the suites' own reports.

`<folder>/index.html` and `<folder>/REPRODUCTION.md`, where each subfolder with a suite.json is a suite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import SCALE_NOTES, SCALES, Experiment, check_scale
from reformer_lab.files import write_text
from reformer_lab.reporting.page import machine_text, render, started_text, write_report
from reformer_lab.reporting.records import Record, Suite, read_results, read_suite
from reformer_lab.reporting.verdicts import ClaimRow, combined_rows, suite_results, tally, verdict_rows


@dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One suite in the table of suites."""

    name: str
    """Name of its folder."""
    suite: Suite
    note: str
    """What its scale means."""
    seeds: int
    """Different seeds that it set out to run."""
    arms: int
    finished: int
    problems: int
    """Damaged result files."""
    started: str
    machine: str


def suite_folders(folder: Path) -> list[Path]:
    """Return the subfolders of `folder` that hold a suite, the largest scale first; none where `folder` is a suite itself."""
    if (folder / "suite.json").exists():
        return []
    found = sorted(path.parent for path in folder.glob("*/suite.json"))
    return sorted(found, key=lambda path: -SCALES.index(check_scale(read_suite(path).scale)))


def write_combined_report(folder: Path, experiments: Sequence[Experiment]) -> tuple[Path, list[ClaimRow]]:
    """Write the report of each suite below `folder`, and the combined one in it; return its page's path and its rows.

    Suites may be unfinished. Raises UserError when there is none, or when something cannot be written.
    """
    suites: list[SuiteRow] = []
    rows: dict[str, list[ClaimRow]] = {}
    for path in suite_folders(folder):
        suite, records = read_suite(path), read_results(path)
        write_report(path, suite, experiments, records)
        rows[path.name] = verdict_rows(experiments, suite_results(experiments, suite, records))
        suites.append(_suite_row(path.name, suite, records))
    if not suites:
        raise UserError(f"{folder} holds no results of `reproduce`, nor does a folder in it (no suite.json); make some with "
                        "`reformer-lab reproduce --scale smoke --output DIR`")
    combined = combined_rows(rows)
    context = {"suites": suites, "rows": combined, "tally": tally(combined)}
    try:
        write_text(folder / "REPRODUCTION.md", render("combined.md.jinja", context))
        write_text(folder / "index.html", render("combined.html.jinja", context))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): make room or give rights there, or copy the results "
                        "elsewhere") from error
    return folder / "index.html", combined


def _suite_row(name: str, suite: Suite, records: Mapping[str, Record]) -> SuiteRow:
    arms = {arm.id: arm for entries in suite.arms.values() for arm in entries}
    finished = [records[arm] for arm in arms if arm in records and records[arm].finished]
    return SuiteRow(name=name, suite=suite, note=SCALE_NOTES.get(suite.scale, ""),
                    seeds=len({arm.seed for arm in arms.values()}), arms=len(arms), finished=len(finished),
                    problems=sum(1 for record in records.values() if record.problems),
                    started=started_text(suite), machine=machine_text(suite, finished))
