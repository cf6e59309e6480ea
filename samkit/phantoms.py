"""Deterministic brain-like volumes with lesions: what the demo weights learn from and what the demo shows.

A phantom is a skull-stripped head (grey and white matter, deep nuclei, ventricles, sulci) seen by several sequences
of one anatomy, with a smooth bias field, texture and noise: zero outside the head, positive inside, as real
skull-stripped MR. Its two to five lesions are mostly alike, so which of them is meant can only be learnt from the
clicks; some hardly differ from the tissue around them. Another kind of phantom has twelve labelled deep structures in
place of lesions. Nothing here imitates a disease.

`python -m samkit.phantoms --out DIR --cases N --seed S` writes images and labels for `sam-train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy import ndimage

from samkit.command import run_command
from samkit.errors import GeometryError
from samkit.files import make_folder
from samkit.geometry import Index, Triple, Volume
from samkit.imageio.writing import write_volume

SEQUENCES = ("t1", "t1c", "t2", "flair")

# Brightness of cerebrospinal fluid, grey and white matter: fractions of full scale, as on clinical 1.5 T images.
_TISSUE = {
    "t1": (0.25, 0.58, 0.85),
    "t1c": (0.25, 0.62, 0.88),
    "t2": (1.00, 0.60, 0.42),
    "flair": (0.18, 0.68, 0.55),
}
# What one unit of lesion strength adds, per sequence. Most lesions are bright, as on most clinical images; were bright
# and dark equally frequent, a network would see no mean contrast to start learning from.
_KINDS: Mapping[str, tuple[float, float, float, float]] = {
    "hyper": (0.30, 0.55, 0.50, 0.50),
    "hypo": (-0.40, -0.40, -0.30, -0.35),
    "oedema": (-0.25, -0.15, 0.55, 0.55),
    "ring": (0.15, 0.60, 0.45, 0.40),
    "patchy": (0.25, 0.50, 0.45, 0.45),
}
_FREQUENCY = (0.45, 0.15, 0.15, 0.15, 0.10)


@dataclass(frozen=True)
class Phantom:
    """One head: what each sequence shows, and where its lesions are."""

    sequences: Mapping[str, Volume]
    """Sequence name to scan; all share one array shape and affine. Intensities are 0 outside the head and from 1
    to some hundreds inside."""
    lesions: np.ndarray
    """(I, J, K) uint8: 0 healthy, 1, 2, ... one number per lesion."""

    @property
    def affine(self) -> np.ndarray:
        """Return the (4, 4) affine of every array here, voxel index to world RAS+ [mm]."""
        return next(iter(self.sequences.values())).affine

    def lesion(self, number: int) -> np.ndarray:
        """Return the boolean mask (I, J, K) of one lesion."""
        return self.lesions == number


def make_phantom(
    seed: int,
    shape: Index = (96, 96, 96),
    spacing_mm: float = 1.0,
    *,
    lesion_length_mm: float | None = None,
    sequences: Sequence[str] = SEQUENCES,
) -> Phantom:
    """Return the phantom of `seed`: the same arguments give the same arrays.

    `lesion_length_mm` makes lesion 1 a bent tube of that length along the longest axis of the head, longer than a
    patch if wanted; GeometryError where the head has no room for it. `sequences` picks from SEQUENCES.
    """
    if min(shape) < 16 or not spacing_mm > 0:
        raise GeometryError(
            f"a phantom of shape {shape} at {spacing_mm} mm was asked for, it needs at least 16 voxels along each axis "
            "and a positive spacing; e.g. (96, 96, 96) at 1.0"
        )
    rng = np.random.default_rng([0x9A47, seed])
    head, depth, tissue = _anatomy(shape, spacing_mm, rng)
    lesions, added = _lesions(head, depth, spacing_mm, lesion_length_mm, rng)
    affine = _centred(shape, spacing_mm)
    texture = 0.6 * _noise(shape, 3.0 / spacing_mm, rng) + 0.4 * _noise(shape, 9.0 / spacing_mm, rng)
    scale = rng.uniform(150, 600)
    volumes = {}
    for number, name in enumerate(SEQUENCES):
        own = np.random.default_rng([0x9A48, seed, number])  # a sequence does not depend on which others are made
        if name in sequences:
            array = _scan(head, tissue, added[number], name, texture, own)
            volumes[name] = Volume(np.where(head, np.maximum(scale * array, 1.0), 0.0).astype(np.float32), affine)
    return Phantom(volumes, lesions)


STRUCTURES: Mapping[str, tuple[Triple, Triple, float]] = {
    "thalamus": ((11.0, -18.0, 7.0), (7.5, 13.0, 8.0), 0.55),
    "caudate": ((13.0, 12.0, 9.0), (5.0, 14.0, 8.0), 1.0),
    "putamen": ((25.0, 2.0, 1.0), (5.5, 14.0, 9.0), 0.9),
    "pallidum": ((18.5, -3.0, -1.0), (4.0, 8.0, 5.0), 0.35),
    "hippocampus": ((27.0, -22.0, -13.0), (6.0, 17.0, 5.5), 0.95),
    "amygdala": ((23.0, 0.0, -18.0), (6.5, 6.0, 6.0), 0.8),
}
"""Of the left side, mirrored for the right: centre from the head's [mm; lateral, anterior, superior], radii [mm], and
share of grey matter. Places and sizes are about those of an adult brain."""


def make_structures(seed: int, shape: Index = (144, 160, 144), spacing_mm: float = 1.0) -> tuple[Volume, np.ndarray]:
    """Return a T1-weighted head and its paired deep structures, (I, J, K) uint8.

    1 to 6 are the left ones in the order of STRUCTURES, 7 to 12 the right ones. The same arguments give the same
    arrays.
    """
    rng = np.random.default_rng([0x9A4A, seed])
    head, _, tissue = _anatomy(shape, spacing_mm, rng, with_nuclei=False)
    size = rng.uniform(0.9, 1.12) * np.clip(min(shape) * spacing_mm / 144, 0.5, 1.3)  # a small array holds a small head
    turn = np.linalg.qr(np.eye(3) + rng.normal(0, 0.05, (3, 3)))[0]
    turn = turn * np.sign(np.diag(turn))
    middle = 0.5 * (np.asarray(shape) - 1) + rng.normal(0, 2, 3) / spacing_mm
    labels = np.zeros(shape, np.uint8)
    depth = np.zeros(shape, np.float32)
    bumps = _noise(shape, 6.0 / spacing_mm, rng)
    for side, lateral in enumerate((-1.0, 1.0)):  # the array's first axis runs to the patient's right
        for number, (centre, radii, grey) in enumerate(STRUCTURES.values(), start=1):
            place = np.array(centre) * (lateral, 1, 1) * size * rng.uniform(0.94, 1.06, 3)
            axes = np.array(radii) * size * rng.uniform(0.88, 1.12, 3) / spacing_mm
            inside = _ellipsoid(shape, middle + turn @ place / spacing_mm, axes, turn.T)
            inside = inside + np.float32(0.08 * axes.mean()) * bumps
            own = (inside > depth) & head
            labels[own] = number + side * len(STRUCTURES)
            depth = np.maximum(depth, np.where(own, inside, 0)).astype(np.float32)
            share = np.stack([np.zeros(shape), np.full(shape, grey), np.full(shape, 1 - grey)])
            soft = ndimage.gaussian_filter(own.astype(np.float32), 0.6 / spacing_mm)
            tissue = tissue * (1 - soft) + share.astype(np.float32) * soft
    texture = 0.6 * _noise(shape, 3.0 / spacing_mm, rng) + 0.4 * _noise(shape, 9.0 / spacing_mm, rng)
    nothing = np.zeros(shape, np.float32)
    array = _scan(head, tissue, nothing, "t1", texture, np.random.default_rng([0x9A4B, seed]))
    scan = np.where(head, np.maximum(rng.uniform(150, 600) * array, 1.0), 0.0).astype(np.float32)
    return Volume(scan, _centred(shape, spacing_mm)), labels


def _centred(shape: Index, spacing_mm: float) -> np.ndarray:
    """Return the affine (4, 4) of an array on RAS axes whose centre is the world's origin."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * spacing_mm * (np.asarray(shape) - 1)
    return affine


