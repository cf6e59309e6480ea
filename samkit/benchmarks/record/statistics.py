"""What follows from raw samples: percentiles, means with intervals, ratios, exponents. Nothing here is drawn by chance.

Intervals are bootstrap percentiles (Efron and Tibshirani 1993, chapter 13) of RESAMPLES draws by a seeded generator, so
the same samples give the same interval; LEVEL of them hold the truth if the samples are independent, which runs on a
shared machine are only roughly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
"""How often samples are drawn anew."""
LEVEL = 0.95
_ENDS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Estimate:
    """A figure, and where it lies in LEVEL of all cases."""

    value: float
    low: float
    high: float

    def rounded(self, digits: int = 5) -> Estimate:
        """Return it to so many significant digits, as runs keep it."""
        return Estimate(*(significant(end, digits) for end in (self.value, self.low, self.high)))

    def to_dict(self, digits: int = 5) -> dict[str, float]:
        """Return the JSON form, to so many significant digits."""
        return asdict(self.rounded(digits))


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


def percentiles(milliseconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return p50_ms, p95_ms and p99_ms of times [ms], between samples by linear interpolation.

    >>> percentiles([1.0, 2.0, 3.0])["p50_ms"]
    2.0
    """
    return {f"p{percent}_ms": significant(float(np.percentile(milliseconds, percent))) for percent in PERCENTS}


def mean_interval(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of independent values, such as one per case; of one value the interval is that value.

    >>> mean_interval([2.0])
    Estimate(value=2.0, low=2.0, high=2.0)
    """
    array = np.asarray(values, np.float64)
    means = array[_draws(len(array))].mean(axis=1)
    return Estimate(float(array.mean()), *_ends(means))


def median_difference(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return how far the median of `values` lies above that of `base`.

    Both are of the same things in the same order, such as clicks in turns, and are drawn together.
    """
    drawn = _draws(len(values))
    differences = np.median(np.asarray(values)[drawn], axis=1) - np.median(np.asarray(base)[drawn], axis=1)
    return Estimate(float(np.median(values) - np.median(base)), *_ends(differences))


def median_ratio(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the median of `values` over that of `base`, which were measured apart and are drawn apart.

    >>> median_ratio([2.0, 2.0], [1.0, 1.0, 1.0]).value
    2.0
    """
    return percentile_ratio(values, base, 50)


def percentile_ratio(values: Sequence[float], base: Sequence[float], percent: float) -> Estimate:
    """Return a percentile of `values` over that of `base`, which were measured apart and are drawn apart.

    >>> percentile_ratio([1.0, 4.0], [2.0, 2.0], 100).value
    2.0
    """
    ours, theirs = (np.asarray(samples, np.float64) for samples in (values, base))
    drawn = [
        np.percentile(samples[_draws(len(samples), seed)], percent, axis=1)
        for seed, samples in enumerate((ours, theirs))
    ]
    return Estimate(float(np.percentile(ours, percent) / np.percentile(theirs, percent)), *_ends(drawn[0] / drawn[1]))


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Estimate:
    """Return the e of cost = c * size^e, by least squares of the logarithms; 1 is proportional, 0 no dependence.

    All numbers are positive; there are two different sizes at least. The interval comes from drawing the points anew,
    draws of a single size left out, so of two points it is the slope between them.

    >>> round(fit_exponent([1, 2, 4, 8], [3, 6, 12, 24]).value, 6)
    1.0
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(costs, np.float64))
    drawn = _draws(len(x))
    drawn = drawn[np.ptp(x[drawn], axis=1) > 0]
    return Estimate(_slope(x, y), *_ends(np.array([_slope(x[row], y[row]) for row in drawn])))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def _draws(count: int, seed: int = 0) -> np.ndarray:
    """Return RESAMPLES rows of `count` numbers below it, each row one draw with replacement."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def _ends(figures: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(figures, _ENDS)
    return float(low), float(high)
