"""With the demonstration weights: an object longer than the patch is followed, and 48 orientations give one mask."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from samkit.geometry import voxel_to_world, world_to_voxel
from samkit.imageio.reading import read_scan
from samkit.phantoms import make_phantom
from samkit.prompts import FOREGROUND, Point
from samkit.runtime import open_session

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export of m-sam")]  # so that it is exported once


@pytest.fixture
def demo_export(export_of):
    """The export that `sam-export --method m-sam` makes of the demonstration weights."""
    return export_of("m-sam")


def segment(*arguments):
    """Run sam-segment in a fresh interpreter; return what it printed."""
    code = "from samkit.segment.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dice(one, other):
    return 2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum()))


def deepest(mask):
    """The voxel of `mask` farthest from its border, where a user would click."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    return Point(tuple(float(v) for v in np.unravel_index(int(depth.argmax()), mask.shape)), FOREGROUND)


def one_click_dice(session, phantom):
    lesion = phantom.lesion(1)
    session.set_image(next(iter(phantom.sequences.values())))
    step = session.add(deepest(lesion)).step
    return dice(session.mask(), lesion), step


def test_lesion_longer_than_the_patch_is_followed(demo_export):
    """Over six phantoms: 1.5 patches long against 0.6, both with one click."""
    with open_session(demo_export) as session:
        patch_mm = session.config.patch * session.spacing[0]
        side = int(2.4 * patch_mm)
        found = {}
        for part in (0.6, 1.5):
            phantoms = [
                make_phantom(seed, (side, 76, 76), 1.0, lesion_length_mm=part * patch_mm, sequences=["flair"])
                for seed in range(900, 906)
            ]
            found[part] = np.mean([one_click_dice(session, phantom)[0] for phantom in phantoms])

    assert found[1.5] >= 0.8 * found[0.6], found


def test_all_orientations_give_one_mask(demo_export, shared):
    paths = sorted((shared / "data" / "orientations").glob("*.nii.gz"))
    assert len(paths) == 48
    masks = {}
    with open_session(demo_export) as session:
        reference = read_scan(paths[0]).volume
        middle = (np.array([reference.array.shape]) - 1) / 2 + [[3.2, 4.1, -2.6]]
        world = voxel_to_world(reference.affine, middle)
        for path in paths:
            volume = read_scan(path).volume
            session.set_image(volume)
            (index,) = world_to_voxel(volume.affine, world)
            session.add(Point(tuple(index), FOREGROUND))
            change = ornt_transform(io_orientation(volume.affine), axcodes2ornt("RAS"))
            masks[path.name] = apply_orientation(session.mask(), change)
    first = masks[paths[0].name]

    assert first.sum() >= 100
    assert {name: int((mask ^ first).sum()) for name, mask in masks.items() if (mask ^ first).sum() > 3} == {}


def test_command_gives_one_mask_for_one_point_of_the_world(demo_export, shared, tmp_path):
    paths = sorted((shared / "data" / "orientations").glob("*.nii.gz"))[::8]  # each direction comes first once
    reference = read_scan(paths[0]).volume
    middle = (np.array([reference.array.shape]) - 1) / 2 + [[3.2, 4.1, -2.6]]
    point = ",".join(f"{v:.6f}" for v in voxel_to_world(reference.affine, middle)[0])
    masks = {}
    for path in paths:
        output = tmp_path / path.name
        click = ("--world", "--point", f"{point},+")
        printed = segment("--export", demo_export, "-i", path, "-o", output, *click)
        assert json.loads(printed)["demonstration_weights"] is True
        written = nibabel.as_closest_canonical(nibabel.load(output))
        masks[path.name] = np.asarray(written.dataobj) > 0
    first = masks[paths[0].name]

    assert len(masks) == 6
    assert first.sum() >= 100
    assert {name: int((mask ^ first).sum()) for name, mask in masks.items() if (mask ^ first).sum() > 3} == {}
