"""The yardstick: what is shared, where lines cross, what equal time means, and that exact attention is the fused one."""

import math
from typing import Any

import pytest
import torch
from invented import invent
from torch.utils._python_dispatch import TorchDispatchMode

from reformer_lab.benchmarks.steps import TrainingStep, point_spec
from reformer_lab.experiments import hash_rounds, reversible, shared_qk, yardstick
from reformer_lab.experiments.claim import SCALES, Arm, ExperimentResults, MeasurementConfig, Scale
from reformer_lab.experiments.yardstick import EXACT, EXACT_REVERSIBLE, EXPERIMENT, at_equal_time, crossing, crossing_text
from reformer_lab.models.config import ReformerConfig
from reformer_lab.reporting.records import MissingResult
from reformer_lab.reporting.statistics import Estimate
from reformer_lab.training.config import RunConfig

SECONDS = {EXACT: 1.0, EXACT_REVERSIBLE: 1.5, "LSH-1": 0.5, "LSH-2": 2.0, "LSH-4": 2.0, "LSH-8": 2.0}
"""Of a step, as invented."""
FINAL_STEP = 400


def names_of(arm: Arm) -> list[str]:
    """The contenders of a measurement, in the order of its points."""
    assert isinstance(arm.run, MeasurementConfig)
    return list(yardstick.contenders("small"))


def events(arm: Arm) -> list[dict[str, Any]] | None:
    """LSH takes half of exact attention's time above 2,048 tokens and twice as much below; bits fall by 1 in 100 steps."""
    if arm.kind == "training":
        offset = 0.1 * arm.seed + (0.5 if arm.name == "LSH-1" else 0.0)
        curve = [{"event": "eval", "step": step, "name": "own", "bits": 8 - step / 100 + offset}
                 for step in range(100, FINAL_STEP + 1, 100)]
        final = {"event": "final", "step": FINAL_STEP, "parameters": 1, "evaluations": {"own": {"bits": curve[-1]["bits"]}}}
        return [*curve, final]
    assert isinstance(arm.run, MeasurementConfig)
    found = []
    for name, point in zip(names_of(arm), arm.run.parameters["points"], strict=True):
        changes = {key: list(value) if isinstance(value, tuple) else value for key, value in point.items()
                   if key not in ("length", "batch_size")}
        event = {"event": "measurement", "length": point["length"], "batch_size": point["batch_size"], "model": changes,
                 "status": "finished", "device_name": "invented", "threads": 2}
        if arm.run.kind == "memory":
            found.append({**event, "activation_bytes": 10e6 if name == EXACT else 5e6})
            continue
        seconds = SECONDS[name]
        if arm.name != yardstick.STEP and name.startswith("LSH"):
            seconds = 2.0 if point["length"] < 2048 else 0.5
        repeats = [seconds * (1 + 0.01 * index) for index in range(5)]
        found.append({**event, "seconds": repeats, "median": repeats[2], "low": repeats[1], "high": repeats[3]})
    return found


@pytest.fixture(scope="module")
def results() -> ExperimentResults:
    return invent(EXPERIMENT, "small", events)


@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale != "quick"])
def test_nothing_is_trained_twice(scale: Scale) -> None:
    others = {arm.id for other in (shared_qk, reversible, hash_rounds) for arm in other.arms(scale)}
    trained = [arm for arm in yardstick.arms(scale) if arm.kind == "training"]
    assert {arm.id for arm in trained} <= others
    assert {arm.name for arm in trained} == set(yardstick.contenders(scale))


@pytest.mark.parametrize("scale", ["smoke", "small", "gpu", "paper"])
def test_what_is_timed_is_the_model_that_is_trained(scale: Scale) -> None:
    """Layer by layer: at small every other one is local. Length and positions may be others."""
    own = {"max_length": 0, "positions": "", "axial_shape": None, "axial_dims": None, "num_buckets": None}
    trained = {arm.name: arm.run.model.to_dict() | own for arm in yardstick.trainings(scale) if isinstance(arm.run, RunConfig)}
    measurements = [arm.run for arm in yardstick.arms(scale) if isinstance(arm.run, MeasurementConfig)]
    assert measurements
    for run in measurements:
        for name, point in zip(yardstick.contenders(scale), run.parameters["points"], strict=True):
            assert ReformerConfig.from_dict(point_spec(run.parameters, point)["model"]).to_dict() | own == trained[name]


def test_batches_have_the_same_tokens_at_every_length() -> None:
    for scale in ("smoke", "small", "gpu", "paper"):
        for arm in yardstick.arms(scale):
            if isinstance(arm.run, MeasurementConfig) and arm.name != yardstick.STEP:
                tokens = {point["length"] * point["batch_size"] for point in arm.run.parameters["points"]}
                assert tokens == {yardstick.SETTINGS[scale].tokens}
    assert max(yardstick.SETTINGS["gpu"].lengths) >= 65_536


def repeated(*values: float) -> list[float]:
    return [value for value in values for _ in range(5)]


