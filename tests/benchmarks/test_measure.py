"""The primitives of the benchmarks, on calls whose cost is known."""

import time
from pathlib import Path

import pytest
import torch

from reformer_lab.benchmarks import measure
from reformer_lab.benchmarks.measure import (
    PeakMemory,
    Timing,
    percentile,
    resolve_device,
    write_csv,
)
from reformer_lab.errors import UserError, is_out_of_memory

CPU = torch.device("cpu")


def test_percentiles() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, fraction) for fraction in (0, 0.2, 0.5, 0.8, 1)] == pytest.approx([1, 1.8, 3, 4.2, 5])
    assert percentile([7.0], 0.2) == 7
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (timing.median, timing.low, timing.high) == pytest.approx((3, 1.8, 4.2))
    assert timing.to_dict()["seconds"] == [5, 1, 3, 2, 4]


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="'gpu' does not exist"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="choose cpu or auto"):
            resolve_device("cuda")


def test_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize("mark", ["the system's", "sampled"])
def test_peak_of_what_is_gone_again(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mark == "sampled":
        def refuse(path: Path, text: str) -> None:
            raise OSError("no /proc here")
        monkeypatch.setattr(measure.Path, "write_text", refuse)
    meter = PeakMemory(CPU)
    with meter:
        tensor = torch.ones(50_000_000)
        time.sleep(0.02)
        del tensor
    assert 190e6 < meter.bytes < 230e6
    with meter:
        torch.ones(25_000_000)
        time.sleep(0.02)
    assert 90e6 < meter.bytes < 130e6  # the earlier peak is forgotten


def test_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "rows.csv", [{"a": 1, "b": 2, "c": 3}, {"a": 4}], ("a", "b"))
    assert (tmp_path / "new" / "rows.csv").read_text().splitlines() == ["a,b", "1,2", "4,"]
    with pytest.raises(UserError, match="cannot be written"):
        write_csv(tmp_path, [], ("a",))
