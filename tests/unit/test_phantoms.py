"""Phantoms are deterministic, look like skull-stripped MR to the rest of samkit, and hold several lesions."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from samkit.errors import GeometryError
from samkit.networks.sam2d_config import SUBCORTICAL
from samkit.phantoms import SEQUENCES, STRUCTURES, make_phantom, make_structures, write_phantoms

SHAPE = (64, 72, 60)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, SHAPE)


def test_same_seed_gives_the_same_arrays(phantom):
    again = make_phantom(3, SHAPE)

    assert np.array_equal(again.lesions, phantom.lesions)
    assert all(np.array_equal(again.sequences[n].array, phantom.sequences[n].array) for n in SEQUENCES)
    assert not np.array_equal(make_phantom(4, SHAPE).lesions, phantom.lesions)


def test_a_sequence_does_not_depend_on_which_others_are_made(phantom):
    alone = make_phantom(3, SHAPE, sequences=("t2",))

    assert list(alone.sequences) == ["t2"]
    assert np.array_equal(alone.sequences["t2"].array, phantom.sequences["t2"].array)


def test_it_is_zero_outside_the_head_and_positive_inside(phantom):
    heads = [volume.array > 0 for volume in phantom.sequences.values()]

    assert all(np.array_equal(head, heads[0]) for head in heads)
    assert 0.15 < heads[0].mean() < 0.7
    assert all(v.array[v.array > 0].min() >= 1 and v.array.max() < 2000 for v in phantom.sequences.values())
    assert heads[0][phantom.lesions > 0].all()


@pytest.mark.parametrize("seed", range(6))
def test_there_are_two_to_five_lesions(seed):
    lesions = make_phantom(seed, SHAPE, sequences=("t1",)).lesions

    assert 2 <= lesions.max() <= 5
    assert all((lesions == n).sum() >= 30 for n in range(1, lesions.max() + 1))


def test_a_long_lesion_has_the_length_asked_for():
    lesion = make_phantom(1, (112, 120, 100), lesion_length_mm=96, sequences=("t1",)).lesion(1)
    extent = np.argwhere(lesion).max(axis=0) - np.argwhere(lesion).min(axis=0) + 1

    assert extent.max() == pytest.approx(96, abs=8)


def test_a_lesion_longer_than_the_head_is_refused():
    with pytest.raises(GeometryError, match="does not fit a head"):
        make_phantom(1, SHAPE, lesion_length_mm=96)


@pytest.mark.parametrize(("shape", "spacing"), [((8, 64, 64), 1.0), ((64, 64, 64), 0.0)])
def test_impossible_arrays_are_refused(shape, spacing):
    with pytest.raises(GeometryError, match="at least 16 voxels"):
        make_phantom(1, shape, spacing)


def test_written_cases_pair_images_with_labels(tmp_path):
    write_phantoms(str(tmp_path), cases=2, seed=0, size=40, long_share=0.0)
    images, labels = (sorted((tmp_path / folder).iterdir()) for folder in ("images", "labels"))

    assert [path.name for path in images] == [path.name for path in labels] != []
    for image, label in zip(images, labels, strict=True):
        assert nib.load(image).shape == nib.load(label).shape
        assert np.asanyarray(nib.load(label).dataobj).max() >= 2


def test_structures_are_paired_and_the_same_again():
    scan, labels = make_structures(3, (64, 72, 64), 2.0)
    again, _ = make_structures(3, (64, 72, 64), 2.0)
    count = len(STRUCTURES)

    np.testing.assert_array_equal(scan.array, again.array)
    assert set(np.unique(labels)) == set(range(2 * count + 1))
    middle = (labels.shape[0] - 1) / 2
    for number in range(1, count + 1):
        left, right = (np.argwhere(labels == n)[:, 0].mean() for n in (number, number + count))
        assert left < middle < right  # the array runs from the patient's left to the right
    assert (scan.array[labels > 0] > 0).all()


def test_structures_can_be_told_from_the_tissue_around_them():
    scan, labels = make_structures(4, (72, 80, 72), 2.0)
    caudate = labels == 1 + list(STRUCTURES).index("caudate")
    around = ndimage.binary_dilation(caudate, iterations=2) & (labels == 0)

    assert scan.array[caudate].mean() < np.percentile(scan.array[around], 75)


def test_structures_are_numbered_as_lora_sam_numbers_them():
    assert tuple(f"{name}_{side}" for side in ("left", "right") for name in STRUCTURES) == SUBCORTICAL
