"""Guards the way from a picture to a detector's input and from its predictions back to boxes of the picture."""

import numpy as np
import pytest

from samkit.detections import Letterbox, box_iou, non_max_suppression
from samkit.errors import TensorMismatchError


@pytest.mark.parametrize(
    ("shape", "minimal", "scaled", "size", "corner"),
    [
        ((240, 240), False, (640, 640), (640, 640), (0, 0)),
        ((480, 640), False, (480, 640), (640, 640), (80, 0)),
        ((480, 640), True, (480, 640), (480, 640), (0, 0)),
        ((1080, 1920), True, (360, 640), (384, 640), (12, 0)),
        ((1080, 1920), False, (360, 640), (640, 640), (140, 0)),
        ((255, 640), False, (255, 640), (640, 640), (192, 0)),  # 385 spare rows: 192 above, 193 below
        ((100, 300), True, (213, 640), (224, 640), (5, 0)),  # 11 spare rows: 5 above, 6 below
        ((640, 1), False, (640, 1), (640, 640), (0, 319)),
        ((5000, 1), False, (640, 1), (640, 640), (0, 319)),  # a line keeps one column
    ],
)
def test_picture_lies_in_the_middle(shape, minimal, scaled, size, corner):
    box = Letterbox.fit(shape, 640, minimal=minimal)
    assert (box.scaled, box.size, box.corner) == (scaled, size, corner)


@pytest.mark.parametrize(("shape", "side"), [((0, 5), 640), ((5, 5), 100), ((5, 5), 0)])
def test_impossible_letterbox_is_refused(shape, side):
    with pytest.raises(TensorMismatchError, match="can't be letterboxed"):
        Letterbox.fit(shape, side)


def test_border_is_grey_and_channels_come_first():
    image = np.zeros((32, 64, 3), np.uint8)
    image[..., 1] = 255
    out = Letterbox.fit((32, 64), 64).apply(image)
    assert out.shape == (3, 64, 64)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[:, 16:48], np.broadcast_to([[[0]], [[1]], [[0]]], (3, 32, 64)))
    np.testing.assert_allclose(out[:, :16], 114 / 255)
    np.testing.assert_allclose(out[:, 48:], 114 / 255)


def test_interpolation_is_between_pixel_centres():
    """Doubling 0, 100 gives 0, 25, 75, 100: edges repeated, quarters between the centres."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 100
    row = Letterbox.fit((16, 16), 32).apply(image)[0, 5] * 255
    np.testing.assert_allclose(row[14:18], [0, 25, 75, 100], rtol=1e-6)
    image[:, 8:] = 3
    row = Letterbox.fit((16, 16), 32).apply(image)[0, 5] * 255
    np.testing.assert_allclose(row[14:18], [0, 1, 2, 3], rtol=1e-6)  # 0.75 and 2.25: pictures hold whole numbers
    row = Letterbox.fit((16, 16), 32).apply(image.astype(np.float32))[0, 5] * 255
    np.testing.assert_allclose(row[14:18], [0, 0.75, 2.25, 3], rtol=1e-6)


def test_picture_of_other_shape_is_refused():
    with pytest.raises(TensorMismatchError, match="fit one to this picture"):
        Letterbox.fit((10, 20)).apply(np.zeros((20, 10, 3), np.uint8))


@pytest.mark.parametrize("shape", [(240, 240), (123, 457), (1000, 333)])
def test_boxes_come_back(shape):
    box = Letterbox.fit(shape, 640)
    height, width = shape
    boxes = np.random.default_rng(0).uniform(0, 1, (20, 4)) * [width, height, width, height]
    np.testing.assert_allclose(box.boxes_back(box.boxes(boxes)), boxes, atol=1e-9)


def test_boxes_frame_the_same_pixels():
    """A bright rectangle, letterboxed, fills the box that is computed for it."""
    image = np.zeros((100, 60, 3), np.uint8)
    image[20:50, 10:40] = 255
    box = Letterbox.fit((100, 60), 640)
    x0, y0, x1, y1 = np.rint(box.boxes(np.array([[10, 20, 40, 50]]))[0]).astype(int)
    bright = box.apply(image)[0] > 0.5
    bright[:, : box.corner[1]] = False
    assert (np.flatnonzero(bright.any(1))[[0, -1]] == [y0, y1 - 1]).all()
    assert (np.flatnonzero(bright.any(0))[[0, -1]] == [x0, x1 - 1]).all()


def test_boxes_back_end_at_the_picture():
    box = Letterbox.fit((480, 640), 640)
    np.testing.assert_allclose(box.boxes_back(np.array([[-5, 0, 700, 640]])), [[0, 0, 640, 480]])
    assert box.boxes_back(np.zeros((0, 4))).shape == (0, 4)


def row(x, y, w, h, objectness, *classes):
    return [x, y, w, h, objectness, *classes]


def test_of_overlapping_boxes_the_surest_stays():
    predictions = np.array(
        [
            row(50, 50, 20, 20, 0.8, 1.0),
            row(52, 50, 20, 20, 0.9, 1.0),  # IoU 18/22 with the first
            row(62, 50, 20, 20, 0.7, 1.0),  # IoU 10/30 with the second: both stay
            row(90, 90, 10, 10, 0.2, 1.0),  # below the confidence
            row(90, 90, 10, 10, 0.5, 0.4),  # objectness above it, score 0.2 not
        ],
        np.float32,
    )
    found = non_max_suppression(predictions)
    np.testing.assert_allclose(found, [[42, 40, 62, 60, 0.9, 0], [52, 40, 72, 60, 0.7, 0]], atol=1e-6)


def test_overlap_at_the_limit_stays():
    predictions = np.array([row(50, 50, 20, 20, 0.9, 1.0), row(60, 50, 20, 20, 0.8, 1.0)])
    assert len(non_max_suppression(predictions, iou=1 / 3)) == 2
    assert len(non_max_suppression(predictions, iou=0.33)) == 1


def test_classes_do_not_suppress_each_other():
    predictions = np.array([row(50, 50, 20, 20, 0.9, 0.1, 1.0), row(50, 50, 20, 20, 0.8, 1.0, 0.0)])
    found = non_max_suppression(predictions)
    np.testing.assert_allclose(found[:, 4:], [[0.9, 1], [0.8, 0]])
    np.testing.assert_allclose(found[:, :4], [[40, 40, 60, 60]] * 2)


def test_detections_are_limited_surest_first():
    rng = np.random.default_rng(1)
    predictions = np.array([row(50 * n, 50, 20, 20, rng.uniform(0.3, 1), 1.0) for n in range(40)])
    found = non_max_suppression(predictions, max_detections=7)
    np.testing.assert_allclose(found[:, 4], np.sort(predictions[:, 4])[::-1][:7])


def test_nothing_found_is_an_empty_list():
    assert non_max_suppression(np.zeros((30, 6))).shape == (0, 6)
    assert non_max_suppression(np.zeros((0, 6))).shape == (0, 6)


@pytest.mark.parametrize("predictions", [np.zeros((1, 30, 6)), np.zeros((30, 5)), np.full((3, 6), np.nan)])
def test_unusable_predictions_are_refused(predictions):
    with pytest.raises(TensorMismatchError, match="predictions"):
        non_max_suppression(predictions)


def test_iou_of_known_boxes():
    a = np.array([[0, 0, 4, 4], [1, 1, 2, 2]])
    b = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [9, 9, 9, 9]])
    np.testing.assert_allclose(box_iou(a, b), [[1, 4 / 28, 0], [1 / 16, 0, 0]])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0
