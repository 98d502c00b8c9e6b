"""Intervals and trends against known values, and by their invariants."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.reporting.statistics import Estimate, mean_interval, slope

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def test_one_value_has_no_interval() -> None:
    estimate = mean_interval([0.25])
    assert estimate == Estimate(value=0.25, n=1)
    assert not estimate.has_interval


def test_interval_of_many_normal_values_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    estimate = mean_interval(values.tolist())
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)


def test_interval_of_three_values_is_students() -> None:
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.low == pytest.approx(2 - 4.303 / math.sqrt(3))
    assert estimate.high == pytest.approx(2 + 4.303 / math.sqrt(3))


@pytest.mark.parametrize("n", [2, 3, 5, 9, 12])
def test_the_interval_of_a_few_values_holds_the_truth_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    trials = 200
    held = 0
    for _ in range(trials):
        estimate = mean_interval(rng.normal(size=n).tolist())
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 0 <= estimate.high
    assert held >= 0.88 * trials


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=10, max_size=12))
def test_interval_holds_the_mean_lies_within_the_values_and_repeats(values: list[float]) -> None:
    estimate = mean_interval(values)
    assert estimate.low is not None
    assert estimate.high is not None
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= estimate.low <= estimate.value <= estimate.high <= max(values) + slack
    assert mean_interval(values) == estimate


def test_the_global_generators_are_left_alone() -> None:
    before, before_numpy = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    mean_interval([1.0, 2.0, 3.0])
    slope([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == before_numpy  # type: ignore[index,union-attr]


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, float("inf")]], ids=["empty", "nan", "inf"])
def test_values_that_no_mean_has_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="a statistic needs"):
        mean_interval(bad)


def test_slope_of_a_line_is_exact_and_certain() -> None:
    estimate = slope([1, 2, 3, 4], [1.5, 3.5, 5.5, 7.5])
    assert estimate.value == pytest.approx(2.0)
    assert estimate.low == pytest.approx(2.0)
    assert estimate.high == pytest.approx(2.0)
    assert estimate.n == 4


def test_slope_of_logarithms_is_the_exponent() -> None:
    lengths = [1024, 2048, 4096, 8192]
    quadratic = [1e-9 * length**2 for length in lengths]
    assert slope([math.log(x) for x in lengths], [math.log(y) for y in quadratic]).value == pytest.approx(2.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=7), st.floats(-5, 5))
def test_slope_follows_an_added_line(y: list[float], added: float) -> None:
    x = list(range(len(y)))
    plain, tilted = slope(x, y), slope(x, [value + added * position for position, value in zip(x, y, strict=True)])
    assert tilted.value == pytest.approx(plain.value + added, abs=1e-6)
    assert tilted.low == pytest.approx(plain.low + added, abs=1e-6)  # type: ignore[operator]
    assert tilted.high == pytest.approx(plain.high + added, abs=1e-6)  # type: ignore[operator]


def test_slope_of_two_points_has_no_interval() -> None:
    assert slope([0.0, 2.0], [1.0, 5.0]) == Estimate(value=2.0, n=2)


def test_slope_at_one_x_is_refused() -> None:
    with pytest.raises(ValueError, match="two different x"):
        slope([3.0, 3.0], [1.0, 2.0])


def test_points_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        slope([1.0, 2.0], [1.0])
