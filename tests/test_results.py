"""The results in the repository: the reports and the README say what the files say."""

import shutil
from pathlib import Path

import pytest

from reformer_lab.cli.report import main, update_readme
from reformer_lab.errors import UserError

ROOT = Path(__file__).parent.parent
SUITES = sorted(path.parent.name for path in (ROOT / "results").glob("*/suite.json"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the results without their reports and of the README, after `report results --readme README.md`."""
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copytree(ROOT / "results", folder / "results",
                    ignore=shutil.ignore_patterns("report", "runs", "logs", "index.html", "REPRODUCTION.md"))
    shutil.copy(ROOT / "README.md", folder / "README.md")
    assert main([str(folder / "results"), "--readme", str(folder / "README.md")]) == 0
    return folder


def test_there_are_results() -> None:
    assert SUITES


@pytest.mark.parametrize("name", ["README.md", "results/REPRODUCTION.md",
                                  *(f"results/{suite}/report/REPRODUCTION.md" for suite in SUITES)])
def test_what_is_committed_is_drawn_from_the_files(name: str, drawn: Path) -> None:
    """After a change `reformer-lab report results --readme README.md` draws all of these again."""
    assert (drawn / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("suite", SUITES)
def test_every_value_is_understood(suite: str, drawn: Path) -> None:
    """A judge or a figure that fails says so in the report and lets the others go on: a fault of ours must not pass as that."""
    assert "does not understand" not in (drawn / "results" / suite / "report" / "REPRODUCTION.md").read_text(encoding="utf-8")


def test_links_of_the_readmes_table_lead_to_files_of_the_repository() -> None:
    begun = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- claims:begin -->")[2]
    table = begun.partition("<!-- claims:end")[0]
    targets = [part.partition("#")[0] for part in table.replace(")", "(").split("(") if "REPRODUCTION.md" in part]
    assert len(targets) >= 9
    assert all((ROOT / target).is_file() for target in targets)


def test_one_suite_alone_can_be_reported_into_a_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copytree(ROOT / "results" / SUITES[0], tmp_path / "one", ignore=shutil.ignore_patterns("report"))
    readme.write_text("before\n<!-- claims:begin -->\nold\n<!-- claims:end -->\nafter\n", encoding="utf-8")
    assert main([str(tmp_path / "one"), "--readme", str(readme)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "](one/report/REPRODUCTION.md#" in text


def test_a_readme_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="claims:begin"):
        update_readme(readme, [], tmp_path)
    assert readme.read_text(encoding="utf-8") == "nothing\n"
