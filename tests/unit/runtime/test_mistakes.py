"""What a newcomer gets wrong in Python is told in a sentence, of a session on a folder and of one on a server."""

from __future__ import annotations

import pydoc
import re

import nibabel
import numpy as np
import pytest

import samkit
from samkit.errors import GeometryError, ManifestError, OptionError, PromptError, SamkitError
from samkit.methods import get_method
from samkit.planes import PLANES
from samkit.precisions import PRECISIONS
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SliceBox, SlicePoint
from samkit.runtime import MaskUpdate, RemoteSession, SliceSession, VolumeSession, opening
from samkit.runtime.backends import BACKENDS, device_names
from samkit.runtime.client.remote_session import DEFAULT_TIMEOUT, LONG_TIMEOUT

BOTH = ["bright_export", "bright_slices"]


def scan(shape=(30, 32, 28)):
    i, j, k = np.indices(shape)
    return (50 + (i + j + k) % 7 + 200 * ((i - 15) ** 2 + (j - 16) ** 2 + (k - 14) ** 2 < 40)).astype(np.int16)


@pytest.fixture(params=BOTH)
def session(request, open_anywhere):
    """A session on volumes and one on slices, each in this process and on a server; no image is set."""
    with open_anywhere(request.getfixturevalue(request.param)) as opened:
        yield opened


