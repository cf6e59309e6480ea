"""What a session has to show: the saved mask, a picture of it, and one line that says what is open."""

from __future__ import annotations

import io
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

import samkit
from samkit.errors import InputRefused, OptionError, PromptError
from samkit.runtime.client.remote_session import RemoteSession

FLIPPED = np.array([[0, 0, -2.0, 40], [-1.0, 0, 0, 30], [0, 1.0, 0, -20], [0, 0, 0, 1]])


def ball(shape=(40, 44, 30), centre=(20, 22, 12), radius=6.0):
    i, j, k = np.indices(shape)
    inside = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < radius**2
    return (50 + (i + j + k) % 7 + 200 * inside).astype(np.int16)


@pytest.fixture
def slices(bright_slices):
    with samkit.open_session(bright_slices) as session:
        yield session


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "jane-doe.nii.gz"
    made = nibabel.Nifti1Image(ball(), FLIPPED)
    made.set_qform(FLIPPED, 3)
    made.set_sform(FLIPPED, 4)
    nibabel.save(made, path)
    return path


# --- Files ---


@pytest.mark.parametrize("load", [str, nibabel.load])
def test_a_mask_has_the_geometry_and_the_codes_of_its_scan(volumes, scan, load, tmp_path):
    volumes.set_image(load(scan))
    mask = volumes.click((20, 22, 12)).mask
    volumes.save(tmp_path / "mask.nii")
    saved, original = nibabel.load(tmp_path / "mask.nii"), nibabel.load(scan)

    assert mask.any()
    assert np.array_equal(np.asarray(saved.dataobj), mask)
    assert np.array_equal(saved.affine, original.affine)
    assert [int(saved.header[code]) for code in ("sform_code", "qform_code")] == [4, 3]
    assert list(tmp_path.glob("*.tsv")) == []


@pytest.mark.parametrize("load", [str, nibabel.load])
def test_a_scan_is_never_overwritten(volumes, scan, load):
    before = scan.read_bytes()
    volumes.set_image(load(scan))
    with pytest.raises(InputRefused, match=r"jane-doe\.nii\.gz is one of the inputs and would be overwritten"):
        volumes.save(scan)
    assert scan.read_bytes() == before


def test_what_can_not_be_written_is_told_as_sam_segment_tells_it(volumes, slices, tmp_path):
    with pytest.raises(PromptError, match="no image is set; call set_image first"):
        volumes.save(tmp_path / "mask.nii")
    volumes.set_image(ball(), affine=FLIPPED)
    with pytest.raises(OptionError, match=r"the mask of a scan must end in \.nii or \.nii\.gz, and it is 'mask\.png'"):
        volumes.save(tmp_path / "mask.png")
    with pytest.raises(InputRefused, match=r"the folder of mask\.nii, .*, does not exist"):
        volumes.save(tmp_path / "nowhere" / "mask.nii")
    slices.set_image(np.full((30, 40), 200.0))
    with pytest.raises(OptionError, match=r"the mask of a picture must end in \.png"):
        slices.save(tmp_path / "mask.nii")
    assert list(tmp_path.iterdir()) == []


def test_the_mask_of_a_picture_is_a_picture(slices, tmp_path):
    picture = np.full((64, 60), 20, np.uint8)
    picture[20:34, 20:30] = 235
    Image.fromarray(picture).save(tmp_path / "photo.png")
    slices.set_image(tmp_path / "photo.png")
    slices.box((18, 18), (32, 36))
    slices.save(tmp_path / "mask.png")

    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), 255 * (picture > 100))
    with pytest.raises(InputRefused, match=r"photo\.png is one of the inputs"):
        slices.save(tmp_path / "photo.png")


def test_structures_come_with_their_table(bright_structures, scan, tmp_path):
    with samkit.open_session(bright_structures, intensities=(0, 255)) as session:
        session.set_image(scan)
        session.save(tmp_path / "labels.nii.gz")
        sizes = np.bincount(session.labels().ravel(), minlength=2)
    rows = (tmp_path / "labels.tsv").read_text().splitlines()

    assert sizes[1] > 0
    assert rows[1].split("\t")[:3] == ["1", session.structures[0], str(sizes[1])]


# --- Pictures ---


