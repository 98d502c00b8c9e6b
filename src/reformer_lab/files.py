"""Files that exist whole or not at all, whatever happens to the process or the machine."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reformer_lab.errors import UserError

TEMPORARY = ".tmp-"
"""First letters of the name of everything that is being written."""


@contextlib.contextmanager
def writing(path: Path, remedy: str = "choose another folder with --output") -> Iterator[None]:
    """Turn the system's refusal to write into a `UserError` that names the path, the reason and, but for room, the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _refusal(error)
        if number is None:
            raise
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise UserError(f"cannot write {path}: {os.strerror(number)}; "
                        + ("make room there and call again" if full else remedy)) from error


def _refusal(error: Exception) -> int | None:
    """Return the system's error number behind an error of Python, torch or safetensors; None if there is none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    # torch.save reports the refusal of a Python file as a RuntimeError of its own.
    return error.__context__.errno if isinstance(error.__context__, OSError) else None


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Wait until a folder and the files in it are on the disk."""
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file: the old content or the new one, never a part. Its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        sync(temporary)
        temporary.rename(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, like `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed had begun to write in a folder."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
