"""A soak: its command, its samples, and that growth of each kind is seen."""

import csv
from pathlib import Path

import pytest
import torch

from reformer_lab.benchmarks.soak import live_tensors, soak_run
from reformer_lab.cli.main import main
from reformer_lab.errors import UserError
from reformer_lab.reporting.soak import judge_soak, soak_lines

FLAT = {"resident_bytes": 400_000_000, "tensors": 150, "tensor_bytes": 10**6, "metrics_bytes": 0, "checkpoint_bytes": 10**6,
        "files": 12, "log_every": 10, "eval_every": 50, "checkpoint_every": 50}
COMMITTED = Path(__file__).parents[2] / "results" / "benchmarks" / "soak-cpu.csv"


def rows_growing(**a_step: float) -> list[dict[str, str]]:
    """A hundred samples of 2,000 steps, in which columns grow by so much a step."""
    return [{"step": str(step)} | {name: str(int(value + step * a_step.get(name, 0))) for name, value in FLAT.items()}
            for step in range(20, 2001, 20)]


@pytest.mark.parametrize(("growth", "failure"), [
    ({"metrics_bytes": 30}, None), ({"resident_bytes": 1000}, None),
    ({"resident_bytes": 1500}, "resident memory may grow by 0.59 % over 1,580 steps"),
    ({"tensors": 0.01}, "live tensors: 154 at step 420, 170 at step 2,000"), ({"tensor_bytes": 4}, "bytes of live tensors"),
    ({"checkpoint_bytes": 1}, "bytes of checkpoints"), ({"files": 0.02}, "files in the run's folder"),
    ({"metrics_bytes": 100}, "a line of metrics.jsonl has 833 bytes"),
])  # fmt: skip
def test_growth_is_seen(growth: dict[str, float], failure: str | None) -> None:
    soak = judge_soak(rows_growing(**growth))
    assert len(soak.failures) == (failure is not None)
    assert (failure or "flat: ") in "\n".join(soak_lines(soak))


def test_live_tensors_are_counted_once() -> None:
    before = live_tensors()
    kept = torch.zeros(1000)
    views = [kept[:10], kept.view(10, 100)]
    after = live_tensors()
    assert (after[0] - before[0], after[1] - before[1]) == (1 + len(views), 4000)


def test_bench_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it. In so short a run resident memory has not settled: it is not judged here."""
    table, figure = tmp_path / "soak.csv", tmp_path / "soak.svg"
    code = main(["bench", "soak", "--steps", "60", "--threads", "1", "--csv", str(table), "--figure", str(figure)])
    rows = list(csv.DictReader(table.open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    soak = judge_soak(rows)
    assert code == bool(soak.failures)
    assert all("resident" in failure for failure in soak.failures)
    assert "metrics.jsonl" in figure.read_text(encoding="utf-8")
    assert f"steps 21 to 60: resident memory {soak.resident.value:+,.0f}" in capsys.readouterr().out


def test_what_is_committed_is_flat() -> None:
    rows = list(csv.DictReader(COMMITTED.open()))
    assert int(rows[-1]["step"]) >= 2000
    assert judge_soak(rows).failures == ()


def test_too_short_a_soak() -> None:
    with pytest.raises(UserError, match="--steps 39: a soak has at least 40 steps"):
        soak_run(39)
