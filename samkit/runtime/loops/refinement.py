"""The click loop on the network's grid: no files, no orientation, no backend. Triton runs this file too.

A crop is a cube of the grid as large as the network's patch. Its image embedding is computed once; every click that
it holds runs one decoder step on it with that point alone, the crop's logits of the step before as mask prompt
(zeros at first) and, in recurrent refinement, the embedding that the step before returned.

Objects larger than a patch are *followed*. Where the part of the mask that is connected to a foreground point touches
a face of a crop that is neither the grid's edge nor covered from the other side, a neighbour half a patch further on
is added. It is prompted by one foreground point,
deep in the mask and close to that face, and by the logits that the crops so far have there. Crops that
were only followed are derived anew after every click, so that a click which takes a leak away also takes the crops
away that the leak led to. A click on a followed crop makes it a crop like the others.

States are never changed in place: an earlier state is exactly what it was, which is all that undo needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from samkit.errors import ExportError, InputRefused
from samkit.geometry import Index, as_index, box_slices, crop_origin, upsample
from samkit.masks import dice
from samkit.methods.method import VolumeMethod
from samkit.networks.sam3d_config import LOGIT_STRIDE, Sam3DConfig
from samkit.prompts import FOREGROUND, Point
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import ScanEmbeddings, own_embeddings
from samkit.runtime.loops.timing import timed
from samkit.tensors import Tensor, on_host

MAX_FOLLOWED = 12
"""Crops that one click may add by following; the result of the click says when that was not enough."""
NEAR = 1 / 8
"""Share of a crop's side: a mask that comes so close to a face is followed. Networks draw back from where they see no
more, so an object that goes on often ends a little before the face."""
MIN_TOUCH = 4
"""Low-resolution cells of a face that the mask must touch to be followed: fewer are noise."""
MIN_AGREEMENT = 0.5
"""Dice between a followed crop's mask and the mask so far, where both are; below it the crop is not kept."""
UNKNOWN_LOGIT = 0.0
"""Mask prompt of a new crop where no crop was before: what the network gets at a first click."""
NO_LOGIT = -20.0
"""Logit of cells that no crop covers: background beyond doubt."""
ANCHORED_DECODER = "mask_decoder_anchored"
"""The decoder that takes the adapter's work on the image, which `adapter_stem` did once; it is used where it is."""


@dataclass(frozen=True)
class Crop:
    """One crop after some steps."""

    origin: Index
    """First voxel, on the grid; origins differ by multiples of the logits' stride, so low logits shift exactly."""
    logits: np.ndarray
    """Low-resolution logits (l, l, l) of its last step."""
    image: Mapping[str, Tensor]
    """What the next step is given of the image, by input name; on the device where there is one, never written to."""
    clicks: int
    """Clicks it has taken; none if it was only followed."""
    seeds: tuple[Point, ...] = ()
    """Foreground points it was given: what is connected to one of them is the object."""


@dataclass(frozen=True)
class State:
    """All that the clicks so far have led to."""

    crops: tuple[Crop, ...] = ()
    waiting: tuple[Point, ...] = ()
    """Background clicks from before the first foreground one; they are applied right after it."""
    limit_reached: bool = False
    """Whether the object goes on where no crop was added."""

    @property
    def followed(self) -> int:
        """Return how many crops were only followed."""
        return sum(crop.clicks == 0 for crop in self.crops)


