"""Stands in for a worker in the engine's tests: starts at once and does what the seed or the parameters ask for.

Follows the protocol of `reformer_lab.runner.worker`. Every start and end goes to the file named by STAND_IN_LOG.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_text())
output = Path(job["output"])
output.mkdir(parents=True, exist_ok=True)
config = job["config"]
behaviour = config.get("parameters", {}).get("behaviour", "work")
log = Path(os.environ["STAND_IN_LOG"])


def note(word: str) -> None:
    with log.open("a") as file:
        line = {"what": word, "arm": output.name, "kind": job["kind"], "time": time.monotonic(), "pid": os.getpid(),
                "threads": os.environ.get("OMP_NUM_THREADS")}
        file.write(json.dumps(line) + "\n")


def stop(*_: object) -> None:
    note("stopped")
    sys.exit(143)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # that it was started is noted before that it was stopped
signal.signal(signal.SIGTERM, stop)
note("started")
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
print(json.dumps({"progress": 1, "total": 2, "text": "half"}), flush=True)
if behaviour == "fail":
    print(json.dumps({"error": "it had to fail"}), flush=True)
    note("ended")
    sys.exit(1)
if behaviour == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "traceback":
    raise ZeroDivisionError("on standard error")
time.sleep(60 if behaviour == "hang" or Path(log.parent / "hang").exists() else 1.5 if behaviour == "slow" else 0.3)
events = [{"event": "final", "step": 2, "evaluations": {"own": {"bits": 2.0}}, "seconds": 0.3}]
if job["kind"] == "measurement":
    events = [{"event": "measurement", "value": 1}]
(output / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
note("ended")
