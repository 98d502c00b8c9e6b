"""Bytes of activations: what is known beforehand is what is measured."""

import pytest

from reformer_lab.benchmarks import memory
from reformer_lab.benchmarks.memory import measure_memory, run_point
from reformer_lab.benchmarks.steps import point_spec
from reformer_lab.errors import UserError
from reformer_lab.models.config import ReformerConfig

MODEL = ReformerConfig(d_model=64, d_ff=256, num_layers=2, num_heads=2, d_head=32, attention=("full",), positions="none",
                       loss_chunk_length=256)
PARAMETERS = {"model": MODEL.to_dict(), "length": 2048, "batch_size": 1, "device": "cpu"}


@pytest.mark.slow
def test_a_reversible_model_keeps_nothing_for_each_layer() -> None:
    """Each point in a process of its own. One stored layer keeps at least its feed-forward layer's two wide activations."""
    points = [{"num_layers": layers, "reversible": reversible} for reversible in (False, True) for layers in (2, 6)]
    events = list(measure_memory({**PARAMETERS, "points": points}, seed=0))
    assert [event["status"] for event in events] == ["finished"] * 4
    stored, reversible = ((last["activation_bytes"] - first["activation_bytes"]) / 4
                          for first, last in (events[:2], events[2:]))
    wide = 2048 * 256 * 4
    assert wide < stored < 6 * wide
    assert abs(reversible) < 0.05 * stored
    for event in events:
        assert event["optimizer_bytes"] >= 2 * event["parameter_bytes"]
        assert event["gradient_bytes"] == event["parameter_bytes"]
    for one, other in zip(events[:2], events[2:], strict=True):  # the same loss and gradients
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["gradient_component"] == pytest.approx(other["gradient_component"], rel=1e-3)


def test_out_of_memory_and_over_time_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    (event,) = measure_memory({**PARAMETERS, "points": [{"length": 2**40}]}, seed=0)
    assert event["status"] == "out of memory"
    assert run_point(point_spec(PARAMETERS, {}), seed=0, max_seconds=0.1) == {"status": "over time"}

    class Killed:
        returncode, stdout, stderr = -9, "", ""

    monkeypatch.setattr(memory.subprocess, "run", lambda *arguments, **options: Killed())
    assert run_point(point_spec(PARAMETERS, {}), seed=0) == {"status": "out of memory"}


def test_other_failures_are_failures() -> None:
    with pytest.raises(RuntimeError, match="vocab_size=0"):
        run_point({**point_spec(PARAMETERS, {}), "model": {"vocab_size": 0}}, seed=0)


def test_points() -> None:
    spec = point_spec(PARAMETERS, {"length": 8192, "num_layers": 5})
    assert (spec["length"], spec["batch_size"], spec["model"]["num_layers"], spec["model"]["max_length"]) == (8192, 1, 5, 8192)
    assert PARAMETERS["model"]["num_layers"] == 2  # type: ignore[index]
    with pytest.raises(UserError, match="no batch_size"):
        point_spec({"model": {}, "length": 1}, {})
