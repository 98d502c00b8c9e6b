"""The figure of a benchmark is a function of its CSV file."""

from pathlib import Path

import pytest

from reformer_lab.errors import UserError
from reformer_lab.reporting.benchmark_figure import benchmark_panels, draw_benchmark

ATTENTION = """\
what,contender,length,pass,status,median,low,high,times_faster,ratio_low,ratio_high,precision,device_name,threads
operator,exact,1024,forward,finished,2,1.5,2.5,1,1,1,fp32,A processor,2
operator,lsh-torch,1024,forward,finished,1,0.5,1.5,2,1.5,3,fp32,A processor,2
operator,exact,2048,forward,over time,,,,,,,fp32,A processor,2
operator,lsh-torch,2048,forward,finished,2,1,3,,,,fp32,A processor,2
layer,peer,1024,forward,finished,4,3,5,0.5,0.4,0.6,fp32,A processor,2
"""
STEP = """\
contender,length,status,median,tokens_per_second,peak_bytes,precision
reformer-lab,1024,finished,2,512,2000000000,fp32
transformers,1024,out of memory,,,,fp32
"""


def rows_of(text: str) -> list[dict[str, str]]:
    header, *lines = (line.split(",") for line in text.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_panels() -> None:
    times, ratios = benchmark_panels(rows_of(ATTENTION))
    assert [figure.title for figure in (*times, *ratios)] == [
        "operator, forward", "layer, forward", "operator, forward: times faster", "layer, forward: times faster"]
    for figure in (*times, *ratios):  # the same colours everywhere
        assert [series.label for series in figure.series] == ["exact", "lsh-torch", "peer"]
    exact, ours, peer = times[0].series
    assert (exact.x, exact.y, exact.low, exact.high) == ([1024], [2], [1.5], [2.5])  # over time is no point
    assert (ours.x, ours.y) == ([1024, 2048], [1, 2])
    assert peer.x == []
    assert (ratios[0].series[1].y, ratios[0].series[1].high) == ([2], [3])


def test_steps_show_tokens_and_gigabytes() -> None:
    ((speed, memory),) = benchmark_panels(rows_of(STEP))
    assert [series.y for series in speed.series] == [[512], []]
    assert [series.y for series in memory.series] == [[2], []]


def test_drawing(tmp_path: Path) -> None:
    source, target = tmp_path / "rows.csv", tmp_path / "new" / "figure.svg"
    source.write_text(ATTENTION)
    draw_benchmark(source, target)
    drawing = target.read_text()
    assert drawing.startswith("<?xml")
    assert "A processor, 2 threads, fp32" in drawing
    for text in ("exact", "lsh-torch", "peer", "layer, forward: times faster", "as fast as exact"):
        assert text in drawing
    draw_benchmark(source, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawing


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="holds no measurements"):
        draw_benchmark(source, tmp_path / "a.svg")
    with pytest.raises(UserError, match="cannot be read"):
        draw_benchmark(tmp_path / "none.csv", tmp_path / "a.svg")
    with pytest.raises(UserError, match=r"ends in \.svg"):
        draw_benchmark(source, tmp_path / "a.png")
    source.write_text(STEP)
    with pytest.raises(UserError, match="cannot be written"):
        draw_benchmark(source, tmp_path / "rows.csv" / "a.svg")
