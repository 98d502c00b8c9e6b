"""The table of claims in a terminal, with rich where it is one and as plain lines where it is not."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reformer_lab.reporting.verdicts import ClaimRow, tally
from reformer_lab.terminal import visible

OUTCOME_STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not run": "dim"}


def print_verdicts(rows: Sequence[ClaimRow], console: Console | None = None) -> None:
    """Print the table of claims and how many of each verdict there are."""
    console = console or Console()
    if not console.is_terminal:
        for row in rows:
            notes = ", ".join(text for text in (row.verdict.experiment, row.where, *_others(row)) if text)
            line = f"{row.claim.id}: {row.verdict.label}: {row.verdict.summary}" + (f" ({notes})" if notes else "")
            console.print(Text(visible(line)), soft_wrap=True)
    else:
        table = Table(box=box.SIMPLE_HEAD, title="The paper's claims", title_justify="left", pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("claim", ratio=4)
        table.add_column("here", ratio=4)
        table.add_column("verdict", no_wrap=True)
        for row in rows:
            style = OUTCOME_STYLES[row.verdict.outcome]
            details = "\n".join(text for text in (row.verdict.summary, row.interval) if text)
            sure = "\n".join(text for text in (row.verdict.strength, row.verdict.count, row.where, *_others(row)) if text)
            table.add_row(
                row.claim.id, Text(row.claim.statement), Text(visible(details), style="dim" if style == "dim" else ""),
                Text(visible(sure), style=style),
            )  # fmt: skip
        console.print(table)
    counts = ", ".join(f"{count} {strength}" for strength, count in tally(rows).items())
    console.print(Text(f"{len({row.claim.id for row in rows})} claims: {counts}"), soft_wrap=True)


def _others(row: ClaimRow) -> list[str]:
    """Return what weaker suites say of the same claim."""
    return [f"{other.where or other.suite}: {other.verdict.label}" for other in row.others]
