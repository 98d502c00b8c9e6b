"""Every test of the data has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's data folder, beside the checkout; a user's machine has none."""
    return Path(__file__).resolve().parents[2].parent / "shared" / "data"
