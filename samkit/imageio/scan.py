"""One scan, whatever kind of file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samkit.geometry import Volume
from samkit.imageio.forms import Forms
from samkit.imageio.frames import Doubt


@dataclass(frozen=True)
class Scan:
    """A scan that passed the gate."""

    volume: Volume
    """Voxels in the file's own order, integers as they are stored or float32, and the affine [mm, RAS+]."""
    forms: Forms
    """What a mask's file takes over, so that it lies where the scan does."""
    kind: str
    """The name of the reader, such as NIfTI."""
    name: str
    """The file's name, or what messages call an image that was given in memory."""
    path: Path | None
    """The file with the voxels; None for what was given in memory."""
    warnings: tuple[str, ...]
    """What looks unusual but does not stop the work."""
    doubt: Doubt | None = None
    """Why left and right are not known, where they are not."""
    files: tuple[Path, ...] = ()
    """All files that were read for it, or that an image in memory came from."""
    modality: str = ""
    """CT, MR, ... as the file, or dcm2niix's JSON beside it, says; empty where neither does."""

    def __repr__(self) -> str:
        """Return what it is; its file's name may be a patient's."""
        return f"<Scan: {self.kind}, {self.volume}>"
