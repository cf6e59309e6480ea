"""Session: what a person does with a method, in the same words whether an export or a server is behind it.

    with open_session(TARGET) as session:
        session.set_image("scan.nii.gz")
        update = session.click((60, 70, 30))
        session.undo()
        session.save("mask.nii.gz")

Prompts and masks are in the frame of the volume or picture as given. Nothing here needs more than numpy and nibabel; a
picture from a file, or in a notebook, needs Pillow.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypeAlias, TypeVar

import numpy as np

from samkit.errors import ManifestError, MissingDependencyError, OptionError, PromptError, SamkitError
from samkit.files import given_path
from samkit.geometry import Index, Triple, Volume
from samkit.imageio.gate import MAX_BYTES, options_offered
from samkit.imageio.in_memory import is_picture_array, study_of
from samkit.imageio.results import check_results, table_path, write_results
from samkit.imageio.study import Study
from samkit.imageio.writing import png_of
from samkit.intensities import Limits
from samkit.planes import PLANES
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, Prompt, SliceBox, SlicePoint
from samkit.runtime.backends.runner import Closing
from samkit.runtime.session.image_warnings import image_warnings, scale_warnings
from samkit.runtime.session.overlay import draw
from samkit.runtime.session.places import check_corners, check_flag, check_together, numbers_of, triple_of
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate
from samkit.runtime.session.world import check_sides, to_voxel

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from samkit.manifest import ExportPlan
    from samkit.methods.method import Method

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

CLOSED = "this session is closed, and calls need an open one; use open_session again"
"""What any call is told after `close`."""

EMPTY = "the mask is empty"
"""What is told of one that is written with nothing in it."""

Image: TypeAlias = Any
"""A file's path; an image of nibabel or SimpleITK; an array (I, J, K) with its affine; a Volume; or a picture (H, W) or
(H, W, C) of intensities 0..255."""
Volumes: TypeAlias = Mapping[str, Volume]
"""By the method's sequences; the name is empty where the volume came without one."""


class ExportRecord(Protocol):
    """What every session knows of its export."""

    @property
    def plan(self) -> ExportPlan:
        """Return what the export was made of."""

    @property
    def digest(self) -> str:
        """Return the SHA-256 that names it."""


