"""Parity of a `VolumeMethod`: ten clicks on the lesion of a phantom, the loop fed as a session feeds it.

An export with a second decoder, for anchored steps, runs the loop with either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samkit.clicks import central_click, first_click, next_click
from samkit.errors import ManifestError, ParityError
from samkit.export.absent_points import absent_error
from samkit.export.calibration import CalibrationScan
from samkit.export.parity import AbsentFinding, Finding, MaskFinding, RunFinding
from samkit.geometry import Grid, crop, crop_origin, upsample
from samkit.manifest import ExportPlan
from samkit.methods import VolumeMethod
from samkit.networks.sam3d_config import LOGIT_STRIDE, Sam3DConfig
from samkit.phantoms import make_phantom
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.refinement import ANCHORED_DECODER

CLICKS = 10
_STEM, _PLAIN = "adapter_stem", "mask_decoder"


@dataclass(frozen=True)
class Reference:
    """One phantom crop, ten clicks, and what PyTorch float32 answered."""

    image: np.ndarray
    """(1, 1, P, P, P), preprocessed."""
    embeddings: np.ndarray
    """(1, C, g, g, g)"""
    coords: np.ndarray
    """(clicks, 1, 3) voxel indices of the crop."""
    labels: np.ndarray
    """(clicks, 1)"""
    steps: tuple[Mapping[str, np.ndarray], ...]
    """Per click, every output of the decoder by name."""
    features: np.ndarray | None = None
    """(1, g, g, g, C): what `adapter_stem` gives, where the export has that graph."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what parity.npz holds of this case."""
        arrays = {name: getattr(self, name) for name in ("image", "embeddings", "coords", "labels")}
        if self.features is not None:
            arrays["features"] = self.features
        for number, step in enumerate(self.steps):
            arrays |= {f"{number}.{name}": value for name, value in step.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
        """Return the case that `to_arrays` wrote; KeyError where something is missing."""
        steps = tuple(
            {name.split(".", 1)[1]: a for name, a in arrays.items() if name.startswith(f"{number}.")}
            for number in range(len(arrays["coords"]))
        )
        image, embeddings, coords, labels = (arrays[name] for name in ("image", "embeddings", "coords", "labels"))
        return cls(image, embeddings, coords, labels, steps, arrays.get("features"))

    def network_input(self, method: VolumeMethod, config: Sam3DConfig) -> np.ndarray:
        """Return what the image encoder is given."""
        return self.image


def make_references(
    runners: Mapping[str, Runner],
    method: VolumeMethod,
    plan: ExportPlan,
    phantoms: int,
    subjects: Sequence[CalibrationScan] = (),
) -> list[Reference]:
    """Return what `runners`, the PyTorch originals, answer on so many `phantoms` and then on `subjects`."""
    config = _config(plan)
    cases = [_phantom_crop(method, config, seed) for seed in range(phantoms)]
    cases += [_subject_crop(method, config, subject) for subject in subjects]
    return [_reference(runners, method, plan, *case, seed) for seed, case in enumerate(cases)]


def _reference(
    runners: Mapping[str, Runner],
    method: VolumeMethod,
    plan: ExportPlan,
    target: np.ndarray,
    image: np.ndarray,
    seed: int,
) -> Reference:
    """Return the answers to clicks on `target` (P, P, P) in a preprocessed `image` (1, 1, P, P, P)."""
    config = _config(plan)
    rng = np.random.default_rng([0x9A41, seed])
    prediction = np.zeros_like(target)
    encoded = runners["image_encoder"].run({"image": image})["image_embeddings"]
    fed, mask = encoded, np.zeros((1, 1) + (config.logits,) * 3, np.float32)
    coords, labels, steps = [], [], []
    for _ in range(CLICKS):
        point = next_click(prediction, target, rng) or first_click(target, rng)
        if point is None:
            raise ParityError(
                f"parity case {seed} has nothing to click on in a patch of {config.patch}; leave that scan out"
            )
        coords.append(np.array([point.index], np.float32))
        labels.append(np.array([point.label], np.float32))
        step = runners["mask_decoder"].run(
            {
                "image_embeddings": fed,
                "point_coords": coords[-1][None],
                "point_labels": labels[-1][None],
                "mask_input": mask,
            }
        )
        steps.append(step)
        mask = step["low_res_masks"]
        if plan.refinement == "recurrent":
            fed = step["updated_embeddings"]
        prediction = _mask(mask, method)
    features = None
    if _STEM in runners:
        features = runners[_STEM].run({"image_embeddings": encoded})["image_features"]
    return Reference(image, encoded, np.stack(coords), np.stack(labels), tuple(steps), features)


def _config(plan: ExportPlan) -> Sam3DConfig:
    if not isinstance(plan.config, Sam3DConfig):
        raise ManifestError(f"the plan of this {plan.method} export describes no 3D network; export again")
    return plan.config


def _phantom_crop(method: VolumeMethod, config: Sam3DConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a lesion (P, P, P) and the preprocessed image (1, 1, P, P, P) of the crop around its centre."""
    side = config.patch + config.patch // 4
    phantom = make_phantom(seed, (side, side, side), config.spacing[0], sequences=("flair",))
    lesion = phantom.lesions == 1
    centre = central_click(np.zeros_like(lesion), lesion)
    if centre is None:
        raise ParityError(f"parity phantom {seed} has no lesion at {config.spacing[0]} mm; choose a finer spacing")
    origin = crop_origin(np.array(centre.index), config.patch)
    image = method.preprocess(crop(phantom.sequences["flair"].array, origin, config.patch), config)
    return crop(lesion, origin, config.patch), image[None, None]


def _subject_crop(method: VolumeMethod, config: Sam3DConfig, subject: CalibrationScan) -> tuple[np.ndarray, np.ndarray]:
    """Return target and preprocessed image of the crop around a target's centre, as a session would cut it."""
    volume = next(iter(subject.volumes.values()))
    i, j, k = volume.array.shape
    centre = central_click(np.zeros_like(subject.target), subject.target)
    if centre is None:
        raise ParityError(f"{subject.name} has no target; leave it out")
    grid = Grid.over((i, j, k), volume.affine, config.spacing)
    origin = crop_origin(grid.points_from_file(np.array([centre.index]))[0], config.patch)
    patch = (config.patch,) * 3
    target = grid.box_from_file(subject.target, origin, patch) >= 0.5
    image = method.preprocess(grid.box_from_file(volume.array, origin, patch), config)
    return target, image[None, None]


def new_figures(
    runners: Mapping[str, Runner], references: Sequence[Reference], plan: ExportPlan
) -> dict[str, dict[str, Any]]:
    """Return the figures of each graph before anything was found."""
    figures: dict[str, dict[str, Any]] = {
        graph.name: {"relative_error": 0.0, "cases": len(references)} for graph in plan.specs
    }
    for name in _decoders(plan):
        figures[name] |= {"dice": 1.0, "hd95": 0.0, "voxels": 0, "clicks": CLICKS}
    return figures


def findings(
    runners: Mapping[str, Runner],
    alone: Mapping[str, Runner],
    references: Sequence[Reference],
    method: VolumeMethod,
    plan: ExportPlan,
) -> Iterator[Finding]:
    """Yield what `runners` answer, beside what is expected; `alone` are those of upstream's formulation, which run
    among the others.

    The loop feeds back its own logits and embeddings, as a session does, so errors may build up as they would there.
    """
    decoders = _decoders(plan)
    for case, reference in enumerate(references):
        encoded = runners["image_encoder"].run({"image": reference.image})
        yield RunFinding("image_encoder", f"case {case}", encoded, {"image_embeddings": reference.embeddings})
        fed = {_PLAIN: encoded}
        if _STEM in plan.graphs:
            features = runners[_STEM].run(encoded)
            yield RunFinding(_STEM, f"case {case}", features, {"image_features": _features(reference)})
            fed[ANCHORED_DECODER] = {**encoded, **features}
        for name in decoders:
            run = _run_loop(runners[name], fed[name], reference, plan)
            for number, (outputs, step) in enumerate(zip(run, reference.steps, strict=True)):
                where = f"case {case}, click {number + 1}"
                yield RunFinding(name, where, outputs, step)
                masks = (_mask(logits["low_res_masks"], method) for logits in (outputs, step))
                yield MaskFinding(name, where, *masks)
    first = references[0]
    feed = {"image_embeddings": first.embeddings, "mask_input": first.steps[0]["low_res_masks"]}
    for name in decoders:
        extra = {"image_features": _features(first)} if name == ANCHORED_DECODER else {}
        yield AbsentFinding(
            name, absent_error(runners[name], {**feed, **extra}, first.coords[:2, 0], first.labels[:2, 0])
        )


def _decoders(plan: ExportPlan) -> list[str]:
    return [name for name in (_PLAIN, ANCHORED_DECODER) if name in plan.graphs]


def _features(reference: Reference) -> np.ndarray:
    if reference.features is None:
        raise ManifestError("the parity references of this export hold no features of the adapter; export again")
    return reference.features


def _run_loop(
    decoder: Runner, image: Mapping[str, np.ndarray], reference: Reference, plan: ExportPlan
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the outputs of each click, fed with its own logits and embeddings; `image` is what all steps start from."""
    fed = dict(image)
    mask = np.zeros_like(reference.steps[0]["low_res_masks"])
    for coords, labels in zip(reference.coords, reference.labels, strict=True):
        points = {"point_coords": coords[None], "point_labels": labels[None]}
        outputs = decoder.run({**fed, **points, "mask_input": mask})
        yield outputs
        mask = outputs["low_res_masks"]
        if plan.refinement == "recurrent":
            fed["image_embeddings"] = outputs["updated_embeddings"]


def _mask(low_res: np.ndarray, method: VolumeMethod) -> np.ndarray:
    """Return the boolean mask (P, P, P) of low-resolution logits (1, 1, P/4, P/4, P/4)."""
    return upsample(low_res[0, 0], LOGIT_STRIDE) > method.mask_threshold
