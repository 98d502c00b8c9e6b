"""The folder of one run: whose it is, who is writing in it, and what stands in it.

    config.json             the configuration, its digest, the fingerprint of the data
    environment.json        versions, machine, commit
    metrics.jsonl           the events, one a line
    checkpoints/<step>/     the newest two
    model/                  the trained model, at the end
"""

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reformer_lab.errors import UserError
from reformer_lab.files import TEMPORARY, remove_leftovers, sync, write_json, writing
from reformer_lab.locks import release_lock, take_lock
from reformer_lab.training.config import RunConfig
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
            sync(path.parent)
            self._lock = take_lock(path / LOCK)
        try:
            self._check_owner()  # another process may have started a run between the check and the lock
            with writing(path):
                remove_leftovers(self.path)
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
        with contextlib.suppress(OSError):  # a disk that has become read-only: what ended the run is the message
            if self._made_here and not (self.path / "config.json").exists():
                (self.path / "environment.json").unlink(missing_ok=True)
        release_lock(self.path / LOCK, self._lock)
        with contextlib.suppress(OSError):
            if self._made_here and not any(self.path.iterdir()):
                self.path.rmdir()

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


def final_event(folder: Path) -> Event | None:
    """Return the "final" event of a run folder, None if the run has not ended."""
    events = read_events(folder / "metrics.jsonl")
    return events[-1] if events and events[-1].get("event") == "final" else None


def read_config_file(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder's `config.json`: "config", "digest", "data_fingerprint"."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"config": dict, "digest": str, "data_fingerprint": str}
        if all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
            return content
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run folder (it has no config.json): name one that `train` has made") from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
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