def test_lines_cross_between_two_lengths() -> None:
    """Twice the time at 1,024, half of it at 2,048: log ratios +1 and -1 meet in the middle of the logarithms."""
    times = {1024: (repeated(2.0), repeated(1.0)), 2048: (repeated(0.5), repeated(1.0)), 4096: (repeated(0.1), repeated(1.0))}
    found = crossing(times)
    assert found.value == pytest.approx(1024 * math.sqrt(2))
    assert found.low == found.high == found.value
    slow_again = times | {4096: (repeated(3.0), repeated(1.0))}
    assert crossing(slow_again).value == math.inf
    assert crossing({length: (repeated(0.5), repeated(1.0)) for length in times}).value == 0
    with pytest.raises(MissingResult, match="fewer than two"):
        crossing({1024: times[1024]})


def test_the_interval_follows_the_rounds_in_which_both_took_turns() -> None:
    """A machine that is slow in some rounds, for both alike, leaves no doubt about the ratio's sign; noise in one does."""
    slow = [1.0, 1.0, 10.0, 10.0, 10.0]
    both = {1024: ([2 * value for value in slow], slow), 2048: ([value / 2 for value in slow], slow)}
    noisy = {1024: ([2.0, 0.5, 2.0, 0.5, 2.0], [1.0] * 5), 2048: ([0.5] * 5, [1.0] * 5)}
    paired, doubtful = crossing(both), crossing(noisy)
    assert paired.low is not None
    assert paired.low > 1024
    assert (doubtful.low, doubtful.n) == (0.0, 5)


def test_crossings_in_words() -> None:
    lengths = (512, 1024, 2048)
    between = Estimate(value=1500.4, low=1400.0, high=1600.0)
    assert crossing_text(between, lengths) == "from about 1,500 tokens on [1,400, 1,600]"
    assert crossing_text(Estimate(value=math.inf, low=1900.0, high=math.inf), lengths) == (
        "at no length up to 2,048 tokens [1,900, above 2,048]")
    assert crossing_text(Estimate(value=0.0, low=0.0, high=0.0), lengths) == "at every length from 512 to 2,048 tokens"


def test_at_equal_time_the_slower_is_cut_short(results: ExperimentResults) -> None:
    """Exact: 1.02 s a step. LSH-2 needs twice as much: at exact's end it has done 200 of 400 steps, and is 2 bits behind."""
    seconds, difference = at_equal_time(results, "LSH-2")
    assert seconds == pytest.approx(FINAL_STEP * 1.02)
    assert difference.value == pytest.approx(2.0)
    assert difference.n == 3
    seconds, difference = at_equal_time(results, "LSH-1")  # ends at half the time, where exact is 2 bits behind its end
    assert seconds == pytest.approx(FINAL_STEP * 0.51)
    assert difference.value == pytest.approx(0.5 - 2.0)


def test_bits_between_two_points_of_the_curve(results: ExperimentResults) -> None:
    record = results.require(EXACT)[0]
    assert yardstick.bits_at(record, 250) == pytest.approx(5.5)
    assert yardstick.bits_at(record, 300) == pytest.approx(5.0)
    with pytest.raises(MissingResult, match="before step 99"):
        yardstick.bits_at(record, 99)


def test_what_is_shown(results: ExperimentResults) -> None:
    assert EXPERIMENT.verdicts(results) == ()
    section = EXPERIMENT.show(results)
    text = " ".join(section.text)
    assert "LSH-2: from about 1,448 tokens on" in text
    assert "exact, reversible 5 MB (50 %)" in text
    assert "LSH-2, after 408 s: +2.000" in text
    assert "(worse); at equal steps +0.000" in text
    assert "(better)" in text
    assert [len(figure.series) for figure in section.figures] == [6, 6, 6]
    assert section.figures[2].series[0].x[-1] == pytest.approx(FINAL_STEP * 1.02)


def test_half_of_the_results_will_do() -> None:
    trained = invent(EXPERIMENT, "small", lambda arm: events(arm) if arm.kind == "training" else None)
    assert not any("tokens on" in paragraph for paragraph in EXPERIMENT.show(trained).text)
    timed = invent(EXPERIMENT, "small", lambda arm: events(arm) if arm.name.startswith("seconds") else None)
    assert any("LSH-8" in paragraph for paragraph in EXPERIMENT.show(timed).text)
    with pytest.raises(MissingResult):
        EXPERIMENT.show(invent(EXPERIMENT, "small", lambda arm: None))


class Operators(TorchDispatchMode):
    """Notes every operator that runs, and the largest tensor that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.add(str(function))
        tensors = [part for part in (result if isinstance(result, (list, tuple)) else [result]) if torch.is_tensor(part)]
        self.largest = max([self.largest, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [EXACT, EXACT_REVERSIBLE])
def test_exact_attention_is_the_fused_kernel_without_scores(name: str, precision: str) -> None:
    """As people run it today: no operator of a training step returns anything of L x L numbers."""
    (arm, *_) = (arm for arm in yardstick.arms("small") if arm.name == yardstick.seconds_name(4096))
    assert isinstance(arm.run, MeasurementConfig)
    point = dict(zip(names_of(arm), arm.run.parameters["points"], strict=True))[name]
    small = {**point, "batch_size": 1, "length": 2048, "num_layers": 2, "d_model": 32, "d_ff": 32}
    step = TrainingStep({**point_spec(arm.run.parameters, small), "precision": precision}, 0, torch.device("cpu"))
    operators = Operators()
    with operators:
        step.run()
    attention = {operator.split(".")[1] for operator in operators.names if "attention" in operator}
    assert attention - {"local_attention", "local_attention_backward"} == {  # every other layer is local
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"}
    assert operators.largest < 2048 * 2048
