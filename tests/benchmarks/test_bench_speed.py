"""Seconds of a step."""

from typing import Any

import pytest
import torch

from reformer_lab.benchmarks import speed
from reformer_lab.benchmarks.speed import measure_speed
from reformer_lab.benchmarks.steps import TrainingStep, point_spec
from reformer_lab.errors import UserError
from reformer_lab.models.presets import get_preset

PARAMETERS: dict[str, Any] = {"model": get_preset("cpu_tiny").to_dict(), "rounds": 3, "device": "cpu",
                              "points": [{"length": 32, "batch_size": 4}, {"length": 64, "batch_size": 2, "num_hashes": 1}]}


def test_every_round_times_every_point(global_random_state: None) -> None:
    done: list[tuple[int, int]] = []
    events = list(measure_speed(PARAMETERS, 0, lambda *progress: done.append(progress)))
    assert done == [(number, 8) for number in range(1, 9)]
    assert [(event["length"], event["batch_size"], event["model"]) for event in events] == [
        (32, 4, {}), (64, 2, {"num_hashes": 1})]
    for event in events:
        assert event["status"] == "finished"
        assert len(event["seconds"]) == 3
        assert min(event["seconds"]) <= event["low"] <= event["median"] <= event["high"] <= max(event["seconds"])


def test_points_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    whole = TrainingStep.run
    monkeypatch.setattr(TrainingStep, "run", lambda step: (order.append(step.tokens.shape[1]), whole(step))[1])
    list(measure_speed(PARAMETERS, 0))
    assert order == [32, 64] * 4


def test_over_time_and_out_of_memory_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.1, 99.0, 0.1, 0.1, 0.1])
    monkeypatch.setattr(speed, "time_call", lambda call, device: next(clock))
    events = list(measure_speed({**PARAMETERS, "max_seconds": 10}, 0))
    assert [event["status"] for event in events] == ["finished", "over time"]
    assert events[1]["seconds"] == [99.0]

    def no_memory(call: object, device: object) -> float:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(speed, "time_call", no_memory)
    assert [event["status"] for event in measure_speed(PARAMETERS, 0)] == ["out of memory"] * 2


def test_a_step_has_fresh_gradients_and_a_summary_of_them() -> None:
    step = TrainingStep(point_spec(PARAMETERS, PARAMETERS["points"][0]), 0, torch.device("cpu"))
    step.run()
    first = step.gradient_summary()
    step.run()
    assert step.gradient_summary() == first  # not twice as large
    other = TrainingStep(point_spec(PARAMETERS, PARAMETERS["points"][0]), 1, torch.device("cpu"))
    other.run()
    assert other.gradient_summary()["gradient_component"] != pytest.approx(first["gradient_component"], rel=1e-3)
    with pytest.raises(UserError, match="precision 'fp8'"):
        TrainingStep({**point_spec(PARAMETERS, PARAMETERS["points"][0]), "precision": "fp8"}, 0, torch.device("cpu"))
