"""Memory of the operators: where they put what they return, and what they have freed."""

import ctypes
from functools import cache
from typing import Any

from torch import Tensor


def empty_rows(x: Tensor, width: int) -> Tensor:
    """Return a tensor (B, H, L, width) of any values, with type and device of x (B, H, L, D).

    In memory the heads of a position are neighbours, so that joining them, (B, L, H * width), is a view.
    """
    batch, heads, length, _ = x.shape
    return x.new_empty((batch, length, heads, width)).transpose(1, 2)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc); else do nothing.

    glibc keeps the holes that freed tensors of up to 32 MB leave below whatever is still in use: several hundred megabytes
    after a layer that was computed in pieces. A call takes milliseconds.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no process-wide name space
        return None
