"""The report of made-up results: complete, half finished, damaged, hostile."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import EXPERIMENTS, write_suite

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import Experiment, ExperimentResults
from reformer_lab.experiments.claims import CLAIMS
from reformer_lab.experiments.registry import EXPERIMENTS as EXPERIMENTS_OF_TEXT
from reformer_lab.reporting.page import write_report
from reformer_lab.reporting.records import Suite, read_results, read_suite, write_record
from reformer_lab.reporting.section import Figure, Section, Series, Table

HOSTILE = '<script>alert("x")</script>\ud800'


class _Page(HTMLParser):
    """Tags with their attributes, ids, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "col", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("p", "li", "path", "use"):
            while self.open and self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def report_folder(folder: Path, experiments: Sequence[Experiment]) -> Path:
    """Report what lies in a folder, as the command does."""
    return write_report(folder, read_suite(folder), experiments, read_results(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_suite(folder)
    report_folder(folder, EXPERIMENTS)
    return folder / "report"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    write_suite(folder, skip=("regular", "3 layers", "12 layers"), fail=("LSH-2",))
    report_folder(folder, EXPERIMENTS)
    return folder / "report"


def words(path: Path) -> str:
    """The page's text with single spaces."""
    return " ".join(_Page(path.read_text(encoding="utf-8")).text.split())


def test_every_claim_is_in_both(whole: Path) -> None:
    page, twin = words(whole / "index.html"), (whole / "REPRODUCTION.md").read_text(encoding="utf-8")
    for claim in CLAIMS:
        assert claim.statement in page
        assert claim.paper in page
        assert claim.reproduction_2021 in page
        assert f"| {claim.id} | " in twin


def test_the_head_says_what_where_and_when(whole: Path) -> None:
    for text in (words(whole / "index.html"), (whole / "REPRODUCTION.md").read_text(encoding="utf-8")):
        for fact in ("quick", "2020-01-02 03:04 UTC", "22 of 22 finished", "Made-up CPU @ 2.00GHz, 2 CPU cores", "7.5 GiB"):
            assert fact in text
        assert "not complete" not in text


def test_a_verdict_comes_with_number_interval_seeds_and_command(whole: Path) -> None:
    page = words(whole / "index.html")
    assert "99.5 [98.51, 100.5] % (95 % interval over 3 seeds, Student's t)" in page
    assert "✓ supported (n = 3 seeds)" in page
    assert "✓ supported (indicative, n = 1 seed)" in page
    assert "✗ contradicted (indicative, n = 1 seed)" in page
    assert "✓ 2 supported (indicative)" in page
    assert "reformer-lab reproduce --scale quick --only table2" in page


def test_a_claim_without_an_experiment_is_not_run_with_its_reason(whole: Path) -> None:
    page = words(whole / "index.html")
    translation = next(claim for claim in CLAIMS if claim.id == "C11")
    assert translation.not_run
    assert translation.not_run in page


def test_an_experiment_without_runs_at_this_scale_names_a_scale_that_has(whole: Path) -> None:
    page = words(whole / "index.html")
    assert "no runs at the scale quick" in page
    assert "reformer-lab reproduce --scale gpu --only shared_qk" in page


def test_every_experiment_shows_question_criterion_cuts_figures_and_tables(whole: Path) -> None:
    page, twin = words(whole / "index.html"), (whole / "REPRODUCTION.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS[:3]:
        for text in (experiment.title, experiment.question, experiment.criterion, experiment.cuts("quick")):
            assert text in page
            assert text in twin
    assert "trained with" in page
    assert "Accuracy on the second half, in %" in twin


def test_the_page_needs_nothing_from_outside(whole: Path) -> None:
    text = (whole / "index.html").read_text(encoding="utf-8")
    for tag, attributes in _Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_links_and_ids_of_the_page_fit(whole: Path, half: Path) -> None:
    for folder in (whole, half):
        tags = _Page((folder / "index.html").read_text(encoding="utf-8")).tags
        ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(ids) == len(set(ids)), "an id twice"
        links = [attributes.get("href") or "" for tag, attributes in tags if tag == "a"]
        assert links
        assert {link.removeprefix("#") for link in links} <= set(ids)


def test_the_twins_figures_lie_beside_it(whole: Path) -> None:
    twin = (whole / "REPRODUCTION.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", twin)
    assert len(named) == 4
    for name in named:
        assert (whole / name).read_text(encoding="utf-8").startswith("<?xml")
    assert {path.name for path in (whole / "figures").iterdir()} == {Path(name).name for name in named}


def test_tables_of_the_twin_are_tables(whole: Path) -> None:
    """Every run of lines with bars has as many cells in each line as in its first."""
    lines = (whole / "REPRODUCTION.md").read_text(encoding="utf-8").splitlines()
    columns: int | None = None
    for line in lines:
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.sub(r"\\.", "", line).split("|")) - 2
        columns = columns or cells
        assert cells == columns, line
    assert sum(bool(re.fullmatch(r"\|(-+:?\|)+", line)) for line in lines) >= 6


def test_the_same_results_give_the_same_bytes(whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    report_folder(whole.parent, EXPERIMENTS)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_half_finished_results_say_what_is_missing(half: Path) -> None:
    for text in (words(half / "index.html"), (half / "REPRODUCTION.md").read_text(encoding="utf-8")):
        assert "12 of 22 finished, 3 failed" in text
        assert "10 of 22 runs are missing or failed" in text
        assert "regular, seed 2: missing" in text
        assert re.search(r"LSH-2, seed 0: failed: loss is not finite", text)
        assert "no finished run of regular; 3 of 6 runs missing" in text
        assert "4 of 4 runs missing" in text


def test_a_suite_without_any_result_is_all_not_run(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "elsewhere")
    suite.write(tmp_path)
    page = words(report_folder(tmp_path, EXPERIMENTS))
    assert "0 of 22 finished" in page
    assert "Nothing to draw yet: no run is finished." in page
    assert f"– {len(CLAIMS)} not run" in page


def test_an_experiment_without_a_claim_has_a_chapter_and_no_verdict(tmp_path: Path) -> None:
    write_suite(tmp_path)
    unjudged = replace(EXPERIMENTS[0], claims=(), judge=lambda results: ())
    page = report_folder(tmp_path, [unjudged])
    assert f"{unjudged.title} {unjudged.question} Criterion" in words(page)
    twin = (tmp_path / "report" / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert f"{unjudged.question}\n\n**Criterion.**" in twin
    assert f"--only {unjudged.name}" not in twin.partition("## The claims")[2].partition("\n## ")[0]


def test_a_figure_without_points_is_left_out(tmp_path: Path) -> None:
    write_suite(tmp_path)
    series = Series(label="a", x=[1.0], y=[None])
    empty = Figure(title="Nothing to see", x_label="x", y_label="y", series=(series,))
    full = replace(empty, title="Something to see", series=(replace(series, y=[2.0]),))
    shown = replace(EXPERIMENTS[0], show=lambda results: Section(figures=(empty, full)))
    page = words(report_folder(tmp_path, [shown]))
    assert "Something to see" in page
    assert "Nothing to see" not in page


def test_damaged_result_files_are_reported(tmp_path: Path) -> None:
    write_suite(tmp_path)
    path = next((tmp_path / "results").glob("*.jsonl"))
    path.write_text("{not json\n")
    page = words(report_folder(tmp_path, EXPERIMENTS))
    assert f"{path.name}, line 1: not a JSON object" in page
    assert "21 of 22 finished, 1 failed" in page


def test_whatever_comes_from_a_file_is_escaped(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    arms = {name: tuple(replace(arm, name=f"{arm.name} {HOSTILE}") for arm in entries) for name, entries in suite.arms.items()}
    hostile = replace(suite, started=HOSTILE, command=HOSTILE, arms={**arms, HOSTILE: ()})
    hostile.write(tmp_path)
    for index, record in enumerate(read_results(tmp_path).values()):
        state = {"status": "failed", "error": HOSTILE} if index % 2 else {}
        write_record(tmp_path, {**record.header, "environment": {HOSTILE: HOSTILE, "cpu": HOSTILE}, **state}, record.events)

    def show(results: ExperimentResults) -> Section:
        drawn = Figure(
            title=HOSTILE,
            caption=HOSTILE,
            x_label=HOSTILE,
            y_label=HOSTILE,
            series=(Series(label=HOSTILE, x=[1, 2], y=[1, 2]),),
        )
        table = Table(title=HOSTILE, header=(HOSTILE,), rows=((HOSTILE,),), caption=HOSTILE)
        return Section(text=(HOSTILE,), figures=(drawn, drawn), tables=(table,))

    page = report_folder(tmp_path, [replace(one, show=show) for one in EXPERIMENTS])
    parsed = _Page(page.read_text(encoding="utf-8"))
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    assert parsed.text.count(HOSTILE.encode(errors="replace").decode()) > 10
    twin = (page.parent / "REPRODUCTION.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"`[^`\n]*`", "", twin), "outside of code"
    for path in (page.parent / "figures").iterdir():
        assert "<script" not in path.read_text(encoding="utf-8")


def test_experiments_without_runs_at_the_scale_are_named(tmp_path: Path, whole: Path) -> None:
    line = "No runs at this scale: Shared queries and keys."
    assert line in words(whole / "index.html")
    assert line in (whole / "REPRODUCTION.md").read_text(encoding="utf-8")
    suite = write_suite(tmp_path)
    replace(suite, arms={name: arms for name, arms in suite.arms.items() if arms}).write(tmp_path)  # as if not asked for
    assert "No runs at this scale" not in words(report_folder(tmp_path, EXPERIMENTS))


def test_an_experiment_of_another_version_is_named(tmp_path: Path) -> None:
    write_suite(tmp_path)
    assert "experiment table2: not known to this version" in words(report_folder(tmp_path, EXPERIMENTS[1:]))


def test_an_empty_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reformer-lab reproduce"):
        report_folder(tmp_path, EXPERIMENTS)
    assert not (tmp_path / "report").exists()


def test_a_report_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    write_suite(tmp_path)
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(UserError, match=r"report cannot be written .*--output"):
        report_folder(tmp_path, EXPERIMENTS)


def test_reading_results_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, reformer_lab.reporting.page; print(*(name in sys.modules for name in ('torch', 'matplotlib')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_suite_is_what_the_report_reads(whole: Path) -> None:
    assert tuple(read_suite(whole.parent).arms) == tuple(one.name for one in EXPERIMENTS)


def test_runs_of_other_settings_than_declared_are_called_so(tmp_path: Path, whole: Path) -> None:
    assert "made with other settings" not in (whole / "index.html").read_text(encoding="utf-8")
    write_suite(tmp_path)
    changed = [replace(EXPERIMENTS[0], arms=EXPERIMENTS[1].arms), *EXPERIMENTS[1:]]
    page = report_folder(tmp_path, changed).read_text(encoding="utf-8")
    assert page.count("made with other settings") == 1


def test_declared_runs_that_are_no_part_of_the_suite_are_named(tmp_path: Path) -> None:
    """Whoever reads "all finished" must see that the suite asked for less than the experiment."""
    experiment = EXPERIMENTS[0]
    declared = experiment.arms("quick")
    whole = Suite(scale="quick", started="", command="", arms={experiment.name: tuple(arm.entry() for arm in declared)})
    part = replace(whole, arms={experiment.name: whole.arms[experiment.name][1:]})
    for suite, told in ((whole, 0), (part, 1)):
        suite.write(tmp_path)
        page = words(report_folder(tmp_path, [experiment]))
        assert page.count(f"This suite holds {len(declared) - 1} of the {len(declared)} runs") == told
        assert page.count(f"Not part of it: {declared[0].name} (1).") == told


def test_another_corpus_is_named_and_is_no_other_setting(tmp_path: Path) -> None:
    """A text in the place of the scale's own: named at the top and in the command, and the arms are known."""
    declared = EXPERIMENTS_OF_TEXT["shared_qk"]
    arms = [arm.on_corpus("my novel.txt") for arm in declared.arms("small")]
    suite = Suite(scale="small", started="", command="", corpus="my novel.txt",
                  arms={"shared_qk": tuple(arm.entry() for arm in arms)})
    suite.write(tmp_path)
    for arm in arms:
        final = {"event": "final", "step": 1, "parameters": 1, "evaluations": {"own": {"bits": 2.0}}}
        write_record(tmp_path, {"arm": arm.id, "seed": arm.seed, "status": "finished", "config": arm.run.to_dict()}, [final])
    page = report_folder(tmp_path, [declared])
    for text in (words(page), page.with_name("REPRODUCTION.md").read_text(encoding="utf-8")):
        assert "made with other settings" not in text
        assert "5 seeds, on my novel.txt (the paper: enwik8)" in text
        assert "books" not in text
        assert "--only shared_qk --corpus 'my novel.txt'" in text
        assert "supported (n = 5 seeds)" in text
