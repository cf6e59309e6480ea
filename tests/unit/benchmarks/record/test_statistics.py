"""Guards what is made of raw samples: intervals, ratios and exponents that anyone gets again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from samkit.benchmarks.record.statistics import (
    Estimate,
    fit_exponent,
    mean_interval,
    median_difference,
    percentile_ratio,
)

SAMPLES = np.random.default_rng(5).gamma(4.0, 2.0, 60)


def test_interval_of_a_mean_agrees_with_scipys_bootstrap():
    theirs = stats.bootstrap((SAMPLES,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval

    ours = mean_interval(SAMPLES)

    assert ours.value == pytest.approx(SAMPLES.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))


def test_interval_of_one_value_is_that_value():
    assert mean_interval([2.0]) == Estimate(2.0, 2.0, 2.0)


def test_the_same_samples_give_the_same_interval():
    assert mean_interval(SAMPLES) == mean_interval(SAMPLES.tolist())


def test_a_ratio_of_equal_samples_holds_one_and_a_real_one_does_not():
    same, slower = percentile_ratio(SAMPLES, SAMPLES), percentile_ratio(3 * SAMPLES, SAMPLES)

    assert same.low < 1 < same.high
    assert slower.low > 1
    assert slower.value == pytest.approx(3)
    assert percentile_ratio([1.0, 4.0], [2.0, 2.0], 100).value == 2.0


def test_a_difference_in_pairs_does_not_see_what_both_share():
    assert median_difference(SAMPLES + 2, SAMPLES).rounded(3) == Estimate(2.0, 2.0, 2.0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 3.0])
def test_exponent_is_found_again(exponent):
    sizes = np.array([10.0, 20.0, 50.0, 90.0])

    found = fit_exponent(sizes, 7 * sizes**exponent)

    assert found.value == pytest.approx(exponent, abs=1e-9)
    assert found.low == pytest.approx(found.high, abs=1e-6)


def test_exponent_of_noisy_costs_agrees_with_scipy():
    sizes = np.arange(1, 30)
    costs = sizes**1.5 * np.random.default_rng(2).uniform(0.8, 1.25, sizes.size)

    found = fit_exponent(sizes, costs)

    assert found.value == pytest.approx(stats.linregress(np.log(sizes), np.log(costs)).slope)
    assert found.low < found.value < found.high
