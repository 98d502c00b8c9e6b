"""Every test of a model: memory that is read before it is written gives NaN, and one thread."""

import pytest


@pytest.fixture(autouse=True)
def _surroundings(nan_filled_memory: None, one_thread: None) -> None:
    pass
