"""What follows from raw samples: percentiles, means with intervals, ratios, exponents. Nothing here is drawn by chance.

Intervals are bootstrap percentiles (Efron and Tibshirani 1993, chapter 13) of RESAMPLES draws by a seeded generator, so
the same samples give the same interval; LEVEL of them hold the truth if the samples are independent, which runs on a
shared machine are only roughly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, and where it lies in LEVEL of all cases."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 5) -> Estimate:
        """Return it to so many significant digits, as runs keep it."""
        return Estimate(*(significant(end, digits) for end in (self.value, self.low, self.high)))


def significant(value: float, digits: int = 5) -> float:
    """Return a number to so many significant digits; infinities and nan stay what they are.

    >>> significant(0.00123456, 3)
    0.00123
    """
    return float(f"{value:.{digits}g}")


def spread(values: Sequence[float], most: int) -> list[float]:
    """Return `most` of the values at most, in order of size, evenly spread between the least and the greatest.

    >>> spread([5, 1, 2, 4, 3], 3)
    [1, 3, 5]
    """
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(number * (len(ordered) - 1) / max(1, most - 1))] for number in range(most)]


def mean_interval(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of independent values, such as one per case; of one value the interval is that value."""
    array = np.asarray(values, np.float64)
    return _estimate(array.mean(), array[_draws(len(array))].mean(axis=1))


def median_difference(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return how far the median of `values` lies above that of `base`.

    Both are of the same things in the same order, such as clicks in turns, and are drawn together.
    """
    drawn = _draws(len(values))
    differences = np.median(np.asarray(values)[drawn], axis=1) - np.median(np.asarray(base)[drawn], axis=1)
    return _estimate(np.median(values) - np.median(base), differences)


def percentile_ratio(values: Sequence[float], base: Sequence[float], percent: float = 50) -> Estimate:
    """Return a percentile of `values`, or the median, over that of `base`: measured apart, so drawn apart."""
    ours, theirs = (np.asarray(samples, np.float64) for samples in (values, base))
    drawn, drawn_base = (
        np.percentile(samples[_draws(len(samples), seed)], percent, axis=1)
        for seed, samples in enumerate((ours, theirs))
    )
    return _estimate(np.percentile(ours, percent) / np.percentile(theirs, percent), drawn / drawn_base)


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Estimate:
    """Return the e of cost = c * size^e, by least squares of the logarithms; 1 is proportional, 0 no dependence.

    All numbers are positive; there are two different sizes at least. The interval comes from drawing the points anew,
    draws of a single size left out, so of two points it is the slope between them.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(costs, np.float64))
    drawn = _draws(len(x))
    drawn = drawn[np.ptp(x[drawn], axis=1) > 0]
    return _estimate(_slope(x, y), _slope(x[drawn], y[drawn]))


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the slope of y over x along the last axis."""
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    return (x * y).sum(axis=-1) / (x * x).sum(axis=-1)


def _draws(count: int, seed: int = 0) -> np.ndarray:
    """Return RESAMPLES rows of `count` numbers below it, each row one draw with replacement."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def _estimate(value: np.floating | np.ndarray, drawn: np.ndarray) -> Estimate:
    """Return a figure with the percentiles of those that were drawn."""
    low, high = np.percentile(drawn, (50 - 50 * LEVEL, 50 + 50 * LEVEL))
    return Estimate(float(value), float(low), float(high))
