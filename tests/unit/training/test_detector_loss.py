"""Guards the detector's loss: who has to find a box, what a box's misplacement costs, and that it can be learnt."""

import math

import pytest
import torch

from samkit.detections import box_iou, non_max_suppression
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import YoloConfig
from samkit.training.detector_loss import complete_iou, detector_loss, match

ANCHORS = torch.tensor([[2.0, 2.0], [4.0, 4.0], [40.0, 40.0]])


def cells_of(found, anchor=0):
    return {(int(x), int(y)) for a, x, y in zip(found.anchor, found.column, found.row, strict=True) if int(a) == anchor}


def box_at(x, y, side=16.0, kind=0):
    """One box of a batch, centre and side in pixels of a grid with 8 pixels per cell."""
    return torch.tensor([[0, kind, x - side / 2, y - side / 2, x + side / 2, y + side / 2]])


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (82.0, 50.0, {(10, 6), (9, 6), (10, 5)}),  # 10.25, 6.25 cells: nearer to the left and the upper neighbour
        (86.0, 54.0, {(10, 6), (11, 6), (10, 7)}),
        (84.0, 52.0, {(10, 6)}),  # the middle of a cell
        (84.0, 50.0, {(10, 6), (10, 5)}),
        (2.0, 50.0, {(0, 6), (0, 5)}),  # no cell to the left of the first
        (159.0, 159.0, {(19, 19)}),
        (160.0, 80.0, {(19, 10), (19, 9)}),  # on the picture's edge
    ],
)
def test_box_belongs_to_the_cells_around_its_centre(x, y, cells):
    found = match(box_at(x, y), ANCHORS, 8, (20, 20))
    assert cells_of(found) == cells
    centre = found.box[:, :2] + torch.stack([found.column, found.row], 1)
    torch.testing.assert_close(centre, torch.tensor([[x, y]]).expand_as(centre) / 8)
    assert found.box[:, :2].min() >= -0.5
    assert found.box[:, :2].max() <= 1.5


def test_only_anchors_of_similar_size_take_a_box():
    found = match(box_at(84, 52), ANCHORS, 8, (20, 20))  # 2 x 2 cells
    assert sorted(found.anchor.tolist()) == [0, 1]
    wide = torch.tensor([[0, 0, 20.0, 48, 84, 56]])  # 8 x 1 cells: 4 times as wide as the first, 4 times less high than
    assert len(match(wide, ANCHORS, 8, (20, 20)).image) == 0  # the second, and a ratio of 4 is too much
    assert len(match(box_at(84, 52, side=0), ANCHORS, 8, (20, 20)).image) == 0


def test_no_boxes_match_nothing():
    assert len(match(torch.zeros(0, 6), ANCHORS, 8, (20, 20)).image) == 0


def test_complete_iou_of_known_boxes():
    wanted = torch.tensor([[0.0, 0, 2, 2]]).expand(4, 4)
    found = torch.tensor([[0.0, 0, 2, 2], [1, 0, 2, 2], [0, 0, 4, 1], [10, 0, 2, 2]])
    shape = 4 / math.pi**2 * (math.atan(4) - math.atan(1)) ** 2
    expected = torch.tensor(
        [
            1,
            1 / 3 - 1 / 13,  # centres 1 apart, the box around both is 3 x 2
            1 / 3 - shape**2 / (1 - 1 / 3 + shape),  # centres agree, the shapes do not
            -100 / 148,  # far apart
        ]
    )
    torch.testing.assert_close(complete_iou(found, wanted), expected)