def warned(caplog):
    """What the session told; a server in this process may log its own work, too."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --- Opening ---


@pytest.mark.parametrize("threads", ["2", 0, -1, 1.5, True])
def test_threads_are_counted(bright_export, threads):
    with pytest.raises(
        OptionError, match=r"^threads is .*, needed is a whole number above 0, .*; e\.g\. threads=2$"
    ) as no:
        samkit.open_session(bright_export, threads=threads)
    assert "--threads 2" in no.value.sentence({"threads": "--threads"}.get)


def test_numbers_of_numpy_are_numbers(open_anywhere, bright_export, bright_slices):
    with samkit.open_session(bright_export, threads=np.int64(1)) as session:
        assert session.providers
    with open_anywhere(bright_export, spacing=np.array([1.5, 1.0, 1.0], np.float32)) as session:
        session.set_image(scan(), np.eye(4))
        assert session.spacing == (1.5, 1.0, 1.0)
    with open_anywhere(bright_slices, intensities=[np.int16(0), 255]) as session:
        session.set_image(scan(), np.eye(4))


@pytest.mark.parametrize(
    "spacing",
    [1, (1, 1), "111", ("1", "1", "1"), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1), (1, 1, float("inf")), {}],
)
def test_a_spacing_is_three_positive_numbers(open_anywhere, bright_export, spacing):
    with pytest.raises(GeometryError) as refused:
        open_anywhere(bright_export, spacing=spacing)
    said = f"spacing is {spacing!r}, needed are three positive numbers [mm]; e.g. spacing=(1.5, 1.5, 1.5)"
    assert str(refused.value) == said
    assert refused.value.sentence({"spacing": "--spacing"}.get).endswith("e.g. --spacing 1.5,1.5,1.5")


@pytest.mark.parametrize("plane", [3, "oblique", ["axial"]])
def test_a_plane_is_one_of_three(open_anywhere, bright_slices, plane):
    with pytest.raises(OptionError, match="is not known; give plane axial, coronal, sagittal"):
        open_anywhere(bright_slices, plane=plane)


@pytest.mark.parametrize("intensities", [5, (5,), (5, 5), (240, -160), ("0", "255"), (0, float("inf")), "05"])
def test_intensities_are_two_numbers(open_anywhere, bright_slices, intensities):
    with pytest.raises(OptionError, match=r"^intensities are .*, needed are two numbers") as refused:
        open_anywhere(bright_slices, intensities=intensities)
    assert str(refused.value).endswith("e.g. intensities=(-160, 240)")
    assert refused.value.sentence({"intensities": "--intensities"}.get).endswith("e.g. --intensities -160,240")


@pytest.mark.parametrize("target", [None, 3, b"exports/m-sam", get_method("sam")])
def test_what_is_no_export_is_told_by_its_type(target):
    with pytest.raises(
        OptionError, match=rf"the export is of the type {type(target).__name__}; give the folder .*'triton://.*/m-sam'"
    ):
        samkit.open_session(target)


@pytest.mark.parametrize("port", ["localhost:8001/m-sam", "10.0.0.7:8001/m-sam"])
def test_an_address_without_its_scheme_is_shown_with_it(port):
    with pytest.raises(OptionError, match=f"did you mean the server's address 'triton://{port}'"):
        samkit.open_session(port)


def test_what_is_no_address_is_an_option(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="the address 'triton://localhost/m-sam' is no server's"):
        samkit.open_session("triton://localhost/m-sam")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:1").mkdir()
    with pytest.raises(ManifestError, match=r"^a:1 holds no manifest\.json"):
        samkit.open_session("a:1")


def test_a_scan_for_an_export_is_told_what_it_is(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.touch()
    with pytest.raises(ManifestError, match=r"by its name it is an image; .*, and give the image to set_image$"):
        samkit.open_session(path)


@pytest.mark.parametrize("precision", ["float32", "fp8", "", 16])
def test_a_precision_is_called_as_it_is_here(bright_export, precision):
    with pytest.raises(
        OptionError, match=f"^the precision '{precision}' is not known; known are fp32, fp16"
    ) as refused:
        samkit.open_session(bright_export, precision=precision)
    assert str(refused.value).endswith("; float32 is called fp32") == (precision == "float32")


@pytest.mark.parametrize("path", ["", "nul\0.nii.gz"])
def test_what_no_file_can_be_called_is_no_path(session, path):
    session.set_image(scan(), np.eye(4))
    for act in (samkit.open_session, session.set_image, session.save):
        with pytest.raises(OptionError, match="and no file has such a name; give the path of one that you mean"):
            act(path)


def test_a_tilde_is_the_home_that_a_shell_makes_of_it(bright_export, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "export").symlink_to(bright_export)
    nibabel.save(nibabel.Nifti1Image(scan(), np.eye(4)), tmp_path / "scan.nii.gz")
    with samkit.open_session("~/export") as session:
        session.set_image("~/scan.nii.gz")
        session.click((15, 16, 14))
        session.save("~/mask.nii.gz")
    assert (tmp_path / "mask.nii.gz").is_file()
    with pytest.raises(ManifestError, match=f"there is no folder {tmp_path}/nowhere"):
        samkit.open_session("~/nowhere")
    with pytest.raises(ManifestError, match="there is no folder ~nobody-is-called-so/export"):
        samkit.open_session("~nobody-is-called-so/export")


def test_endings_may_be_upper_case(session, tmp_path):
    session.set_image(scan(), np.eye(4))
    session.click((15, 16, 14))
    session.save(tmp_path / "A.NII.GZ")
    session.save(tmp_path / "a.nii.gz")
    assert (tmp_path / "A.NII.GZ").read_bytes() == (tmp_path / "a.nii.gz").read_bytes()


def test_a_picture_for_a_method_of_volumes_is_not_judged_by_its_values(open_anywhere, bright_export):
    with open_anywhere(bright_export) as session:
        for picture in (scan()[:, :, 14], scan()[:, :, :3], 1e300 * scan()[:, :, 14]):
            with pytest.raises(PromptError, match="works on volumes, and a picture is given"):
                session.set_image(picture)


@pytest.mark.parametrize("most", ["2G", -1, 0, 1.5, True, None])
def test_bytes_are_counted(session, most):
    with pytest.raises(OptionError, match=r"^max_bytes is .*, needed is a whole number above 0; e\.g\. max_bytes=\d+$"):
        session.set_image(scan(), np.eye(4), max_bytes=most)


def test_no_backend_is_not_the_default_one(bright_export):
    with pytest.raises(SamkitError, match="backend '' is not known; backends are onnxruntime"):
        samkit.open_session(bright_export, backend="")


def test_a_timeout_beside_a_folder_is_refused(bright_export):
    with pytest.raises(OptionError, match=r"^timeout is for a server's answers, and .*; leave it out$") as refused:
        samkit.open_session(bright_export, timeout=120)
    assert refused.value.options == ("timeout",)


def test_what_must_be_known_is_logged_when_a_session_opens(open_anywhere, bright_export, caplog):
    with open_anywhere(bright_export) as session:
        told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
        assert session.warnings
        assert told == [(opening.__name__, "WARNING", f"{session.target}: {warning}") for warning in session.warnings]
    assert "RANDOM WEIGHTS, for timing and tests: the mask means nothing" in caplog.text


# --- Places and prompts ---


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda session: session.click(24, 24, 24), "click((24, 24, 24))"),
        (lambda session: session.click(24, 24.5), "click((24, 24.5))"),
        (lambda session: session.click(np.int64(24), 24, 24), "click((24, 24, 24))"),
        (lambda session: session.click(24, 24, 24, False), "click((24, 24, 24))"),
        (lambda session: session.click((24, 24, 24), True, False), "click((60, 70, 30))"),
        (lambda session: session.box(1, 2, 3, 4, 5, 3), "box((1, 2, 3), (4, 5, 3))"),
        (lambda session: session.box(1, 2, 3, 4), "box((1, 2), (3, 4))"),
        (lambda session: session.box((1, 2), (3, 4), "liver"), "box((40, 52, 30), (88, 97, 30))"),
    ],
)
def test_numbers_one_by_one_are_shown_together(session, call, instead):
    session.set_image(scan(), np.eye(4))
    with pytest.raises(PromptError, match="the numbers of a place go in together; give ") as refused:
        call(session)
    assert str(refused.value).endswith(f"; give {instead}")


@pytest.mark.parametrize(
    ("prompt", "instead"),
    [
        ((15, 16, 14), "click((15, 16, 14))"),
        ([15.5, 16], "click((15.5, 16))"),
        (15, "click((60, 70, 30))"),
        ("15,16,14,+", "click((60, 70, 30))"),
        (Point(15, 16, 14), "click((60, 70, 30))"),
        (Point((15, 16), 1), "click((60, 70, 30))"),
        (Box((1, 2, 3), 4), "click((60, 70, 30))"),
        (SlicePoint("15", 16, 1), "click((60, 70, 30))"),
        (SliceBox(1, 2, 3, None), "click((60, 70, 30))"),
    ],
)
def test_what_is_no_prompt_is_told(session, prompt, instead):
    session.set_image(scan(), np.eye(4))
    for act in (session.add, session.check):
        with pytest.raises(PromptError, match="is no prompt; give ") as refused:
            act(prompt)
        assert f"; give {instead}, or to add(...) such as samkit.Point(" in str(refused.value)
    assert session.steps == ()


@pytest.mark.parametrize("label", ["+", "1", None, 2, -1, -2, 255, 1.0, True, np.bool_(True)])
def test_a_label_is_one_or_zero(session, label):
    session.set_image(scan(), np.eye(4))
    for prompt in (Point((15, 16, 14), label), SlicePoint(15, 16, label)):
        for act in (session.add, session.check, lambda one: session.by_step([one])):
            with pytest.raises(
                PromptError, match=r"^the label of a point is .*; give 1 \(samkit\.prompts\.FOREGROUND\)"
            ):
                act(prompt)
    assert session.steps == ()


def test_a_label_may_be_numpys(session):
    session.set_image(scan(), np.eye(4))
    prompts = [Point((15, 16, 14), np.int64(FOREGROUND)), Point((2, 2, 14), np.uint8(BACKGROUND))]
    same = session.add(*prompts).mask
    session.reset()
    assert np.array_equal(session.add(Point((15, 16, 14), 1), Point((2, 2, 14), 0)).mask, same)


def test_a_box_whose_corners_changed_places_is_shown_in_order(open_anywhere, bright_slices):
    with open_anywhere(bright_slices) as session:
        session.set_image(scan()[:, :, 14].astype(np.uint8))
        for box in (SliceBox(20, 12, 10, 22), SliceBox(10, 22, 20, 12), SliceBox(20, 22, 10, 12)):
            with pytest.raises(PromptError, match=r"; give samkit\.SliceBox\(10, 12, 20, 22\)$"):
                session.add(box)
        assert session.add(SliceBox(10, 12, 20, 22)).step is not None


def test_corners_of_a_box_in_a_volume_may_be_any_two(open_anywhere, bright_slices):
    with open_anywhere(bright_slices) as session:
        session.set_image(scan(), np.eye(4))
        same = session.add(Box((10, 12, 14), (20, 22, 14))).mask
        session.reset()
        assert np.array_equal(session.add(Box((20, 12, 14), (10, 22, 14))).mask, same)


@pytest.mark.parametrize(
    "place", [{15, 16, 14}, {15: 0, 16: 0, 14: 0}, iter((15, 16, 14)), {15: 0, 16: 0, 14: 0}.keys()]
)
def test_what_has_no_order_is_no_place(session, place):
    session.set_image(scan(), np.eye(4))
    with pytest.raises(PromptError, match="needed are finite numbers in order"):
        session.click(place)
    with pytest.raises(PromptError, match="is no prompt"):
        session.add(Point(place, 1))


@pytest.mark.parametrize("prompts", [None, Point((15, 16, 14), 1), "15,16,14,+", {Point((15, 16, 14), 1)}, 3])
def test_prompts_are_a_list(session, prompts):
    with pytest.raises(PromptError, match=r"^the prompts are .*; give a list of them, such as \[samkit\.Point\("):
        session.by_step(prompts)
    with pytest.raises(PromptError, match=r"is no prompt; give click\(\(15, 16, 14\)\)"):
        session.by_step([(15, 16, 14)])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda session: session.add(Point((15, 16, 14), 1), refine="no"), "refine is 'no'"),
        (lambda session: session.set_image(scan(), np.eye(4), automatic="no"), "automatic is 'no'"),
        (lambda session: session.click((15, 16, 14), world="mm"), "world is 'mm'"),
        (lambda session: session.box((1, 2, 3), (4, 5, 3), world=1), "world is 1"),
    ],
)
def test_what_is_neither_true_nor_false_is_no_flag(session, call, name):
    session.set_image(scan(), np.eye(4))
    with pytest.raises(OptionError, match=f"^{name}; give True or False$"):
        call(session)


def test_a_structure_is_a_name(session):
    session.set_image(scan(), np.eye(4))
    with pytest.raises(PromptError, match=r"^structure is None; give a name, or '' for none$"):
        session.click((15, 16, 14), structure=None)


def test_the_path_of_a_mask_is_a_path(session):
    session.set_image(scan(), np.eye(4))
    for path in (None, 3, b"mask.nii.gz"):
        with pytest.raises(
            OptionError, match=rf"of the type {type(path).__name__}; give a file's, e\.g\. save\('mask\.nii\.gz'\)"
        ):
            session.save(path)


def test_the_affine_needs_no_keyword(session):
    session.set_image(scan(), np.diag([1, 1, 2, 1]))
    same = session.click((15, 16, 14)).mask
    session.set_image(scan(), affine=np.diag([1, 1, 2, 1]))
    assert np.array_equal(session.click((15, 16, 14)).mask, same)


# --- Voxels of a wrong size ---


@pytest.mark.parametrize(
    ("voxel", "spacing", "told"),
    [
        (15, 1.5, "voxels of 15 x 15 x 15 mm are along each axis more than 5 times as long"),
        (1.5, 0.01, "more than 5 times as long as those of the network's grid, 0.01 x 0.01 x 0.01 mm"),
        (1.5, 10, "the whole scan is 5 x 5 x 5 voxels of the network's grid, 10 x 10 x 10 mm"),
        (1, 1, ""),
        (7, 1.5, ""),  # along one axis alone: thick slices
    ],
)
def test_voxels_that_do_not_suit_the_grid_are_told(open_anywhere, bright_export, caplog, voxel, spacing, told):
    with open_anywhere(bright_export, spacing=(spacing,) * 3) as session:
        caplog.clear()
        session.set_image(scan(), np.diag([1 if voxel == 7 else voxel, voxel, voxel, 1]))
        assert [told in warning for warning in session.image_warnings] == [True] * bool(told)
        assert warned(caplog) == list(session.image_warnings)


def test_metres_for_millimetres_are_called_so(open_anywhere, bright_export):
    with open_anywhere(bright_export) as session, pytest.raises(GeometryError) as refused:
        session.set_image(scan(), np.diag([0.0015, 0.0015, 0.0015, 1]))
    assert "the whole scan, 0.045 x 0.048 x 0.042 mm by its affine, is one voxel of the network's" in str(refused.value)
    assert "is it in metres?" in str(refused.value)


def test_an_empty_mask_is_told_when_it_is_saved(session, tmp_path, caplog):
    session.set_image(scan(), np.eye(4))
    caplog.clear()
    session.save(tmp_path / "mask.nii.gz")
    assert warned(caplog) == ["the mask is empty"]
    session.click((15, 16, 14))
    caplog.clear()
    session.save(tmp_path / "mask.nii.gz")
    assert not warned(caplog)


# --- In the wrong order ---


def test_before_an_image_every_act_says_that_none_is_set(session):
    acts = [session.undo, session.redo, session.reset, session.mask, session.overlay, session.last_update]
    acts += [lambda: session.click((1, 2, 3)), lambda: session.box((1, 2, 3), (4, 5, 3))]
    acts += [
        lambda: session.box((1, 2), (4, 5)),
        lambda: session.add(Point((1, 2, 3), 1)),
        lambda: session.save("m.nii"),
    ]
    for act in acts:
        with pytest.raises(PromptError, match=r"^no image is set; call set_image first$"):
            act()


def test_after_close_every_act_says_that_it_is_closed(session, tmp_path):
    session.set_image(scan(), np.eye(4))
    session.click((15, 16, 14))
    assert not session.is_closed
    session.close()
    session.close()
    acts = [session.undo, session.redo, session.reset, session.mask, session.labels, session.overlay]
    acts += [session.last_update, session.propagate, session.segment_automatically, session.__enter__]
    acts += [lambda: session.click((15, 16, 14)), lambda: session.set_image(scan(), np.eye(4))]
    acts += [lambda: session.save(tmp_path / "mask.nii.gz"), lambda: session.box((1, 2, 3), (4, 5, 3))]
    acts += [lambda: session.click((15, 16, 14), world=True), lambda: session.check(Point((1, 2, 3), 1))]
    for act in acts:
        with pytest.raises(SamkitError, match=r"^this session is closed, .*; use open_session again$"):
            act()
    assert session.is_closed
    assert "; closed" in repr(session)
    assert not list(tmp_path.iterdir())


# --- Help ---


def item(name):
    """What `open_session` says in its list of one option."""
    (said,) = re.findall(
        rf"^    - `{name}`: (.*?)(?=\n    - |\n\n)", samkit.open_session.__doc__, re.MULTILINE | re.DOTALL
    )
    return said


def test_help_lists_what_the_records_have():
    backends, devices, precisions = (
        [*re.findall(r"`([^`]+)`", item(name))] for name in ("backend", "device", "precision")
    )
    names = [backend.name for backend in BACKENDS]
    assert backends == names
    assert list(dict.fromkeys(name for name in devices if name not in names)) == list(device_names())
    assert list(dict.fromkeys(name for name in precisions if name not in devices)) == [one.name for one in PRECISIONS]
    own = re.search(r"the backend's own, `(.*?)` of (.*), else `(.*?)`", " ".join(item("device").split()))
    first = {backend.name: backend.devices[0] for backend in BACKENDS}
    listed = re.findall(r"`([^`]+)`", own[2])
    assert {name: own[1] if name in listed else own[3] for name in first} == first
    preferred = {one.name: sorted(one.preferred_on) for one in PRECISIONS if one.preferred_on}
    assert preferred == {"fp16": ["cuda"]}
    assert "by default `fp16` on `cuda` where backend" in " ".join(item("precision").split())
    text = " ".join(samkit.open_session.__doc__.split())
    assert f"by default {DEFAULT_TIMEOUT:g}, and {LONG_TIMEOUT:g} for one that works on many slices" in text
    assert all(f"`{plane}`" in text for plane in PLANES)


def test_help_tells_of_failures_and_updates():
    assert "help(samkit.errors)" in pydoc.plain(pydoc.render_doc(samkit))
    assert "exit code" in samkit.errors.__doc__.lower()
    shown = " ".join(pydoc.plain(pydoc.render_doc(MaskUpdate)).split())
    for words in ("volume of the mask [mL]", "predicted IoU", "what the call did"):
        assert words in shown


@pytest.mark.parametrize("kind", [VolumeSession, SliceSession, RemoteSession, MaskUpdate])
def test_what_help_lists_says_what_it_is(kind):
    for name in (name for name in dir(kind) if not name.startswith("_")):
        member = getattr(kind, name)
        assert isinstance(member, (str, bool, type(None))) or pydoc.getdoc(member), name
