"""The results in the repository: the report and the README say what the files say."""

import shutil
from pathlib import Path

import pytest

from reformer_lab.cli.report import main, update_readme
from reformer_lab.errors import UserError

ROOT = Path(__file__).parent.parent
SUITES = sorted(path.parent for path in (ROOT / "results").glob("*/suite.json"))


def test_there_are_results() -> None:
    assert SUITES


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.name)
def test_the_report_is_drawn_from_the_files(suite: Path, tmp_path: Path) -> None:
    copy = tmp_path / suite.name
    shutil.copytree(suite, copy, ignore=shutil.ignore_patterns("report"))
    assert main([str(copy)]) == 0
    drawn, committed = (folder / "report" / "REPRODUCTION.md" for folder in (copy, suite))
    assert drawn.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_the_readme_shows_the_generated_table(tmp_path: Path) -> None:
    copy, readme = tmp_path / "quick", tmp_path / "README.md"
    shutil.copytree(ROOT / "results" / "quick", copy, ignore=shutil.ignore_patterns("report"))
    shutil.copy(ROOT / "README.md", readme)
    assert main([str(copy), "--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_readme_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="claims:begin"):
        update_readme(readme, [])
    assert readme.read_text(encoding="utf-8") == "nothing\n"
