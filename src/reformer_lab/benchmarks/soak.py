"""What a long training run holds, step after step: memory, live tensors, bytes on the disk.

The run is a real one, in a process of its own that nothing tunes: the training loop with dropout, hashing, reversible layers,
evaluations and checkpoints in the middle. A sample is taken whenever the loop reports a step whose number `every` divides,
always at the same place of the step: numbers that differ between two samples have grown or shrunk.
"""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from reformer_lab.data.config import DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import train
from reformer_lab.training.tracking import Event

SAMPLES = 100
"""Samples of a run, if it has so many steps."""
FEWEST_STEPS = 40
"""Below it the part of the run that is judged holds too few evaluations and checkpoints."""


def soak_run(steps: int) -> RunConfig:
    """Return the run: the duplication task at length 128, a local and an LSH layer of width 64, and everything drawn.

    Forty evaluations and checkpoints in it, fewer in a run below 400 steps: one every ten steps at the most. Raises
    UserError for fewer than `FEWEST_STEPS` steps.
    """
    if steps < FEWEST_STEPS:
        raise UserError(f"--steps {steps}: a soak has at least {FEWEST_STEPS} steps")
    often = max(10, steps // 40)
    model = ReformerConfig(
        vocab_size=128, d_model=64, d_ff=128, num_layers=2, num_heads=2, d_head=32, max_length=128, num_hashes=2,
        attention=("local", "lsh"), chunk_length=16, local_chunk_length=16, dropout=0.1, attention_dropout=0.1,
        ff_chunk_length=64, loss_chunk_length=64,
    )  # fmt: skip
    return RunConfig(model=model, data=DuplicationConfig(length=128, eval_sequences=16), steps=steps, batch_size=4,
                     eval_every=often, checkpoint_every=often, log_every=10)


def measure_soak(steps: int, threads: int | None = None) -> Iterator[dict[str, Any]]:
    """Train in a new process and yield a sample every `steps / SAMPLES` steps.

    A sample: {"step", "resident_bytes", "tensors", "tensor_bytes", "metrics_bytes", "checkpoint_bytes", "files", "log_every",
    "eval_every", "checkpoint_every"}; bytes of tensors count a shared storage once. Raises RuntimeError with the process's
    last words when it fails.
    """
    run = soak_run(steps)
    with tempfile.TemporaryDirectory() as folder:
        job = {"run": run.to_dict() | {"threads": threads}, "folder": folder, "every": max(1, steps // SAMPLES)}
        command = [sys.executable, "-m", "reformer_lab.benchmarks.soak", json.dumps(job)]
        with (Path(folder) / "errors").open("w+") as errors, \
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield {**json.loads(line), "log_every": run.log_every, "eval_every": run.eval_every,
                           "checkpoint_every": run.checkpoint_every}
            except BaseException:  # Ctrl-C, or a caller that wants no more samples
                process.kill()
                raise
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"the soak's training failed: {errors.read().strip()[-2000:]}")


def live_tensors() -> tuple[int, int]:
    """Return how many tensors Python's collector knows, and the bytes of their storages, a shared one counted once."""
    storages: dict[int, int] = {}
    number = 0
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # isinstance would ask proxies for a __class__ that they may not have
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            number += 1
    return number, sum(storages.values())


def sample(step: int, folder: Path) -> dict[str, int]:
    """Return what this process and its run folder hold now."""
    resident = psutil.Process().memory_info().rss
    tensors, tensor_bytes = live_tensors()
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {"step": step, "resident_bytes": resident, "tensors": tensors, "tensor_bytes": tensor_bytes,
            "metrics_bytes": sizes.get(folder / "metrics.jsonl", 0),
            "checkpoint_bytes": sum(size for path, size in sizes.items() if "checkpoints" in path.parts), "files": len(sizes)}


def main() -> None:
    """Train what the job in the first argument says, a sample a line on standard output."""
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"]) / "run"

    def report(event: Event) -> None:
        if event["event"] == "step" and event["step"] % job["every"] == 0:
            print(json.dumps(sample(event["step"], folder)), flush=True)

    train(RunConfig.from_dict(job["run"]), folder, report)


if __name__ == "__main__":
    main()
