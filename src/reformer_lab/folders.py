"""Where files are that no configuration names by a whole path: the cache, and the user's data."""

import os
from pathlib import Path

CACHE_VARIABLE = "REFORMER_LAB_CACHE"
"""Environment variable: the folder of files that can be made again at any time."""
DATA_VARIABLE = "REFORMER_LAB_DATA"
"""Environment variable: the folder where data are looked for by their names."""


def cache_folder() -> Path:
    """Return the cache's root: $REFORMER_LAB_CACHE, or ~/.cache/reformer-lab. It need not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "reformer-lab"


def find_data(path: str | Path) -> Path:
    """Return what a configuration's path means: itself, or, where there is no such file, that name in $REFORMER_LAB_DATA.

    Configurations that name their data without a folder are the same on every machine. The result need not exist.
    """
    given = Path(os.path.expanduser(path))
    named = os.environ.get(DATA_VARIABLE)
    if not named or given.is_absolute() or os.path.exists(given):
        return given
    return Path(named).expanduser() / given
