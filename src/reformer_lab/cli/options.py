"""Options of a verb, read by tyro from a dataclass; a mistake becomes a `UserError` of a line or two."""

import contextlib
import io
from typing import TypeVar

import tyro

from reformer_lab.errors import UserError

Options = TypeVar("Options")


def parse_options(
    kind: type[Options], argv: list[str], *, prog: str, description: str, default: Options | None = None
) -> Options:
    """Return the options as an instance of the dataclass `kind`. `default`: the values of what is left out."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(kind, prog=prog, description=description, args=argv)
            return tyro.cli(kind, prog=prog, description=description, args=argv, default=default)
    except SystemExit as leaving:
        if not leaving.code:  # --help
            raise
        raise UserError(f"{_sentences(complaint.getvalue())}; see {prog} --help") from None


def _sentences(framed: str) -> str:
    """Return what tyro's framed message says on one line, with the option that it thinks was meant.

    The frame is drawn with lines or with dashes, as the stream allows: a heading, the message, further paragraphs.
    """
    paragraphs: list[list[str]] = [[]]
    for line in framed.splitlines():
        if line.startswith("╭"):  # a heading within the frame's upper edge
            paragraphs = [[line], []]
        elif text := line.strip("│ "):
            if text.strip("─-╰╯"):
                paragraphs[-1].append(text)
            else:
                paragraphs.append([])
    _, message, *more = paragraphs
    result = " ".join(message)
    if more and more[0][:1] == ["Perhaps you meant:"]:
        result += f"; did you mean {more[0][1].split()[0]}?"
    return result.rstrip(".")
