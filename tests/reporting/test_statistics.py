"""Intervals and trends against known values, and by their invariants."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.reporting.statistics import (
    Estimate,
    difference_interval,
    mean_interval,
    non_inferior,
    slope,
    trend,
)

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


def test_interval_of_two_values_is_the_two_values() -> None:
    """A quarter of the resamples repeat the one, a quarter the other."""
    estimate = mean_interval([1.0, 3.0])
    assert (estimate.low, estimate.value, estimate.high, estimate.n) == (1.0, 2.0, 3.0, 2)


def test_a_higher_confidence_widens_the_interval() -> None:
    values = [1.0, 2.0, 4.0, 7.0, 11.0]
    wide, narrow = mean_interval(values), mean_interval(values, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=8))
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


def test_difference_is_value_minus_baseline() -> None:
    estimate = difference_interval([3.0, 3.0, 3.0], [1.0, 1.0])
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2.0, 2.0, 2.0, 2)


def test_difference_with_a_single_run_on_one_side_has_no_interval() -> None:
    assert difference_interval([1.0, 2.0, 3.0], [1.0]) == Estimate(value=1.0, n=1)


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=5), st.lists(numbers, min_size=2, max_size=5))
def test_difference_lies_between_the_extreme_differences(values: list[float], baseline: list[float]) -> None:
    estimate = difference_interval(values, baseline)
    assert estimate.low is not None
    assert estimate.high is not None
    assert min(values) - max(baseline) - 1e-9 <= estimate.low <= estimate.value
    assert estimate.value <= estimate.high <= max(values) - min(baseline) + 1e-9


@pytest.mark.parametrize(
    ("values", "lower_is_better", "expected"),
    [
        ([2.00, 2.01, 2.02], True, True),
        ([2.30, 2.31, 2.32], True, False),
        ([1.90, 2.05, 2.30], True, None),
        ([1.50, 1.51, 1.52], True, True),
        ([1.50, 1.51, 1.52], False, False),
        ([2.30, 2.31, 2.32], False, True),
        ([2.04], True, True),
        ([2.20], True, False),
    ],
    ids=["equal", "worse", "unsure", "better", "lower accuracy", "higher accuracy", "one seed", "one bad seed"],
)
def test_non_inferiority(values: list[float], lower_is_better: bool, expected: bool | None) -> None:
    verdict, difference = non_inferior(values, [2.00, 2.01, 2.02], margin=0.1, lower_is_better=lower_is_better)
    assert verdict is expected
    assert difference.value == pytest.approx(sum(values) / len(values) - 2.01)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 2, 1], -1.0),
        ([1, 3, 2, 4], 4 / 6),
        ([1, 1, 2, 2], 4 / math.sqrt(6 * 4)),
        ([5, 5, 5, 5], 0.0),
    ],
    ids=["rising", "falling", "one swap", "ties", "constant"],
)
def test_trend_against_tau_b_by_hand(y: list[float], expected: float) -> None:
    assert trend([1, 2, 4, 8], y) == pytest.approx(expected)


@settings(max_examples=50)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8))
def test_trend_is_bounded_odd_and_blind_to_monotone_changes(y: list[int]) -> None:
    x = list(range(len(y)))
    tau = trend(x, y)
    assert -1.0 - 1e-12 <= tau <= 1.0 + 1e-12
    assert trend(x, [-value for value in y]) == pytest.approx(-tau)
    assert trend(x, [value**3 for value in y]) == pytest.approx(tau)


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
        trend([1.0, 2.0], [1.0])
