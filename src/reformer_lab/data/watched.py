"""A file of bytes while a run reads it: mapped, and checked to hold what the run began with."""

import hashlib
import os
from pathlib import Path

import numpy as np

from reformer_lab.data.cache import forget
from reformer_lab.errors import UserError


class WatchedBytes:
    """A file that may be changed by others while it is read. `check` costs two microseconds; call it around each reading.

    A file that takes the old one's place or is removed does no harm: the old one's bytes stay mapped. Bytes that are written
    into the file itself would be read, and one that becomes shorter would end the process by SIGBUS.
    """

    def __init__(self, path: Path, num_bytes: int, sha256: str, suffix: bytes = b"") -> None:
        """Map the file. `sha256`: the sum of its bytes with `suffix` after them."""
        self.path, self.num_bytes = path, num_bytes
        self._sha256, self._suffix = sha256, suffix
        self._state = _state(path)
        self.bytes: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r", shape=(num_bytes,))
        """(num_bytes,) uint8."""

    def check(self) -> None:
        """Raise UserError if the file's content has changed. One whose time of change alone is new is summed and believed.

        A changed file of the cache is forgotten: it would be taken for good at the next opening, which reads a few pages of it.
        """
        now = _state(self.path)
        if now is None or self._state is None or now[0] != self._state[0] or now == self._state:
            return
        size = now[1]
        if size == self.num_bytes and self._sum() == self._sha256:
            self._state = now
            return
        changed = f"{self.path} was changed while the run read it ({self.num_bytes:,} bytes when it began, {size:,} now)"
        if forget(self.path):
            raise UserError(f"{changed}: the same call makes it anew from its source and goes on from the last checkpoint")
        raise UserError(f"{changed}: put the old content back to go on from the last checkpoint, or start a new run with "
                        "another --output")

    def _sum(self) -> str:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(self._suffix)
        return digest.hexdigest()


def _state(path: Path) -> tuple[tuple[int, int], int, int] | None:
    """Return which file a path is, its size and its time of change; None if there is none any more."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_dev, state.st_ino), state.st_size, state.st_mtime_ns
