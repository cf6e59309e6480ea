"""Interactive: what a person does with a session, in the same words whether an export or a server is behind it.

    with open_session(TARGET) as session:
        session.set_image("scan.nii.gz")
        update = session.click((60, 70, 30))
        session.undo()

Nothing here needs more than numpy and nibabel; a picture needs Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import PromptError
from samkit.geometry import Triple, Volume, world_to_voxel
from samkit.imageio.reading import is_picture, read_picture, read_scan
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, Prompt, SliceBox, SlicePoint
from samkit.runtime.session.updates import MaskUpdate

Image: TypeAlias = str | Path | Volume
"""A file, or what was read from one."""


class Interactive:
    """Set an image, click on it, look at the mask."""

    _affine: np.ndarray | None = None

    # --- What a session has to offer for it ---

    @property
    def is_automatic(self) -> bool:
        """Whether the method finds something without a prompt, too."""
        raise NotImplementedError

    def set_volume(self, volume: Any) -> None:
        """Take a new scan, or one for each of the method's sequences."""
        raise NotImplementedError

    def set_picture(self, picture: np.ndarray) -> None:
        """Take a picture (H, W) or (H, W, C) of intensities 0..255; raises PromptError where the method takes none."""
        raise PromptError("this method works on volumes, and a picture is given; give a scan such as scan.nii.gz")

    def segment_all(self) -> Any:
        """Let the method decide by itself wherever nobody prompted."""
        raise NotImplementedError

    def add_prompt(self, prompt: Prompt) -> None:
        """Apply one point or box, in voxel indices."""
        raise NotImplementedError

    def last_update(self) -> MaskUpdate:
        """Return what the last call did to the mask."""
        raise NotImplementedError

    # --- What a person does ---

    def set_image(self, image: Image | Mapping[str, Image]) -> MaskUpdate:
        """Take a new scan or picture: a file, or one for each of the method's sequences; what was before is forgotten.

        A method that needs no prompt decides at once; for any other the mask is empty. Raises InputRefused.
        """
        named = dict(image) if isinstance(image, Mapping) else {"": image}
        if not named:
            raise PromptError("no image is given; give a file, or one for each of the method's sequences")
        first = next(iter(named.values()))
        if len(named) == 1 and isinstance(first, (str, Path)) and is_picture(Path(first)):
            self.set_picture(read_picture(Path(first)))
            self._affine = None
        else:
            volumes = {name: _read(one) for name, one in named.items()}
            self.set_volume(volumes)
            self._affine = next(iter(volumes.values())).affine
        if self.is_automatic:
            self.segment_all()
        return self.last_update()

    def click(
        self, index: Sequence[float], positive: bool = True, *, world: bool = False, structure: str = ""
    ) -> MaskUpdate:
        """Click at (i, j, k), voxel indices, or (x, y) of a picture; with `world` at RAS+ millimetres.

        `positive` is a click on the object, otherwise on background. Raises InputRefused for a click outside,
        PromptError where the method takes no click.
        """
        label = FOREGROUND if positive else BACKGROUND
        if len(index) == 2 and not world:
            self.add_prompt(SlicePoint(float(index[0]), float(index[1]), label, structure))
        else:
            self.add_prompt(self._in_voxels(Point(_triple(index), label, structure), world))
        return self.last_update()

    def box(
        self, first: Sequence[float], last: Sequence[float], *, world: bool = False, structure: str = ""
    ) -> MaskUpdate:
        """Give two corners of a box, flat in a slice; raises as `click` does."""
        if len(first) == 2 and len(last) == 2 and not world:
            (x0, x1), (y0, y1) = (sorted((float(a), float(b))) for a, b in zip(first, last, strict=True))
            self.add_prompt(SliceBox(x0, y0, x1, y1, structure))
        else:
            self.add_prompt(self._in_voxels(Box(_triple(first), _triple(last), structure), world))
        return self.last_update()

    def _in_voxels(self, prompt: Point | Box, world: bool) -> Prompt:
        if not world:
            return prompt
        if self._affine is None:
            raise PromptError("millimetres need a scan, and none is set here; call set_image first")
        return to_voxel(prompt, self._affine)


def to_voxel(prompt: Prompt, affine: np.ndarray) -> Prompt:
    """Return a prompt in RAS+ millimetres as one in voxel indices; one of a picture stays as it is."""
    if isinstance(prompt, Point):
        return replace(prompt, index=_moved(prompt.index, affine))
    if isinstance(prompt, Box):
        return replace(prompt, first=_moved(prompt.first, affine), last=_moved(prompt.last, affine))
    return prompt


def _moved(place: Triple, affine: np.ndarray) -> Triple:
    i, j, k = world_to_voxel(affine, np.array([place], np.float64))[0]
    return float(i), float(j), float(k)


def _triple(place: Sequence[float]) -> Triple:
    if len(place) != 3:
        raise PromptError(
            f"a place in a volume has three numbers and this one has {len(place)}; give i, j, k, or x, y, z with "
            "world=True"
        )
    return float(place[0]), float(place[1]), float(place[2])


def _read(image: Image) -> Volume:
    return image if isinstance(image, Volume) else read_scan(Path(image)).volume
