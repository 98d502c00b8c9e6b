"""Locks: who holds one, and that a dead process holds none."""

import errno
import os
from pathlib import Path

import pytest

from reformer_lab import locks
from reformer_lab.locks import FolderInUse, locked, release_lock, take_lock


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    handle = take_lock(tmp_path / "lock")
    with pytest.raises(FolderInUse, match=rf"^{tmp_path} is in use by process {os.getpid()} on \S+ since [\d-]+ [\d:+]+: wait"):
        take_lock(tmp_path / "lock")
    release_lock(tmp_path / "lock", handle)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("left", ["", "process 1 on elsewhere since 2020-01-01 00:00:00+00:00\n" * 9])
def test_a_file_that_a_dead_process_left_is_no_lock(tmp_path: Path, left: str) -> None:
    (tmp_path / "lock").write_text(left)
    handle = take_lock(tmp_path / "lock")
    text = (tmp_path / "lock").read_text()
    assert text.startswith(f"process {os.getpid()} on ")
    assert text.count("\n") == 1
    release_lock(tmp_path / "lock", handle)


def test_a_holder_whose_name_cannot_be_read(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        (tmp_path / "lock").write_bytes(b"")
        with pytest.raises(FolderInUse, match="in use by another process: wait for it"):
            take_lock(tmp_path / "lock")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    with pytest.raises(OSError, match="No locks available"):
        take_lock(tmp_path / "lock")
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)


def test_a_lock_on_a_disk_that_became_read_only_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = take_lock(tmp_path / "lock")
    with monkeypatch.context() as patch:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(Path, "unlink", refuse)
        release_lock(tmp_path / "lock", handle)
    assert (tmp_path / "lock").exists()
    with locked(tmp_path / "lock"):
        pass
