"""A `Figure` as SVG: for the page, which gives it colours, and as a file that brings its own.

Every colour of ours is a CSS variable, text and axes are the text colour, so that one drawing serves light and dark.
The same figure gives the same bytes: no dates, fixed salt for the ids. Text stays text, which keeps the files small.
"""

import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from reformer_lab.reporting.section import Figure, Series

LIGHT = ("#0067a5", "#c8500a", "#00805d", "#b3447f", "#8a6d00", "#5b4fb5", "#2e2e2e", "#7a4a2b")
DARK = ("#62b5f5", "#ff9a57", "#45d3a5", "#f29ac6", "#e8c84a", "#a9a0ff", "#d8d8d8", "#d0a07c")
"""Colours of the series, in order: told apart with any colour vision, 4.5:1 or more against the page."""

_MARKERS = "osD^vP*X"
_POINTS = 300  # a curve wider than its pixels only makes the file larger
_INK, _GRID = "#010203", "#040506"  # stand-ins that matplotlib writes and `_themed` replaces
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
_SERIES = tuple(f"#f0f0{index:02x}" for index in range(len(LIGHT)))


def css_variables(colours: Sequence[str], grid: str) -> str:
    """Return the declarations that a figure needs from its surroundings."""
    return "".join(f"--series-{index}:{colour};" for index, colour in enumerate(colours)) + f"--grid:{grid};"


def inline_svg(figure: Figure, identifier: str) -> str:
    """Return an `<svg>` element for a page that defines `css_variables`. `identifier` keeps its ids apart."""
    figure = _drawable(figure)
    return _themed(_draw([[figure]]), [figure], figure.title, identifier)


def panels_svg(panels: Sequence[Sequence[Figure]], title: str, identifier: str) -> str:
    """Return an `<svg>` element as `inline_svg` does, of several figures in rows, with one legend.

    The figures' own titles stand above them. All hold the same series in the same order (some may be empty).
    """
    drawable = [[_drawable(figure) for figure in row] for row in panels]
    return _themed(_draw(drawable), [figure for row in drawable for figure in row], title, identifier)


def standalone_svg(inline: str) -> str:
    """Return a drawing of `inline_svg` as a whole SVG file that follows the reader's light or dark setting."""
    light = f"color:#1d1f23;{css_variables(LIGHT, '#d9d9d6')}"
    dark = f"color:#e4e2dd;{css_variables(DARK, '#3b3e44')}"
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    opening, rest = inline.split(">", 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{opening}>{style}{rest}\n'


def _drawable(figure: Figure) -> Figure:
    """Return the figure with labels that XML can hold: labels may come from files, and those may hold anything."""

    def clean(text: str) -> str:
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)

    def cleaned(series: Series) -> Series:
        x: list = [clean(value) if isinstance(value, str) else value for value in series.x]
        return replace(series, label=clean(series.label), x=x)

    return replace(
        figure,
        title=clean(figure.title),
        x_label=clean(figure.x_label),
        y_label=clean(figure.y_label),
        series=tuple(cleaned(series) for series in figure.series),
        levels=tuple(replace(level, label=clean(level.label)) for level in figure.levels),
    )


