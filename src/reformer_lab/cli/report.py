"""`reformer-lab report`: the report of a suite's results, written again."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reformer_lab.errors import UserError
from reformer_lab.terminal import visible

if TYPE_CHECKING:
    from reformer_lab.reporting.verdicts import ClaimRow

HELP = """\
Write the report of what `reproduce` left in a folder: DIR/report/index.html and REPRODUCTION.md beside it. A folder of such
folders gets one report over all of them on top: DIR/index.html and DIR/REPRODUCTION.md. Half-finished results will do; the
report says what is missing.

examples:
  reformer-lab report reproduction/quick
  reformer-lab report results --readme README.md
"""
README_MARKS = "<!-- claims:begin -->\n", "<!-- claims:end -->"
"""Between these lines of a Markdown file stands its table of claims."""


def main(argv: list[str]) -> int:
    """Write the report, print the verdicts and the page's path."""
    parser = argparse.ArgumentParser(prog="reformer-lab report", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR",
                        help="what was given to `reproduce` as --output, or a folder of several of these")
    parser.add_argument("--readme", type=Path, metavar="FILE",
                        help="write the table of claims into this Markdown file too, between its lines "
                        "<!-- claims:begin --> and <!-- claims:end -->")
    arguments = parser.parse_args(argv)
    rows = print_report(arguments.folder)
    if arguments.readme is not None:
        update_readme(arguments.readme, rows, arguments.folder)
        print(visible(f"table of claims: {arguments.readme}"))
    return 0


def update_readme(path: Path, rows: "Sequence[ClaimRow]", folder: Path) -> None:
    """Replace the table of claims in a Markdown file, with links to the reports in `folder` as seen from there.

    A UserError names a file without a place for it.
    """
    from reformer_lab.files import write_text, writing
    from reformer_lab.reporting.verdicts import one_line_table_markdown

    begin, end = README_MARKS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{path} has no lines {begin.strip()} and {end}: add them where the table should stand")
    results = Path(os.path.relpath(folder, path.parent)).as_posix()
    with writing(path, "name another file with --readme"):
        write_text(path, before + begin + one_line_table_markdown(rows, results) + end + after)


def print_report(folder: Path) -> "list[ClaimRow]":
    """Write the report of a suite's folder, or of a folder of suites; print the table of verdicts and the page's path.

    Returns the rows of the table.
    """
    from reformer_lab.experiments.registry import EXPERIMENTS
    from reformer_lab.reporting.combined import suite_folders, write_combined_report
    from reformer_lab.reporting.console import print_verdicts
    from reformer_lab.reporting.page import write_report
    from reformer_lab.reporting.records import read_results, read_suite
    from reformer_lab.reporting.verdicts import suite_results, verdict_rows

    experiments = list(EXPERIMENTS.values())
    if suite_folders(folder):
        page, rows = write_combined_report(folder, experiments)
    else:
        suite, records = read_suite(folder), read_results(folder)
        page = write_report(folder, suite, experiments, records)
        rows = verdict_rows(experiments, suite_results(experiments, suite, records))
    print_verdicts(rows)
    print(visible(f"report: {page}"))
    return rows
