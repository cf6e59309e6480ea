"""What a call changed is told by the smallest box; what was told once does not alter later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samkit.errors import PromptError
from samkit.geometry import Volume
from samkit.prompts import BACKGROUND, Box, Point
from samkit.runtime.protocol.requests import ScanOptions
from samkit.runtime.session.updates import MaskUpdate, changed_part, paint
from support import stand_ins as the


@st.composite
def masks(draw, rank, side=7):
    """Up to three parts, overlapping or not, empty or not, within a cube of `side`."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        ends = [sorted(draw(st.tuples(st.integers(0, side), st.integers(0, side)))) for _ in range(rank)]
        region = tuple(slice(*pair) for pair in ends)
        shape = tuple(b - a for a, b in ends)
        random = np.random.default_rng(draw(st.integers(0, 2**16)))
        labels = random.integers(0, draw(st.integers(1, 4)), shape).astype(np.uint8)
        parts.append((region, labels > 0 if draw(st.booleans()) else labels))
    return parts


@settings(deadline=None)
@given(st.data(), st.sampled_from([2, 3]))
def test_change_patches_the_mask_before_into_the_one_after_by_the_smallest_box(data, rank):
    before, after = data.draw(masks(rank)), data.draw(masks(rank))
    old, new = paint(before, (7,) * rank), paint(after, (7,) * rank)
    region, labels = changed_part(before, after, rank)
    patched = old.copy()
    patched[region] = labels

    assert np.array_equal(patched, new)
    assert labels.dtype == np.uint8
    assert labels.flags.c_contiguous
    differs = old != new
    if not differs.any():
        assert region == (slice(0, 0),) * rank
        return
    places = np.argwhere(differs)
    assert [side.start for side in region] == places.min(axis=0).tolist()
    assert [side.stop for side in region] == (places.max(axis=0) + 1).tolist()


def part(corner, shape, label=1):
    return tuple(slice(a, a + n) for a, n in zip(corner, shape, strict=True)), np.full(shape, label, np.uint8)


def test_larger_label_counts_where_parts_overlap():
    painted = paint([part((0, 0), (3, 3), 2), part((1, 1), (3, 3), 1)], (4, 4))

    assert painted.tolist() == [[2, 2, 2, 0], [2, 2, 2, 1], [2, 2, 2, 1], [0, 1, 1, 1]]


def test_parts_are_painted_as_far_as_they_lie_in_the_box():
    painted = paint([part((2, 2), (4, 4)), part((9, 9), (2, 2))], (3, 3), (5, 0))

    assert painted.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_nothing_is_an_empty_box():
    region, labels = changed_part([], [], 3)
    assert (region, labels.shape, labels.dtype) == ((slice(0, 0),) * 3, (0, 0, 0), np.uint8)
    region, labels = changed_part([part((1, 2), (2, 2))], [part((1, 2), (2, 1)), part((1, 3), (2, 1))], 2)
    assert (region, labels.shape) == ((slice(0, 0),) * 2, (0, 0))


def test_small_change_holds_no_large_array():
    before = [part((0, 0, 0), (50, 50, 50))]
    after = [*before, part((3, 3, 3), (1, 1, 1), 2)]
    _, labels = changed_part(before, after, 3)

    assert labels.base is None


def test_costly_parts_are_computed_when_somebody_looks_and_once():
    asked = []

    def labels():
        asked.append("labels")
        return np.array([0, 2], np.uint8)

    def change():
        asked.append("change")
        return (slice(1, 2),), np.array([2], np.uint8)

    update = MaskUpdate(labels, change, volume_ml=None)
    assert asked == []
    for _ in range(2):
        assert update.mask.tolist() == [False, True]
        assert update.changed == (slice(1, 2),)
        assert update.change[1].tolist() == [2]
    assert asked == ["labels", "change"]


# --- Of sessions ---


