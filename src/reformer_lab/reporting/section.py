"""What an experiment shows in the report, as data: text, figures, tables.

An experiment builds these from its records; `reporting.figures` and `reporting.page` draw them. Free of torch and of
matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cell = str | int | float | None
"""A cell of a table: text is shown as it is, a number is formatted, None is a dash."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or one group of bars, of a figure."""

    label: str
    """Name in the legend."""
    x: Sequence[float] | Sequence[str]
    """Positions. Text for bars; numbers for lines."""
    y: Sequence[float | None]
    """Heights, one for each x. None and non-finite values leave a gap."""
    low: Sequence[float | None] | None = None
    """Lower end of the interval at each x: a band around a line, a whisker on a bar."""
    high: Sequence[float | None] | None = None
    """Upper end of the interval at each x."""
    dashed: bool = False
    """A reference rather than a measurement of ours, such as the paper's curve."""

    def __post_init__(self) -> None:
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            assert values is None or len(values) == len(self.x), f"{self.label}: {name} and x differ in length"
        assert (self.low is None) == (self.high is None), f"{self.label}: low and high come together"


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line: chance, the criterion, the paper's number."""

    label: str
    """Written beside the line."""
    y: float
    """Height."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure with one pair of axes."""

    title: str
    """What is seen, in a few words. Unique in its section: it names the file."""
    x_label: str
    """Quantity and unit of x."""
    y_label: str
    """Quantity and unit of y."""
    series: tuple[Series, ...]
    """Drawn in this order; the colours follow it."""
    caption: str = ""
    """How to read it, what the band is."""
    levels: tuple[Level, ...] = ()
    """Horizontal reference lines."""
    log_x: bool = False
    """Logarithmic x, base 2 when the x values are powers of two."""
    log_y: bool = False
    """Logarithmic y."""
    kind: Literal["lines", "bars"] = "lines"
    """"lines" with markers when the points are few, or "bars" grouped by x."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table. The first column names the row."""

    title: str
    """What is in it."""
    header: tuple[str, ...]
    """One name for each column."""
    rows: tuple[tuple[Cell, ...], ...]
    """Cells, as many in each row as in the header."""
    caption: str = ""
    """How to read it."""
    shade: tuple[float, float] | None = None
    """Shade number cells by their value, from the first (plain) to the second (full)."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.header), f"{self.title}: {len(row)} cells under {len(self.header)} columns"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one experiment shows below its question and criterion."""

    text: tuple[str, ...] = ()
    """Paragraphs of plain text."""
    figures: tuple[Figure, ...] = ()
    """Drawn side by side where the page is wide enough."""
    tables: tuple[Table, ...] = ()
    """Drawn below the figures."""