def _anatomy(
    shape: Index, spacing_mm: float, rng: np.random.Generator, *, with_nuclei: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the head (bool), depth below its surface [fraction of its radius], and tissue (3, I, J, K): the share of
    cerebrospinal fluid, grey and white matter in each voxel.
    """
    x, y, z = _unit_coordinates(shape)
    radii = rng.uniform((0.78, 0.84, 0.76), (0.9, 0.95, 0.9))
    warp = 0.07 * _noise(shape, 0.25 * min(shape), rng)
    depth = 1.0 - np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2) + warp
    head = depth > 0
    # Ridges of a noise field are folds: sulci cut into the cortex, and the white matter follows them.
    folds = np.abs(_noise(shape, 7.0 / spacing_mm, rng))
    cortex = rng.uniform(0.08, 0.16) + 0.12 * folds
    fluid = (depth < 0.14) & (folds < 0.12)
    fluid |= (np.abs(x) < 0.02) & (depth < 0.45)  # between the hemispheres
    nuclei = np.zeros(shape, bool)
    size = rng.uniform(0.8, 1.3)
    for side in (-1, 1):
        horn = x - side * (0.10 + 0.10 * np.abs(y))
        fluid |= (horn / 0.07) ** 2 + (y / 0.40) ** 2 + ((z - 0.12 + 0.25 * y**2) / 0.13) ** 2 < size
        nuclei |= ((x - side * 0.24) / 0.11) ** 2 + ((y - 0.08) / 0.26) ** 2 + ((z + 0.02) / 0.15) ** 2 < size
    grey = (depth < cortex) | (nuclei & with_nuclei)
    label = np.where(fluid, 0, np.where(grey, 1, 2))
    sigma = rng.uniform(0.5, 0.9) / spacing_mm  # partial volume
    tissue = np.stack([ndimage.gaussian_filter((label == n).astype(np.float32), sigma) for n in range(3)])
    return head, depth.astype(np.float32), tissue


def _lesions(
    head: np.ndarray, depth: np.ndarray, spacing_mm: float, length_mm: float | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the label map (I, J, K) uint8 and what the lesions add to each sequence (4, I, J, K)."""
    labels = np.zeros(head.shape, np.uint8)
    added = np.zeros((len(SEQUENCES), *head.shape), np.float32)
    family = str(rng.choice(list(_KINDS), p=_FREQUENCY))
    strength = float(rng.choice([rng.uniform(0.2, 0.5), rng.uniform(0.6, 1.3)], p=[0.2, 0.8]))
    base_mm = float(np.exp(rng.uniform(np.log(6.5), np.log(15.0))))
    wanted = int(rng.integers(2, 6))
    for attempt in range(40):
        number = int(labels.max()) + 1
        if number > wanted:
            break
        if length_mm is not None and number == 1:
            inside = _tube(head, length_mm / spacing_mm, spacing_mm, rng)
        else:
            # A head too full for large lesions gets smaller ones, so that every phantom has two at least.
            radius = float(np.clip(base_mm * rng.uniform(0.7, 1.4), 4.5, 20.0)) * 0.93**attempt / spacing_mm
            inside = _blob(depth, max(radius, 2.5), rng)
        mask = (inside > 0) & head
        crowded = ndimage.binary_dilation(mask, iterations=2) & (labels > 0)
        if mask.sum() < 30 or crowded.any():
            continue
        kind = family if rng.random() < 0.75 else str(rng.choice(list(_KINDS), p=_FREQUENCY))
        soft = np.clip(inside / rng.uniform(0.3, 2.0) + 0.5, 0, 1) * head  # some borders are sharp, some wash out
        profile = _profile(kind, inside, rng)
        amount = strength * rng.uniform(0.8, 1.2)
        for channel, unit in enumerate(_KINDS[kind]):
            added[channel] += np.float32(amount * unit) * soft * profile
        labels[mask] = number
    return labels, added


def _profile(kind: str, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how strongly a lesion shows at each voxel, about 1: `inside` is the depth below its border [voxels]."""
    if kind == "ring":
        rim = rng.uniform(1.5, 3.0)
        return np.where(inside > rim, -0.6, 1.0).astype(np.float32)
    if kind == "patchy":
        return (1.0 + 0.8 * _noise(inside.shape, 4.0, rng)).astype(np.float32)
    return (1.0 + 0.15 * _noise(inside.shape, 4.0, rng)).astype(np.float32)


def _blob(depth: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return about the depth below the border [voxels] of one to three joined, warped ellipsoids of `radius`."""
    candidates = np.flatnonzero(depth > 0.05)
    centre = np.array(np.unravel_index(int(rng.choice(candidates)), depth.shape), float)
    inside = np.full(depth.shape, -np.inf, np.float32)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        axes = np.exp(rng.normal(0, 0.28, 3))
        axes *= radius / np.prod(axes) ** (1 / 3)
        turn, _r = np.linalg.qr(rng.normal(size=(3, 3)))
        inside = np.maximum(inside, _ellipsoid(depth.shape, centre, axes, turn))
        centre = centre + turn[0] * axes[0] * rng.uniform(0.6, 1.0)
    bumps = _noise(depth.shape, max(2.0, 0.7 * radius), rng)
    return inside + np.float32(0.18 * radius) * bumps


def _ellipsoid(shape: tuple[int, ...], centre: np.ndarray, axes: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return (1 - normalised radius) * mean axis, -inf far away: only its surroundings are computed."""
    out = np.full(shape, -np.inf, np.float32)
    reach = 1.8 * float(axes.max()) + 2
    low = [max(0, int(c - reach)) for c in centre]
    high = [min(n, int(c + reach) + 1) for c, n in zip(centre, shape, strict=True)]
    if all(a < b for a, b in zip(low, high, strict=True)):
        box = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
        local = ((box - centre) @ turn.T) / axes
        out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = (
            1.0 - np.sqrt((local**2).sum(-1))
        ) * axes.mean()
    return out


def _tube(head: np.ndarray, length: float, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return the depth below the border of a bent tube of `length` voxels along the longest axis of the head."""
    boxes = np.argwhere(head)
    low, high = boxes.min(0), boxes.max(0)
    axis = int((high - low).argmax())
    middle = (low + high) / 2
    radius = float(rng.uniform(6.0, 9.0)) / spacing_mm
    t = np.linspace(-0.5, 0.5, max(2, int(length)))
    side, bend = rng.choice([-1, 1], 2), rng.uniform(0.02, 0.06, 2)
    line = np.tile(middle, (t.size, 1))
    line[:, axis] += t * (length - 2 * radius)
    for n, other in enumerate(a for a in range(3) if a != axis):
        # Off the midline, so that the tube lies in tissue of one half, and bent by a few percent of its length.
        line[:, other] += side[n] * (0.16 * (high - low)[other] + bend[n] * length * (1 - (2 * t) ** 2))
    voxels = np.rint(line).astype(int)
    # The ends lie where the head is narrow: every point of the centre line must be inside.
    fits = ((voxels >= 0) & (voxels < head.shape)).all() and head[tuple(voxels.T)].mean() > 0.98
    if not fits:
        raise GeometryError(
            f"a lesion of {length * spacing_mm:g} mm does not fit a head of {(high - low).max() * spacing_mm:g} mm; "
            "ask for a larger shape or a shorter lesion"
        )
    away = np.ones(head.shape, bool)
    away[tuple(voxels.T)] = False
    distance = ndimage.distance_transform_edt(away)
    bumps = _noise(head.shape, max(2.0, radius), rng)
    out: np.ndarray = (radius - distance + 0.12 * radius * bumps).astype(np.float32)
    return out


def _scan(
    head: np.ndarray, tissue: np.ndarray, added: np.ndarray, name: str, texture: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the intensities of one sequence, about 0 to 1, not yet masked."""
    levels = np.asarray(_TISSUE[name]) * rng.uniform(0.88, 1.12, 3)
    array = np.tensordot(levels.astype(np.float32), tissue, axes=1)
    array = array * (1 + np.float32(rng.uniform(0.03, 0.08)) * texture) + added
    array = array * np.exp(np.float32(rng.uniform(0.05, 0.25)) * _noise(head.shape, 0.4 * min(head.shape), rng))
    noise = rng.normal(0, rng.uniform(0.015, 0.05), (2, *head.shape)).astype(np.float32)
    out: np.ndarray = np.hypot(array + noise[0], noise[1])  # Rician, as the magnitude of an MR signal
    return out


def _unit_coordinates(shape: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three coordinates of every voxel, -1 to 1 from edge to edge, broadcastable."""
    a, b, c = (((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32) for n in shape)
    return a[:, None, None], b[None, :, None], c[None, None, :]


def _noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise (float32, zero mean, unit deviation) whose bumps are about `scale` voxels wide."""
    scale = max(1.0, scale)
    coarse = rng.normal(size=[int(np.ceil(n / scale)) + 2 for n in shape]).astype(np.float32)
    coarse = ndimage.gaussian_filter(coarse, 0.6, mode="nearest")
    fine = coarse
    # Linear along one axis after the other: fast, and elementwise, so that no BLAS decides about a voxel.
    for axis, start in enumerate(rng.uniform(0, 0.9, 3)):
        at = np.arange(shape[axis]) / scale + start
        low = at.astype(int)
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        fine = fine.take(low, axis) * (1 - share) + fine.take(low + 1, axis) * share
    out: np.ndarray = (fine - fine.mean()) / max(float(fine.std()), 1e-6)
    return out


def write_phantoms(out: str, cases: int, seed: int, size: int, long_share: float) -> None:
    """Write `cases` phantoms as DIR/images/*.nii.gz and DIR/labels/*.nii.gz, one sequence each, in turn.

    `size` is about the side of the head's array [voxels of 1 mm]; `long_share` of the cases hold one lesion of
    about 60 mm, longer than a patch of the small networks.
    """
    for folder in ("images", "labels"):
        make_folder(Path(out) / folder)
    for number in range(cases):
        rng = np.random.default_rng([0x9A49, seed, number])
        i, j, k = (int(n) for n in rng.integers(int(0.9 * size), int(1.15 * size) + 1, 3))
        name = SEQUENCES[number % len(SEQUENCES)]
        is_long = rng.random() < long_share
        phantom = make_phantom(
            seed * 100_000 + number,
            (i, j, k),
            lesion_length_mm=0.62 * max(i, j, k) if is_long else None,
            sequences=(name,),
        )
        stem = f"phantom-{number:04d}-{name}.nii.gz"
        image = np.rint(phantom.sequences[name].array).astype(np.int16)
        write_volume(Path(out) / "images" / stem, Volume(image, phantom.affine))
        write_volume(Path(out) / "labels" / stem, Volume(phantom.lesions, phantom.affine))


@click.command()
@click.option("--out", required=True, help="Folder to write images/ and labels/ into.")
@click.option("--cases", default=40, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--size", default=96, show_default=True, type=click.IntRange(32), help="About the side [voxels].")
@click.option("--long", "long_share", default=0.15, show_default=True, help="Share with one long lesion.")
def phantoms(out: str, cases: int, seed: int, size: int, long_share: float) -> None:
    """Write phantoms that `sam-train --set target=each` learns from."""
    write_phantoms(out, cases, seed, size, long_share)
    click.echo(f"{cases} phantoms in {out}", err=True)


if __name__ == "__main__":
    run_command(phantoms, "phantoms")
