"""One arm in a process of its own: `python -m reformer_lab.runner.worker JOB`, started by the engine.

JOB is a JSON object: "kind", "config" and the run folder, "output". Standard output carries one JSON object per line:
{"progress": done, "total": ..., "text": ...} while it runs, {"error": ...} when it fails, with "cause": "out of memory" where
that is why. Everything else that the run prints goes to standard error. The process ends with the engine: when standard input
closes, it stops as for SIGTERM, leaving a run that can be taken up again.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

from reformer_lab.errors import OutOfMemory, UserError, is_out_of_memory
from reformer_lab.files import writing
from reformer_lab.locks import FolderInUse, locked

EXIT_FAILED = 1
EXIT_STOPPED = 143
HANDOVER_SECONDS = 60.0
"""How long the worker of a suite that was killed may take to finish its step and leave; the engine gives its own as much."""

OUT_OF_MEMORY = "out of memory"

Report = Callable[[Mapping[str, Any]], None]


def run_job(job: Mapping[str, Any], report: Report) -> None:
    """Run a job to its end. The run folder then holds metrics.jsonl and environment.json."""
    output = Path(job["output"])
    if job["kind"] == "training":
        _train(job["config"], output, report)
    else:
        _measure(job["config"], output, report)


def _train(config: Mapping[str, Any], output: Path, report: Report) -> None:
    from reformer_lab.experiments.faults import FaultyRunConfig
    from reformer_lab.training.config import RunConfig

    _wait_for_the_one_before(output)
    run = (FaultyRunConfig if "faults" in config else RunConfig).from_dict(config)

    def progress(event: Mapping[str, Any]) -> None:
        if "step" in event:
            bits = event.get("bits")
            text = f"{bits:.3f} bits" if isinstance(bits, float) else ""
            report({"progress": event["step"], "total": run.steps, "text": text})

    if isinstance(run, FaultyRunConfig):
        from reformer_lab.experiments.faulty import train_with_faults

        train_with_faults(run, output, progress)
    else:
        from reformer_lab.training.loop import train

        train(run, output, progress)


def _measure(config: Mapping[str, Any], output: Path, report: Report) -> None:
    from reformer_lab.benchmarks.memory import measure_memory
    from reformer_lab.benchmarks.speed import measure_speed
    from reformer_lab.training.tracking import environment

    measures = {"speed": measure_speed, "memory": measure_memory}
    if config["kind"] not in measures:
        raise UserError(f"measurement {config['kind']!r} does not exist; known: {', '.join(measures)}")
    measure = measures[config["kind"]]

    def progress(done: int, total: int) -> None:
        report({"progress": done, "total": total, "text": ""})

    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (output / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")
        (output / "metrics.jsonl").write_bytes(b"")
    for event in measure(config["parameters"], config["seed"], progress=progress):
        with writing(output), (output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _wait_for_the_one_before(folder: Path) -> None:
    """Let a worker whose engine was killed leave the folder: it finishes its step and saves first."""
    from reformer_lab.training.run_folder import LOCK

    deadline = time.monotonic() + HANDOVER_SECONDS
    while (folder / LOCK).exists():
        try:
            with locked(folder / LOCK):
                return
        except FolderInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> int:
    """Read the job file named by the first argument and run it; see the module for the protocol."""
    channel = _take_standard_output()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the engine, which stops its workers itself
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes, not the engine

    def report(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def fail(error: str, out_of_memory: bool) -> int:
        with contextlib.suppress(BrokenPipeError):
            report({"error": error} | ({"cause": OUT_OF_MEMORY} if out_of_memory else {}))
        return EXIT_FAILED

    try:
        run_job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), report)
    except BrokenPipeError:  # the engine was killed
        return EXIT_STOPPED
    except UserError as error:
        return fail(str(error), isinstance(error, OutOfMemory))
    except Exception as error:
        traceback.print_exc()
        return fail(f"{type(error).__name__}: {error}", is_out_of_memory(error))
    return 0


def _take_standard_output() -> TextIO:
    """Keep standard output for the protocol: whatever libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break into the first one's way out
    raise SystemExit(EXIT_STOPPED)


def _stop_with_parent() -> None:
    """Wait for the end of standard input, which the engine keeps open for as long as it lives."""
    while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
