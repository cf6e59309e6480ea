"""A flipped bit in a compressed scan is refused, or changes no voxel: checksums are compared in every reader."""

from __future__ import annotations

import gzip
import random

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from samkit.errors import InputRefused
from samkit.imageio import reader
from samkit.imageio.in_memory import study_of
from samkit.imageio.reading import read_label, read_picture, read_scan

FLIPS = 300
ARRAY = np.random.default_rng(0).normal(500, 100, (12, 11, 10)).clip(1).astype(np.int16)


def save_nibabel(path):
    made = {".mgz": MGHImage, ".img.gz": nibabel.Nifti1Pair}.get(path.name[1:], nibabel.Nifti1Image)
    nibabel.save(made(ARRAY, np.eye(4)), path)


def save_simpleitk(path):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY.T), str(path), True)


def save_pillow(path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray((ARRAY[..., 5] // 8).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("name", "holder", "save", "read"),
    [
        ("a.nii.gz", "a.nii.gz", save_nibabel, read_scan),
        ("a.nii.gz", "a.nii.gz", save_nibabel, read_label),
        ("a.img.gz", "a.img.gz", save_nibabel, read_scan),
        ("a.img.gz", "a.hdr.gz", save_nibabel, read_scan),
        ("a.mgz", "a.mgz", save_nibabel, read_scan),
        ("a.nhdr", "a.raw.gz", save_simpleitk, read_scan),
        ("a.mhd", "a.zraw", save_simpleitk, read_scan),
        ("a.png", "a.png", save_pillow, read_picture),
    ],
)
def test_no_flipped_bit_changes_what_is_read(name, holder, save, read, tmp_path):
    path, held = tmp_path / name, tmp_path / holder
    save(path)
    whole, expected = held.read_bytes(), content_of(read(path))
    choice, refused = random.Random(0), 0
    for _ in range(FLIPS):
        at = choice.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        held.write_bytes(damaged)
        try:
            assert content_of(read(path)) == expected, f"bit {at} of {holder}"
        except InputRefused:
            refused += 1

    assert refused > FLIPS / 2  # the rest are names and times in the headers of streams


def content_of(found):
    """Return what a scan, a label or a picture holds."""
    held = getattr(found, "volume", found)
    return [held.array.tobytes(), np.asarray(getattr(held, "affine", 0)).tobytes()]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("trailer", [b"", bytes(8)], ids=["no sums", "sums of zero"])
def test_stream_without_its_sums_is_refused(name, trailer, tmp_path):
    path = tmp_path / name
    save_nibabel(path)
    path.write_bytes(path.read_bytes()[:-8] + trailer)
    with pytest.raises(InputRefused, match="truncated or damaged") as refused:
        read_scan(path)

    assert refused.value.code == "truncated"
    with pytest.raises(InputRefused, match="truncated or damaged"):  # whoever opened it with nibabel is told, too
        study_of(nibabel.load(path))


def test_stream_that_never_ends_is_not_followed(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_nibabel(path)
    with gzip.open(path, "ab", compresslevel=1) as file:
        for _ in range(65):
            file.write(bytes(2**20))
    with pytest.raises(InputRefused, match="truncated or damaged"):
        read_scan(path)


def test_members_and_padding_of_gzip_are_taken(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_nibabel(path)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]) + bytes(16))

    assert np.array_equal(read_scan(path).volume.array, ARRAY)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_volumes_behind_the_one_that_is_meant_may_be_as_many_as_they_like(name, tmp_path, monkeypatch):
    """The bound is on what no header speaks of."""
    monkeypatch.setattr(reader, "_MOST_BEHIND", 2**20)
    series = np.arange(4 * 2**19, dtype=np.uint8).reshape(64, 64, 128, 4)
    made = MGHImage if name == "a.mgz" else nibabel.Nifti1Image
    nibabel.save(made(series, np.eye(4)), tmp_path / name)
    for number in (0, 3):
        assert np.array_equal(read_scan(tmp_path / name, volume=number).volume.array, series[..., number])
