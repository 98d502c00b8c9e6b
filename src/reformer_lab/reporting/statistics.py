"""Intervals and trends for a few seeds: percentile bootstrap with a generator of its own.

Every function is deterministic: the same values give the same interval. One value has no interval, and neither has a
difference with a single run on one of its sides: the result then says `low=None, high=None`. Source of the intervals:
Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 20200114


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval and the number of independent runs behind it."""

    value: float
    """The point estimate."""
    low: float | None = None
    """Lower end of the interval; None without one."""
    high: float | None = None
    """Upper end of the interval; None without one."""
    n: int = 1
    """Independent runs; the smaller side's for a difference."""

    @property
    def has_interval(self) -> bool:
        """Whether there were enough runs for an interval."""
        return self.low is not None and self.high is not None


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean with its percentile bootstrap interval.

    Raises ValueError without values or with one that is not finite.
    """
    import numpy as np

    sample = _sample(values)
    if len(sample) == 1:
        return Estimate(value=float(sample[0]), n=1)
    means = sample[np.random.default_rng(_SEED).integers(len(sample), size=(RESAMPLES, len(sample)))].mean(axis=1)
    return _estimate(float(sample.mean()), means, confidence, len(sample))


def difference_interval(values: Sequence[float], baseline: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Return mean(values) - mean(baseline), the two resampled independently.

    Raises ValueError as `mean_interval` does.
    """
    import numpy as np

    left, right = _sample(values), _sample(baseline)
    difference = float(left.mean() - right.mean())
    n = min(len(left), len(right))
    if n == 1:
        return Estimate(value=difference, n=1)
    rng = np.random.default_rng(_SEED)
    means = [side[rng.integers(len(side), size=(RESAMPLES, len(side)))].mean(axis=1) for side in (left, right)]
    return _estimate(difference, means[0] - means[1], confidence, n)


def non_inferior(
    values: Sequence[float], baseline: Sequence[float], *, margin: float, lower_is_better: bool = True
) -> tuple[bool | None, Estimate]:
    """Judge whether `values` are worse than `baseline` by less than `margin`.

    Returns (True, difference) when the whole interval of the difference is on the good side of the margin, False when
    the whole interval is on the bad side, None when the interval holds the margin. Without an interval (n = 1) the
    point decides: callers mark that as indicative. `margin` > 0, in the unit of the values.
    """
    assert margin > 0, margin
    difference = difference_interval(values, baseline)
    sign = 1.0 if lower_is_better else -1.0
    ends = [difference.value] if difference.low is None or difference.high is None else [difference.low, difference.high]
    harm = [sign * end for end in ends]
    if max(harm) < margin:
        return True, difference
    if min(harm) > margin:
        return False, difference
    return None, difference


def trend(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Kendall's tau-b of the points: 1 where y always rises with x, -1 where it always falls, 0 without trend.

    Ties count for neither; constant x or y gives 0. Source: Kendall, "Rank Correlation Methods" (1948).
    """
    points = list(zip(*(side.tolist() for side in _pair(x, y)), strict=True))
    balance = tied_x = tied_y = pairs = 0
    for i, (x_i, y_i) in enumerate(points):
        for x_j, y_j in points[:i]:
            pairs += 1
            tied_x += x_i == x_j
            tied_y += y_i == y_j
            balance += _sign(x_i - x_j) * _sign(y_i - y_j)
    scale = math.sqrt((pairs - tied_x) * (pairs - tied_y))
    return balance / scale if scale else 0.0


def slope(x: Sequence[float], y: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the least-squares slope of y over x, with an interval from resampling the points.

    For a power law pass logarithms: the slope is then the exponent. Fewer than three points, or all at one x, have no
    interval; resamples that fall on a single x are left out. Raises ValueError when all x are equal.
    """
    import numpy as np

    xs, ys = _pair(x, y)
    if xs.min() == xs.max():
        raise ValueError(f"a slope needs two different x, got {xs[0]} alone")
    value = float(_slopes(xs[None], ys[None])[0])
    if len(xs) < 3:
        return Estimate(value=value, n=len(xs))
    picks = np.random.default_rng(_SEED).integers(len(xs), size=(RESAMPLES, len(xs)))
    usable = picks[xs[picks].min(axis=1) < xs[picks].max(axis=1)]
    return _estimate(value, _slopes(xs[usable], ys[usable]), confidence, len(xs))


def _slopes(xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
    dx = xs - xs.mean(axis=1, keepdims=True)
    dy = ys - ys.mean(axis=1, keepdims=True)
    return (dx * dy).sum(axis=1) / (dx * dx).sum(axis=1)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _sample(values: Sequence[float]) -> "np.ndarray":
    import numpy as np

    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(f"a statistic needs a list of at least one number, got {values!r}")
    if not np.isfinite(sample).all():
        raise ValueError(f"a statistic needs finite numbers, got {values!r}")
    return sample


def _pair(x: Sequence[float], y: Sequence[float]) -> tuple["np.ndarray", "np.ndarray"]:
    xs, ys = _sample(x), _sample(y)
    if len(xs) != len(ys):
        raise ValueError(f"x and y differ in length: {len(xs)} and {len(ys)}")
    return xs, ys


def _estimate(value: float, resampled: "np.ndarray", confidence: float, n: int) -> Estimate:
    import numpy as np

    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    # Means of resamples differ from the plain mean in the last bits even when all values are equal.
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)
