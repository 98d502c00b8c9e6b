"""Result files: what one run left behind, and what a suite set out to run.

`<folder>/results/<arm id>.jsonl` holds one run: a header line {"event": "run", ...}, then its events as the training
loop or the benchmark wrote them. `<folder>/suite.json` holds the suite's scale, command and arms, so that a report can
say what is missing. Both are written atomically. Free of torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from reformer_lab.errors import UserError
from reformer_lab.files import write_text


class MissingResult(LookupError):
    """A value is asked for that no result file holds (yet). Verdicts that need it become "not run"."""


@dataclass(frozen=True)
class Record:
    """One result file."""

    header: Mapping[str, Any]
    """Its first line: arm, name, scale, kind, seed, config, digest, environment, status, error."""
    events: Sequence[Mapping[str, Any]] = ()
    """The other lines, in order."""
    problems: Sequence[str] = ()
    """What could not be read in the file, in plain words."""

    @property
    def arm(self) -> str:
        """Identity of the run: the name of its result file."""
        return str(self.header.get("arm", ""))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        seed = self.header.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.header.get("status") == "finished"

    @property
    def error(self) -> str:
        """Why the run failed; "" for one that did not."""
        if self.finished:
            return ""
        return str(self.header.get("error") or self.header.get("status") or "no status in the result file")

    @property
    def environment(self) -> Mapping[str, Any]:
        """Versions, machine and commit, as recorded by the run."""
        environment = self.header.get("environment")
        return environment if isinstance(environment, Mapping) else {}

    @property
    def final(self) -> Mapping[str, Any] | None:
        """The last event called "final", or None."""
        return next((event for event in reversed(self.events) if event.get("event") == "final"), None)

    @property
    def measurements(self) -> list[Mapping[str, Any]]:
        """The events of a measurement, in order."""
        return [event for event in self.events if event.get("event") == "measurement"]

    @property
    def seconds(self) -> float | None:
        """Run time in seconds, from the header, the final event or the last training step; None if it is not known."""
        steps = [event for event in self.events if event.get("event") == "train"]
        for source in (self.header, self.final or {}, *steps[-1:]):
            seconds = source.get("seconds")
            if _is_time(seconds):
                return float(seconds)
        return None

    def value(self, *path: str) -> Any:
        """Return a value inside the final event: `record.value("evaluations", "LSH-8", "accuracy")`.

        Raises MissingResult when the run did not get there.
        """
        value: Any = self.final
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                raise MissingResult(f"{self.arm}: no {'.'.join(path)} in its result")
            value = value[key]
        return value

    def curve(self, event: str, key: str, **where: Any) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one number over the run: `record.curve("eval", "bits", name="own")`.

        `where` keeps the events whose fields have these values. Events without a number under `key` are left out.
        """
        steps: list[float] = []
        values: list[float] = []
        for line in self.events:
            if line.get("event") != event or any(line.get(name) != value for name, value in where.items()):
                continue
            if isinstance(line.get(key), (int, float)) and isinstance(line.get("step"), (int, float)):
                steps.append(line["step"])
                values.append(line[key])
        return steps, values


@dataclass(frozen=True, kw_only=True)
class ArmEntry:
    """One arm as the suite knew it: enough to find its result, and to say that it is missing."""

    id: str
    """Name of the result file."""
    name: str
    """Label inside the experiment; the seeds of one arm share it."""
    seed: int = 0
    """Seed of the run."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What one call of `reproduce` set out to run."""

    scale: str
    """One of experiments.claim.SCALES."""
    started: str
    """Date and time of the first start, ISO 8601 in UTC."""
    command: str
    """The command line, so that a reader can run it again."""
    arms: Mapping[str, tuple[ArmEntry, ...]]
    """The arms of each experiment, by the experiment's name."""
    seconds: float | None = None
    """Wall-clock time of the suite, all its starts together; None while it runs."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions, machine and commit of the process that ran the suite."""
    corpus: str = ""
    """The text that was read in the place of the scale's own (`reproduce --corpus`); "" for that."""

    def write(self, folder: Path) -> None:
        """Write `<folder>/suite.json` atomically."""
        entries = {name: [asdict(arm) for arm in arms] for name, arms in self.arms.items()}
        values = {"scale": self.scale, "started": self.started, "seconds": self.seconds, "command": self.command}
        values |= {"corpus": self.corpus} if self.corpus else {}
        text = json.dumps({**values, "environment": dict(self.environment), "arms": entries}, indent=1)
        write_text(folder / "suite.json", text + "\n")


def read_suite(folder: Path) -> Suite:
    """Read `<folder>/suite.json`. Raises UserError when there is none or when it is damaged."""
    path = folder / "suite.json"
    remedy = "make one with `reformer-lab reproduce --scale smoke --output DIR`"
    if not path.is_file():
        raise UserError(f"{folder} holds no results of `reproduce` (no suite.json); {remedy}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        arms = {name: tuple(ArmEntry(**arm) for arm in entries) for name, entries in values["arms"].items()}
        for arm in (arm for entries in arms.values() for arm in entries):
            if not (isinstance(arm.id, str) and isinstance(arm.name, str) and isinstance(arm.seed, int)):
                raise TypeError(f"an arm is called {arm.id!r}, {arm.name!r}, seed {arm.seed!r}")
        environment = values.get("environment")
        return Suite(
            scale=str(values["scale"]),
            started=str(values.get("started", "")),
            command=str(values.get("command", "")),
            seconds=values.get("seconds") if _is_time(values.get("seconds")) else None,
            environment=environment if isinstance(environment, dict) else {},
            corpus=str(values.get("corpus") or ""),
            arms=arms,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it and run the same `reproduce` command again: "
                        "finished runs are kept") from error


def _is_time(value: Any) -> TypeGuard[float]:
    """Return whether a value of a file can be a time in seconds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12


def read_results(folder: Path) -> dict[str, Record]:
    """Read every `<folder>/results/*.jsonl`, by arm id. A damaged file gives a record that lists its problems."""
    return {path.stem: read_record(path) for path in sorted((folder / "results").glob("*.jsonl"))}


def read_record(path: Path) -> Record:
    """Read one result file; lines that cannot be read are reported in `problems`, never raised."""
    events: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        lines = []
        problems.append(f"{path.name}: cannot be read ({error.strerror})")
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            problems.append(f"{path.name}, line {number}: not a JSON object")
    if events and events[0].get("event") == "run":
        header, events = {**events[0], "arm": path.stem}, events[1:]
    else:
        header = {"arm": path.stem, "status": "damaged", "error": "the result file has no header line"}
        problems.append(f"{path.name}: no header line")
    return Record(header, tuple(events), tuple(problems))


def write_record(folder: Path, header: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> Path:
    """Write `<folder>/results/<header["arm"]>.jsonl` atomically and return its path."""
    lines = [json.dumps({"event": "run", **header}), *(json.dumps(event) for event in events)]
    path = folder / "results" / f"{header['arm']}.jsonl"
    write_text(path, "\n".join(lines) + "\n")
    return path