@dataclass(frozen=True)
class _EncodedCrop:
    tensors: Mapping[str, Tensor]
    """What the decoder is given of the image, by input name."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Piece:
    """Logits (I, J, K) on a box of the grid that starts at `origin`."""

    origin: Index
    logits: np.ndarray


class Refiner:
    """The loop over one volume. `read_box(origin)` returns a raw crop (patch, patch, patch) of its grid."""

    def __init__(
        self,
        method: VolumeMethod,
        config: Sam3DConfig,
        refinement: str,
        runners: Mapping[str, Runner],
        grid_shape: Index,
        read_box: Callable[[Index], np.ndarray],
        *,
        max_followed: int = MAX_FOLLOWED,
        embeddings: ScanEmbeddings | None = None,
    ) -> None:
        self._method = method
        self._config = config
        self._is_recurrent = refinement == "recurrent"
        self._runners = runners
        self._grid_shape = grid_shape
        self._read_box = read_box
        self._max_followed = max_followed
        self._decoder = ANCHORED_DECODER if ANCHORED_DECODER in runners else "mask_decoder"
        if self._is_recurrent and self._decoder == ANCHORED_DECODER:
            raise ExportError(
                f"the graph {ANCHORED_DECODER} starts every step from the encoder's output, and this refinement is "
                "recurrent; leave that runner out"
            )
        # The logits alone are read here; what else comes out may be the next step's input and is nobody else's.
        outputs = runners[self._decoder].graph.outputs
        self._stays = tuple(spec.name for spec in outputs if spec.name != "low_res_masks")
        self._embeddings = own_embeddings() if embeddings is None else embeddings
        self.seconds: dict[str, float] = {"crop": 0.0, "encode": 0.0, "decode": 0.0, "merge": 0.0}
        """Time spent so far, by stage."""

    def click(self, state: State, point: Point) -> State:
        """Return the state after one more click, in continuous indices of the grid and inside it.

        Raises InputRefused where the crop around a click holds nothing that a z-score can be taken of.
        """
        if not state.crops and point.label != FOREGROUND:
            return replace(state, waiting=(*state.waiting, point))
        crops = self._apply(state.crops, point)
        for earlier in state.waiting:
            crops = self._apply(crops, earlier)
        clicked = [crop for crop in crops if crop.clicks]
        followed, limit_reached = self._follow(clicked)
        return State(tuple(followed), (), limit_reached)

    def merge(self, state: State) -> list[Piece]:
        """Return the logits of all crops, one piece for each group of overlapping ones.

        Where crops overlap it is their mean, weighted by tents that fall towards the faces. A crop alone comes out
        exactly as the network gave it.
        """
        with timed(self.seconds, "merge"):
            return [self._merge_group(group) for group in _groups(state.crops, self._config.patch)]

    # --- Clicks ---

    def _apply(self, crops: Sequence[Crop], point: Point) -> list[Crop]:
        """Return the crops after `point`, with one more where a foreground click lies well inside none of them."""
        # Close to a face the network lacks context: good enough to take something away, not to find an object.
        margin = self._config.patch / 16 if point.label == FOREGROUND else 0.0
        holds = [self._holds(crop, point, margin) for crop in crops]
        if any(holds):
            return [self._step(crop, point) if held else crop for crop, held in zip(crops, holds, strict=True)]
        if point.label != FOREGROUND:
            return list(crops)  # no crop is there: background already
        origin = crop_origin(np.array(point.index), self._config.patch)
        if crops:
            first = np.array(crops[0].origin)
            origin = as_index(first + LOGIT_STRIDE * np.rint((np.array(origin) - first) / LOGIT_STRIDE))
        prompt, _ = self._low(crops, origin)  # zeros where no crop was: everywhere, at the first click
        crop = Crop(origin, prompt, self._encode(origin), 0)
        return [*crops, self._step(crop, point)]

    def _holds(self, crop: Crop, point: Point, margin: float) -> bool:
        """Whether `point` lies in `crop`, `margin` voxels or more from every face that is not the grid's edge."""
        patch = self._config.patch
        for at, origin, size in zip(point.index, crop.origin, self._grid_shape, strict=True):
            low = 0 if origin <= 0 else origin + margin
            high = size if origin + patch >= size else origin + patch - margin
            if not low - 0.5 <= at <= high - 0.5:
                return False
        return True

    def _step(self, crop: Crop, point: Point, *, is_click: bool = True) -> Crop:
        """Return `crop` after one decoder step on `point`."""
        coords = np.asarray(point.index, np.float64) - crop.origin
        inputs = {
            **crop.image,
            "point_coords": coords.astype(np.float32).reshape(1, 1, 3),
            "point_labels": np.full((1, 1), point.label, np.float32),
            "mask_input": crop.logits[None, None],
        }
        with timed(self.seconds, "decode"):
            outputs = self._runners[self._decoder].run_keeping(inputs, self._stays)
        return Crop(
            crop.origin,
            on_host(outputs["low_res_masks"])[0, 0],
            {"image_embeddings": outputs["updated_embeddings"]} if self._is_recurrent else crop.image,
            crop.clicks + is_click,
            (*crop.seeds, point) if point.label == FOREGROUND else crop.seeds,
        )

    def _encode(self, origin: Index) -> Mapping[str, Tensor]:
        """Return what the decoder is given of the crop at `origin`, by input name; encoded once while it is kept."""
        return self._embeddings.find_or_make(origin, lambda: self._encode_crop(origin)).tensors

    def _encode_crop(self, origin: Index) -> _EncodedCrop:
        with timed(self.seconds, "crop"):
            raw = self._read_box(origin)
            if not np.isfinite(raw).all():
                raise InputRefused(
                    "not-finite", "the crop around the click holds NaN or Inf", "replace those voxels first"
                )
            image = self._method.preprocess(raw, self._config)
        with timed(self.seconds, "encode"):
            return _EncodedCrop(encode_image(self._runners, image[None, None]))

    # --- Following ---

    def _follow(self, crops: Sequence[Crop]) -> tuple[list[Crop], bool]:
        """Return `crops` and the neighbours that their mask leads to, and whether there should be more."""
        found = list(crops)
        tried: set[Index] = {crop.origin for crop in crops}
        room = self._max_followed
        while (way := self._next_way(found, tried)) is not None:
            if room == 0:
                return found, True
            origin, prompt, covered, point = way
            tried.add(origin)
            try:
                image = self._encode(origin)
            except InputRefused:  # air, or no contrast: the object does not go on there
                continue
            room -= 1
            crop = self._step(Crop(origin, prompt, image, 0), point, is_click=False)
            if dice(crop.logits[covered] > self._threshold, prompt[covered] > self._threshold) >= MIN_AGREEMENT:
                found.append(crop)
        return found, False

    def _next_way(self, crops: Sequence[Crop], tried: set[Index]) -> tuple[Index, np.ndarray, np.ndarray, Point] | None:
        """Return the next neighbour to add: origin, mask prompt, where that is known, and point."""
        for crop in crops:
            ways = [
                (axis, is_high, origin)
                for axis in range(3)
                for is_high in (False, True)
                if (origin := self._neighbour(crop.origin, axis, is_high)) is not None and origin not in tried
            ]
            if not ways:
                continue
            merged, _ = self._low(crops, crop.origin)
            mask = self._object(crop, (merged > self._threshold) & self._inside_grid(crop.origin))
            for axis, is_high, origin in ways:
                near = mask & _beside_face(mask.shape, axis, is_high, NEAR)
                touched = near.any(axis) & ~self._covered_beyond(crops, crop, axis, is_high)
                if touched.sum() < MIN_TOUCH:
                    continue
                prompt, covered = self._low(crops, origin)
                cell = _deepest(mask, near & np.expand_dims(touched, axis), axis, is_high, merged)
                index = np.array(crop.origin) + (np.array(cell) + 0.5) * LOGIT_STRIDE - 0.5
                return origin, prompt, covered, Point((index[0], index[1], index[2]), FOREGROUND)
        return None

    def _object(self, crop: Crop, mask: np.ndarray) -> np.ndarray:
        """Return the parts of `mask` (l, l, l) that hold a seed of `crop`, or the largest part where none does."""
        labels, count = ndimage.label(mask)
        if count < 2:
            return mask
        cells = np.array([(np.array(seed.index) - crop.origin + 0.5) // LOGIT_STRIDE for seed in crop.seeds])
        cells = cells.astype(int).reshape(-1, 3).clip(0, self._config.logits - 1)
        kept = set(labels[tuple(cells.T)].tolist()) - {0} or {int(np.bincount(labels[mask]).argmax())}
        return np.isin(labels, sorted(kept))

    def _neighbour(self, origin: Index, axis: int, is_high: bool) -> Index | None:
        """Return the origin half a patch further, or less where the grid ends before; None at the grid's edge."""
        patch = self._config.patch
        left = self._grid_shape[axis] - origin[axis] - patch if is_high else origin[axis]
        if left <= 0:
            return None
        shift = min(patch // 2, -(-left // LOGIT_STRIDE) * LOGIT_STRIDE)
        moved = list(origin)
        moved[axis] += shift if is_high else -shift
        return moved[0], moved[1], moved[2]

    def _covered_beyond(self, crops: Sequence[Crop], crop: Crop, axis: int, is_high: bool) -> np.ndarray:
        """Return which cells (l, l) of a face have a crop on their other side."""
        patch, side = self._config.patch, self._config.logits
        layer = crop.origin[axis] + (patch if is_high else -LOGIT_STRIDE)
        covered = np.zeros((side, side), bool)
        others = [other for other in range(3) if other != axis]
        for neighbour in crops:
            if neighbour.origin[axis] <= layer < neighbour.origin[axis] + patch:
                cells = []
                for other in others:
                    shift = (neighbour.origin[other] - crop.origin[other]) // LOGIT_STRIDE
                    cells.append(slice(max(shift, 0), max(min(shift + side, side), 0)))
                covered[tuple(cells)] = True
        return covered

    def _inside_grid(self, origin: Index) -> np.ndarray:
        """Return which low-resolution cells of the crop at `origin` have their centre in the grid."""
        cells = (np.arange(self._config.logits) + 0.5) * LOGIT_STRIDE - 0.5
        i, j, k = ((cells + o >= -0.5) & (cells + o <= n - 0.5) for o, n in zip(origin, self._grid_shape, strict=True))
        return i[:, None, None] & j[:, None] & k

    # --- Merging ---

    @property
    def _threshold(self) -> float:
        return self._method.mask_threshold

    def _low(self, crops: Sequence[Crop], origin: Index) -> tuple[np.ndarray, np.ndarray]:
        """Return the merged low-resolution logits of the cube at `origin`, and where any crop knows them."""
        side = self._config.logits
        target = _Mean((side,) * 3)
        for crop in crops:
            if _overlap(crop.origin, origin, self._config.patch):
                target.add(crop.logits, as_index((np.array(crop.origin) - origin) / LOGIT_STRIDE))
        return target.mean(UNKNOWN_LOGIT), target.weight > 0

    def _merge_group(self, crops: Sequence[Crop]) -> Piece:
        patch = self._config.patch
        boxes = [upsample(crop.logits, LOGIT_STRIDE) for crop in crops]
        if len(crops) == 1:
            return Piece(crops[0].origin, boxes[0])
        origins = np.array([crop.origin for crop in crops])
        first = origins.min(axis=0)
        target = _Mean(as_index(origins.max(axis=0) + patch - first))
        for box, origin in zip(boxes, origins, strict=True):
            target.add(box, as_index(origin - first))
        return Piece(as_index(first), target.mean(NO_LOGIT))


def encode_image(runners: Mapping[str, Runner], image: np.ndarray) -> dict[str, Tensor]:
    """Return, by input name, what a decoder is given of an encoder's `image`: all that depends on it alone."""
    encoded = runners["image_encoder"].run_keeping({"image": image}, ("image_embeddings",))
    if ANCHORED_DECODER in runners:
        encoded |= runners["adapter_stem"].run_keeping(encoded, ("image_features",))
    return encoded


class _Mean:
    """The weighted mean of cubes that lie anywhere over a box."""

    def __init__(self, shape: Index) -> None:
        self._sum = np.zeros(shape, np.float32)
        self.weight = np.zeros(shape, np.float32)

    def add(self, cube: np.ndarray, origin: Index) -> None:
        """Add `cube` with its first voxel at `origin` of the box; what lies outside the box is left out."""
        low = np.clip(origin, 0, self._sum.shape)
        high = np.clip(np.add(origin, cube.shape), low, self._sum.shape)
        box = box_slices(low, high)
        part = box_slices(low - origin, high - origin)
        tent = _tent(cube.shape[0])
        i, j, k = (tent[s] for s in part)
        weight = i[:, None, None] * j[:, None] * k
        self._sum[box] += weight * cube[part]
        self.weight[box] += weight

    def mean(self, fill: float) -> np.ndarray:
        """Return the mean, `fill` where nothing was added."""
        out = np.full(self._sum.shape, fill, np.float32)
        np.divide(self._sum, self.weight, out=out, where=self.weight > 0)
        return out


def _tent(side: int) -> np.ndarray:
    """Return weights (side,) that fall from the middle to just above zero at both ends."""
    half = side / 2
    return (1 - np.abs(np.arange(side) + 0.5 - half) / half).astype(np.float32)


def _overlap(one: Index, other: Index, patch: int) -> bool:
    return all(abs(a - b) < patch for a, b in zip(one, other, strict=True))


def _groups(crops: Sequence[Crop], patch: int) -> list[list[Crop]]:
    """Return the crops in groups that overlap, directly or through others."""
    groups: list[list[Crop]] = []
    for crop in crops:
        joined = [group for group in groups if any(_overlap(crop.origin, other.origin, patch) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([other for group in joined for other in group] + [crop])
    return groups


def _beside_face(shape: tuple[int, ...], axis: int, is_high: bool, share: float) -> np.ndarray:
    """Return which cells of a cube lie within `share` of its side from one of its faces, ready to broadcast."""
    layers = np.arange(shape[axis])
    band = layers >= round((1 - share) * shape[axis]) if is_high else layers < round(share * shape[axis])
    return np.expand_dims(band, [other for other in range(3) if other != axis])


def _deepest(mask: np.ndarray, touching: np.ndarray, axis: int, is_high: bool, logits: np.ndarray) -> Index:
    """Return the cell deepest in the part of `mask` that comes up to a face, within a quarter of the crop from it.

    Depth ignores the crop's faces: the object goes on behind them. Among equally deep cells the surest is taken,
    so that a rounding error elsewhere does not move the point.
    """
    labels, _ = ndimage.label(mask)
    part = labels == np.bincount(labels[touching]).argmax()
    depth = ndimage.distance_transform_edt(mask) + 1e-2 * np.tanh(logits)
    depth = np.where(part & _beside_face(mask.shape, axis, is_high, 0.25), depth, -1.0)
    i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(i), int(j), int(k)
