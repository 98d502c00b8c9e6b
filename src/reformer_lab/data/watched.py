"""The bytes of a corpus while a run reads them: mapped from the file, and checked to be those that the run began with."""

import hashlib
import os
from pathlib import Path

import numpy as np

from reformer_lab.data.corpus_file import CorpusFile
from reformer_lab.errors import UserError


class WatchedBytes:
    """A corpus that may be changed by others while it is read. `check` costs two microseconds; call it around each reading.

    A file that takes the old one's place or is removed does no harm: the old one's bytes stay mapped. Bytes that are written
    into the file itself would be read, and one that becomes shorter would end the process by SIGBUS.
    """

    def __init__(self, corpus: CorpusFile) -> None:
        self.corpus = corpus
        self._state = _state(corpus.path)
        self.bytes: np.ndarray = corpus.bytes()
        """(num_bytes,) uint8."""

    def check(self) -> None:
        """Raise UserError if the file's content has changed. One whose time of change alone is new is summed and believed."""
        now = _state(self.corpus.path)
        if now is None or self._state is None or now[0] != self._state[0] or now == self._state:
            return
        size = now[1]
        if size == self.corpus.num_bytes and _sha256(self.corpus.path) == self.corpus.sha256:
            self._state = now
            return
        raise UserError(f"{self.corpus.path} was changed while the run read it ({self.corpus.num_bytes:,} bytes when it began, "
                        f"{size:,} now): put the old content back to go on from the last checkpoint, or start a new run with "
                        "another --output")


def _state(path: Path) -> tuple[tuple[int, int], int, int] | None:
    """Return which file a path is, its size and its time of change; None if there is none any more."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_dev, state.st_ino), state.st_size, state.st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
