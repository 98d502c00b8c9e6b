"""Figures: well-formed, named, themed, small, and the same bytes every time."""

import xml.etree.ElementTree as ElementTree
from typing import Literal

import pytest

from reformer_lab.reporting.figures import DARK, LIGHT, inline_svg, standalone_svg
from reformer_lab.reporting.section import Figure, Level, Series


def figure(kind: Literal["lines", "bars"] = "lines", points: int = 5, **changes: object) -> Figure:
    values: list[float | None] = [1.0 + i % 7 for i in range(points)]
    values[-1] = None
    series = tuple(
        Series(label=f"arm {name} & <more>", y=values,
               x=[2.0 ** (i % 40) if kind == "lines" else float(i) for i in range(points)],
               low=[value and value - 0.5 for value in values], high=[value and value + 0.5 for value in values])
        for name in "ab"
    )  # fmt: skip
    return Figure(
        title="A <title>", x_label="length $x$", y_label="time_y (s)", series=series, kind=kind,
        levels=(Level(label="chance", y=2.0),), **changes,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("kind", ["lines", "bars"])
@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_figures_are_well_formed_named_and_repeatable(kind: Literal["lines", "bars"], log: bool) -> None:
    drawn = figure(kind, log_x=log and kind == "lines", log_y=log)
    text = standalone_svg(inline_svg(drawn, "x"))
    assert text == standalone_svg(inline_svg(drawn, "x"))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == "A <title>"
    written = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for text_of_ours in ("arm a & <more>", "length $x$", "time_y (s)", "chance"):
        assert text_of_ours in written, "text stays text"


def test_every_colour_follows_the_theme() -> None:
    text = inline_svg(figure(), "x")
    assert "#" not in text.replace('href="#', "").replace("url(#", "")
    for variable in ("currentColor", "var(--series-0)", "var(--series-1)", "var(--grid)"):
        assert variable in text


def test_a_file_brings_its_colours_a_page_gives_them() -> None:
    assert "prefers-color-scheme" in standalone_svg(inline_svg(figure(), "x"))
    assert LIGHT[0] in standalone_svg(inline_svg(figure(), "x"))
    assert "<style" not in inline_svg(figure(), "x"), "a style sheet inside would reach the whole page"


def test_ids_of_two_figures_on_one_page_differ() -> None:
    ids = [
        {element.get("id") for element in ElementTree.fromstring(inline_svg(figure(), name)).iter()} - {None}
        for name in ("x", "y")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_nothing_dates_or_signs_the_drawing() -> None:
    text = standalone_svg(inline_svg(figure(), "x"))
    assert "metadata" not in text
    assert "Matplotlib" not in text


def test_a_long_curve_stays_small() -> None:
    long = Series(label="long", x=list(range(100_000)), y=[float(i % 97) for i in range(100_000)])
    drawn = Figure(title="t", x_label="x", y_label="y", series=(long, long, long, long))
    assert len(standalone_svg(inline_svg(drawn, "x"))) < 100_000


def test_an_empty_figure_is_drawn() -> None:
    for kind in ("lines", "bars"):
        drawn = Figure(title="t", x_label="x", y_label="y", series=(), kind=kind, log_x=True, log_y=True)  # type: ignore[arg-type]
        ElementTree.fromstring(inline_svg(drawn, "x"))


def test_labels_that_xml_cannot_hold_are_mended() -> None:
    series = Series(label="a\ud800\x00b", x=["\x01"], y=[1.0])
    drawn = Figure(title="\x02", x_label="x", y_label="y", series=(series, series), kind="bars")
    assert "a? b" in "".join(ElementTree.fromstring(inline_svg(drawn, "x")).itertext())


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, "#ffffff"), (DARK, "#1d2024")], ids=["light", "dark"])
def test_series_stand_out_from_the_page(colours: tuple[str, ...], page: str) -> None:
    assert len(set(colours)) == len(colours)
    for colour in colours:
        bright, dim = sorted((_luminance(colour), _luminance(page)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, colour
