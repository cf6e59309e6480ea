"""View: how a session is to see scans, as whoever opens it says; checked here before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from samkit.geometry import Triple, checked_spacing
from samkit.planes import checked_intensities, checked_plane


@dataclass(frozen=True)
class View:
    """How a session is to see scans; None is the method's own way."""

    spacing: Triple | None = None
    """Voxel size [mm] of the grid of methods of volumes."""
    plane: str | None = None
    """Along which methods of slices take them."""
    intensities: tuple[float, float] | None = None
    """What becomes black and white for methods of slices."""

    @classmethod
    def of(cls, spacing: object, plane: object, intensities: object) -> Self:
        """Return the view that a user asks for; raises GeometryError for a spacing that is none, else OptionError."""
        return cls(
            None if spacing is None else checked_spacing(spacing),
            None if plane is None else checked_plane(plane),
            None if intensities is None else checked_intensities(intensities),
        )
