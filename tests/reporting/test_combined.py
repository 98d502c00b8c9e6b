"""One report over several suites: which verdict leads, what stands beside it, where the links go."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import EXPERIMENTS, write_suite

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import SCALES, Outcome, Sampling, Verdict
from reformer_lab.experiments.claims import C6, C7
from reformer_lab.reporting.combined import suite_folders, write_combined_report
from reformer_lab.reporting.records import read_suite
from reformer_lab.reporting.verdicts import ClaimRow, combined_rows


def row(outcome: Outcome, scale: str, n: int, *, experiment: str = "table2", sampling: Sampling = "seeds",
        chapter: str = "there") -> ClaimRow:
    verdict = Verdict(claim="C7", experiment=experiment, outcome=outcome, summary=f"{scale} {n}", scale=scale, n=n,
                      sampling=sampling)
    return ClaimRow(claim=C7, verdict=verdict, command="again", chapter=chapter)


def leading(*rows: ClaimRow) -> tuple[str, ...]:
    """Combine suites of one row each; return the summaries, the leading one first."""
    (found,) = combined_rows({f"suite{index}": [one] for index, one in enumerate(rows)}, [C7])
    return (found.verdict.summary, *(other.verdict.summary for other in found.others))


def test_three_seeds_lead_then_the_larger_scale_then_more_seeds() -> None:
    assert leading(row("supported", "quick", 1), row("contradicted", "small", 3)) == ("small 3", "quick 1")
    assert leading(row("supported", "gpu", 1), row("inconclusive", "small", 3)) == ("small 3", "gpu 1")
    assert leading(row("supported", "small", 5), row("supported", "gpu", 3)) == ("gpu 3", "small 5")
    assert leading(row("supported", "small", 3), row("supported", "small", 5)) == ("small 5", "small 3")
    assert leading(row("supported", "quick", 1), row("contradicted", "paper", 2)) == ("paper 2", "quick 1")


def test_a_deterministic_number_needs_no_seeds_and_smoke_never_leads() -> None:
    assert leading(row("supported", "quick", 3), row("supported", "gpu", 1, sampling="deterministic")) == ("gpu 1", "quick 3")
    assert leading(row("inconclusive", "smoke", 5), row("supported", "quick", 1)) == ("quick 1", "smoke 5")
    assert SCALES[0] == "smoke"


def test_what_was_not_run_falls_back_to_the_weaker_suite() -> None:
    assert leading(row("not run", "paper", 0), row("supported", "quick", 1)) == ("quick 1", "paper 0")
    assert leading(row("not run", "paper", 0, chapter=""), row("supported", "quick", 1)) == ("quick 1",)
    assert leading(row("not run", "quick", 0), row("not run", "gpu", 0)) == ("gpu 0",)


def test_each_experiment_that_was_tried_has_a_row_of_its_own() -> None:
    other = row("supported", "small", 3, experiment="images")
    untried = row("not run", "quick", 0, experiment="images", chapter="")
    found = combined_rows({"quick": [row("supported", "quick", 1), untried], "small": [other]}, [C7])
    assert [(one.verdict.experiment, one.suite, len(one.others)) for one in found] == [("images", "small", 0),
                                                                                       ("table2", "quick", 0)]
    assert len(combined_rows({"quick": [row("supported", "quick", 1), untried]}, [C7])) == 1
    assert combined_rows({"quick": [row("supported", "quick", 1)]}, [C6]) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two suites: "quick" whole, "little" a smoke test of which runs are missing; beside them what is no suite."""
    folder = tmp_path_factory.mktemp("results")
    write_suite(folder / "quick")
    suite = write_suite(folder / "a little", skip=("regular", "LSH-4"))
    replace(suite, scale="smoke", corpus="novel.txt").write(folder / "a little")
    (folder / "benchmarks").mkdir()
    (folder / "README.md").write_text("by hand\n", encoding="utf-8")
    write_combined_report(folder, EXPERIMENTS)
    return folder


def test_every_suite_has_its_report_and_the_folder_one_over_all(folder: Path) -> None:
    assert suite_folders(folder) == [folder / "quick", folder / "a little"]
    assert suite_folders(folder / "quick") == []
    for suite in ("quick", "a little"):
        assert (folder / suite / "report" / "index.html").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8") == "by hand\n"
    page, twin = ((folder / name).read_text(encoding="utf-8") for name in ("index.html", "REPRODUCTION.md"))
    for text in (page, twin):
        assert "a%20little/report/" in text
        assert "22 of 22 finished" in text
        assert "16 of 22 finished" in text
        assert "novel.txt" in text
        assert "reformer-lab reproduce --scale quick --only table2" in text.replace('<span class="nowrap">', "").replace(
            "</span>", "")
    assert "✓ supported (n = 3 seeds)" in page
    assert 'href="quick/report/index.html#table-2-rounds-at-training-and-at-evaluation"' in page
    assert "✓ **supported** (n = 3 seeds), [quick](quick/report/REPRODUCTION.md#table-2-rounds" in twin


def test_links_lead_to_places_that_exist(folder: Path) -> None:
    import re
    from urllib.parse import unquote

    page = (folder / "index.html").read_text(encoding="utf-8")
    for address in re.findall(r'href="([^"]+)"', page):
        path, _, anchor = address.partition("#")
        target = (folder / unquote(path)).read_text(encoding="utf-8") if path else page
        assert not anchor or f'id="{anchor}"' in target, address
    for path, anchor in re.findall(r"\]\(([^)#]+)#([^)]+)\)", (folder / "REPRODUCTION.md").read_text(encoding="utf-8")):
        headings = re.findall(r"^## (.+)$", (folder / unquote(path)).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_first_lines_show_claim_verdict_number_and_command(folder: Path) -> None:
    lines = (folder / "REPRODUCTION.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines[:30] if line.startswith("| C7 |"))
    for part in (C7.short, "**supported** (n = 3 seeds)", "99.5 \\[98.51, 100.5\\] %", "--scale quick --only table2"):
        assert part in line


def test_the_same_results_give_the_same_bytes(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in ("index.html", "REPRODUCTION.md")}
    write_combined_report(folder, EXPERIMENTS)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_folder_without_suites_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nor does a folder in it"):
        write_combined_report(tmp_path, EXPERIMENTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_report_is_an_error_with_a_remedy(folder: Path) -> None:
    (folder / "index.html").unlink()
    (folder / "index.html").mkdir()
    with pytest.raises(UserError, match="copy the results elsewhere"):
        write_combined_report(folder, EXPERIMENTS)


def test_a_suites_text_is_recorded(folder: Path) -> None:
    assert read_suite(folder / "a little").corpus == "novel.txt"
    assert read_suite(folder / "quick").corpus == ""
    assert "corpus" not in (folder / "quick" / "suite.json").read_text(encoding="utf-8")