def _draw(panels: Sequence[Sequence[Figure]]) -> str:
    """Return matplotlib's SVG, in stand-in colours."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    rows, columns = len(panels), max(map(len, panels))
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "reformer-lab", "text.parse_math": False,
        "font.family": "DejaVu Sans", "font.size": 9.5, "legend.frameon": False,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": _GRID, "grid.linewidth": 0.7,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(5.6, 3.7) if rows * columns == 1 else (4.4 * columns, 3.0 * rows), layout="constrained")
        FigureCanvasSVG(canvas)
        names: dict[str, Any] = {}
        for place, figure in enumerate(figure for row in panels for figure in row):
            axes = canvas.add_subplot(rows, columns, place + 1)
            _panel(axes, figure)
            if rows * columns > 1:
                axes.set_title(figure.title, fontsize=9.5)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                names.setdefault(label, handle)
        if len(names) > 1 or any(figure.levels for row in panels for figure in row):
            width = 84 * columns
            one_row = sum(map(len, names)) + 7 * len(names) <= width
            in_row = len(names) if one_row else max(1, width // (max(map(len, names)) + 7))
            canvas.legend(names.values(), names, loc="outside upper left", ncols=in_row, handlelength=1.8, fontsize=9)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return buffer.getvalue()


def _panel(axes: Any, figure: Figure) -> None:
    if figure.kind == "bars":
        _bars(axes, figure)
    else:
        _lines(axes, figure)
    for level in figure.levels:
        axes.axhline(level.y, color=_INK, linewidth=1, linestyle=(0, (1, 2)), label=level.label)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)


def _lines(axes: Any, figure: Figure) -> None:
    if figure.log_x:
        _logarithmic(axes, "x", [float(x) for series in figure.series for x in series.x])
    if figure.log_y:
        _logarithmic(axes, "y", [y for series in figure.series for y in series.y if y is not None])
    for index, series in enumerate(figure.series):
        keep = _thinned(len(series.x))
        x = [float(series.x[i]) for i in keep]
        few = len(x) <= 24
        axes.plot(
            x,
            _numbers(series.y, keep),
            color=_SERIES[index % len(_SERIES)],
            linestyle="--" if series.dashed or index >= len(_SERIES) else "-",
            linewidth=1.8,
            marker=_MARKERS[index % len(_MARKERS)] if few else None,
            markersize=4.5,
            label=series.label,
        )
        if series.low is not None and series.high is not None:
            low, high = _numbers(series.low, keep), _numbers(series.high, keep)
            axes.fill_between(x, low, high, color=_SERIES[index % len(_SERIES)], alpha=0.18, linewidth=0)
    if not figure.log_x:
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    if not figure.log_y:
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _bars(axes: Any, figure: Figure) -> None:
    names = list(dict.fromkeys(str(x) for series in figure.series for x in series.x))
    width = 0.8 / max(1, len(figure.series))
    if figure.log_y:
        _logarithmic(axes, "y", [y for series in figure.series for y in series.y if y is not None])
    for index, series in enumerate(figure.series):
        offset = (index - (len(figure.series) - 1) / 2) * width
        positions = [names.index(str(x)) + offset for x in series.x]
        heights = _numbers(series.y, range(len(series.x)))
        axes.bar(positions, heights, width * 0.92, color=_SERIES[index % len(_SERIES)], label=series.label)
        for x, low, high in zip(positions, series.low or (), series.high or (), strict=False):
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=_INK, linewidth=1.2)
    axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="x")
    if not figure.log_y:
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _logarithmic(axes: Any, which: str, values: list[float]) -> None:
    """Make an axis logarithmic with labels that a reader knows: 1K, 2K for powers of two, else 1, 2, 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis, set_scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    finite = [value for value in values if math.isfinite(value) and value > 0]
    if finite and all(math.log2(value).is_integer() for value in finite):
        set_scale("log", base=2)
    else:
        decades = math.log10(max(finite) / min(finite)) if finite else 0.0
        set_scale("log", base=10)
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """Format a tick: 65536 as 64K, 1500000 as 1.5M, 0.25 as 0.25."""
    if value >= 1024 and value % 1024 == 0 and math.log2(value).is_integer():
        return f"{value / 1024:g}K" if value < 2**20 else f"{value / 2**20:g}M"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.6g}".replace("-", "−")


def _thinned(count: int) -> list[int]:
    if count <= _POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (_POINTS - 1)) for i in range(_POINTS)]


def _numbers(values: Sequence[float | None], keep: Sequence[int]) -> list[float]:
    """Return the kept values; NaN, which leaves a gap, for None and for what cannot be drawn."""
    picked = [values[i] for i in keep]
    return [value if value is not None and math.isfinite(value) else math.nan for value in picked]


def _themed(svg: str, figures: Sequence[Figure], title: str, identifier: str) -> str:
    """Cut the prolog, prefix the ids, name the drawing, and put the page's colours in."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Matplotlib's style sheet would reach every element of the page; inherited from <svg> it stays in the drawing.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{identifier}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{identifier}-", svg)
    svg = svg.replace("'DejaVu Sans'", _FONT).replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    described = " ".join(
        f"{figure.title}: {figure.y_label} over {figure.x_label}. {_series_in_words(figure.series)}" for figure in figures
    )
    names = (
        f'<title id="{identifier}-title">{escape(title)}</title><desc id="{identifier}-desc">{escape(described)}</desc>'
    )
    opening, rest = svg.split(">", 1)
    opening = f'{opening} role="img" aria-labelledby="{identifier}-title {identifier}-desc"'
    opening += ' style="stroke-linejoin:round;stroke-linecap:butt"'
    return f"{opening}>{names}{rest.rstrip()}"


def _series_in_words(series: Sequence[Series]) -> str:
    words = []
    for one in series:
        values = [value for value in one.y if value is not None and math.isfinite(value)]
        if values:
            words.append(f"{one.label}: from {values[0]:.4g} to {values[-1]:.4g}")
    return "; ".join(words)
