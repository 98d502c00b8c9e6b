"""A text file, plain or packed, as bytes on disk with an index of its characters.

The first opening streams the file once: it unpacks it into the cache (a plain file stays where it is), checks that it
is UTF-8, sums it, and counts the characters of each block. Later openings read the index alone.
"""

import bz2
import codecs
import gzip
import hashlib
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from reformer_lab.data.cache import entry_folder, file_signature, new_file, read_index, sample_digest, write_index
from reformer_lab.errors import UserError
from reformer_lab.folders import find_data

BLOCK = 1 << 18
"""Bytes that are read at once, and that each entry of the index of characters covers. An index of other blocks does not
count, as it is part of the signature."""
MOST_EXPANSION = 200
"""An archive that unpacks to more than this many times its size is a bomb (text: 3 to 10 times; images: 1 to 2)."""
EXPANSION_CHECKED_FROM = 64 << 20
"""Unpacked bytes below which the expansion does not matter."""

_DATA = "corpus.data"
_PACKINGS = {rb"PK(\x03\x04|\x05\x06)": "zip", rb"\x1f\x8b": "gzip", rb"BZh[1-9]1A": "bzip2", rb"\xfd7zXZ\x00": "xz"}
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)
"""What unpacking raises on a damaged archive; NotImplementedError is zipfile's for a compression that it does not know."""


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """Where the bytes of a corpus are, and what is known of them."""

    path: Path
    """The file of the plain bytes: the source itself, or the cache's copy of an archive's member."""
    name: str
    """The corpus for people: the source's file name."""
    sha256: str
    """Sum of the plain bytes."""
    num_bytes: int
    num_characters: int
    block_characters: tuple[int, ...]
    """Characters that begin in each block of `BLOCK` bytes."""

    def bytes(self) -> np.memmap:
        """Return the corpus, (num_bytes,) uint8, mapped from the file and never held in memory."""
        return np.memmap(self.path, dtype=np.uint8, mode="r", shape=(self.num_bytes,))

    def characters_before(self, offset: int) -> int:
        """Return how many characters begin before the given byte."""
        block, within = divmod(offset, BLOCK)
        start = block * BLOCK
        return sum(self.block_characters[:block]) + int(np.count_nonzero(_begins(self.bytes()[start : start + within])))

    def offset(self, character: int) -> int:
        """Return the byte at which the given character (from 0) begins; for the number of characters, the end."""
        if not 0 <= character <= self.num_characters:
            raise IndexError(f"character {character} of {self.num_characters}")
        if character == self.num_characters:
            return self.num_bytes
        ends = list(accumulate(self.block_characters))
        block = int(np.searchsorted(ends, character, side="right"))
        before = ends[block] - self.block_characters[block]
        start = block * BLOCK
        return start + int(np.flatnonzero(_begins(self.bytes()[start : start + BLOCK]))[character - before])


def open_corpus_file(path: str | Path) -> CorpusFile:
    """Open a text: a plain UTF-8 file, or .zip with one member, .gz, .bz2 or .xz, known by their first bytes.

    Raises UserError if there is no such file, or it is empty, a directory, damaged, not UTF-8, or an archive of
    another number of members.
    """
    source, packing = _recognised(Path(path))
    signature = f"{file_signature(source)}-{BLOCK}"
    folder = entry_folder("corpora", str(source.resolve()))
    index = read_index(folder, signature)
    if packing is None:
        if index is None:
            index = {"signature": signature, **_scan(_pieces_of(source, None), str(source), None)}
            try:
                write_index(folder, index)
            except UserError as error:
                warnings.warn(f"{source} is read anew each time: {error}", stacklevel=2)
        return _from_index(index, source, source.name)
    if index is None:
        index = _fill(folder, signature, _pieces_of(source, packing), str(source))
    return _from_index(index, folder / _DATA, source.name)


def most_unpacked(packed: int) -> int:
    """Return the bytes above which what an archive of `packed` bytes holds is taken for a bomb."""
    return max(EXPANSION_CHECKED_FROM, MOST_EXPANSION * packed)


def measure(path: Path) -> tuple[int, str]:
    """Read a text, plain or packed, to its end, keep nothing, and return its plain bytes and their sha256.

    Raises UserError as `open_corpus_file` does.
    """
    source, packing = _recognised(path)
    known = _scan(_pieces_of(source, packing), str(source), None)
    return known["num_bytes"], known["sha256"]


def store_corpus(identity: str, signature: str, name: str, text: IO[bytes]) -> CorpusFile:
    """Keep a text in the cache that no single file holds; see `stored_corpus`."""
    folder = entry_folder("corpora", identity)
    index = _fill(folder, f"{signature}-{BLOCK}", _pieces(text, name, packed=None), name)
    return _from_index(index, folder / _DATA, name)


def stored_corpus(identity: str, signature: str, name: str) -> CorpusFile | None:
    """Return what `store_corpus` kept under this identity if the signature is still the same, else None."""
    folder = entry_folder("corpora", identity)
    index = read_index(folder, f"{signature}-{BLOCK}")
    return None if index is None else _from_index(index, folder / _DATA, name)


