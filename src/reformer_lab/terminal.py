"""What people read while a program works: text that cannot command their terminal, on a stream that may go away."""

import unicodedata
from typing import IO, TextIO, cast


def visible(text: object) -> str:
    """Return a text as a terminal may be given it: what it would obey instead of showing is written as an escape.

    Control characters but line ends and tabs, characters that reverse the direction of others or have no width, and bytes
    that were no UTF-8. Names, errors and settings that come from files may hold any of them.

    >>> visible("a name\\x1b[2J")
    'a name\\\\x1b[2J'
    """
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs"


class Output:
    """A text stream that never fails: once its terminal is closed, its disk full or its reader gone, it drops what is written.

    What a program says must not end its work. Where a pipe's reader has left (`head`, a pager), the work should end as well:
    `check` says so at a moment that suits.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self.gone: OSError | None = None
        """Why nothing can be written any more."""

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        if self.gone is None:
            try:
                self.stream.write(text)
            except OSError as error:
                self.gone = error
        return len(text)

    def flush(self) -> None:
        """Send what has been written."""
        if self.gone is None:
            try:
                self.stream.flush()
            except OSError as error:
                self.gone = error

    def isatty(self) -> bool:
        """Whether a terminal is at the other end."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the number of the system's file."""
        return self.stream.fileno()

    def check(self) -> None:
        """Raise BrokenPipeError if a pipe's reader has left."""
        if isinstance(self.gone, BrokenPipeError):
            raise BrokenPipeError(self.gone.errno, "nobody reads the output any more")

    def as_text(self) -> TextIO:
        """Return itself as what rich asks for."""
        return cast(TextIO, self)
