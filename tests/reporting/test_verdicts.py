"""Rows of the table of claims, in a terminal and in Markdown."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import EXPERIMENTS, arms, write_suite
from rich.console import Console

from reformer_lab.experiments.claim import ExperimentResults
from reformer_lab.experiments.claims import C6, CLAIMS
from reformer_lab.experiments.registry import EXPERIMENTS as REAL
from reformer_lab.reporting.console import print_verdicts
from reformer_lab.reporting.records import read_results
from reformer_lab.reporting.verdicts import (
    ClaimRow,
    one_line_table_markdown,
    rerun_command,
    suite_results,
    tally,
    verdict_rows,
)


@pytest.fixture
def rows(tmp_path: Path) -> list[ClaimRow]:
    suite = write_suite(tmp_path, skip=("12 layers",))
    return verdict_rows(EXPERIMENTS, suite_results(EXPERIMENTS, suite, read_results(tmp_path)))


def test_every_claim_has_a_row_in_order(rows: list[ClaimRow]) -> None:
    assert [row.claim.id for row in rows] == [claim.id for claim in CLAIMS]


def test_rows_carry_verdict_interval_seeds_and_command(rows: list[ClaimRow]) -> None:
    by_claim = {row.claim.id: row for row in rows}
    assert by_claim["C7"].verdict.outcome == "supported"
    assert by_claim["C7"].interval == "99.5 [98.51, 100.5] %"
    assert by_claim["C7"].method == "95 % interval over 3 seeds, Student's t"
    assert by_claim["C7"].verdict.label == "supported (n = 3 seeds)"
    assert (by_claim["C8"].method, by_claim["C8"].verdict.label) == ("", "supported (indicative, n = 1 seed)")
    assert by_claim["C7"].link("index.html") == "#table-2-rounds-at-training-and-at-evaluation"
    assert by_claim["C7"].command == "reformer-lab reproduce --scale quick --only table2"
    assert by_claim["C9"].verdict.summary == "no finished run of 12 layers; 2 of 4 runs missing"
    assert (by_claim["C9"].interval, by_claim["C9"].verdict.label, by_claim["C9"].where) == ("", "not run", "")
    assert by_claim["C12"].command == ""
    assert by_claim["C9"].command == "reformer-lab reproduce --scale quick --only depth"


def test_no_command_where_it_would_not_run_the_claim() -> None:
    results = {"memory": ExperimentResults(scale="quick", arms=(arms("depth")[0].entry(),))}
    rows = {row.claim.id: row for row in verdict_rows([REAL["memory"]], results)}
    assert rows["C13"].verdict.summary == rows["C13"].claim.not_run
    assert (rows["C13"].command, rows["C2"].command) == ("", "reformer-lab reproduce --scale quick --only memory")


def test_a_claim_of_two_experiments_has_two_rows_if_both_are_in_the_suite(tmp_path: Path) -> None:
    twice = replace(EXPERIMENTS[0], name="hash_rounds")
    suite = write_suite(tmp_path)
    both = replace(suite, arms={**suite.arms, "hash_rounds": suite.arms["table2"]})
    records = read_results(tmp_path)
    for chosen, count in ((suite, 1), (both, 2)):
        experiments = (twice, *EXPERIMENTS)
        rows = verdict_rows(experiments, suite_results(experiments, chosen, records))
        short = [row.short for row in rows if row.claim.id == "C6"]
        assert short == [C6.short, f"{C6.short} ({EXPERIMENTS[0].title.lower()})"][:count]


def test_tally_counts_in_the_order_of_the_outcomes(rows: list[ClaimRow]) -> None:
    assert tally(rows) == {"supported": 1, "supported (indicative)": 2, "contradicted (indicative)": 1,
                           "inconclusive": 1, "not run": 8}
    assert list(tally(reversed(rows))) == ["supported", "supported (indicative)", "contradicted (indicative)", "inconclusive",
                                           "not run"]


def test_plain_lines_where_there_is_no_terminal(rows: list[ClaimRow]) -> None:
    stream = io.StringIO()
    print_verdicts(rows, Console(file=stream, width=40))
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[6] == "C7: supported (n = 3 seeds): full and LSH-4 solve the task on their own setting (table2, quick)"
    assert lines[-1] == ("13 claims: 1 supported, 2 supported (indicative), 1 contradicted (indicative), 1 inconclusive, "
                         "8 not run")
    assert "\x1b" not in stream.getvalue()


def test_a_table_in_a_terminal_shows_brackets_as_they_are(rows: list[ClaimRow]) -> None:
    odd = replace(rows[0], verdict=replace(rows[0].verdict, summary="[red]0.1[/red]"))
    stream = io.StringIO()
    print_verdicts([odd, *rows[1:]], Console(file=stream, width=120, force_terminal=True))
    assert "[red]0.1[/red]" in stream.getvalue()
    assert "supported" in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_results_cannot_command_a_terminal(rows: list[ClaimRow], terminal: bool) -> None:
    bad = "\x1b]0;owned\x07"
    verdict = replace(rows[6].verdict, summary=f"a {bad}", unit=f"b {bad}")
    other = replace(rows[6], suite=f"c {bad}")
    stream = io.StringIO()
    print_verdicts([replace(rows[6], verdict=verdict, suite=f"d {bad}", others=(other,))],
                   Console(file=stream, width=400, force_terminal=terminal, color_system=None))
    text = stream.getvalue()
    assert [text.count(rf"{start} \x1b]0;owned\x07") for start in "abcd"] == [1, int(terminal), 1, 1]
    assert not set("\x1b\x07") & set(text)


def test_the_readmes_table_has_one_line_for_each_row(rows: list[ClaimRow]) -> None:
    lines = one_line_table_markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert lines[2 + 6].startswith("| C7 | The duplication task is solved")
    assert "| **supported** (n = 3 seeds), quick | 99.5 \\[98.51, 100.5\\] % |" in lines[2 + 6]
    assert lines[2 + 6].endswith("| `--scale quick --only table2` |")
    assert "| supported (indicative, n = 1 seed), quick |" in lines[2 + 7]
    assert lines[-1].endswith("|  |")
    linked = one_line_table_markdown(rows, "my results").splitlines()
    assert "**supported** (n = 3 seeds), [quick](my%20results/report/REPRODUCTION.md#table-2-rounds-at-" in linked[2 + 6]


@pytest.mark.parametrize(("scale", "where"), [("smoke", "smoke"), ("quick", "gpu"), ("small", "gpu"), ("paper", "paper")])
def test_an_experiment_without_runs_at_a_scale_is_run_at_the_next_larger_one(scale: str, where: str) -> None:
    assert f"--scale {where} --only tuned" in rerun_command(REAL["tuned"], scale)


@pytest.mark.parametrize(("name", "scale", "end"), [
    ("images", "small", " --data DIR"), ("hash_rounds", "small", " --data DIR"), ("autopsy", "small", " --data DIR"),
    ("hash_rounds", "quick", ""), ("table2", "small", ""), ("speed", "small", ""),
])
def test_a_command_that_reads_files_says_where_they_are_named(name: str, scale: str, end: str) -> None:
    assert rerun_command(REAL[name], scale) == f"reformer-lab reproduce --scale {scale} --only {name}{end}"
    if name == "hash_rounds":
        assert rerun_command(REAL[name], scale, "my text").endswith("--only hash_rounds --corpus 'my text'")
