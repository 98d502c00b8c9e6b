"""The losses of tiny models, step by step, as text files in golden/.

    python tests/training/golden_curves.py

writes them anew: after a change that is meant to change numbers, and only then. Look at the difference before it is committed.
"""

import platform
import random
import sys
import tempfile
from pathlib import Path

import torch
from tiny_runs import tiny_model, tiny_run

from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.training.config import RunConfig
from reformer_lab.training.loop import train
from reformer_lab.training.tracking import environment, read_events

GOLDEN = Path(__file__).with_name("golden")
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
TEXT_MODEL = {"vocab_size": 258, "d_model": 32, "d_ff": 48, "num_layers": 2, "d_head": 16, "max_length": 64, "chunk_length": 8,
              "attention": ("local", "lsh"), "local_chunk_length": 8, "lsh_backend": "torch", **DROPOUT}
STREAMS = {"reversible": {}, "stored": {"reversible": False}, "regular": {"reversible": False, "residual_streams": 1}}
CURVES = ("duplication-lsh", *(f"bytes-{name}" for name in STREAMS))


def write_text(path: Path) -> None:
    """Write some 20 kB of words in a random order, the same on every machine."""
    text = "reversible layers store nothing and hashing finds the keys that matter among all of them"
    words = text.split()
    generator = random.Random(11)
    path.write_text(" ".join(generator.choice(words) for _ in range(3500)), encoding="utf-8")


def run_of(name: str, folder: Path) -> RunConfig:
    """Return the run of a curve; `folder` receives its text. lsh_backend is torch's: no compiler decides about bits."""
    common = {"log_every": 1, "checkpoint_every": None, "eval_every": None, "eval_limit": 1}
    if name == "duplication-lsh":
        return tiny_run(**common, steps=30, model=tiny_model(lsh_backend="torch", **DROPOUT))
    write_text(folder / "text")
    return tiny_run(**common, steps=24, data=ByteCorpusConfig(path=str(folder / "text"), length=64),
                    model=tiny_model(**TEXT_MODEL | STREAMS[name.partition("-")[2]]))


def losses_of(name: str) -> list[float]:
    """Train and return the loss of every step, in nats."""
    with tempfile.TemporaryDirectory() as folder:
        train(run_of(name, Path(folder)), Path(folder) / "run")
        return [event["loss"] for event in read_events(Path(folder) / "run" / "metrics.jsonl") if event["event"] == "train"]


def platform_of() -> dict[str, str]:
    """Return what the bits of a curve depend on, beside this code."""
    return {"torch": torch.__version__, "system": f"{platform.system()} {platform.machine()}",
            "cpu": f"{environment()['cpu']}, {torch.backends.cpu.get_cpu_capability()}"}


def write_curve(name: str, losses: list[float]) -> None:
    """Write a file: where it was made, then a step and its loss in a line."""
    head = [f"# {key}: {value}" for key, value in platform_of().items()]
    body = [f"{step} {loss!r}" for step, loss in enumerate(losses, 1)]
    (GOLDEN / f"{name}.txt").write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")


def read_curve(name: str) -> tuple[dict[str, str], list[float]]:
    """Return where a file was made, and its losses."""
    lines = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return head, [float(line.split()[1]) for line in lines if not line.startswith("#")]


if __name__ == "__main__":
    for curve in sys.argv[1:] or CURVES:
        write_curve(curve, losses_of(curve))
        print(f"written: {GOLDEN / curve}.txt")