def click_through(session, array):
    """Yield the update of each of many calls, with the mask that the session says it has."""
    places = [the.bright_voxel(array, number) for number in range(3)]
    k = places[0][2]
    for act in (
        lambda: session.click(places[0]),
        lambda: session.click(places[1], False),
        session.undo,
        lambda: session.click(places[2]),
        session.undo,
        session.redo,
        *([] if session.method.name == "m-sam" else [lambda: session.box((0, 0, k), (39, 35, k))]),
        session.reset,
        lambda: session.click(places[1]),
    ):
        yield act(), session.labels()


@pytest.mark.parametrize("affine", [np.eye(4), the.oblique(), the.FLIPPED])
@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_updates_follow_the_mask_and_do_not_alter_later(kind, affine):
    array = the.scan(4)
    session = the.served(kind).session(the.runners(kind), ScanOptions())
    first = session.set_image(Volume(array, affine))
    assert (first.mask.any(), first.volume_ml, first.changed) == (False, 0.0, (slice(0, 0),) * 3)
    patched, updates = first.labels.copy(), []
    for update, labels in click_through(session, array):
        patched[update.changed] = update.change[1]
        assert np.array_equal(patched, labels)
        updates.append((update, labels))
    assert not first.mask.any()
    for update, labels in updates:  # long after
        assert np.array_equal(update.labels, labels)
        assert np.array_equal(update.mask, labels > 0)
        assert update.volume_ml == pytest.approx(np.count_nonzero(labels) * abs(np.linalg.det(affine[:3, :3])) / 1000)
    assert sum(labels.any() for _, labels in updates) >= 6


@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_update_nobody_looked_at_says_what_it_would_have_said(kind):
    array = the.scan(4)
    session = the.served(kind).session(the.runners(kind), ScanOptions())
    session.set_image(Volume(array, np.eye(4)))
    pairs = list(click_through(session, array))
    session.set_image(Volume(the.scan(5), np.eye(4)))  # only now is anything computed
    patched = np.zeros(array.shape, np.uint8)
    for update, labels in pairs:
        patched[update.changed] = update.change[1]
        assert np.array_equal(patched, labels)
        assert np.array_equal(update.labels, labels)


def test_automatic_method_decides_when_an_image_is_set():
    array = the.scan(4)
    session = the.served("automatic").session(the.runners("automatic"), ScanOptions())
    update = session.set_image(Volume(array, np.eye(4)))

    assert np.array_equal(update.mask, array > 100)
    assert update.changed == tuple(
        slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(array > 100)
    )
    k = the.bright_voxel(array)[2]
    after = session.box((0, 0, k), (39, 35, k))
    assert np.array_equal(after.mask, array > 100)
    assert after.changed == (slice(0, 0),) * 3


def test_pictures_change_in_two_axes():
    picture = the.scan(4)[:, :, 20].astype(np.float32)
    session = the.served("slices").session(the.runners("slices"), ScanOptions())
    session.set_image(picture)
    rows, columns = np.nonzero(picture > 100)
    update = session.box((0, 0), (35, 39))

    assert update.changed == (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert np.array_equal(update.mask, picture > 100)
    assert update.volume_ml is None
    assert len(update.iou) == 1


def test_labels_between_two_slices_that_change_stay():
    session = the.served("automatic").session(the.runners("automatic"), ScanOptions())
    array = np.full((40, 36, 44), 12, np.int16)
    array[10:20, 10:20, 5:15] = 200
    before = session.set_image(Volume(array, the.FLIPPED)).labels
    session.add(Point((1, 1, 6), BACKGROUND), Point((15, 15, 8), BACKGROUND), Point((15, 15, 12), BACKGROUND))
    update = session.last_update()
    patched = before.copy()
    patched[update.changed] = update.change[1]

    assert np.array_equal(patched, session.labels())
    assert update.mask[15, 15, [7, 8, 9, 12, 13]].tolist() == [True, False, True, False, True]


def test_failed_call_leaves_the_last_update():
    array = the.scan(4)
    session = the.alone("slices", array)
    update = session.add(Box((0, 0, 20), (39, 35, 20)))
    with pytest.raises(PromptError):
        session.click((1, 2))

    assert session.steps == (update.step,)
    assert session.last_update().changed == update.changed
