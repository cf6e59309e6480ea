"""For each case the slice on which a backend and PyTorch disagree most, as small pictures for a report."""

from __future__ import annotations

import base64
import io

import numpy as np

from samkit.benchmarks.cases.simulated_user import SimulatedUser
from samkit.benchmarks.record.rows import WorstSlice

MOST_PIXELS = 256
"""Rows and columns of a picture: what is larger is cut around the disagreement, because scaling would hide a pixel."""


def worst_slice(user: SimulatedUser, click: int, found: np.ndarray, reference: np.ndarray) -> WorstSlice:
    """Return the slice with most differing voxels, or where there are none with most of PyTorch's mask.

    `found` and `reference` are label maps of what is judged.
    """
    case = user.case
    # Of a scan's sequences the last: lesions show best there
    scan = list(case.volumes.values())[-1].array if case.picture is None else case.picture
    shown, axis, index, ours, theirs = scan, "picture", 0, found, reference
    if user.view is not None:
        shown, axis, index = user.region(scan), user.view.plane, user.view.file_index(user.place)
    elif case.picture is None:
        view = case.view(case.plane or "axial")
        stacks = [view.slices(array) for array in (scan, found, reference)]
        counts = (stacks[1] != stacks[2]).sum(axis=(1, 2))
        counts = counts if counts.any() else (stacks[2] > 0).sum(axis=(1, 2))
        number = int(counts.argmax())
        shown, ours, theirs = (stack[number] for stack in stacks)
        axis, index = view.plane, view.file_index(number)
    part = _part(ours, theirs)
    return WorstSlice(
        case=case.name,
        click=click,
        axis=axis,
        index=index,
        image=_png(_grey(shown)[part]),
        reference=_png(255 * (theirs[part] > 0).astype(np.uint8)),
        found=_png(255 * (ours[part] > 0).astype(np.uint8)),
        flipped=int(np.count_nonzero(ours != theirs)),
    )


def _part(ours: np.ndarray, theirs: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns, at most MOST_PIXELS of each: where most voxels differ, or most of the masks is."""
    marked = ours != theirs
    marked = marked if marked.any() else (ours > 0) | (theirs > 0)
    rows, columns = (min(size, MOST_PIXELS) for size in marked.shape)
    sums = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    # Many parts hold as many: the middle one of them
    best = np.argwhere(counts == counts.max())
    row, column = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return slice(int(row), int(row) + rows), slice(int(column), int(column) + columns)


def _grey(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) as uint8; a scan's slice from its 1st to its 99th percentile."""
    if image.ndim == 3:
        return np.clip(image[..., :3] if image.shape[2] >= 3 else image[..., 0], 0, 255).astype(np.uint8)
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, (1, 99))
    return (255 * np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)


def _png(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