class Session(Closing, ABC):
    """Set an image, prompt, look at the mask. Each act returns the mask after it, and what it changed.

        session.set_image("scan.nii.gz")      # or a nibabel or SimpleITK image, or set_image(array, affine=affine)
        update = session.click((60, 70, 30))  # voxel indices; click((x, y)) on a picture
        update.mask                           # bool, on the scan's own array; session.undo() takes the click back
        session.save("mask.nii.gz")           # where the scan lies; session.overlay() is a picture of it

    Nothing changes where an act is refused. An act that the method does not take raises PromptError. `method`,
    `precision`, `structures`, `sequences`, `is_automatic` and `manifest` say what was opened, `warnings` what has to be
    known of it. `with` closes the session; after that every call is refused.
    """

    precision: str
    """In which the graphs run."""
    structures: tuple[str, ...]
    """Names of what the method tells apart, its labels 1, 2, ...; none where there is one mask."""
    sequences: tuple[str, ...]
    """Names of the volumes that the method takes; none where it takes one grey volume."""
    is_automatic: bool
    """Whether the method finds something without a prompt, too."""
    server_samkit: str | None = None
    """Version of samkit on the server that runs the graphs; None where this process does."""

    target: str = ""
    """Which export, by its folder's name, or the server's address; empty where the session was made from runners."""

    is_sliced: bool = False
    """Whether the method works slice by slice."""

    is_closed: bool = False
    """Whether it was closed."""

    _study: Study | None = None
    """What is set, as it was given; None before, after `close`, and where a server took what came over the wire."""

    # --- What it runs ---

    @property
    @abstractmethod
    def method(self) -> Method:
        """Return the method's record."""

    @property
    @abstractmethod
    def config(self) -> Any:
        """Return the network's configuration."""

    @property
    @abstractmethod
    def manifest(self) -> ExportRecord:
        """Return what is known of the export; raises ManifestError where the session was made without one."""

    @property
    @abstractmethod
    def warnings(self) -> tuple[str, ...]:
        """Return what a user must be told of weights, backend and server, before anything is segmented."""

    @property
    @abstractmethod
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what really runs it."""

    @property
    def plane(self) -> str | None:
        """Return along which slices are taken; None for a method of volumes, and for a picture."""
        return None

    @property
    def spacing(self) -> Triple | None:
        """Return the voxel size [mm] of the network's grid; None for a method of slices."""
        return None

    # --- What it makes of the image ---

    @property
    def limits(self) -> tuple[Limits, ...]:
        """Return what became black and white, in the order of `sequences`; none for a method of volumes.

        Raises PromptError where no image is set.
        """
        study = self._given()
        if study.picture is not None:
            return (study.picture_limits,)
        return self._limits({name: scan.volume for name, scan in study.scans.items()})

    def _limits(self, volumes: Volumes) -> tuple[Limits, ...]:
        """Return them for the volumes that are set."""
        return ()

    @property
    def image_warnings(self) -> tuple[str, ...]:
        """Return what has to be known of the image that is set: it looks like another modality than the weights', or
        is scaled by percentiles where a CT's window is needed, or its header, its axes or the size of its voxels look
        wrong, which is logged as well when it is set. Raises PromptError where no image is set.
        """
        study = self._given()
        try:
            plan = self.manifest.plan
        except ManifestError:  # made from runners, of which nobody says what they have learnt from
            plan = None
        return (*self._warned(study), *image_warnings(study.scans, self.limits, self.method, plan))

    def _warned(self, study: Study) -> tuple[str, ...]:
        """Return those that geometry alone shows."""
        spacing = None if study.picture is not None else self.spacing
        return (*study.warnings, *(() if spacing is None else scale_warnings(study.scan.volume, spacing)))

    # --- Acts ---

    def set_image(
        self,
        image: Image | Mapping[str, Image],
        affine: ArrayLike | None = None,
        *,
        volume: int | None = None,
        automatic: bool = True,
        max_bytes: int = MAX_BYTES,
        assume_ras: bool = False,
    ) -> MaskUpdate:
        """Take a new scan or picture, or one scan for each of the method's sequences; what was before is forgotten.

            session.set_image("scan.nii.gz")                       # any file that sam-segment reads, or a picture
            session.set_image(nibabel.load("scan.nii.gz"))         # or SimpleITK.ReadImage("scan.nrrd")
            session.set_image(array, affine=affine)                # (I, J, K), and (4, 4) to RAS+ millimetres
            session.set_image({"t1c": "a.nii.gz", "t2w": image})   # by sequence; arrays share one affine
            session.set_image(pixels)                              # (H, W) or (H, W, 3), 0..255, for methods of slices

        For methods of slices a scan may be one slice, (I, J, 1) or with another axis of one voxel; the plane is that
        slice's then, unless another one was asked for, which is refused.
        `volume` says which one is meant, 0 the first, where there are several along a fourth axis. An array is not
        copied: leave it as it is while it is set. A method that needs no prompt segments at once, unless `automatic` is
        False; for any other the mask is empty. `image_warnings` say what looks wrong about it. Where a file does not
        say which way its axes run, millimetres and structures of one side are refused, unless `assume_ras` vouches for
        the way that is taken for granted. More than `max_bytes` of voxels in a file are refused before they are read.
        Raises InputRefused for what no scan or picture may be, in memory as in a file, PromptError for what is no
        image, OptionError for an affine or volume that means nothing.
        """
        self._check_open()
        check_flag("automatic", automatic)
        check_flag("assume_ras", assume_ras)
        if not self.is_sliced and affine is None and is_picture_array(image):
            self._refuse_picture()  # before its values are judged: no other picture would do
        with options_offered():
            study = study_of(
                image,
                affine=affine,
                volume=volume,
                channels=len(self.sequences),
                max_bytes=max_bytes,
                assume_ras=assume_ras,
                one_slice=self.is_sliced,
            )
        check_sides(study, self.structures, world=False)
        self._take(study.image)
        self._study = study
        if not isinstance(image, Study):  # whoever made one has seen its warnings, and tells of them in its own way
            for warning in self._warned(study):
                _LOG.warning("%s", warning)
        if automatic and self.is_automatic:
            return self.segment_automatically()
        return self.last_update()

    def click(
        self, index: Sequence[float], positive: bool = True, *apart: float, world: bool = False, structure: str = ""
    ) -> MaskUpdate:
        """Click at (i, j, k), voxel indices, or (x, y) of a picture; with `world` at RAS+ millimetres.

        `positive` is True for a click on the object, False for one on background. Raises InputRefused for a click
        outside, PromptError where the method takes no click, and for numbers that come one by one, as `apart`.
        """
        check_together(index, positive, apart)
        if not isinstance(positive, bool | np.bool_):
            # A "-" would be true, and the click the contrary of what was meant
            raise PromptError(f"positive is {positive!r}; give True for the object, or False for background")
        self._check_world(world)
        label, place = FOREGROUND if positive else BACKGROUND, numbers_of(index)
        if len(place) == 2 and not world:
            return self.add(SlicePoint(place[0], place[1], label, structure))
        return self.add(self._in_voxels(Point(triple_of(place, world), label, structure), world))

    def box(
        self, first: Sequence[float], last: Sequence[float], *apart: float, world: bool = False, structure: str = ""
    ) -> MaskUpdate:
        """Give two corners of a box, flat in a slice; raises as `click` does."""
        check_corners(first, last, apart)
        self._check_world(world)
        one, other = numbers_of(first), numbers_of(last)
        if len(one) == 2 and len(other) == 2 and not world:
            (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(one, other, strict=True))
            return self.add(SliceBox(x0, y0, x1, y1, structure))
        return self.add(self._in_voxels(Box(triple_of(one, world), triple_of(other, world), structure), world))

    @abstractmethod
    def add(self, *prompts: Prompt, refine: bool = False) -> MaskUpdate:
        """Apply prompts, in voxel indices of the volume or pixels of the picture, in the steps that `by_step` says.

        With `refine` the masks of the prompted slices so far go in as mask prompts, too, which needs the same objects
        as before. Nothing changes where any of the prompts is refused.
        """

    @abstractmethod
    def by_step(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """Return prompts as `add` works on them: clicks in a volume one after the other, those on slices at once.

        Raises PromptError for what is no list of prompts.
        """

    @abstractmethod
    def check(self, *prompts: Prompt) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""

    def segment_automatically(self, report: Callable[[int, int], object] | None = None) -> MaskUpdate:
        """Let the method segment by itself every slice that has no prompt.

        Slices that are zero everywhere stay background. `report` is called with slices done and their number.
        """
        self._check_open()
        if not self.is_automatic:
            raise PromptError(f"{self.method.name} segments nothing without a prompt; give {taken(self.method)}")
        return self._segment_automatically(report)

    def _segment_automatically(self, report: Callable[[int, int], object] | None) -> MaskUpdate:
        """Do it, with a method that can."""
        raise NotImplementedError

    def propagate(self) -> MaskUpdate:
        """Let the mask of every prompted slice lead on to its neighbours.

        Each part of a mask, its box enlarged by a tenth and two pixels to each side, prompts the next slice, until
        nothing of five pixels is left, the slice is empty, the volume ends, or the next slice has prompts of its own.
        """
        self._check_open()
        raise PromptError(
            f"{self.method.name} works on volumes, and only masks of slices lead on to others; leave {{propagate}} out",
            options=("propagate",),
        )

    @abstractmethod
    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""

    @abstractmethod
    def redo(self) -> MaskUpdate:
        """Take the last undo back."""

    @abstractmethod
    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""

    # --- Results ---

    def mask(self) -> np.ndarray:
        """Return the mask, bool, on the volume's own array (I, J, K) or the picture (H, W); empty without a prompt."""
        return self.labels() > 0

    @abstractmethod
    def labels(self) -> np.ndarray:
        """Return structure numbers, uint8, on the volume's own array or the picture; 1 where nothing is told apart."""

    @abstractmethod
    def logits(self) -> np.ndarray:
        """Return the foreground's logits, float32, on the volume's own array or the picture.

        Very negative where no network looked. Raises PromptError where a server has them.
        """

    @abstractmethod
    def last_update(self) -> MaskUpdate:
        """Return the present mask and what the last act changed; raises PromptError where no image is set."""

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """Return what the steps did, in order."""

    @property
    def prompted(self) -> tuple[int, ...]:
        """Return the slices with prompts, as indices of the volume's array across the plane; none of volumes."""
        return ()

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use; none on slices."""
        return ()

    def save(self, path: str | Path) -> None:
        """Write the mask as `sam-segment` does: .nii or .nii.gz, uint8, where the scan lies; .png of a picture.

        A method that tells structures apart writes its label map, and a table of their sizes beside it, .tsv. An image
        from a file or of nibabel lends the mask its header's forms and their codes. Raises PromptError where no image
        is set, OptionError for another ending, InputRefused where a file of the scan would be overwritten.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(
                f"the path of the mask is of the type {type(path).__name__}; give a file's, e.g. save('mask.nii.gz')"
            )
        labels, study, mask = self.labels(), self._given(), given_path(path, "the path of the mask")
        table = table_path(mask) if self.structures else None
        check_results(mask, [table] if table is not None else [], study)
        write_results(mask, table, labels, study, self.structures)
        if not labels.any():
            _LOG.warning(EMPTY)

    def overlay(self, plane: str | None = None) -> np.ndarray:
        """Return a picture of the mask on the image: (H, W, 3), uint8, rows and columns of RGB.

        It is the slice that shows most of the mask, the middle one where the mask is empty; of a picture all of it.
        `plane` is axial, coronal or sagittal, by default the session's own, or axial: anterior on top and the patient's
        right on the left. Pixels are square, slices below 256 pixels enlarged. A notebook shows it for the session.
        """
        return draw(self._given(), self.labels(), plane, default=self.plane or PLANES[0])

    def _repr_png_(self) -> bytes | None:
        """Return the overlay for a notebook; None where no image is set, or Pillow is missing, which is logged."""
        if self._study is None:
            return None
        try:
            return png_of(self.overlay())
        except MissingDependencyError as error:
            _LOG.warning("%s", error)
            return None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __repr__(self) -> str:
        """Return what is open; names of scans may be patients'."""
        where = f", {self.target}" if self.target else ""
        steps = f"{len(self.steps)} step{'s' * (len(self.steps) != 1)}"
        what = "no image is set" if self._study is None else f"{self._study.size}, {steps}"
        what = "closed" if self.is_closed else what
        loud = [words for warning in self.warnings if (words := warning.partition(",")[0]).isupper()]
        warned = "".join(f"; {words}" for words in loud)
        return f"<{type(self).__name__}: {self.method.name}, {self.precision}{where}; {what}{warned}>"

    # --- What a kind of session does its own way ---

    @abstractmethod
    def _take(self, image: Volumes | np.ndarray) -> None:
        """Take volumes or a picture, and forget what was before; nothing changes where they are refused."""

    def _refuse_picture(self) -> NoReturn:
        raise PromptError(
            f"{self.method.name} works on volumes, and a picture is given; give a scan, such as scan.nii.gz or an "
            "array (I, J, K) with its affine="
        )

    def _given(self) -> Study:
        return self._present(self._study)

    def _present(self, held: T | None) -> T:
        """Return what is held of the image; raises PromptError where none is set, and as `_check_open` does."""
        self._check_open()
        if held is None:
            raise PromptError("no image is set; call set_image first")
        return held

    def _check_open(self) -> None:
        """Raise SamkitError after `close`."""
        if self.is_closed:
            raise SamkitError(CLOSED)

    def _check_world(self, world: bool) -> None:
        """Raise OptionError for what is no flag; for millimetres PromptError of a picture, InputRefused of a scan that
        does not know left from right.
        """
        check_flag("world", world)
        if not world:
            return
        study = self._given()
        if study.picture is not None:
            raise PromptError(
                "millimetres need a scan, and a picture is set; give pixels, {points x,y,+}", options=("points x,y,+",)
            )
        check_sides(study, (), world=True)

    def _in_voxels(self, prompt: Point | Box, world: bool) -> Prompt:
        if not world:
            return prompt
        volume = self._given().scan.volume
        return to_voxel(prompt, volume.affine, volume.array.shape)


def taken(method: Method) -> str:
    """Return the prompts that a method takes, as one asks for them."""
    return " or ".join(f"a {kind}" for kind in sorted(method.prompts)) or "no prompt at all"
