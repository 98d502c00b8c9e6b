"""Tensor2Tensor's subwords, in which the authors' translation models read and write text.

Text is cut where letters and digits meet anything else; a lone space between two words is left out. Each piece is escaped,
ended with "_", and cut into the longest subwords of the vocabulary, from left to right.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from reformer_lab.errors import UserError

PADDING, END = 0, 1
"""The first two subwords of every vocabulary."""
_ESCAPES = "\\_u;0123456789"
_ESCAPED = re.compile(r"\\u|\\\\|\\([0-9]+);")


class SubwordTokenizer:
    """Text to ids and back, by a vocabulary of subwords; `len(tokenizer)` is its size.

    >>> tokenizer = SubwordTokenizer(["<pad>", "<EOS>", "deep_", "er_", "ref", "orm", *" ,.0123456789;\\\\_abcdeflmoprstu"])
    >>> tokenizer.encode("reformer, deep"), tokenizer.decode(tokenizer.encode("reformer, deep"))
    ([4, 5, 3, 7, 6, 21, 2], 'reformer, deep')
    """

    def __init__(self, subwords: Sequence[str], source: str = "the vocabulary"):
        self.subwords = list(subwords)
        self._ids = {subword: i for i, subword in enumerate(self.subwords) if subword}
        if len(self.subwords) < 3 or len(self._ids) != len(self.subwords):
            raise UserError(f"{source} holds {len(self.subwords)} subwords, or one twice: give Tensor2Tensor's file")
        self._longest = max(map(len, self.subwords))
        self._alphabet = {letter for subword in self.subwords[2:] for letter in subword} | set(_ESCAPES)

    @classmethod
    def from_file(cls, path: str | Path) -> "SubwordTokenizer":
        """Read a vocabulary: a quoted subword in each line, the line's number its id."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} is no file: give a vocabulary of Tensor2Tensor (vocab.*.subwords)")
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 ({error}): give a vocabulary of Tensor2Tensor") from None
        return cls([_unquoted(line, number, path) for number, line in enumerate(lines, 1) if line], str(path))

    def __len__(self) -> int:
        return len(self.subwords)

    def encode(self, text: str, end: bool = False) -> list[int]:
        """Return the ids of the text, and of the end of sequence if `end`. A UserError names a character without subword."""
        ids = [i for piece in _pieces(text) for i in self._encode_piece(piece)]
        return [*ids, END] if end else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids up to the end of sequence; padding counts for nothing."""
        ids = [int(i) for i in ids]
        for wrong in (i for i in ids if not 0 <= i < len(self)):
            raise UserError(f"token {wrong} is not in 0..{len(self) - 1}: another vocabulary wrote it")
        ids = ids[: ids.index(END)] if END in ids else ids
        pieces = [_unescaped(piece) for piece in "".join(self.subwords[i] for i in ids if i != PADDING).split("_") if piece]
        pieces = [piece for piece in pieces if piece]
        text = ""
        for before, piece in zip(["", *pieces], pieces, strict=False):
            between_words = before and _is_word(before[-1]) and _is_word(piece[0])
            text += f" {piece}" if between_words else piece
        return text

    def _encode_piece(self, piece: str) -> list[int]:
        escaped = "".join(letter if letter in self._alphabet and letter != "\n" else f"\\{ord(letter)};"
                          for letter in piece.replace("\\", "\\\\").replace("_", "\\u")) + "_"  # fmt: skip
        ids, start = [], 0
        while start < len(escaped):
            for end in range(min(len(escaped), start + self._longest), start, -1):
                if (found := self._ids.get(escaped[start:end])) is not None:
                    break
            else:
                raise UserError(f"the vocabulary has no subword for {escaped[start]!r} of {piece!r}: give the whole vocabulary")
            ids.append(found)
            start = end
        return ids


def _pieces(text: str) -> list[str]:
    """Cut the text into runs of letters and digits, and of everything else, without the single spaces between words."""
    pieces: list[str] = []
    for letter in text:
        if pieces and _is_word(pieces[-1][-1]) == _is_word(letter):
            pieces[-1] += letter
        else:
            pieces.append(letter)
    last = len(pieces) - 1
    return [piece for i, piece in enumerate(pieces) if piece != " " or i in (0, last)]


def _is_word(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LN"


def _unescaped(piece: str) -> str:
    def letter(found: re.Match[str]) -> str:
        if found.group(1) is None:
            return "_" if found.group(0) == "\\u" else "\\"
        number = int(found.group(1))
        return chr(number) if number < 0x110000 else "\u3013"

    return _ESCAPED.sub(letter, piece)


def _unquoted(line: str, number: int, path: Path) -> str:
    if len(line) < 3 or line[0] not in "'\"" or line[-1] != line[0]:
        raise UserError(f"{path}, line {number}: {line[:40]!r} is no quoted subword; give a vocabulary of Tensor2Tensor")
    return line[1:-1]
