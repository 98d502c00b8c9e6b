"""The folder of one run: whose it is, who is writing in it, and what stands in it.

    config.json             the configuration, its digest, the fingerprint of the data
    environment.json        versions, machine, commit
    metrics.jsonl           the events, one a line
    checkpoints/<step>/     the newest two
    model/                  the trained model, at the end
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reformer_lab.errors import UserError
from reformer_lab.training.config import RunConfig
from reformer_lab.training.files import TEMPORARY, write_json, writing
from reformer_lab.training.tracking import Event, environment, read_events

LOCK = "run.lock"


class RunFolder:
    """A run folder that this process alone writes to, while the context is open."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        """Open or create the folder for exactly this configuration.

        Raises `UserError` if it cannot be written, holds the run of another configuration or anything that is no run,
        or is in use by another process. Nothing in it is changed then.
        """
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model"
        with writing(path):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file: choose a folder with --output")
            self._check_owner()
            self._made_here = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(path / LOCK)
        try:
            self._check_owner()  # another process may have started a run between the check and the lock
            with writing(path):
                if not (path / "environment.json").exists():
                    write_json(path / "environment.json", environment())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in. A folder made for a run that never began goes again."""
        if self._made_here and not (self.path / "config.json").exists():
            (self.path / "environment.json").unlink(missing_ok=True)
        (self.path / LOCK).unlink(missing_ok=True)
        if self._made_here and not any(self.path.iterdir()):
            self.path.rmdir()
        os.close(self._lock)

    def _check_owner(self) -> None:
        if not self.path.is_dir():
            return
        if (self.path / "config.json").exists():
            recorded = read_config_file(self.path)["config"]
            different = differences(recorded, self.config.to_dict())
            if different:
                raise UserError(f"{self.path} holds the run of another configuration ({'; '.join(different)}): "
                                "choose another --output, or give the same options to go on with that run")
            return
        foreign = sorted(entry.name for entry in self.path.iterdir()
                         if entry.name not in (LOCK, "environment.json") and not entry.name.startswith(TEMPORARY))
        if foreign:
            raise UserError(f"{self.path} is not empty and holds no run ({foreign[0]}): "
                            "choose a new or an empty folder with --output")

    def claim(self, fingerprint: str) -> None:
        """Record the configuration and the data's fingerprint, or check that the recorded one is the same."""
        if (self.path / "config.json").exists():
            check_fingerprint(self.path, read_config_file(self.path), fingerprint)
            return
        with writing(self.path):
            write_json(self.path / "config.json",
                       {"digest": self.config.digest(), "data_fingerprint": fingerprint,
                        "config": self.config.to_dict()})

    def final(self) -> Event | None:
        """Return the recorded end of the run, None if it has not ended."""
        return final_event(self.path)


def _take_lock(path: Path) -> int:
    """Return an open, locked file that says who holds it. The system unlocks it when its process ends, however."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise UserError(f"{path.parent} is in use by {holder}: wait for it, or choose another --output") from None
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            break
        os.close(handle)  # its holder removed the file while we waited for it: lock the one that counts
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()}\n".encode())
    return handle


def final_event(folder: Path) -> Event | None:
    """Return the "final" event of a run folder, None if the run has not ended."""
    events = read_events(folder / "metrics.jsonl")
    return events[-1] if events and events[-1].get("event") == "final" else None


def read_config_file(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder's `config.json`: "config", "digest", "data_fingerprint"."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if {"config", "digest", "data_fingerprint"} <= set(content):
            return content
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run folder (it has no config.json): name one that `train` has made") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another folder") from error
    raise UserError(f"{path} is not the configuration of a run: choose another folder")


def check_fingerprint(folder: Path, recorded: dict[str, Any], fingerprint: str) -> None:
    """Raise `UserError` unless the data are those that the run was started with."""
    if recorded["data_fingerprint"] != fingerprint:
        raise UserError(f"the data have changed since the run in {folder} was started "
                        f"({recorded['data_fingerprint'][:12]} then, {fingerprint[:12]} now): "
                        "restore them, or start a new run with another --output")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "", limit: int = 3) -> list[str]:
    """Return "field: old there, new here" for the first fields in which two configurations differ."""
    found: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.", limit)
        elif before != after:
            found.append(f"{prefix}{name} is {before} there, {after} here")
    return found[:limit]
