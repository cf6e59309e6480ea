"""What the 2D methods share: graphs, prompts as decoder rows, pictures as network input.

Tensor names and axes of the exported graphs are a promise that clients rely on; every tensor is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from samkit.errors import CheckpointError, InputRefused
from samkit.methods.method import IMAGES, Answer, GraphSpec, RunGraph, State
from samkit.networks.config import NetworkConfig
from samkit.networks.sam2d_config import PIXEL_MEAN, PIXEL_STD, Sam2DConfig, VitConfig
from samkit.placement import Placement
from samkit.precisions import DECODER_TOLERANCE, ENCODER_TOLERANCE
from samkit.prompts import ABSENT, BACKGROUND, BOX_FIRST, BOX_LAST, SliceBox, SlicePoint, SlicePrompts
from samkit.tensors import Axis, Tensor, TensorSpec

if TYPE_CHECKING:
    from samkit.networks.sam2d import Sam2D

BATCH = Axis("batch", 1, 1, 8)
"""Slices that an image encoder takes at once."""
_ROWS = Axis("batch", 1, 1, 16)
_IMAGES = Axis(IMAGES, 1, 1, 16)
_POINTS = Axis("points", 0, 2, 64)

NO_MASK = "mask_decoder_no_mask"
"""The graph that decodes prompts without masks: `mask_decoder` given none says the same, more slowly."""


# --- Graphs ---


def square(name: str, channels: int, side: int, rows: Axis = BATCH, channel: str = "channel") -> TensorSpec:
    """Return a tensor (batch, channels, side, side)."""
    fixed = (Axis.fixed(channel, channels), Axis.fixed("row", side), Axis.fixed("column", side))
    return TensorSpec(name, "float32", (rows, *fixed))


def encoder_graph(config: VitConfig, channels: int = 3) -> GraphSpec:
    """Return `image_encoder`, once per slice."""
    return GraphSpec(
        name="image_encoder",
        inputs=(square("image", channels, config.image),),
        outputs=(square("image_embeddings", config.channels, config.grid),),
        tolerance=ENCODER_TOLERANCE,
    )


def prompt_graphs(config: Sam2DConfig) -> tuple[GraphSpec, ...]:
    """Return `image_encoder` (once per slice) and the two decoders (one of them once per change of the prompts).

    A row of `mask_decoder` is one object: its points, its box as two points labelled 2 and 3, and its mask prompt. One
    image's embedding serves all rows, or each row has its own. Points that fill up a row are labelled -2. All mask
    tokens come out; which of them is the mask is decided outside, as PyTorch does.

    `mask_decoder_no_mask` answers rows without mask prompts on one image, and sooner; an export need not have it.
    """
    points = (
        TensorSpec("point_coords", "float32", (_ROWS, _POINTS, Axis.fixed("xy", 2))),
        TensorSpec("point_labels", "float32", (_ROWS, _POINTS)),
    )
    masks = (
        square("mask_input", 1, config.logits, _ROWS),
        TensorSpec("has_mask_input", "float32", (_ROWS, *(Axis.fixed(name, 1) for name in ("c", "y", "x")))),
    )
    outputs = (
        square("low_res_masks", config.masks, config.logits, _ROWS, "mask"),
        TensorSpec("iou_predictions", "float32", (_ROWS, Axis.fixed("mask", config.masks))),
    )

    def embeddings(images: Axis) -> TensorSpec:
        return square("image_embeddings", config.channels, config.grid, images)

    return (
        encoder_graph(config),
        GraphSpec("mask_decoder", (embeddings(_IMAGES), *points, *masks), outputs, DECODER_TOLERANCE),
        GraphSpec(
            name=NO_MASK,
            inputs=(embeddings(Axis.fixed(IMAGES, 1)), *points),
            outputs=outputs,
            tolerance=DECODER_TOLERANCE,
            is_rewrite=True,
            works_for="mask_decoder",
        ),
    )


def build_sam(config: Sam2DConfig) -> Sam2D:
    """Return the network with freshly initialised weights."""
    from samkit.networks.sam2d import Sam2D  # torch only when a network is really wanted

    return Sam2D(config)


def none_released(method: str, start: str) -> Callable[[State, Mapping[str, State]], tuple[NetworkConfig, State]]:
    """Return the `official` of a method whose authors published no weights: it says what to do instead."""

    def refuse(state: State, companions: Mapping[str, State]) -> tuple[NetworkConfig, State]:
        raise CheckpointError(
            f"no official weights of {method} were ever released, so this file is none; train from {start} with "
            f"sam-train --method {method} --init {start}, and export the run"
        )

    return refuse


# --- Prompts ---


def prompt_rows(prompts: SlicePrompts) -> list[tuple[list[SlicePoint], SliceBox | None]]:
    """Return one entry per object: its points and its box.

    Each box is an object, with the foreground points inside it; the other foreground points together are one more.
    Background points speak to all. Without any prompt there is one empty row: the network decides by itself.
    """
    background = [point for point in prompts.points if point.label == BACKGROUND]
    loose = [point for point in prompts.points if point.label != BACKGROUND]
    rows: list[tuple[list[SlicePoint], SliceBox | None]] = []
    for box in prompts.boxes:
        inside = [p for p in loose if box.x0 <= p.x <= box.x1 and box.y0 <= p.y <= box.y1]
        rows.append((inside + background, box))
    taken = [point for points, _ in rows for point in points]
    loose = [point for point in loose if point not in taken]
    if loose or not rows:
        rows.append((loose + background, None))
    return rows


def decode(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return `low_res_masks` (B, K, s, s), `iou_predictions` (B, K), and how many points and corners each row has.

    Raises InputRefused where a mask prompt has other rows than the prompts.
    """
    rows = prompt_rows(prompts)
    coords, labels = _point_tensors(rows, placement)
    graph, masks = NO_MASK, {}
    if prompts.low_res is not None:
        needed = (len(rows), 1, config.logits, config.logits)
        if prompts.low_res.shape != needed:
            raise InputRefused(
                "mask-prompt",
                f"the mask prompt is {prompts.low_res.shape} and the prompts make {needed}",
                "give one mask of the answer before for each box, and one for the points in no box",
            )
        graph = "mask_decoder"
        given = np.ones((len(rows), 1, 1, 1), np.float32)
        masks = {"mask_input": prompts.low_res.astype(np.float32), "has_mask_input": given}
    low_res, iou = [], []
    for part in _chunks(len(rows), _ROWS.max):
        own = {"point_coords": coords, "point_labels": labels, **masks}
        answer = run(graph, {"image_embeddings": embeddings, **{name: rows[part] for name, rows in own.items()}})
        low_res.append(answer["low_res_masks"])
        iou.append(answer["iou_predictions"])
    return np.concatenate(low_res), np.concatenate(iou), [int(count) for count in (labels > ABSENT).sum(axis=1)]


