"""enwik8, the first 100,000,000 bytes of an English Wikipedia dump: its sums, and fetching it once.

A download goes to `enwik8.zip.part`, is taken up where it was broken off, and gets its name only when the unpacked
bytes have the known sum. A lock beside it keeps a second download away from the part.
"""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from reformer_lab.data.cache import CACHE_VARIABLE, cache_folder
from reformer_lab.data.corpus_file import CorpusFile, measure, open_corpus_file
from reformer_lab.errors import UserError
from reformer_lab.locks import release_lock, take_lock

URL = "https://mattmahoney.net/dc/enwik8.zip"
NUM_BYTES = 100_000_000
SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
NAMES = ("enwik8", "enwik8.txt", "enwik8.zip", "enwik8.gz", "enwik8.bz2", "enwik8.xz")
"""Files of these names must hold enwik8."""

MOST_BYTES = NUM_BYTES + (1 << 20)
"""A download of more is not enwik8, plain or packed: it is not fetched to its end, which may never come."""
_TIMEOUT = 60
"""Seconds without a byte after which a download is given up."""
_PIECE = 1 << 18

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes in all, where the server says how many."""


def cached_path() -> Path:
    """Return where `download` puts the archive by default."""
    return cache_folder() / "enwik8" / "enwik8.zip"


def check_sum(name: str, num_bytes: int, sha256: str) -> None:
    """Raise UserError unless these are the size and the sum of enwik8."""
    remedy = "remove it and fetch it again, or rename it if it is another text"
    if num_bytes != NUM_BYTES:
        raise UserError(f"{name} holds {num_bytes:,} bytes, enwik8 has {NUM_BYTES:,}: {remedy}")
    if sha256 != SHA256:
        raise UserError(f"{name} has sha256 {sha256}, enwik8 has {SHA256}: {remedy}")


def open_enwik8() -> CorpusFile:
    """Open the downloaded enwik8. Raises UserError, with the command, if it was not downloaded."""
    path = cached_path()
    if not path.exists():
        raise UserError(f"enwik8 is not in the cache ({path}): run `reformer-lab data download enwik8` once, "
                        "or give the path of a copy that you have")
    corpus = open_corpus_file(path)
    check_sum(str(path), corpus.num_bytes, corpus.sha256)
    return corpus


def download(url: str = URL, output: Path | None = None, progress: Progress | None = None) -> Path:
    """Fetch enwik8 and return its path; nothing is fetched if a good copy is there.

    `output` is a folder or a file; None: the cache. The server may send it plain or packed. Raises UserError if it
    cannot be fetched (a second call goes on where this one stopped), has another sum, or is being fetched by another process.
    """
    target = cached_path() if output is None else output.expanduser()
    if target.is_dir():
        target = target / "enwik8.zip"
    if target.exists():
        check_sum(str(target), *measure(target))
        return target
    part, lock = (target.with_name(target.name + suffix) for suffix in (".part", ".lock"))
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        handle = take_lock(lock)
    except OSError as error:
        raise UserError(_not_writable(part, error)) from error
    try:
        if not target.exists():  # another process may have fetched it since we looked
            _fetch_whole(url, part, target, progress)
        return target
    finally:
        release_lock(lock, handle)


def _not_writable(part: Path, error: OSError) -> str:
    return f"{part} cannot be written ({error.strerror}): give --output, or set {CACHE_VARIABLE} to another folder"


def _fetch_whole(url: str, part: Path, target: Path, progress: Progress | None) -> None:
    """Complete the part, check it and give it its name."""
    try:
        part.touch()
    except OSError as error:
        raise UserError(_not_writable(part, error)) from error
    _fetch(url, part, progress)
    try:
        check_sum(part.name, *measure(part))
    except UserError as error:
        part.unlink()
        raise UserError(f"{url} gave something else than enwik8, which was removed: {error}") from error
    part.replace(target)


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Complete the file `part` from the URL, from its present size on."""
    have = part.stat().st_size
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if have and answer.status != 206:
                have = 0
            given = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if given is not None and int(given[1]) != have:
                part.unlink()
                raise UserError(f"{url} sent the bytes from {int(given[1]):,} on, asked for were those from {have:,} on; what "
                                "was there was removed: run the same command again to begin anew, or give another with --url")
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            _check_size(url, part, total or 0)
            with part.open("r+b") as file:
                file.truncate(have)
                file.seek(have)
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    have += len(piece)
                    _check_size(url, part, have)
                    if progress is not None:
                        progress(have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what is there: complete, or too long, as the sum will show
            return
        raise UserError(f"{url} answered {error.code} {' '.join(str(error.reason).split())}: give another address with --url, "
                        "or the path of a copy that you have") from error
    except UserError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url} could not be fetched ({reason}): run the same command again to go on "
                        f"({part.stat().st_size:,} bytes are kept), or give another address with --url") from error
    if total is not None and have < total:
        raise UserError(f"{url} broke off at {have:,} of {total:,} bytes: run the same command again to go on")


def _check_size(url: str, part: Path, num_bytes: int) -> None:
    """Remove the part and raise UserError if it has, or is to have, more bytes than enwik8 in any form."""
    if num_bytes > MOST_BYTES:
        part.unlink()
        raise UserError(f"{url} sends {num_bytes:,} bytes or more, enwik8 has {NUM_BYTES:,} and less when packed; what was "
                        "there was removed: give another address with --url")
