"""Text that commands a terminal, and outputs that go away while something is said."""

import errno
import io
from pathlib import Path

import pytest

from reformer_lab.terminal import Output, visible


class Lost(io.StringIO):
    """A stream that fails from a moment on, as a closed terminal (EIO), a full disk (ENOSPC) or a closed pipe (EPIPE) does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.lost, self.failures = number, False, 0

    def write(self, text: str) -> int:
        return self._fail() if self.lost else super().write(text)

    def flush(self) -> None:
        if self.lost:
            self._fail()

    def _fail(self) -> int:
        self.failures += 1
        raise OSError(self.number, "lost")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPIPE])
def test_what_cannot_be_said_is_dropped(number: int) -> None:
    stream = Lost(number)
    output = Output(stream)
    output.write("one")
    output.check()
    stream.lost = True
    for _ in range(3):
        assert output.write("two") == 3
        output.flush()
    assert stream.getvalue() == "one"
    assert stream.failures == 1
    if number == errno.EPIPE:
        with pytest.raises(BrokenPipeError):
            output.check()
    else:
        output.check()


@pytest.mark.parametrize(("text", "shown"), [
    ("a\x1b[2J\x07b", r"a\x1b[2J\x07b"), ("\x9b2J", r"\x9b2J"), ("one\rtwo\x7f", r"one\rtwo\x7f"),
    ("\u202egnp.exe", r"\u202egnp.exe"), ("\udce9", r"\udce9"), ("é 語\n\t5\u00a0% 🙂", "é 語\n\t5\u00a0% 🙂"),
], ids=["escape", "C1", "over what was there", "right to left", "no UTF-8", "text"])
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(Path(text)) == shown


def test_the_stream_is_what_it_was(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w", encoding="latin1") as file:
        output = Output(file)
        assert (output.fileno(), output.isatty(), output.encoding) == (file.fileno(), False, "latin1")
