"""Numbers, times and free text as the report writes them."""

import math
import re
from typing import Any


def number_text(value: Any) -> str:
    """Format a table cell: 12,288 for an integer, four digits for a float, a dash for None, text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        text = f"{value:,}"
    elif not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    elif abs(value) >= 1e4:
        text = f"{value:,.0f}"
    elif value and abs(value) < 1e-4:
        text = f"{value:.2e}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def interval_text(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    """Format a value with its interval and unit: "99.8 [99.1, 100] %"; "" without a value."""
    if value is None:
        return ""
    text = number_text(float(value))
    if low is not None and high is not None:
        text += f" [{number_text(float(low))}, {number_text(float(high))}]"
    return f"{text} {unit}".rstrip()


def duration_text(seconds: float | None) -> str:
    """Format a time: 0.8 s, 42 s, 3 min 20 s, 2 h 05 min; a dash when it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def markdown_text(text: Any) -> str:
    """Return text that Markdown shows as it stands, in a table cell too: nothing of it becomes markup or HTML."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    return re.sub(r"^([-+]|\d+\.)(\s)", r"\\\1\2", text)


def markdown_code(text: Any) -> str:
    """Return text as Markdown code that no back-tick or bar in it can end."""
    text = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def slug(text: str) -> str:
    """Return a name for files and anchors: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "untitled"


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested mappings as (dotted name, text) pairs, in order: an environment as rows of a table."""
    if not isinstance(values, dict):
        if prefix.endswith("_bytes") and isinstance(values, (int, float)):
            text = f"{values / 2**30:.1f} GiB"
        else:
            text = ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else number_text(values)
        return [(prefix, text)] if prefix else []
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}.{name}" if prefix else str(name))
    return pairs
