"""What is too large or endless is refused by its header; anything else costs what is returned, and little more."""

from __future__ import annotations

import gzip
import os
import tracemalloc

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from samkit.errors import InputRefused
from samkit.imageio.gate import options_offered
from samkit.imageio.in_memory import study_of
from samkit.imageio.reading import read_label, read_scan

SIDE = 128


def header(shape, dtype, *, offset=352, extension=b"\0\0\0\0"):
    made = nibabel.Nifti1Header()
    made.set_data_shape(shape)
    made.set_data_dtype(dtype)
    made.set_sform(np.eye(4), 1)
    made["magic"], made["vox_offset"] = b"n+1", offset
    return made.binaryblock + extension


def sparse(path, side, dtype):
    """A file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(header((side,) * 3, dtype))
        file.truncate(352 + side**3 * np.dtype(dtype).itemsize)
    return path


def test_bytes_have_a_limit_beside_voxels(tmp_path):
    path = sparse(tmp_path / "a.nii", 800, np.float64)
    with pytest.raises(InputRefused, match="800 x 800 x 800 voxels of 8 bytes, 4096000000 in all") as refused:
        read_scan(path)
    assert refused.value.code == "too-large"
    with pytest.raises(InputRefused, match="raise the limit by max_bytes=N"), options_offered():
        read_scan(path)

    small = sparse(tmp_path / "b.nii", 10, np.int16)
    with pytest.raises(InputRefused, match="2000 in all, the limit is 1999"):
        study_of(small, max_bytes=1999)
    with pytest.raises(InputRefused, match="the limit is 1999"):
        study_of(nibabel.load(small), max_bytes=1999)
    assert study_of(np.arange(24.0).reshape(2, 3, 4), affine=np.eye(4), max_bytes=1).scan.volume.array.size == 24


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_length_that_an_extension_states_is_not_believed(name, tmp_path):
    array = np.arange(1, 1001, dtype=np.int16).reshape((10,) * 3)
    extension = b"\1\0\0\0" + np.array([2**31 - 16, 6], "<i4").tobytes() + bytes(8)
    content = header(array.shape, np.int16, offset=368, extension=extension) + array.tobytes(order="F")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    tracemalloc.start()
    try:
        assert np.array_equal(read_scan(path).volume.array, array)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.nrrd"])
def test_only_regular_files_are_opened(name, tmp_path):
    if name.endswith("nrrd"):
        pytest.importorskip("SimpleITK")
    os.mkfifo(tmp_path / name)
    for read in (read_scan, read_label):
        with pytest.raises(InputRefused, match="is no regular file"):
            read(tmp_path / name)


def test_half_of_a_pair_that_is_a_pipe_is_not_opened(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(np.ones((5, 5, 5), np.int16), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    os.mkfifo(tmp_path / "a.img")

    with pytest.raises(InputRefused, match=r"a\.img is no regular file"):
        read_scan(tmp_path / "a.hdr")


@pytest.mark.parametrize(
    ("name", "dtype", "slope"),
    [
        ("a.nii", np.float64, None),
        ("a.nii.gz", np.float64, None),
        ("a.nii.gz", np.int16, 0.5),
        ("a.nii", np.int32, None),
        ("a.mgz", np.float32, None),
    ],
)
def test_a_scan_costs_what_is_returned(name, dtype, slope, tmp_path):
    path = tmp_path / name
    array = np.arange(SIDE**3).reshape((SIDE,) * 3) % 900 + 1
    made = (MGHImage if name.endswith("mgz") else nibabel.Nifti1Image)(array.astype(dtype), np.eye(4))
    if slope:
        made.header.set_slope_inter(slope, 0)
    nibabel.save(made, path)
    del array, made
    tracemalloc.start()
    try:
        held = read_scan(path).volume.array
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert held.dtype.itemsize == 4
    assert most < 3 * held.nbytes


def test_one_volume_of_a_long_series_is_read_to_the_end_of_its_stream(tmp_path):
    shape, count = (128, 128, 64), 70
    volume = np.arange(np.prod(shape), dtype=np.int64).reshape(shape, order="F") % 7 + 1
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header((*shape, count), np.uint8))
        for _ in range(count):
            file.write(volume.astype(np.uint8).tobytes(order="F"))
    assert np.array_equal(read_scan(path, volume=1).volume.array, volume)

    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputRefused, match="truncated or damaged"):
        read_scan(path, volume=1)