CONFIG = YoloConfig(width=8, depth=1, classes=1, image=64)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def empty_maps(config, batch=1, logit=0.0):
    return tuple(torch.full((batch, 3, 64 // s, 64 // s, 5 + config.classes), logit) for s in config.strides)


def test_empty_pictures_cost_objectness_alone():
    losses = detector_loss(empty_maps(CONFIG, batch=2), torch.zeros(0, 6), CONFIG)
    wanted = math.log(2) * (4 + 1 + 0.4) * (64 / 640) ** 2
    torch.testing.assert_close(losses.objectness, torch.tensor(wanted))
    torch.testing.assert_close(losses.total, torch.tensor(2 * wanted))
    assert losses.box == 0
    assert losses.classes == 0


def test_perfect_maps_cost_nothing():
    """A box in the middle of a cell with an anchor's own size: logits of 0, surely there, of class 1."""
    config = YoloConfig(width=8, depth=1, classes=3, image=64, anchors=((8, 8), (64, 64), (300, 300)))
    maps = tuple(torch.zeros(1, 1, 64 // s, 64 // s, 8) for s in config.strides)
    for grid in maps:
        grid[..., 4] = -30
    maps[0][0, 0, 3, 5, 4:] = torch.tensor([30.0, -30, 30, -30])
    losses = detector_loss(maps, torch.tensor([[0, 1, 40.0, 24, 48, 32]]), config)
    assert losses.total < 1e-6


def test_classes_are_weighted_by_their_number():
    for classes, gain in ((2, 0.5 * 2 / 80), (40, 0.25)):
        config = YoloConfig(width=8, depth=1, classes=classes, image=64, anchors=((8, 8), (64, 64), (300, 300)))
        maps = tuple(torch.zeros(1, 1, 64 // s, 64 // s, 5 + classes) for s in config.strides)
        losses = detector_loss(maps, torch.tensor([[0, 1, 40.0, 24, 48, 32]]), config)
        torch.testing.assert_close(losses.classes, torch.tensor(gain * math.log(2)))


def test_best_box_of_a_cell_sets_its_objectness():
    """Two boxes meet in one cell; which one comes first changes nothing."""
    boxes = torch.tensor([[0, 0, 40.0, 24, 48, 32], [0, 0, 38.0, 22, 50, 34]])
    maps = tuple(grid.requires_grad_() for grid in empty_maps(CONFIG))
    losses = [detector_loss(maps, b, CONFIG).objectness for b in (boxes, boxes.flip(0))]
    assert losses[0] == losses[1]


def test_half_precision_maps_give_the_same_loss():
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(grid.shape, generator=generator) for grid in empty_maps(CONFIG))
    boxes = torch.tensor([[0, 0, 40.0, 24, 56, 40]])
    full = detector_loss(maps, boxes, CONFIG).total
    half = detector_loss(tuple(grid.bfloat16() for grid in maps), boxes, CONFIG).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.01, atol=0)


@pytest.mark.slow
def test_one_picture_is_learnt():
    """Bright rectangles of two classes on noise: 140 steps, and they are found where they are.

    The rate falls to zero, so that the training settles, whatever a processor's rounding made of its first steps: over
    5 seeds, 4 starts a millionth apart, ATen's default, AVX2 and AVX-512 code, oneDNN's SSE4.1 to AVX-512, one and two
    threads, the worst box overlapped by 0.981 to 0.996. At a constant rate, 60 steps ended anywhere from 0.77 to 0.94.
    """
    steps = 140
    torch.manual_seed(0)
    config = YoloConfig(width=8, depth=1, classes=2, image=96)
    network = Yolo(config).train()
    boxes = torch.tensor([[0, 0, 10.0, 12, 34, 30], [0, 1, 50, 40, 80, 84], [0, 0, 12, 60, 30, 88]])
    image = torch.rand(1, 3, 96, 96) * 0.2
    for _, kind, x0, y0, x1, y1 in boxes.int().tolist():
        image[0, kind, y0:y1, x0:x1] = 1
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        loss = detector_loss(network.raw(image), boxes, config).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # still in training mode: one picture's own statistics are what it was trained with
        found = non_max_suppression(network.detect(image)[0].numpy())
    assert len(found) == 3
    overlaps = box_iou(boxes[:, 2:].numpy(), found[:, :4])
    assert overlaps.max(1).min() > 0.9
    assert found[overlaps.argmax(1), 5].tolist() == boxes[:, 1].tolist()
