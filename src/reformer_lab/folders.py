"""Where files go that can be made again at any time."""

import os
from pathlib import Path

CACHE_VARIABLE = "REFORMER_LAB_CACHE"


def cache_folder() -> Path:
    """Return the cache's root: $REFORMER_LAB_CACHE, or ~/.cache/reformer-lab. It need not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "reformer-lab"
