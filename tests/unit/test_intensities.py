"""Guards what becomes black and white, and that it is told."""

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.intensities import Limits, find_limits, scale_intensities


def test_intensities_ignore_the_background_and_keep_it_zero():
    array = np.zeros((10, 10, 10))
    array[5:] = np.linspace(100, 200, 500).reshape(5, 10, 10)
    scaled, limits = scale_intensities(array, "scan")
    assert scaled.dtype == np.float32
    assert scaled[:5].max() == 0
    assert scaled.max() == 255
    assert abs(float(scaled[5:].mean()) - 127.5) < 1
    assert limits == find_limits(array, "scan")
    assert (limits.origin, limits.lowest) == ("percentiles", 0)
    assert (limits.low, limits.high) == pytest.approx(np.percentile(array[5:], (0.5, 99.5)))


def test_water_of_a_ct_is_not_background():
    array = np.full((10, 10, 10), -1024.0)
    array[5:] = np.linspace(-100, 100, 500).reshape(5, 10, 10).round(2)
    array[7, 0, 0] = 0.0
    scaled, limits = scale_intensities(array, "ct")
    assert scaled[:5].max() == 0
    assert 120 < scaled[7, 0, 0] < 135
    assert limits.lowest == -1024


def test_limits_become_black_and_white():
    scaled, limits = scale_intensities(np.array([[[-1000.0, -160.0, 0.0, 240.0, 900.0]]]), "ct", (-160.0, 240.0))
    np.testing.assert_allclose(scaled.ravel(), [0, 0, 102, 255, 255], rtol=1e-6)
    assert limits == Limits(-160.0, 240.0, "given")


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_volume_without_contrast_is_refused_by_name(value):
    with pytest.raises(InputRefused, match=r"flair\.nii has no contrast"):
        scale_intensities(np.full((3, 3, 3), value), "flair.nii")
