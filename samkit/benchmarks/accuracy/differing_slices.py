"""For each case the slice on which a backend and PyTorch disagree most, as small pictures for a report."""

from __future__ import annotations

import numpy as np

from samkit.benchmarks.record.rows import WorstSlice, to_png
from samkit.protocols.simulated_user import SimulatedUser

MOST_PIXELS = 256
"""Rows and columns of a picture: what is larger is cut around the disagreement, because scaling would hide a pixel."""


def worst_slice(user: SimulatedUser, click: int, found: np.ndarray, reference: np.ndarray) -> WorstSlice:
    """Return the slice on which most voxels of two label maps differ, or where none do with most of PyTorch's mask."""
    case, view, place = user.case, user.view, user.place
    # Of a scan's sequences the last: lesions show best there
    shown = list(case.volumes.values())[-1].array if case.picture is None else case.picture
    if view is None and case.picture is None:
        view = case.view(case.plane or "axial")
        found, reference = view.slices(found), view.slices(reference)
        counts = (found != reference).sum(axis=(1, 2))
        place = int((counts if counts.any() else (reference > 0).sum(axis=(1, 2))).argmax())
        found, reference = found[place], reference[place]
    if view is not None:
        shown = view.slices(shown)[place]
    part = _part(found, reference)
    return WorstSlice(
        case=case.name,
        click=click,
        axis="picture" if view is None else view.plane,
        index=0 if view is None else view.file_index(place),
        image=to_png(_grey(shown)[part]),
        reference=to_png(255 * (reference[part] > 0).astype(np.uint8)),
        found=to_png(255 * (found[part] > 0).astype(np.uint8)),
        flipped=int(np.count_nonzero(found != reference)),
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
