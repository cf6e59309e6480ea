"""Where a file says that its voxels lie: whether it says so at all, and twice alike.

A NIfTI header has room for two frames, and for none. What is used is what nibabel uses, the sform before the qform;
what a user has to know of the others is told here, in millimetres. Where left and right are not known, millimetres and
structures of one side are refused rather than guessed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import aff2axcodes

from samkit.errors import InputRefused
from samkit.geometry import MAX_SHIFT, Index, corner_shift, spacing_of, voxel_to_world
from samkit.imageio.forms import Forms

_ITK_TOLERANCE = 1e-4
"""How far from right angles the axes of an sform may be for ITK (2.5.7 of SimpleITK), where there is no qform."""
_ROUND_OFF = 1e-3
"""Share of it that ITK's own arithmetic in single precision may take away."""
_TOWARDS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


_SIDED = re.compile(
    r"(?<![A-Za-z])(?i:left|right|l|r|lt|rt|lh|rh)(?![A-Za-z])"  # thalamus_left, Kidney-R
    r"|(?:Left|Right)(?![a-z])|(?<![A-Za-z])(?:left|right)(?=[A-Z])"  # KidneyLeft, leftKidney
)


def first_sided(structures: Iterable[str]) -> str | None:
    """Return the first name that is of one side of the body; None where there is none.

    >>> [first_sided([name]) for name in ("LeftKidney", "lung-R", "bright", "BRIGHT")]
    ['LeftKidney', 'lung-R', None, None]
    """
    return next((name for name in structures if _SIDED.search(name)), None)


def sides_unsure(count: int, total: int, structures: Iterable[str]) -> tuple[str, ...]:
    """Return what is to be said where `count` of `total` labelled cases do not know left from right: of structures of
    one side a mirrored case teaches, or counts, the wrong one.
    """
    sided = first_sided(structures)
    if not count or sided is None:
        return ()
    return (
        f"LEFT AND RIGHT UNKNOWN in {count} of {total} cases, and {sided} is of one side: where a case is mirrored, "
        "left stands for right; write into the files where their voxels lie, or leave them out",
    )


@dataclass(frozen=True)
class Doubt:
    """Why left and right of a scan are not known."""

    name: str
    """Of the file."""
    axes: str
    """Where the array's axes are taken to run."""
    is_mirrored: bool
    """Whether the file states two frames that are mirror images, and not none."""

    def refusal(self, what: str) -> InputRefused:
        """Return the refusal of `what`, which needs to know left and right; of two frames nobody can vouch for one."""
        if self.is_mirrored:
            return InputRefused(
                "mirrored-frames",
                f"the sform and the qform of {self.name} are mirror images, and {what} need to know left from right",
                "make one of them as the other, which is right, or give voxel indices",
            )
        return InputRefused(
            "unknown-sides",
            f"{self.name} does not say where its voxels lie in a patient, and {what} need to know left from right",
            f"write its place into it, or give {{assume_ras}} where its axes do run towards {self.axes}",
            options=("assume_ras",),
        )


def judge_frames(
    name: str, shape: Index, affine: np.ndarray, forms: Forms | None, *, is_placed: bool
) -> tuple[tuple[str, ...], Doubt | None]:
    """Return in sentences what is unusual about the frames of a file, of which `affine` is used; and what is in doubt.

    `forms` is what a NIfTI header states; `is_placed` says whether the file states any frame.
    """
    axes = _axes(affine)
    if not is_placed:
        said = f"the file does not say where its voxels lie in a patient; its axes are taken to run towards {axes}"
        return (f"{said}, and left and right are unknown",), Doubt(name, axes, is_mirrored=False)
    if forms is None or not forms.sform_code:
        return (), None
    if not forms.qform_code:
        return (*_other_sizes(shape, affine, forms), *_refused_by_itk(affine)), None
    other = forms.qform
    if other is None:
        return ("the file's qform is not one that places voxels: the sform is used, and the mask keeps both",), None
    if corner_shift(shape, affine, other) <= MAX_SHIFT:
        return (), None
    is_mirrored = bool(np.linalg.det(affine[:3, :3]) * np.linalg.det(other[:3, :3]) < 0)
    warning = (
        f"the file's sform and qform place its voxels up to {_millimetres(shape, affine, other):.3g} mm apart"
        + ", as mirror images" * is_mirrored
        + ": the sform is used, as nibabel does, and the mask keeps both; other programs may use the qform"
    )
    return (warning,), Doubt(name, axes, is_mirrored=True) if is_mirrored else None


def _other_sizes(shape: Index, affine: np.ndarray, forms: Forms) -> tuple[str, ...]:
    """Return what is to be said where voxel sizes are stated besides the sform, and are others."""
    sizes = np.abs(forms.pixdim[1:4].astype(np.float64))
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        return ()
    other = np.array(affine)
    other[:3, :3] *= sizes / spacing_of(affine)
    if corner_shift(shape, affine, other) <= MAX_SHIFT:
        return ()
    said, used = (" x ".join(f"{size:.4g}" for size in three) for three in (sizes, spacing_of(affine)))
    return (
        f"the file's pixdim states voxels of {said} mm and its sform {used} mm, which puts a corner of the scan "
        f"{_millimetres(shape, affine, other):.3g} mm off: the sform is used, as nibabel does, and the mask keeps both",
    )


def _refused_by_itk(affine: np.ndarray) -> tuple[str, ...]:
    """Return what is to be said of an sform, without a qform beside it, whose axes are not at right angles to ITK."""
    unit = affine[:3, :3] / spacing_of(affine)
    skew = float(np.abs(unit @ unit.T - np.eye(3)).max())
    if skew < _ITK_TOLERANCE * (1 - _ROUND_OFF):
        return ()
    return (
        f"the sform's axes are {skew:.2g} off right angles and there is no qform: ITK, and with it 3D Slicer and "
        "ITK-SNAP, opens neither such a scan nor its mask, which has the same sform",
    )


def _millimetres(shape: Index, affine: np.ndarray, other: np.ndarray) -> float:
    """Return how far [mm] two frames put a corner of an array (I, J, K) from one another at most."""
    corners = np.array(list(itertools.product(*((-0.5, side - 0.5) for side in shape))))
    apart = voxel_to_world(affine, corners) - voxel_to_world(other, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def _axes(affine: np.ndarray) -> str:
    first, second, third = (_TOWARDS[code] for code in aff2axcodes(affine))
    return f"{first}, {second} and {third}"