def _point_tensors(
    rows: list[tuple[list[SlicePoint], SliceBox | None]], placement: Placement
) -> tuple[np.ndarray, np.ndarray]:
    """Return `point_coords` (B, P, 2) and `point_labels` (B, P): points first, then a box's corners."""
    sides = [len(points) + 2 * (box is not None) for points, box in rows]
    if max(sides) > _POINTS.max:
        raise InputRefused(
            "too-many-points",
            f"one object has {max(sides)} points and box corners, a row of the decoder takes {_POINTS.max}",
            "give fewer points",
        )
    coords = np.zeros((len(rows), max(sides), 2), np.float32)
    labels = np.full((len(rows), max(sides)), float(ABSENT), np.float32)
    for number, (points, box) in enumerate(rows):
        places = [(p.x, p.y, p.label) for p in points]
        if box is not None:
            places += [(box.x0, box.y0, BOX_FIRST), (box.x1, box.y1, BOX_LAST)]
        if places:
            values = np.array(places, np.float64)
            coords[number, : len(places)] = placement.points_to_network(values[:, :2])
            labels[number, : len(places)] = values[:, 2]
    return coords, labels


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def best_proposal(low_res: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each row the proposal, masks 1 and on, with the highest predicted IoU: (B, 1, s, s) and (B,)."""
    rows, best = np.arange(len(iou)), 1 + iou[:, 1:].argmax(axis=1)
    return low_res[rows, best][:, None], iou[rows, best]


def united(scores: np.ndarray, low_res: np.ndarray, iou: np.ndarray | None) -> Answer:
    """Return the answer whose mask is the union of the rows' masks; `scores` (B, H, W) are logits."""
    together: np.ndarray = scores.max(axis=0) if len(scores) > 1 else scores[0]
    together = together.astype(np.float32, copy=False)
    predicted = () if iou is None else tuple(float(value) for value in iou)
    return Answer((together > 0).astype(np.uint8), together, low_res, predicted)


# --- Pictures ---


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return a slice (H, W, C) with three channels: a grey one is repeated."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def normalise(image: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) of 0..255 with SAM's mean and deviation, as (3, H, W) float32."""
    mean, deviation = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    return np.ascontiguousarray(((as_rgb(image) - mean) / deviation).astype(np.float32).transpose(2, 0, 1))
