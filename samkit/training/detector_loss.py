"""The loss that a YOLOv5 detector is trained with: where boxes lie, where objects are, which class they have.

Each box is given to every anchor of similar size, in the cell that holds its centre and the two nearest neighbours.
There its place is scored by complete IoU (CIoU, arXiv:1911.08287), its class by binary cross-entropy, and the
objectness of the cell is to become that IoU; the objectness of all other cells is to become 0. Weights are those of
YOLOv5's published defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from samkit.networks.yolo_config import YoloConfig

BOX, OBJECTNESS, CLASSES = 0.05, 1.0, 0.5
"""Weights of the three parts, for three grids, 80 classes and inputs of 640 pixels."""
BALANCE = (4.0, 1.0, 0.4)
"""Weights of the grids' objectness: the fine ones have more cells, of which a smaller part holds an object."""
MAX_RATIO = 4.0
"""An anchor takes boxes whose sides are at most this many times longer or shorter: the decoder reaches no further."""


@dataclass(frozen=True)
class DetectorLosses:
    """What one batch costs; `total` is minimised, the parts are detached and already weighted."""

    total: Tensor
    """The sum of the parts times the batch's size, as YOLOv5's learning rates expect."""
    box: Tensor
    objectness: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Matches:
    """Boxes of a batch given to anchors of one grid: all (n,), but for the last two."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    kind: Tensor
    """Class of the box."""
    box: Tensor
    """(n, 4) centre x, y from the cell's corner, width, height [cells]."""
    size: Tensor
    """(n, 2) width and height of the anchor [cells]."""


def detector_loss(maps: tuple[Tensor, ...], boxes: Tensor, config: YoloConfig) -> DetectorLosses:
    """Return the losses of `Yolo.raw`'s logits (B, A, h, w, 5 + classes) of each grid.

    `boxes` (n, 6): index in the batch, class, x0, y0, x1, y1 [pixels of the input].
    """
    boxes = boxes.float()
    zero = maps[0].new_zeros((), dtype=torch.float32)
    box, objectness, classes = zero, zero, zero
    grids = zip(maps, config.anchors, config.strides, BALANCE, strict=True)
    for logits, anchors, stride, balance in grids:
        logits = logits.float()  # in half precision the sums over many empty cells lose the few full ones
        sizes = torch.tensor(anchors, device=logits.device).view(-1, 2) / stride
        found = match(boxes, sizes, stride, (logits.shape[2], logits.shape[3]))
        wanted = logits.new_zeros(logits.shape[:4])
        if len(found.image):
            there = logits[found.image, found.anchor, found.row, found.column]
            at, side = there[:, :2].sigmoid() * 2 - 0.5, (there[:, 2:4].sigmoid() * 2) ** 2 * found.size
            overlap = complete_iou(torch.cat([at, side], 1), found.box)
            box = box + (1 - overlap).mean()
            # Where several boxes meet in one cell, its objectness is that of the best placed one.
            cell = ((found.image * len(sizes) + found.anchor) * logits.shape[2] + found.row) * logits.shape[3]
            cell = cell + found.column
            wanted.view(-1).scatter_reduce_(0, cell, overlap.detach().clamp(min=0), "amax")
            if config.classes > 1:
                kinds = F.one_hot(found.kind, config.classes).float()
                classes = classes + F.binary_cross_entropy_with_logits(there[:, 5:], kinds)
        objectness = objectness + balance * F.binary_cross_entropy_with_logits(logits[..., 4], wanted)
    grids_gain = 3 / len(maps)
    box = box * BOX * grids_gain
    objectness = objectness * OBJECTNESS * grids_gain * (config.image / 640) ** 2
    classes = classes * CLASSES * grids_gain * config.classes / 80
    total = (box + objectness + classes) * len(maps[0])
    return DetectorLosses(total, box.detach(), objectness.detach(), classes.detach())


def match(boxes: Tensor, sizes: Tensor, stride: int, shape: tuple[int, int]) -> Matches:
    """Return who is to find which of `boxes` (n, 6), see `detector_loss`, on a grid of `shape` (h, w) cells.

    `sizes` (A, 2) are the anchors' width and height [cells]. A box may get several anchors, or none.
    """
    corners = boxes[:, 2:] / stride
    centre, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    ratio = side[:, None] / sizes
    alike = torch.maximum(ratio, 1 / ratio).amax(2) < MAX_RATIO
    which, anchor = alike.nonzero(as_tuple=True)
    limits = torch.tensor([shape[1], shape[0]], device=boxes.device)
    own = centre[which].long().clamp(min=0).minimum(limits - 1)
    # Also the neighbour along x and the one along y to which the centre is nearer: from there, too, the decoder reaches
    # it. From the middle of a cell no neighbour is nearer.
    nearer = (centre[which] - own - 0.5).sign().long()
    along_x, along_y = torch.eye(2, dtype=torch.long, device=boxes.device)
    cells = torch.cat([own, own + nearer * along_x, own + nearer * along_y])
    taken = torch.cat([torch.ones_like(nearer[:, :1]), nearer[:, :1], nearer[:, 1:]])[:, 0] != 0
    taken &= ((cells >= 0) & (cells < limits)).all(1)
    which, anchor, cells = which.repeat(3)[taken], anchor.repeat(3)[taken], cells[taken]
    return Matches(
        image=boxes[which, 0].long(),
        anchor=anchor,
        row=cells[:, 1],
        column=cells[:, 0],
        kind=boxes[which, 1].long(),
        box=torch.cat([centre[which] - cells, side[which]], 1),
        size=sizes[anchor],
    )


def complete_iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the complete IoU (n,) of boxes (n, 4) centre x, y, width, height: 1 for equal ones, down to below -1.

    IoU, less the distance of the centres (as part of the diagonal of the box around both), less the difference of
    the shapes, which counts the more the better the boxes overlap (arXiv:1911.08287, equations 7 to 9, there 1 - this).
    """
    tiny = 1e-7
    low, high = found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2
    wanted_low, wanted_high = wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2
    shared = (torch.minimum(high, wanted_high) - torch.maximum(low, wanted_low)).clamp(min=0).prod(1)
    iou = shared / (found[:, 2:].prod(1) + wanted[:, 2:].prod(1) - shared + tiny)
    around = torch.maximum(high, wanted_high) - torch.minimum(low, wanted_low)
    distance = (found[:, :2] - wanted[:, :2]).pow(2).sum(1) / (around.pow(2).sum(1) + tiny)
    angles = [torch.atan(b[:, 2] / (b[:, 3] + tiny)) for b in (found, wanted)]
    shape = 4 / math.pi**2 * (angles[0] - angles[1]).pow(2)
    with torch.no_grad():
        weight = shape / (1 - iou + shape + tiny)
    return iou - distance - weight * shape
