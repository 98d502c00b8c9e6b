"""The benchmark of generation."""

import csv
from pathlib import Path

import pytest

from reformer_lab.benchmarks.generation import CONTENDERS, bench_generation
from reformer_lab.cli.main import main
from reformer_lab.errors import UserError


@pytest.mark.parametrize("contender", CONTENDERS)
def test_a_row_for_each_length(contender: str) -> None:
    rows = list(bench_generation([16, 64], contender, repeats=2, batch_size=2, device="cpu"))
    assert [row["length"] for row in rows] == [16, 64]
    for row in rows:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["tokens_per_second"] == pytest.approx(2 / row["median"])
        assert len(row["seconds"]) == 2
        assert (row["num_buckets"] is None) == (contender in ("local", "full"))
    assert rows[1]["relative_time"] == pytest.approx(rows[1]["median"] / rows[0]["median"])


def test_as_a_user_calls_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "generate", "--lengths", "16,32", "--repeats", "1", "--device", "cpu", "--csv", str(tmp_path / "a.csv")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name, length) for name in ("lsh", "local") for length in ("16", "32")]
    assert [(row["contender"], row["length"]) for row in rows] == expected
    assert all(row["device_name"] and row["num_layers"] == "2" and float(row["median"]) > 0 for row in rows)


def test_what_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="contender 'lhs'"):
        next(bench_generation([16], "lhs"))
    assert main(["bench", "generate", "--only", "lhs"]) == 2
    assert "--only lhs: choose from lsh" in capsys.readouterr().err
    assert main(["bench", "generate", "--repeats", "0"]) == 2
