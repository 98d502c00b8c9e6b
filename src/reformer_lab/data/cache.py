"""The cache of unpacked data: where it is, files that appear whole or not at all, and cheap checks of a file.

Each source has a folder of its own with `index.json` and one data file. Everything in it can be made again, so the
whole cache may be deleted at any time.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from reformer_lab.errors import UserError
from reformer_lab.folders import CACHE_VARIABLE, cache_folder

_FORMAT = 1
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_STALE_SECONDS = 24 * 3600


def entry_folder(group: str, identity: str) -> Path:
    """Return the folder of one source inside the cache; `identity` says which source, for example its full path."""
    return cache_folder() / group / hashlib.sha256(identity.encode()).hexdigest()[:24]


def sample_digest(path: Path) -> str:
    """Return a digest of a file's size and of 16 pages spread over it, the first and the last among them.

    It takes a millisecond whatever the size, and sees truncation, holes left by a crash, and another archive in the
    file's place (the sum of a .zip or .gz member stands at the end).
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def file_signature(path: Path) -> str:
    """Return what tells one state of a source file from another: times of change, size and `sample_digest`.

    st_ctime is the system's own: no program can set it back, as `cp -p` and `touch` do with st_mtime.
    """
    state = path.stat()
    return f"{state.st_mtime_ns}-{state.st_ctime_ns}-{sample_digest(path)}"


def read_index(folder: Path, signature: str) -> dict[str, Any] | None:
    """Return the index of an entry if it was made from the source's present state and its data file is intact."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if (index["format"], index["signature"]) != (_FORMAT, signature):
            return None
        if "data" in index and sample_digest(folder / index["data"]) != index["sample"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write the index of an entry, last, so that it vouches for the data file it names."""
    with new_file(folder, "index.json") as file:
        file.write(json.dumps({"format": _FORMAT, **index}, indent=1).encode())


def forget(path: Path) -> bool:
    """Let the next opening make the entry anew whose data file this is; return whether it is one of the cache's."""
    if path.suffix != ".data" or not path.is_relative_to(cache_folder()):
        return False
    with suppress(OSError):
        path.with_name("index.json").unlink(missing_ok=True)
    return True


@contextmanager
def new_file(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file that takes its `name` when the block ends without an error, and vanishes otherwise.

    What killed processes left behind is removed after a day. Raises UserError where the cache cannot be written; the
    block must not let an OSError of anything else escape.
    """
    temporary = folder / f"{name}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink(missing_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except OSError as error:
        raise UserError(f"the cache {folder} cannot be written ({error.strerror or error}): make room or give rights "
                        f"there, or set {CACHE_VARIABLE} to another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