def test_an_overlay_shows_the_slice_with_most_of_the_mask(volumes):
    volumes.set_image(ball(), affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    empty = volumes.overlay()
    volumes.click((20, 22, 12))
    shown = volumes.overlay()

    assert shown.dtype == np.uint8
    assert shown.shape == (44 * 7, 40 * 7, 3)  # rows are J and columns I, 256 at least
    assert (empty[..., 0] == empty[..., 2]).all()  # grey
    mask = volumes.mask()
    best = mask[:, :, int(mask.sum(axis=(0, 1)).argmax())].T
    assert np.array_equal(shown[..., 0] != shown[..., 2], best.repeat(7, axis=0).repeat(7, axis=1))


@pytest.mark.parametrize(("plane", "mm"), [("axial", (40, 60)), ("coronal", (44, 60)), ("sagittal", (44, 40))])
def test_an_overlay_has_square_pixels_in_every_plane(volumes, plane, mm):
    volumes.set_image(ball(), affine=FLIPPED)  # right is -K in steps of 2 mm, front is -I, up is J
    rows, columns = volumes.overlay(plane=plane).shape[:2]
    assert rows / columns == mm[0] / mm[1]
    assert min(rows, columns) >= 256


def test_an_overlay_of_a_picture_keeps_its_colours(slices):
    picture = np.random.default_rng(0).integers(0, 90, (300, 280, 3)).astype(np.uint8)
    picture[100:150, 120:180] = 240
    slices.set_image(picture)
    assert np.array_equal(slices.overlay(), picture)
    slices.box((110, 90), (190, 160))
    changed = (slices.overlay() != picture).any(axis=-1)
    assert np.array_equal(changed, slices.mask())
    with pytest.raises(OptionError, match="a picture has no planes; leave plane out"):
        slices.overlay(plane="axial")


def test_a_plane_that_is_not_known_is_refused(volumes):
    with pytest.raises(PromptError, match="no image is set; call set_image first"):
        volumes.overlay()
    volumes.set_image(ball(), affine=FLIPPED)
    with pytest.raises(OptionError, match="the plane 'oblique' is not known; give plane axial, coronal, sagittal"):
        volumes.overlay(plane="oblique")


def test_structures_are_shown_on_the_methods_own_plane(bright_structures, scan):
    with samkit.open_session(bright_structures, intensities=(0, 255)) as session:
        grey = session.set_image(scan, automatic=False)
        assert not grey.mask.any()
        assert (session.overlay()[..., 0] == session.overlay()[..., 2]).all()
        session.segment_automatically()
        assert (session.overlay()[..., 0] != session.overlay()[..., 2]).any()


def test_a_notebook_shows_the_picture(volumes, caplog, monkeypatch):
    assert volumes._repr_png_() is None
    volumes.set_image(ball(), affine=FLIPPED)
    volumes.click((20, 22, 12))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(volumes._repr_png_()))), volumes.overlay())

    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert volumes._repr_png_() is None
    assert "pictures need Pillow, which is not installed; pip install" in caplog.text
    volumes.close()
    assert volumes._repr_png_() is None


# --- Lines ---


def test_one_line_says_what_is_open_and_names_no_scan(volumes, scan, tmp_path):
    assert "sam-med3d, fp32, " in repr(volumes)
    assert "no image is set" in repr(volumes)
    volumes.set_image(scan)
    update = volumes.click((20, 22, 12))
    line = repr(volumes)

    assert "; 40 x 44 x 30 voxels of 1 x 1 x 2 mm, 1 step" in line
    assert str(tmp_path) not in line
    assert "jane" not in line
    assert ("triton://localhost:8001/bright" in line) == isinstance(volumes, RemoteSession)
    assert repr(update).startswith(f"<MaskUpdate: mask of {update.volume_ml:.4g} mL, changed [")
    assert repr(update).endswith("] by step 1>")
    assert "jane" not in repr(update) + repr(volumes.steps)
    volumes.close()
    assert "; closed; RANDOM WEIGHTS>" in repr(volumes)
    assert "no image is set" not in repr(volumes)


def test_exports_and_methods_are_one_line(bright_export):
    export = samkit.runtime.open_export(bright_export)
    assert repr(export.method) == f"<VolumeMethod sam-med3d: {export.method.summary}; takes point>"
    export.close()
    from samkit.manifest import Export

    assert repr(Export.open(bright_export)) == f"<Export: sam-med3d in fp32, random weights, in {bright_export.name}>"


# --- Millimetres ---


def test_a_place_in_millimetres_that_lies_outside_is_told_in_millimetres(volumes):
    volumes.set_image(ball(), affine=FLIPPED)
    with pytest.raises(InputRefused) as refused:
        volumes.click((500, 0, 0), world=True)
    assert str(refused.value) == (
        "the click (500, 0, 0) mm lies outside the volume, which reaches from -19 to 41, -9.5 to 30.5, -20.5 to 23.5 "
        "mm; give RAS+ millimetres: x to the patient's right, y to the front, z up"
    )
    with pytest.raises(PromptError, match=r"has 2; give x, y, z in millimetres$"):
        volumes.click((5, 6), world=True)
    with pytest.raises(InputRefused, match=r"the click \(99, 0, 0\) lies outside .* with world=True$"):
        volumes.click((99, 0, 0))
    assert volumes.steps == ()


def test_messages_name_the_calls_of_python(slices, volumes):
    slices.set_image(np.full((30, 40), 200.0))
    with pytest.raises(PromptError, match=r"a point is click\(\(x, y\)\) and a box box\(\(x0, y0\), \(x1, y1\)\)"):
        slices.click((1, 2, 3))
    volumes.set_image(ball(), affine=FLIPPED)
    with pytest.raises(PromptError, match=r"this one has two, 1 and 2; e\.g\. click\(\(60, 70, 30\)\)"):
        volumes.click((1, 2))
    with pytest.raises(PromptError, match=r"takes no box; click on the object, e\.g\. click\(\(60, 70, 30\)\)"):
        volumes.box((1, 2, 3), (4, 5, 3))
    with pytest.raises(InputRefused, match="more than one volume; say which one by volume=N, 0 is the first"):
        volumes.set_image(np.stack([ball()] * 2, -1), affine=FLIPPED)
    volumes.set_image(np.stack([ball(), ball() + 1], -1), affine=FLIPPED, volume=1)
