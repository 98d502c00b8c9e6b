"""The embedded corpus: the source files of the running Python's standard library, one after the other.

Real text of some 12 MB that every machine has. It differs from one version of Python to the next, so the name and the
fingerprint of the data set say which it was. Tests are left out (half the bytes, much of it tables), and so is the
build's own configuration, which would make two machines with the same Python differ.
"""

import hashlib
import io
import os
import platform
import sysconfig
from pathlib import Path

from reformer_lab.data.corpus_file import CorpusFile, store_corpus, stored_corpus
from reformer_lab.errors import UserError

_LEFT_OUT = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
_FEWEST_BYTES = 1_000_000


def stdlib_files(root: Path) -> list[Path]:
    """Return the source files below `root` that belong to the corpus, sorted by their path from there."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in files
                  if name.endswith(".py") and not name.startswith(("_sysconfigdata", "sitecustomize"))
                  and Path(folder, name).is_file()]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def concatenated(paths: list[Path]) -> bytes:
    """Return the contents of the files that can be read and are UTF-8, in the order given."""
    texts = []
    for path in paths:
        try:
            text = path.read_bytes()
            text.decode()
        except (OSError, UnicodeDecodeError):
            continue
        texts.append(text)
    return b"".join(texts)


def open_stdlib_corpus() -> CorpusFile:
    """Open the embedded corpus; the first time it is gathered into the cache (a second).

    Raises UserError where Python comes without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = stdlib_files(root)
    states = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    listing = "\n".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
    signature = hashlib.sha256(listing.encode()).hexdigest()
    name = f"standard library of Python {platform.python_version()}"
    identity = f"stdlib:{root}"
    kept = stored_corpus(identity, signature, name)
    if kept is not None:
        return kept
    text = concatenated(paths)
    if len(text) < _FEWEST_BYTES:
        raise UserError(f"this Python has no sources of its standard library in {root}: give a text file as the corpus")
    return store_corpus(identity, signature, name, io.BytesIO(text))
