"""`list`, `reproduce`, `report` as a user calls them."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from reformer_lab.cli import reproduce as module
from reformer_lab.cli.list import expected_time
from reformer_lab.cli.main import main
from reformer_lab.experiments.registry import EXPERIMENTS
from reformer_lab.models.presets import PRESETS
from reformer_lab.runner import engine
from reformer_lab.runner.engine import SuiteOutcome
from reformer_lab.runner.plan import Plan


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


def test_list_shows_everything_within_a_second_and_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (*EXPERIMENTS, *PRESETS, "smoke", "quick", "small", "gpu", "paper"):
        assert name in out
    (line,) = (line for line in out.splitlines() if line.startswith("images "))
    assert line.split().count("none") == 1
    assert main(["list", "--claims"]) == 0
    out = capsys.readouterr().out
    assert all(f"C{number} " in out for number in range(1, 14))
    code = ("import sys; from reformer_lab.cli.main import main; main(['list']);"
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'matplotlib')))")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of the processor: others may use it too


def test_expected_times() -> None:
    shown = [expected_time(minutes) for minutes in (0.2, 1.5, 60, 1500, 60_000)]
    assert shown == ["12 s", "1.5 min", "60 min", "25 h", "42 days"]


def test_names_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'table2'?" in error_of(capsys, "reproduce", "--only", "tabel2")
    assert "scale 'quik' does not exist; choose one of smoke" in error_of(capsys, "reproduce", "--scale", "quik")
    assert "no experiment was named" in error_of(capsys, "reproduce", "--only", ",")
    assert "--workers 0: must be at least 1" in error_of(capsys, "reproduce", "--workers", "0")
    assert "images: no runs at the scale quick; choose smoke or small or gpu or paper" in error_of(
        capsys, "reproduce", "--scale", "quick", "--only", "images")
    assert "--minutes 0: must be above 0" in error_of(capsys, "reproduce", "--minutes", "0")
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "--scael", "quick"])
    assert caught.value.code == 2


def test_folders_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").touch()
    for folder in (tmp_path / "mine", tmp_path / "mine" / "novel.txt"):
        error = error_of(capsys, "reproduce", "--scale", "smoke", "--output", str(folder))
        assert str(folder) in error
        assert "--output" in error
        assert len(error.splitlines()) <= 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["novel.txt"]
    assert "holds no results" in error_of(capsys, "report", str(tmp_path / "mine"))


def test_data_are_asked_for_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFORMER_LAB_DATA", "")
    error = error_of(capsys, "reproduce", "--scale", "small", "--only", "depth,table2")
    assert "books.zip is not here, which depth at the scale small is trained on" in error
    assert "--data" in error
    assert "another text with --corpus" in error
    error = error_of(capsys, "reproduce", "--scale", "small", "--only", "images")
    assert "images/imagenet64-sample.zip is not here" in error
    assert "--corpus" not in error
    error = error_of(capsys, "reproduce", "--scale", "small", "--only", "depth", "--corpus", "mine.txt")
    assert "mine.txt is not here" in error
    assert list(tmp_path.iterdir()) == []
    assert "no such folder" in error_of(capsys, "reproduce", "--scale", "small", "--data", "nowhere")


def test_what_reproduce_asks_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def run_suite(plan: Plan, output: Path, *, workers: int | None, minutes: float | None, command: str,
                  cluster: object) -> SuiteOutcome:
        assert cluster is None
        assert plan.corpus == ("novel.txt" if "novel.txt" in command else "")
        calls.append((plan.scale, list(plan.entries), output, workers, command))
        from reformer_lab.reporting.records import Suite
        suite = Suite(scale=plan.scale, started="", command=command, arms=plan.entries)
        suite.write(output)
        left = tuple(plan.labels.values())[1:] if minutes else ()
        return SuiteOutcome(suite, {"table2 LSH-4": "it had to fail"} if len(calls) == 2 else {}, left)

    monkeypatch.setattr(engine, "run_suite", run_suite)
    monkeypatch.setattr(Plan, "missing_data", {})
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--scale", "smoke", "--only", "speed, table2"]) == 0
    out = capsys.readouterr().out
    assert "C7: not run" in out
    assert out.splitlines()[-1] == "report: reproduction/smoke/report/index.html"
    assert main(["reproduce", "--output", "my results", "--workers", "3"]) == 1
    assert "table2 LSH-4 failed: it had to fail; the same command tries it again" in capsys.readouterr().err
    assert calls[0] == ("smoke", ["table2", "speed"], Path("reproduction/smoke"), None,
                        "reformer-lab reproduce --scale smoke --only 'speed, table2'")
    assert calls[1] == ("quick", list(EXPERIMENTS), Path("my results"), 3,
                        "reformer-lab reproduce --output 'my results' --workers 3")
    assert main(["reproduce", "--scale", "smoke", "--only", "table2", "--minutes", "0.5"]) == 3
    assert "the time is over; 3 of 4 runs are left (table2 " in capsys.readouterr().err
    assert main(["reproduce", "--scale", "smoke", "--corpus", "novel.txt", "--output", "reproduction/novel"]) == 0
    assert calls[3][-1].endswith("--corpus novel.txt --output reproduction/novel")
    capsys.readouterr()
    assert main(["report", "reproduction"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "report: reproduction/index.html"
    assert main(["report", "reproduction/smoke"]) == 0
    assert "report: reproduction/smoke/report/index.html" in capsys.readouterr().out
    assert module.HELP.count("reformer-lab reproduce") == 7


def test_the_ray_engine_where_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = error_of(capsys, "reproduce", "--scale", "smoke", "--only", "speed", "--engine", "ray")
    assert "pip install '.[cluster]'" in error
    assert "--engine ray alone" in error_of(capsys, "reproduce", "--scale", "smoke", "--address", "auto")
    assert list(tmp_path.iterdir()) == []
