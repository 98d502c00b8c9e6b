"""`reformer-lab report`: the report of a suite's results, written again."""

import argparse
from pathlib import Path

HELP = """\
Write the report of what `reproduce` left in a folder: DIR/report/index.html and REPRODUCTION.md beside it. Half-finished
results will do; the report says what is missing.

example:
  reformer-lab report reproduction/quick
"""


def main(argv: list[str]) -> int:
    """Write the report, print the verdicts and the page's path."""
    parser = argparse.ArgumentParser(prog="reformer-lab report", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what was given to `reproduce` as --output")
    arguments = parser.parse_args(argv)
    print_report(arguments.folder)
    return 0


def print_report(folder: Path) -> None:
    """Write the report of a suite's folder; print the table of verdicts and the page's path."""
    from reformer_lab.experiments.registry import EXPERIMENTS
    from reformer_lab.reporting.console import print_verdicts
    from reformer_lab.reporting.page import write_report
    from reformer_lab.reporting.records import read_results, read_suite
    from reformer_lab.reporting.verdicts import suite_results, verdict_rows

    experiments = list(EXPERIMENTS.values())
    suite, records = read_suite(folder), read_results(folder)
    page = write_report(folder, suite, experiments, records)
    print_verdicts(verdict_rows(experiments, suite_results(experiments, suite, records)))
    print(f"report: {page}")
