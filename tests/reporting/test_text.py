"""Numbers, times and escaped text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reformer_lab.reporting.text import (
    duration_text,
    flat,
    interval_text,
    markdown_code,
    markdown_text,
    number_text,
    slug,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (12288, "12,288"), (0.98765, "0.9877"), (99.0, "99"), (-1.5, "−1.5"), (123456.7, "123,457"),
        (0.00001234, "1.23e-05"), (float("nan"), "not a number"), (float("inf"), "infinite"), ("out of memory",) * 2,
        (True, "True"), (0, "0"), (0.0, "0"),
    ],
)  # fmt: skip
def test_numbers(value: object, text: str) -> None:
    assert number_text(value) == text


def test_intervals() -> None:
    assert interval_text(99.8, 99.1, 100.0, "%") == "99.8 [99.1, 100] %"
    assert interval_text(1.25, None, None, "") == "1.25"
    assert interval_text(None, 1.0, 2.0, "%") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.84, "0.8 s"), (42.2, "42 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.text())
def test_markdown_text_holds_no_html_and_no_cell_border(text: str) -> None:
    escaped = markdown_text(text)
    assert "<" not in escaped
    assert ">" not in escaped
    assert "\n" not in escaped
    assert "|" not in escaped.replace("\\\\", "").replace("\\|", "")


def test_markdown_text_keeps_words_and_neutralises_markup() -> None:
    assert markdown_text("LSH-4, 99.8 %") == "LSH-4, 99.8 %"
    assert markdown_text("[x](javascript:0) *b* `c`") == r"\[x\](javascript:0) \*b\* \`c\`"
    assert markdown_text("- item") == r"\- item"


def test_markdown_code_cannot_be_ended_from_inside() -> None:
    assert markdown_code("a `b` | c\nd") == r"`a 'b' \| c d`"
    assert markdown_code("") == ""


def test_slugs_are_fit_for_file_names() -> None:
    assert slug("Time of a step, 16,384 tokens") == "time-of-a-step-16-384-tokens"
    assert slug("../../é") == "untitled"


def test_environments_become_rows() -> None:
    nested = {"python": "3.11", "packages": {"torch": "2"}, "gpus": [], "memory_bytes": 2**33}
    assert flat(nested) == [("python", "3.11"), ("packages.torch", "2"), ("gpus", ""), ("memory_bytes", "8.0 GiB")]
