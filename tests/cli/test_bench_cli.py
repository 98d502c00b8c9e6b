"""`bench` as a user calls it."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reformer_lab.benchmarks import attention, check, contest, peers
from reformer_lab.benchmarks.contest import Outcome
from reformer_lab.cli.bench import HELP
from reformer_lab.cli.bench.options import parse_count, parse_counts
from reformer_lab.cli.main import main
from reformer_lab.errors import UserError
from reformer_lab.models.presets import get_preset
from reformer_lab.ops import lsh_attention

SMALL = ["--heads", "2", "--d-head", "16", "--chunk-length", "16", "--device", "cpu"]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


@pytest.fixture
def made_up_times(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Start no process: exact attention takes a second per 1000 tokens squared, all others one per 1000 tokens."""
    asked: list[Mapping[str, Any]] = []

    def hold(jobs: Mapping[str, Mapping[str, Any]], *, repeats: int, max_seconds: float, progress: Any) -> dict[str, Outcome]:
        asked.extend(jobs.values())
        outcomes = {}
        for name, job in jobs.items():
            thousands = job["length"] / 1000
            seconds = thousands**2 if job["contender"] == "exact" else thousands
            outcomes[name] = Outcome(seconds=[seconds] * repeats, facts={
                "peak_bytes": 10**9, "above_baseline_bytes": 100 * job["length"], "loss": 5.5, "threads": 1}) if (
                seconds < max_seconds) else Outcome("over time")  # fmt: skip
            if job["contender"] == "reformer-pytorch":
                outcomes[name] = Outcome("failed", facts={"error": "ValueError: what it said"})
        return outcomes

    monkeypatch.setattr(contest, "hold_contest", hold)
    monkeypatch.setattr(attention, "hold_contest", hold)
    monkeypatch.setattr(peers, "why_not", lambda name: "not installed")
    return asked


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("4096", 4096), ("4k", 4096), ("16K", 16_384), ("1m", 1_048_576)])
def test_counts(text: str, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "0", "-4", "k", "1.5k", "4g", "0k", "²"])
def test_counts_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="no positive number"):
        parse_count(text)


def test_count_lists() -> None:
    assert parse_counts("1k, 4k,16") == [1024, 4096, 16]


