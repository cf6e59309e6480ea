"""Case: what is segmented in a benchmark, as a session takes it, with the truth beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from samkit.geometry import Volume
from samkit.planes import PlaneView
from samkit.prompts import Point


@dataclass(frozen=True)
class Case:
    """Scans of one patient, or a picture, and what is true of them."""

    name: str
    """`case 3` is the third of its folder, `phantom 900000` of that seed; never a file's: that may be a patient's."""
    volumes: Mapping[str, Volume]
    """By the method's sequences; the name is empty where it takes one grey volume. Empty for a picture."""
    targets: Mapping[str, np.ndarray]
    """What is to be found, bool, on the array of the volumes (I, J, K) or the picture (H, W): by structure, or under
    the empty name all of it. No entry where there are boxes alone."""
    plane: str = ""
    """The plane of the slices that its method takes; empty for methods of volumes, and for a picture."""
    picture: np.ndarray | None = None
    """(H, W, C) float32, 0..255; None for scans."""
    boxes: np.ndarray | None = None
    """(n, 5) float32: x0, y0, x1, y1 [pixels from the picture's corner] and class; None where masks say it."""
    clicks: tuple[Point, ...] = ()
    """Those of a reader, where they were decided beforehand."""

    @property
    def first(self) -> Volume:
        """Return the first of its volumes, on whose grid all of them lie."""
        return next(iter(self.volumes.values()))

    @property
    def image(self) -> dict[str, Volume] | np.ndarray:
        """Return its volumes or its picture, as a session's `set_image` takes them."""
        return dict(self.volumes) if self.picture is None else self.picture

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the voxels of each volume along its axes (I, J, K), or the picture's rows and columns."""
        return self.first.array.shape if self.picture is None else self.picture.shape[:2]

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Return the edge of a voxel along each axis [mm]; 1 and 1 for a picture, whose pixels have no known size."""
        return self.first.spacing if self.picture is None else (1.0, 1.0)

    @property
    def target(self) -> np.ndarray:
        """Return all that is to be found, of whatever structure, as one mask."""
        return np.any(list(self.targets.values()), axis=0)

    def view(self, plane: str = "") -> PlaneView:
        """Return its volumes as slices of `plane`, by default of its own."""
        i, j, k = self.first.array.shape
        return PlaneView.of((i, j, k), self.first.affine, plane or self.plane)

    @property
    def across(self) -> int | None:
        """Return the array axis along which slices are counted; None for methods of volumes, and for a picture."""
        return self.view().axes[0] if self.plane else None