def _recognised(path: Path) -> tuple[Path, str | None]:
    """Return the path, and the packing by the first bytes, if it is a file that can be read."""
    try:
        source = find_data(path)
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: check the path, or leave it out to use the embedded corpus") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): check the path and its permissions") from None
    if source.is_dir():
        raise UserError(f"{source} is a directory: name one file in it (folders are read for images only)")
    if not source.is_file():
        raise UserError(f"{source} is no regular file: save the text to a file first")
    if source.stat().st_size == 0:
        raise UserError(f"{source} is empty: give a file with some text in it")
    try:
        with source.open("rb") as file:
            head = file.read(6)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): check its permissions") from error
    return source, next((packing for magic, packing in _PACKINGS.items() if re.match(magic, head)), None)


def _fill(folder: Path, signature: str, pieces: Iterator[bytes], label: str) -> dict[str, Any]:
    """Write the plain bytes and their index into a folder of the cache; return the index."""
    with new_file(folder, _DATA) as sink:
        known = _scan(pieces, label, sink)
    index = {"signature": signature, "source": label, "data": _DATA, "sample": sample_digest(folder / _DATA), **known}
    write_index(folder, index)
    return index


def _from_index(index: dict[str, Any], path: Path, name: str) -> CorpusFile:
    blocks = tuple(index["block_characters"])
    return CorpusFile(path=path, name=name, sha256=index["sha256"], num_bytes=index["num_bytes"],
                      num_characters=sum(blocks), block_characters=blocks)


def _open_member(source: Path, packing: str, stack: ExitStack) -> IO[bytes]:
    """Return the stream of plain bytes of an archive. A .zip's member is read, never extracted by its name."""
    try:
        if packing == "gzip":
            return cast("IO[bytes]", stack.enter_context(gzip.open(source)))
        if packing == "bzip2":
            return stack.enter_context(bz2.open(source))
        if packing == "xz":
            return stack.enter_context(lzma.open(source))
        archive = stack.enter_context(zipfile.ZipFile(source))
        members = [info for info in archive.infolist()
                   if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            some = ", ".join(info.filename for info in members[:3])
            raise UserError(f"{source} holds {len(members)} files{f' ({some}, ...)' if some else ''}, expected one: "
                            "unpack it and name the file, or pack that alone")
        if members[0].flag_bits & 1:
            raise UserError(f"{source} is encrypted: unpack it and name the file")
        return stack.enter_context(archive.open(members[0]))
    except _DAMAGE as error:
        raise UserError(_damaged(source, error)) from error


def _pieces_of(source: Path, packing: str | None) -> Iterator[bytes]:
    """Yield the plain bytes of a file in blocks."""
    with ExitStack() as stack:
        if packing is None:
            yield from _pieces(stack.enter_context(source.open("rb")), source, packed=None)
        else:
            yield from _pieces(_open_member(source, packing, stack), source, packed=source.stat().st_size)


def _damaged(source: Path | str, error: BaseException) -> str:
    return f"{source} is damaged or incomplete ({error}): fetch or make it again"


def _pieces(stream: IO[bytes], source: Path | str, packed: int | None) -> Iterator[bytes]:
    """Yield the stream in blocks; `packed` is the size of the archive that it comes from."""
    total = 0
    while True:
        try:
            piece = stream.read(BLOCK)
        except _DAMAGE as error:
            raise UserError(_damaged(source, error)) from error
        if not piece:
            return
        if total == 0 and piece[257:262] == b"ustar":
            raise UserError(f"{source} is a tar archive: unpack it and name one file")
        assert total % BLOCK == 0, "a short block before the last would shift the index"
        total += len(piece)
        if packed is not None and total > most_unpacked(packed):
            raise UserError(f"{source} unpacks to more than {MOST_EXPANSION} times its {packed:,} bytes: "
                            "that is no text; if it is, unpack it and name the file")
        yield piece


def _scan(pieces: Iterator[bytes], label: str, sink: IO[bytes] | None) -> dict[str, Any]:
    """Check, sum and count the pieces, and copy them to `sink`: the part of the index that the bytes determine."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    digest, num_bytes, blocks = hashlib.sha256(), 0, []
    for piece in pieces:
        _decode(decoder, piece, num_bytes, label)
        digest.update(piece)
        num_bytes += len(piece)
        blocks.append(int(np.count_nonzero(_begins(np.frombuffer(piece, dtype=np.uint8)))))
        if sink is not None:
            sink.write(piece)
    _decode(decoder, b"", num_bytes, label, final=True)
    if num_bytes == 0:
        raise UserError(f"{label} holds an empty file: give one with some text in it")
    return {"sha256": digest.hexdigest(), "num_bytes": num_bytes, "block_characters": blocks}


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, offset: int, label: str, final: bool = False) -> None:
    """Decode a piece that begins at byte `offset`, for the error alone."""
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        at = offset - pending + error.start
        raise UserError(f"{label} is not UTF-8 at byte {at:,} ({error.reason}): convert it first, "
                        "for example with iconv -f latin1 -t utf-8") from error


def _begins(text: np.ndarray) -> np.ndarray:
    """Return which bytes begin a character: in UTF-8 all but 0x80 to 0xBF, which are the int8 below -64."""
    return text.view(np.int8) >= -64
