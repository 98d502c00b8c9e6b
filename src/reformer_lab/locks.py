"""One writer in a folder: a lock that says who holds it, and that the system opens when its holder ends, however it ends.

The lock is the system's (flock), the file only carries the name: a file that a killed process left behind is no lock and is
taken over. On NFS Linux keeps the lock on the server, between machines too; on file systems that are mounted with locks of
their own for each machine (`local_lock`, some cluster file systems) it keeps apart the processes of one machine alone.
"""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from reformer_lab.errors import UserError


class FolderInUse(UserError):
    """Another process holds the lock."""


def take_lock(path: Path) -> int:
    """Return the open, locked file `path`; closing it gives the lock back.

    Raises `FolderInUse`, which says who holds it and since when, and OSError where the file cannot be written or locked.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 300).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise FolderInUse(f"{path.parent} is in use by {holder}: wait for it, or choose another --output") from None
        except OSError:
            os.close(handle)
            raise
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            break
        os.close(handle)  # its holder removed the file while we waited for it: lock the one that counts
    try:
        os.truncate(handle, 0)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        os.write(handle, f"process {os.getpid()} on {platform.node()} since {now}\n".encode())
    except OSError:
        os.close(handle)
        raise
    return handle


def release_lock(path: Path, handle: int) -> None:
    """Remove the file `path` and give the lock back."""
    with contextlib.suppress(OSError):  # a disk that has become read-only: a file without a lock stops nobody
        path.unlink(missing_ok=True)
    os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path` inside the context. Raises as `take_lock` does."""
    handle = take_lock(path)
    try:
        yield
    finally:
        release_lock(path, handle)
