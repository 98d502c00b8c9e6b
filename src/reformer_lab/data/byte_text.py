"""Text as the tokens of a byte corpus and back: UTF-8 bytes + 2."""

import codecs
from collections.abc import Iterable

from reformer_lab.data.config import BYTE_OFFSET, BYTE_VOCABULARY

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def encode(text: str) -> list[int]:
    """Return the tokens of a text. What a command line passed on as bytes that are no UTF-8 stays these bytes.

    >>> encode("Hi")
    [74, 107]
    """
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8", "surrogateescape")]


class ByteDecoder:
    """Turns tokens into text as they come: a character of several bytes appears with its last one.

    >>> decoder = ByteDecoder()
    >>> [decoder.feed(token) for token in encode("né")] + [decoder.end()]
    ['n', '', 'é', '']
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes. Wrong UTF-8, and tokens that are no byte, become U+FFFD."""
        if BYTE_OFFSET <= token < BYTE_VOCABULARY:
            return self._utf8.decode(bytes([token - BYTE_OFFSET]))
        return self.end() + REPLACEMENT

    def end(self) -> str:
        """Return what is left of a character that was cut off."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens.

    >>> decode([74, 107, 0])
    'Hi\ufffd'
    """
    decoder = ByteDecoder()
    return "".join(decoder.feed(token) for token in tokens) + decoder.end()
