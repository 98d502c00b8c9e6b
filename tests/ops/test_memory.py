"""Freed memory goes back to the system."""

import platform
from pathlib import Path

import pytest
import torch

from reformer_lab.ops.memory import return_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps holes and can give them back")
def test_holes_below_what_is_in_use_go_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    tensors = [torch.ones(1 << 14) for _ in range(3000)]  # 64 KB each, from the heap
    kept = tensors[::50]
    del tensors
    before = resident()
    return_freed_memory()
    assert before - resident() > 0.8 * 3000 * (1 << 16)
    assert all(tensor.sum() == 1 << 14 for tensor in kept)


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reformer_lab.ops.memory._malloc_trim", lambda: None)
    return_freed_memory()