@pytest.mark.slow
def test_bench_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it, in processes of their own."""
    table, figure = tmp_path / "rows.csv", tmp_path / "figure.svg"
    assert main(["bench", "attention", "--lengths", "128", *SMALL, "--repeats", "1", "--threads", "1", "--what", "operator",
                 "--only", "exact,lsh-torch", "--csv", str(table), "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "1 threads, fp32; batch 1, 2 heads x 16, 4 rounds, chunk 16" in out
    rows = list(csv.DictReader(table.open()))
    assert [(row["contender"], row["pass"]) for row in rows] == [
        ("exact", "forward"), ("lsh-torch", "forward"), ("exact", "forward+backward"), ("lsh-torch", "forward+backward")]
    for row in rows:
        assert float(row["median"]) > 0
        assert int(row["peak_bytes"]) > 0
        assert (row["threads"], row["device"], row["status"]) == ("1", "cpu", "finished")
        assert all(row[column] for column in ("torch", "reformer_lab", "date"))
    assert "times faster" in figure.read_text()


def test_rows_and_skips(made_up_times: list[Mapping[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    assert main(["bench", "attention", "--lengths", "1k,4k,16k", *SMALL, "--passes", "forward", "--only", "exact,lsh-torch",
                 "--max-seconds", "10", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.open()))
    assert [(row["length"], row["contender"], row["status"]) for row in rows] == [
        ("1024", "exact", "finished"), ("1024", "lsh-torch", "finished"), ("4096", "exact", "over time"),
        ("4096", "lsh-torch", "finished"), ("16384", "exact", "skipped: over time at 4096"),
        ("16384", "lsh-torch", "over time")]  # fmt: skip
    assert float(rows[1]["times_faster"]) == pytest.approx(1.024)
    assert rows[3]["times_faster"] == ""
    out = capsys.readouterr().out
    assert "skipped: over time at 4096" in out
    assert [line for line in out.splitlines() if line.startswith("at ")] == [
        "at 1,024 tokens lsh-torch is 1.02 times faster than exact"]


def test_bench_step(made_up_times: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    assert main(["bench", "step", "--preset", "crime_and_punishment", "--ff-chunk-length", "512", "--csv", str(path)]) == 0
    assert "without transformers: not installed" in capsys.readouterr().out
    (job,) = made_up_times
    assert job["length"] == 524288
    assert job["model"] == get_preset("crime_and_punishment").replace(ff_chunk_length=512).to_dict()
    (row,) = csv.DictReader(path.open())
    assert (row["model"], float(row["tokens_per_second"])) == ("crime_and_punishment", 1000)
    monkeypatch.setattr(peers, "why_not", lambda name: None)
    assert main(["bench", "step", "--lengths", "1k", "--csv", str(path), "--figure", str(tmp_path / "a.svg")]) == 1
    assert "failed (ValueError: what it said)" in capsys.readouterr().out
    ours, theirs, _ = csv.DictReader(path.open())
    assert (ours["contender"], theirs["contender"], ours["against"]) == ("reformer-lab", "transformers", "transformers")
    assert (ours["ff_chunk_length"], theirs["ff_chunk_length"]) == ("1024", "")


def test_bench_scaling(made_up_times: list[Mapping[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, figure = tmp_path / "rows.csv", tmp_path / "figure.svg"
    assert main(["bench", "scaling", "--lengths", "1k,2k", "--only", "exact", *SMALL, "--csv", str(path), "--figure",
                 str(figure)]) == 0
    rows = list(csv.DictReader(path.open()))
    assert [float(row["relative_time"]) for row in rows] == [1, 2, 1, 2]
    assert [float(row["relative_memory"]) for row in rows] == [1, 1, 1, 1]
    first = figure.read_bytes()
    assert main(["bench", "figure", str(path), "--figure", str(figure)]) == 0
    assert figure.read_bytes() == first
    assert main(["bench", "scaling", "--lengths", "1k", *SMALL]) == 0
    assert made_up_times[-1]["contender"] in ("lsh-native", "lsh-torch")


def test_nothing_is_measured_with_a_broken_backend(made_up_times: list[Mapping[str, Any]], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        result = lsh_attention(*arguments, **options)
        return result._replace(output=result.output * 1.01)

    monkeypatch.setattr(check, "lsh_attention", broken)
    for words in (["attention", "--only", "exact,lsh-torch"], ["scaling"], ["step"]):
        with pytest.raises(SystemExit) as caught:
            main(["bench", *words])
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert "nothing was measured: backend" in error
        assert "output is off by" in error
    assert made_up_times == []
    assert main(["bench", "attention", "--only", "exact", "--lengths", "64"]) == 0  # nothing of ours


@pytest.mark.slow
def test_ctrl_c_leaves_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "reformer_lab", "bench", "attention", "--lengths", "64,1m", *SMALL, "--repeats", "1",
               "--only", "exact", "--csv", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "exact" not in process.stdout.readline():  # the row of 64 tokens; a million take minutes
            assert process.poll() is None
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "reformer-lab: interrupted\n"
    (row,) = csv.DictReader(path.open())
    assert (row["length"], row["status"]) == ("64", "finished")


def test_bench_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    assert main(["bench", "memory", "--lengths", "2k", "--depths", "3", "--d-model", "64", "--attention", "full",
                 "--csv", str(path), "--device", "cpu"]) == 0
    assert "3 reversible" in capsys.readouterr().out
    reversible, stored = csv.DictReader(path.open())
    assert (reversible["reversible"], stored["reversible"]) == ("True", "False")
    assert int(reversible["activation_bytes"]) < int(stored["activation_bytes"])


def test_bench_of_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'1q' is no positive number" in error_of(capsys, "bench", "attention", "--lengths", "1q")
    assert "contender 'flash' does not exist" in error_of(capsys, "bench", "attention", "--only", "flash", "--lengths", "64")
    assert "--heads 0: must be at least 1" in error_of(capsys, "bench", "attention", "--heads", "0")
    assert "--threads 0: must be at least 1" in error_of(capsys, "bench", "step", "--threads", "0")
    assert "--max-seconds 0.0: must be more than 0" in error_of(capsys, "bench", "step", "--max-seconds", "0")
    assert "--passes both: choose forward or" in error_of(capsys, "bench", "scaling", "--passes", "both")
    assert "--what layers: choose operator or layer" in error_of(capsys, "bench", "attention", "--what", "layers")
    assert "unknown preset 'crime'" in error_of(capsys, "bench", "step", "--preset", "crime")
    assert "cannot be written" in error_of(capsys, "bench", "memory", "--csv", str(tmp_path))
    assert "--figure draws what --csv writes" in error_of(capsys, "bench", "step", "--figure", "a.svg")
    error = error_of(capsys, "bench", "step", "--csv", str(tmp_path / "a.csv"), "--figure", "a.png")
    assert "choose a name that ends in .svg" in error
    assert "cannot be read" in error_of(capsys, "bench", "figure", str(tmp_path / "none.csv"), "--figure", "a.svg")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "holds no measurements" in error_of(capsys, "bench", "figure", str(tmp_path / "other.csv"), "--figure", "a.svg")
    assert "device 'tpu' does not exist" in error_of(capsys, "bench", "memory", "--device", "tpu")
    for action in ("attention", "scaling", "step", "memory"):
        assert "--precision fp8: choose" in error_of(capsys, "bench", action, "--precision", "fp8")
    assert "attention" in error_of(capsys, "bench", "memory", "--attention", "flash")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert HELP.count("  reformer-lab bench") == 10
    for words in ([], ["attention"], ["scaling"], ["step"], ["memory"], ["soak"], ["figure"]):
        with pytest.raises(SystemExit) as caught:
            main(["bench", *words, "--help"])
        assert caught.value.code == 0
