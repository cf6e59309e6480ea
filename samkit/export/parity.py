"""Proof that exported files compute what PyTorch float32 computes, on phantoms and along a refinement loop.

The reference is the network as loaded, in upstream's own formulation (LoRA unmerged, padding unfolded). Its inputs
and outputs are kept as parity.npz beside the graphs, so that `sam-export --verify` can repeat the comparison on a
machine without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.clicks import central_click, dice, first_click, next_click
from samkit.errors import ManifestError, ParityError
from samkit.geometry import crop, crop_origin, upsample
from samkit.methods import GraphSpec, Method, Tolerance
from samkit.models.sam3d_config import LOGIT_STRIDE, Sam3DConfig
from samkit.phantoms import make_phantom
from samkit.prompts import ABSENT
from samkit.runtime.runner import Runner

if TYPE_CHECKING:
    from samkit.models.sam3d import Sam3D

FILE_NAME = "parity.npz"
CASES = 2
CLICKS = 10
SMALL_MASK = 1000
"""Voxels below which a mask is judged by the voxels that differ: Dice of a small mask jumps at one voxel."""
ABSENT_RELATIVE = {"fp32": 5e-6, "fp16": 1e-3}
"""How much points labelled ABSENT may change the logits. They add exact zeros; what is left is that a runtime blocks
matrices of other sizes differently (docs/numerics.md: at most 8.5e-7 was measured, and the tests hold 1e-6)."""

_FLOOR = {"iou_predictions": 1.0}
"""Smallest norm that an error is relative to: an IoU is one number on a scale of 0 to 1, and may well be near 0."""


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


def make_references(network: Sam3D, method: Method, refinement: str) -> list[Reference]:
    """Return the references of `network`, by running it in PyTorch float32, upstream's formulation."""
    network.set_folded(False)
    try:
        return [_reference(network, method, refinement, seed) for seed in range(CASES)]
    finally:
        network.set_folded(True)


def _reference(network: Sam3D, method: Method, refinement: str, seed: int) -> Reference:
    import torch

    config = network.config
    target, image = _phantom_crop(method, config, seed)
    rng = np.random.default_rng([0x9A41, seed])
    names = [tensor.name for tensor in method.graphs(config)[1].outputs]
    prediction = np.zeros_like(target)
    coords, labels, steps = [], [], []
    with torch.inference_mode():
        encoded = network.encode(torch.from_numpy(image))
        fed, mask = encoded, torch.zeros((1, 1) + (config.logits,) * 3)
        for _ in range(CLICKS):
            point = next_click(prediction, target, rng) or first_click(target, rng)
            if point is None:
                raise ParityError(f"parity phantom {seed} has no lesion in a patch of {config.patch}; raise the patch")
            coords.append(np.array([point.index], np.float32))
            labels.append(np.array([point.label], np.float32))
            outputs = network.decode(fed, torch.from_numpy(coords[-1])[None], torch.from_numpy(labels[-1])[None], mask)
            step = {n: o.numpy() for n, o in zip(names, (o for o in outputs if o is not None), strict=True)}
            steps.append(step)
            mask = outputs[0]
            if refinement == "recurrent" and outputs[2] is not None:
                fed = outputs[2]
            prediction = _mask(step["low_res_masks"], method)
    return Reference(image, encoded.numpy(), np.stack(coords), np.stack(labels), tuple(steps))


