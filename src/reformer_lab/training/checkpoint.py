"""Checkpoints: `checkpoints/<step>/` with the weights, the optimiser and the loop's counters.

A checkpoint is written into a temporary folder, synced and renamed, so a name without `.tmp-` is a whole checkpoint.
Checksums find the one that the disk has damaged since; the one before it is used then. Random states and the position
in the data need no saving: both are functions of the seed and the step.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_model

from reformer_lab.errors import UserError, is_out_of_memory
from reformer_lab.files import TEMPORARY, remove_leftovers, sha256, sync, sync_all, write_json, writing
from reformer_lab.training.run_folder import final_event

CHECKSUMS = "checksums.json"
WEIGHTS = "model.safetensors"
STATE = "state.pt"
KEPT = 2
"""Checkpoints that are kept: the newest, and one in case it is damaged."""


class HasState(Protocol):
    """An optimiser, or what stands for one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


def steps_of(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def save_checkpoint(folder: Path, model: Any, optimizer: HasState, counters: dict[str, Any]) -> Path:
    """Write the checkpoint of step `counters["step"]` and remove all but the newest two; return its folder.

    `counters` holds numbers and text only. Checkpoints of later steps are remains of a damaged end and go too.
    """
    step = counters["step"]
    target = folder / str(step)
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{step}"
    with writing(folder):
        try:
            remove_leftovers(folder)
            temporary.mkdir(parents=True)
            sync(folder.parent)
            model.save_pretrained(temporary)
            with (temporary / STATE).open("wb") as file:
                torch.save({"optimizer": optimizer.state_dict(), "counters": counters}, file)
            write_json(temporary / CHECKSUMS, {path.name: sha256(path) for path in sorted(temporary.iterdir())})
            sync_all(temporary)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    present = steps_of(folder)
    kept = [other for other in present if other <= step][-KEPT:]
    for other in set(present) - set(kept):
        shutil.rmtree(folder / str(other), ignore_errors=True)
    return target


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name in (WEIGHTS, STATE):
            if name not in sums:
                return f"{CHECKSUMS} does not name {name}"
        for name, expected in sums.items():
            if Path(name).name != name or not (folder / name).is_file():
                return f"{CHECKSUMS} names {name!r}, which is no file there"
            if sha256(folder / name) != expected:
                return f"{name} does not have its checksum"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{CHECKSUMS} or a file it names cannot be read ({error})"
    return None


def newest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole, or None if there is none at all.

    A damaged one is passed over and reported. If every one is damaged, a `UserError` says so: starting again from
    nothing is the user's decision.
    """
    steps = steps_of(folder)
    wrong = None
    for place in reversed(range(len(steps))):
        newest = folder / str(steps[place])
        wrong = damage(newest)
        if wrong is None:
            return newest
        if place > 0:
            report(f"checkpoint {newest} is damaged: {wrong}; the one before it, of step {steps[place - 1]}, is used")
    if steps:
        raise UserError(f"no checkpoint in {folder} is whole ({wrong} in {steps[0]}): "
                        f"restore one, or remove {folder.parent} to start again")
    return None


def trained_weights(run: Path, steps: int, report: Callable[[str], None]) -> tuple[Path, str]:
    """Return the folder of a run's model, or of its newest checkpoint, and a phrase that says which. `steps`: those planned."""
    final = final_event(run)
    if final is not None:
        return run / "model", f"finished at step {final['step']}"
    newest = newest_checkpoint(run / "checkpoints", report)
    if newest is None:
        raise UserError(f"{run} has no checkpoint yet: wait for one, or train on")
    return newest, f"unfinished, at step {newest.name} of {steps}"


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Fill the model's parameters, in place and on their device, from a checkpoint. Errors as in `load_checkpoint`."""
    with of_this_run(checkpoint):
        load_model(model, checkpoint / WEIGHTS)


def load_checkpoint(checkpoint: Path, model: torch.nn.Module, optimizer: HasState) -> dict[str, Any]:
    """Fill model and optimiser from a checkpoint; return the counters that were saved with it.

    Raises UserError for one whose sums are right and that is of another run all the same, or was made by hand.
    """
    load_weights(checkpoint, model)
    return load_state(checkpoint, optimizer)


def load_state(checkpoint: Path, optimizer: HasState) -> dict[str, Any]:
    """Fill the optimiser from a checkpoint; return the counters that were saved with it. Errors as in `load_checkpoint`."""
    with of_this_run(checkpoint):
        state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        counters: dict[str, Any] = state["counters"]
        if not isinstance(counters, dict):
            raise TypeError("its counters are no dict")
    return counters


@contextmanager
def of_this_run(checkpoint: Path) -> Iterator[None]:
    """Turn what reading a checkpoint raises into a `UserError`: it is one of another run, or was made by hand."""
    try:
        yield
    except Exception as error:  # torch's readers raise almost anything on a file that is not theirs
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {checkpoint} is not one of this run ({reason}): restore it, or remove its folder to go on "
                        "from the one before") from error
