"""Invented results of the real declarations: nothing here was measured."""

from collections.abc import Callable, Mapping
from typing import Any

from reformer_lab.experiments import memory
from reformer_lab.experiments.claim import Arm, Experiment, ExperimentResults, MeasurementConfig, Scale
from reformer_lab.reporting.records import Record

Events = list[dict[str, Any]]


def invent(experiment: Experiment, scale: Scale, events: Callable[[Arm], Events | None]) -> ExperimentResults:
    """Results in which each arm has the events that `events` returns for it; None: the arm is not there."""
    arms = experiment.arms(scale)
    records = {}
    for arm in arms:
        found = events(arm)
        if found is not None:
            header = {"arm": arm.id, "seed": arm.seed, "status": "finished", "config": arm.run.to_dict()}
            records[arm.id] = Record(header, tuple(found))
    return ExperimentResults(scale=scale, arms=tuple(arm.entry() for arm in arms), records=records)


def trained(bits: float, others: Mapping[str, float] | None = None) -> Events:
    """Events of a training run that ends with so many bits, under the names of `others` with others."""
    scores = {name: {"bits": value} for name, value in {"own": bits, **(others or {})}.items()}
    return [{"event": "eval", "step": 10, "name": "own", "bits": bits + 1},
            {"event": "eval", "step": 20, "name": "own", "bits": bits},
            {"event": "final", "step": 20, "parameters": 1000, "evaluations": scores}]


def rounds_events(bits: dict[str, float], raised: float) -> Any:
    """Runs with these bits; each doubling of the rounds at evaluation alone changes them by a quarter of `raised`."""
    def events(arm: Arm) -> Events:
        own = bits[arm.name]
        return trained(own, {f"LSH-{rounds}": own + raised * number / 4 for number, rounds in enumerate((1, 2, 4, 8, 16))})
    return events


TABLE = {  # convention b, LSH-8, LSH-4, LSH-2, LSH-1: the rough trial of PAPER section 1
    "full": (1.0, 1.0, 0.999, 0.987, 0.893), "LSH-4": (1.0, 1.0, 0.999, 0.965, 0.830),
    "LSH-2": (1.0, 1.0, 1.0, 0.995, 0.923), "LSH-1": (1.0, 1.0, 1.0, 0.99, 0.95),
}


def table_events(changes: dict[tuple[str, str], float]) -> Any:
    def events(arm: Arm) -> Events:
        cells = dict(zip(("full", "LSH-8", "LSH-4", "LSH-2", "LSH-1"), TABLE[arm.name], strict=True))
        cells |= {column: value for (row, column), value in changes.items() if row == arm.name}
        scores = {name: {"accuracy": value} for name, value in {"full, raw keys": 0.008, **cells}.items()}
        return [{"event": "eval", "step": 100, "name": "own", "accuracy": 0.5},
                {"event": "final", "step": 700, "stopped_early": True, "evaluations": scores}]
    return events


def speed_events(exponents: dict[str, float], spread: float = 0.0) -> Any:
    """Times that grow with these exponents, "full" and "lsh"; the three rounds' exponents differ by `spread`.

    A round that is 1 % slow for full attention is 1 % fast for LSH attention.
    """
    def event(point: Mapping[str, Any]) -> dict[str, Any]:
        model = {name: list(value) if isinstance(value, tuple) else value for name, value in point.items()
                 if name not in ("length", "batch_size")}
        full = model["attention"] == ["full"]
        exponent, base, noise = (exponents["full"], 1.0, 0.01) if full else (exponents["lsh"], 2.0, -0.01)
        return {"event": "measurement", "length": point["length"], "batch_size": point["batch_size"], "status": "finished",
                "model": model, "median": 1.0, "low": 1.0, "high": 1.0, "device_name": "invented", "threads": 1,
                "seconds": [base * (point["length"] / 1024) ** (exponent + spread * turn) * (1 + noise * turn)
                            for turn in (0, 1, -1)]}

    def events(arm: Arm) -> Events:
        assert isinstance(arm.run, MeasurementConfig)
        return [event(point) for point in arm.run.parameters["points"]]
    return events


def memory_events(reversible_layer: float, loss: float = 5.5, chunked: float = 0.3) -> Any:
    def events(arm: Arm) -> Events:
        common = {"event": "measurement", "status": "finished", "batch_size": 1, "seconds": 1.0, "loss": 5.5,
                  "gradient_norm": 1.0, "gradient_component": 0.1}
        if arm.name in (memory.DEPTH_REVERSIBLE, memory.DEPTH_STORED):
            layer = reversible_layer if arm.name == memory.DEPTH_REVERSIBLE else 20e6
            return [{**common, "length": 2048, "model": {"num_layers": depth}, "activation_bytes": 50e6 + depth * layer}
                    for depth in (2, 4, 8)]
        if arm.name == memory.CHUNK:
            return [{**common, "length": 2048, "model": {"ff_chunk_length": chunk}, "loss": loss if chunk else 5.5,
                     "activation_bytes": 100e6 * (chunked if chunk else 1)} for chunk in (None, 2048, 512, 128)]
        return [{**common, "length": length, "model": {}, "activation_bytes": length * 1e4} for length in (2048, 4096, 8192)]
    return events