def _phantom_crop(method: Method, config: Sam3DConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
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


def check_parity(
    runners: Mapping[str, Runner],
    references: list[Reference],
    specs: tuple[GraphSpec, ...],
    method: Method,
    *,
    refinement: str,
    precision: str,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each graph; raises ParityError naming the first output that moved too far.

    The loop feeds back its own logits and embeddings, as a session does, so errors may build up as they would there.
    """
    encoder, decoder = specs
    figures: dict[str, dict[str, Any]] = {
        encoder.name: {"relative_error": 0.0, "cases": len(references)},
        decoder.name: {"relative_error": 0.0, "dice": 1.0, "voxels": 0, "clicks": CLICKS, "cases": len(references)},
    }
    for case, reference in enumerate(references):
        embeddings = runners[encoder.name].run({"image": reference.image})["image_embeddings"]
        error = relative_error(embeddings, reference.embeddings)
        worst = figures[encoder.name]
        worst["relative_error"] = max(worst["relative_error"], error)
        _judge(error, encoder.tolerance[precision], f"{encoder.name} ({precision}), case {case}")
        fed, mask = embeddings, np.zeros_like(reference.steps[0]["low_res_masks"])
        for number, expected in enumerate(reference.steps):
            outputs = runners[decoder.name].run(
                {
                    "image_embeddings": fed,
                    "point_coords": reference.coords[number][None],
                    "point_labels": reference.labels[number][None],
                    "mask_input": mask,
                }
            )
            mask = outputs["low_res_masks"]
            fed = outputs["updated_embeddings"] if refinement == "recurrent" else embeddings
            _compare_step(outputs, expected, decoder, method, precision, f"case {case}, click {number + 1}", figures)
    figures[decoder.name]["absent_points"] = _check_absent_points(
        runners[decoder.name], references[0], decoder, precision
    )
    return figures


def _compare_step(
    outputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    decoder: GraphSpec,
    method: Method,
    precision: str,
    where: str,
    figures: dict[str, dict[str, Any]],
) -> None:
    """Add one click's figures to the decoder's worst ones, and judge them."""
    worst, tolerance = figures[decoder.name], decoder.tolerance[precision]
    for name, value in expected.items():
        error = relative_error(outputs[name], value, floor=_FLOOR.get(name, 0.0))
        worst["relative_error"] = max(worst["relative_error"], error)
        _judge(error, tolerance, f"{decoder.name} ({precision}), {name}, {where}")
    ours, theirs = (_mask(step["low_res_masks"], method) for step in (outputs, expected))
    overlap, voxels = dice(ours, theirs), int(np.count_nonzero(ours != theirs))
    worst["dice"], worst["voxels"] = min(worst["dice"], overlap), max(worst["voxels"], voxels)
    small = np.count_nonzero(theirs) < SMALL_MASK
    if not (voxels <= tolerance.max_voxels if small else overlap >= tolerance.min_dice):
        raise ParityError(
            f"{decoder.name} ({precision}), {where}: the mask has Dice {overlap:.5f} and {voxels} other voxels against "
            f"PyTorch float32, needed is {tolerance.min_dice} (masks under {SMALL_MASK} voxels: at most "
            f"{tolerance.max_voxels} other voxels); export in fp32, or report this checkpoint"
        )


def _check_absent_points(decoder: Runner, reference: Reference, spec: GraphSpec, precision: str) -> float:
    """Return the largest relative change that ABSENT points make: beside real ones, alone, and in unlike rows."""
    coords, labels = reference.coords[:2, 0][None], reference.labels[:2, 0][None]
    embeddings, mask = reference.embeddings, reference.steps[0]["low_res_masks"]

    def logits(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        rows = len(coords)
        feed = {
            "image_embeddings": np.repeat(embeddings, rows, axis=0),
            "point_coords": coords.astype(np.float32),
            "point_labels": labels.astype(np.float32),
            "mask_input": np.repeat(mask, rows, axis=0),
        }
        return decoder.run(feed)["low_res_masks"]

    def padded(count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `count` points, filled up to five with absent ones whose coordinates are nan."""
        more_coords = np.concatenate([coords[:, :count], np.full((1, 5 - count, 3), np.nan)], axis=1)
        return more_coords, np.concatenate([labels[:, :count], np.full((1, 5 - count), float(ABSENT))], axis=1)

    plain = [logits(coords[:, :count], labels[:, :count]) for count in range(3)]
    alone = [logits(*padded(count)) for count in range(3)]
    rows = logits(*(np.concatenate(parts) for parts in zip(*(padded(count) for count in range(3)), strict=True)))
    errors = [relative_error(a, b) for a, b in zip(alone, plain, strict=True)]
    errors += [relative_error(rows[count : count + 1], plain[count]) for count in range(3)]
    error = float(np.max(errors))  # `np.max`, because nan must reach the check
    if not error <= ABSENT_RELATIVE[precision]:
        raise ParityError(
            f"{spec.name} ({precision}): absent points move the logits by {error:.1e} relative, at most "
            f"{ABSENT_RELATIVE[precision]:.0e} is allowed; this is a bug of samkit, please report it"
        )
    return error


def _judge(error: float, tolerance: Tolerance, what: str) -> None:
    # `not <=`, because nan must fail
    if not error <= tolerance.relative:
        raise ParityError(
            f"{what}: relative error {error:.1e} against PyTorch float32, at most {tolerance.relative:.0e} is allowed; "
            "export in fp32, or report this checkpoint"
        )


def relative_error(actual: np.ndarray, expected: np.ndarray, *, floor: float = 0.0) -> float:
    """Return norm(actual - expected) / norm(expected), summed in float64; the divisor is `floor` at least."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), floor, 1e-30)


def _mask(low_res: np.ndarray, method: Method) -> np.ndarray:
    """Return the boolean mask (P, P, P) of low-resolution logits (1, 1, P/4, P/4, P/4)."""
    return upsample(low_res[0, 0], LOGIT_STRIDE) > method.mask_threshold


def save_references(path: Path, references: list[Reference]) -> None:
    """Write what `load_references` reads."""
    arrays = {}
    for case, reference in enumerate(references):
        for name in ("image", "embeddings", "coords", "labels"):
            arrays[f"{case}.{name}"] = getattr(reference, name)
        for number, step in enumerate(reference.steps):
            arrays.update({f"{case}.{number}.{name}": value for name, value in step.items()})
    np.savez(path, **arrays)


def load_references(path: Path) -> list[Reference]:
    """Return the references of an export; raises ManifestError when the file is no such archive."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        cases = 1 + max(int(name.split(".")[0]) for name in arrays)
        references = []
        for case in range(cases):
            own = {n.split(".", 1)[1]: a for n, a in arrays.items() if n.startswith(f"{case}.")}
            clicks = len(own["coords"])
            steps = tuple(
                {n.split(".", 1)[1]: a for n, a in own.items() if n.startswith(f"{number}.")}
                for number in range(clicks)
            )
            references.append(Reference(own["image"], own["embeddings"], own["coords"], own["labels"], steps))
        return references
    except (OSError, ValueError, KeyError) as error:
        raise ManifestError(f"{path} does not hold parity references ({error!r}); export again") from error
