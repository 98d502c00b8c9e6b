"""Every test of an operator: memory that is read before it is written gives NaN, and one thread."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from brute_force import DEVICE


@pytest.fixture(autouse=True)
def _surroundings(nan_filled_memory: None, one_thread: None) -> Iterator[None]:
    with nullcontext() if DEVICE.type == "cpu" else DEVICE:
        yield
