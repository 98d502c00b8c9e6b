"""The results in the repository: the reports and the README say what the files say."""

import csv
import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from reformer_lab.cli.report import main, update_readme
from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import ExperimentResults
from reformer_lab.experiments.judging import mean_of, paired_difference
from reformer_lab.experiments.yardstick import EXACT, at_equal_time, crossing_of, seconds_name, seconds_of
from reformer_lab.reporting.records import read_results, read_suite
from reformer_lab.reporting.statistics import Estimate

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
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


def rows(name: str) -> list[dict[str, str]]:
    with (ROOT / "results" / "benchmarks" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_benchmarks_in_the_words_of_the_readme() -> None:
    both = [row for row in rows("attention-cpu.csv") if (row["length"], row["pass"]) == ("16384", "forward+backward")]
    faster = {(row["what"], row["contender"]): float(row["times_faster"]) for row in both}
    layer, exact = faster["layer", "lsh-native"], faster["operator", "lsh-native"]
    assert (f"operator is {exact:.0f} times as fast as torch's exact attention, a layer with its projections {layer:.1f} "
            f"times, and {layer / faster['layer', 'transformers']:.1f} and {layer / faster['layer', 'reformer-pytorch']:.1f} "
            "times as fast as those of transformers and reformer-pytorch") in README
    steps = {row["contender"]: row for row in rows("step-cpu.csv")}
    ours = steps.pop("reformer-lab")
    times = [float(ours["tokens_per_second"]) / float(peer["tokens_per_second"]) for peer in steps.values()]
    memory = float(ours["peak_bytes"]) / min(float(peer["peak_bytes"]) for peer in steps.values())
    assert f"training step of six layers {times[0]:.1f} and {times[1]:.1f} times, in {memory:.2f} of the memory" in README


def small(experiment: str) -> ExperimentResults:
    folder = ROOT / "results" / "small"
    return ExperimentResults.of_suite(experiment, read_suite(folder), read_results(folder))


def test_the_yardstick_in_the_words_of_the_readme() -> None:
    results = small("yardstick")
    crossing = crossing_of(results, "LSH-8", EXACT)
    assert f"from about {crossing.value:,.0f} [{crossing.low:,.0f}, {crossing.high:,.0f}]" in README
    longest = {name: median(seconds) for name, seconds in seconds_of(results, seconds_name(16_384)).items()}
    assert (f"at 16,384 tokens LSH-1 is {longest[EXACT] / longest['LSH-1']:.1f} times as fast, "
            f"LSH-8 {longest[EXACT] / longest['LSH-8']:.1f} times") in README

    def worse(difference: Estimate, sign: int) -> str:
        assert difference.low is not None
        assert difference.high is not None
        low, high = sorted((sign * difference.low, sign * difference.high))
        return f"{sign * difference.value:.3f} [{low:.3f}, {high:.3f}]"

    equal_time = {name: at_equal_time(results, name)[1] for name in ("LSH-1", "LSH-2", "LSH-4", "LSH-8")}
    assert f"for the same seconds of training LSH-1 is better by {worse(equal_time['LSH-1'], -1)} bits per byte" in README
    assert f"LSH-8 is worse by {worse(equal_time['LSH-8'], 1)};" in README
    assert f"for the same steps LSH-1 is worse by {worse(paired_difference(results, 'LSH-1', EXACT), 1)}." in README
    for name in ("LSH-2", "LSH-4"):
        assert (equal_time[name].low or 0.0) < 0 < (equal_time[name].high or 0.0)


def test_the_autopsy_in_the_words_of_the_readme() -> None:
    results = small("autopsy")

    def percent(fault: str, evaluation: str) -> str:
        found = mean_of(results, f"copying with full attention: {fault}", "evaluations", evaluation, "accuracy")
        assert found is not None
        return f"{100 * found.value:.1f} %"

    both = "flat logits and raw keys"
    assert f"together they turn {percent('none', 'LSH-8')} into {percent(both, 'LSH-8')} (2021: 1.37 %)" in README
    assert f"with one round into {percent(both, 'LSH-1')} (4.56 %)" in README


def test_the_long_run_in_the_words_of_the_readme() -> None:
    events = [json.loads(line) for line in (ROOT / "results" / "books.jsonl").read_text(encoding="utf-8").splitlines()]
    bits, minutes = events[-1]["evaluations"]["own"]["bits"], events[-1]["seconds"] / 60
    assert f"reaches {bits:.2f} bits per byte on the validation split" in README
    assert f"after {minutes:.0f} minutes on one core" in README
