"""95 % intervals: Student's t for a few values, where the bootstrap is far too narrow, the percentile bootstrap for more.

Every function is deterministic: the same values give the same interval. One value has no interval: the result then says
`low=None, high=None`. Source of the bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
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
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""Quantile 0.975 of Student's t with n - 1 degrees of freedom, by the number n of values."""


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
    """Independent runs."""

    @property
    def has_interval(self) -> bool:
        """Whether there were enough runs for an interval."""
        return self.low is not None and self.high is not None


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % interval: Student's t below ten values, the percentile bootstrap from ten on.

    Raises ValueError without values or with one that is not finite.
    """
    import numpy as np

    sample = _sample(values)
    if len(sample) == 1:
        return Estimate(value=float(sample[0]), n=1)
    if len(sample) in _STUDENT_T:
        mean = float(sample.mean())
        half = _STUDENT_T[len(sample)] * float(sample.std(ddof=1)) / math.sqrt(len(sample))
        return Estimate(value=mean, low=mean - half, high=mean + half, n=len(sample))
    means = sample[np.random.default_rng(_SEED).integers(len(sample), size=(RESAMPLES, len(sample)))].mean(axis=1)
    return _estimate(float(sample.mean()), means, len(sample))


def interval_method(n: int) -> str:
    """Name the interval that `mean_interval` gives of n values."""
    return "Student's t" if n in _STUDENT_T else "bootstrap"


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
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
    return _estimate(value, _slopes(xs[usable], ys[usable]), len(xs))


def _slopes(xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
    dx = xs - xs.mean(axis=1, keepdims=True)
    dy = ys - ys.mean(axis=1, keepdims=True)
    return (dx * dy).sum(axis=1) / (dx * dx).sum(axis=1)


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


def _estimate(value: float, resampled: "np.ndarray", n: int) -> Estimate:
    import numpy as np

    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    # Means of resamples differ from the plain mean in the last bits even when all values are equal.
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n)
