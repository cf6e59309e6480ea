"""How much points labelled ABSENT, which fill up rows, change what a decoder answers: exact zeros, but for rounding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samkit.export.parity import relative_error
from samkit.prompts import ABSENT
from samkit.runtime.backends.runner import Runner


def absent_error(
    decoder: Runner,
    feed: Mapping[str, np.ndarray],
    coords: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Return the largest relative change that ABSENT points make: beside real ones, alone, and in unlike rows.

    `feed` holds one row of the decoder's other inputs, `coords` (2, axes) and `labels` (2,) two real points.
    """

    def logits(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        per_row = {spec.name: spec.axes[0].is_dynamic for spec in decoder.graph.inputs}
        rows = {n: np.repeat(value, len(coords), axis=0) if per_row[n] else value for n, value in feed.items()}
        points = {"point_coords": coords.astype(np.float32), "point_labels": labels.astype(np.float32)}
        return decoder.run({**rows, **points})["low_res_masks"]

    def padded(count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `count` points, filled up to five with absent ones whose coordinates are nan."""
        more_coords = np.concatenate([coords[:count], np.full((5 - count, coords.shape[1]), np.nan)])
        return more_coords[None], np.concatenate([labels[:count], np.full(5 - count, float(ABSENT))])[None]

    plain = [logits(coords[None, :count], labels[None, :count]) for count in range(3)]
    alone = [logits(*padded(count)) for count in range(3)]
    rows = logits(*(np.concatenate(parts) for parts in zip(*(padded(count) for count in range(3)), strict=True)))
    errors = [relative_error(a, b) for a, b in zip(alone, plain, strict=True)]
    errors += [relative_error(rows[count : count + 1], plain[count]) for count in range(3)]
    return float(np.max(errors))  # `np.max`, because nan must reach the check
