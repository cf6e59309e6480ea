"""A session answers in the frame of the volume it was given, and undo brings the mask before back bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from samkit.errors import (
    ExportError,
    GeometryError,
    InputRefused,
    ManifestError,
    MissingDependencyError,
    OptionError,
    PromptError,
)
from samkit.geometry import Volume, voxel_to_world, world_to_voxel
from samkit.manifest import Export, Manifest
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.runtime import VolumeSession, open_session
from samkit.runtime.backends import default_precision, get_backend

CODES = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]


def ball(shape=(40, 36, 44), centre=(20, 18, 22), radius=8.0):
    i, j, k = np.indices(shape)
    inside = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < radius**2
    return (50 + (i + j + k) % 7 + 200 * inside).astype(np.int16)


@pytest.fixture
def session(bright_export):
    with open_session(bright_export) as opened:
        yield opened


def click(i=20.0, j=18.0, k=22.0, label=FOREGROUND):
    return Point((i, j, k), label)


def test_step_says_what_the_click_did(session):
    session.set_image(Volume(ball(), np.diag([1.0, 1.0, 1.0, 1.0])))
    step = session.add(click()).step

    assert step.number == 1
    assert step.volume_ml == pytest.approx(session.mask().sum() / 1000)
    assert step.volume_ml == pytest.approx(2.1, rel=0.3)
    assert (step.crops, step.limit_reached) == (1, False)
    assert set(step.seconds) == {"crop", "encode", "decode", "merge", "restore", "total"}
    assert session.steps == (step,)


def test_mask_is_where_logits_pass_the_threshold(session):
    session.set_image(Volume(ball(), np.diag([1.3, 0.8, 1.0, 1.0])))
    session.add(click())

    assert session.mask().dtype == bool
    assert session.logits().dtype == np.float32
    assert session.mask().shape == session.logits().shape == ball().shape
    assert np.array_equal(session.mask(), session.logits() > session.method.mask_threshold)


def test_every_orientation_gives_the_same_mask(session):
    array, affine = ball(), np.diag([1.1, 0.9, 1.0, 1.0])
    world = voxel_to_world(affine, np.array([[20.0, 18.0, 22.0]]))
    masks = []
    for codes in CODES:
        change = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
        stored = apply_orientation(array, change)
        noise = np.zeros((4, 4))
        noise[:3] = np.random.default_rng(len(masks)).uniform(-3e-6, 3e-6, (3, 4))
        stored_affine = affine @ inv_ornt_aff(change, array.shape) + noise
        session.set_image(Volume(stored, stored_affine))
        (index,) = world_to_voxel(stored_affine, world)
        session.add(Point(tuple(index), FOREGROUND))
        back = ornt_transform(axcodes2ornt(codes), io_orientation(affine))
        masks.append(apply_orientation(session.mask(), back))

    assert masks[0].sum() >= 100
    assert max(int((mask ^ masks[0]).sum()) for mask in masks) <= 3


def test_undo_and_redo_are_exact(session):
    session.set_image(Volume(ball(), np.eye(4)))
    masks, logits = [session.mask()], [session.logits()]
    for point in (click(), click(2, 2, 2, BACKGROUND), click(21, 18, 22)):
        session.add(point)
        masks.append(session.mask())
        logits.append(session.logits())
    for number in (2, 1, 0):
        session.undo()
        assert np.array_equal(session.mask(), masks[number])
        assert np.array_equal(session.logits(), logits[number])
        assert len(session.steps) == number
    for number in (1, 2, 3):
        session.redo()
        assert np.array_equal(session.logits(), logits[number])


def test_click_after_undo_forgets_what_was_undone(session):
    session.set_image(Volume(ball(), np.eye(4)))
    session.add(click())
    session.undo()
    session.add(click())

    with pytest.raises(PromptError, match="nothing to redo"):
        session.redo()


def test_undo_without_clicks_is_refused(session):
    session.set_image(Volume(ball(), np.eye(4)))

    with pytest.raises(PromptError, match="no click to undo"):
        session.undo()


def test_reset_starts_afresh_on_the_same_volume(session):
    session.set_image(Volume(ball(), np.eye(4)))
    session.add(click())
    first = session.logits()
    session.reset()
    assert not session.mask().any()
    step = session.add(click()).step

    assert np.array_equal(session.logits(), first)
    assert step.seconds["encode"] == 0  # the embedding was kept


def test_new_volume_forgets_the_old_one(session):
    session.set_image(Volume(ball(), np.eye(4)))
    session.add(click())
    first = session.mask()
    session.set_image(Volume(ball(radius=5), np.eye(4)))
    assert session.steps == ()
    session.add(click())

    assert 0 < session.mask().sum() < first.sum()


def test_far_crops_stay_apart(session):
    """Two balls in a long scan: memory follows the crops, and both are in the mask."""
    array = np.concatenate([ball(), np.full((400, 36, 44), 52, np.int16), ball()])
    session.set_image(Volume(array, np.eye(4)))
    session.add(click())
    step = session.add(click(i=460)).step

    assert step.crops == 2
    assert session.mask()[460, 18, 22]
    assert session.mask()[20, 18, 22]
    assert not session.mask()[100:400].any()
    assert step.volume_ml == pytest.approx(session.mask().sum() / 1000)


def test_click_outside_is_refused_and_changes_nothing(session):
    session.set_image(Volume(ball(), np.eye(4)))
    for point in (click(i=39.6), click(j=-0.6), click(k=1e9)):
        with pytest.raises(InputRefused, match="lies outside the volume of 40 x 36 x 44 voxels"):
            session.add(point)

    assert session.steps == ()


def test_click_on_the_very_edge_is_inside_despite_round_off(session):
    session.set_image(Volume(ball(), np.eye(4)))
    session.add(click(i=39.5000004, j=-0.5000004))

    assert len(session.steps) == 1


def test_spacing_can_be_overridden(bright_export):
    with open_session(bright_export, spacing=(2.0, 2.0, 2.0)) as session:
        session.set_image(Volume(ball(), np.eye(4)))
        session.add(click())
        assert session.mask().shape == ball().shape
        assert session.mask()[20, 18, 22]


def test_volume_must_be_set_first(session):
    with pytest.raises(PromptError, match="no image is set; call set_image first"):
        session.add(click())


@pytest.mark.parametrize(("shape", "words"), [((4, 4), "a slice, not a volume"), ((4, 4, 4, 2), "more than one")])
def test_volume_must_have_three_axes(session, shape, words):
    with pytest.raises(InputRefused, match=words):
        session.set_image(Volume(np.zeros(shape), np.eye(4)))
    with pytest.raises(GeometryError, match="three axes"):
        session.take({"": Volume(np.zeros(shape), np.eye(4))})


def test_singular_volume_is_refused(session):
    singular = Volume(ball(), np.diag([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(InputRefused, match="singular"):
        session.set_image(singular)
    with pytest.raises(GeometryError, match="singular"):
        session.take({"": singular})


def test_session_carries_the_manifest_of_its_export(session, bright_export):
    assert session.manifest == Manifest.load(bright_export)
    with pytest.raises(ManifestError, match="use open_session"):
        _ = VolumeSession(session.method, session.config, "anchored", {}).manifest


def test_unknown_refinement_is_refused(session):
    with pytest.raises(ExportError, match="knows the refinements anchored"):
        VolumeSession(session.method, session.config, "recurrent", {})


@pytest.mark.parametrize("wrong", [{"backend": "tensorflow"}, {"device": "tpu"}])
def test_unknown_backend_or_device_is_refused(bright_export, wrong):
    with pytest.raises(OptionError, match="not known"):
        open_session(bright_export, **wrong)


@pytest.mark.parametrize(
    ("device", "says"), [(None, "and not TensorrtExecutionProvider"), ("cpu", "TensorRT runs on a CUDA device")]
)
def test_tensorrt_of_onnx_runtime_never_falls_back(bright_export, device, says):
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers() and device is None:
        pytest.skip("this ONNX Runtime brings its TensorRT provider")
    with pytest.raises(OptionError if device else MissingDependencyError, match=says):
        open_session(bright_export, backend="onnxruntime-tensorrt", device=device)


def test_torch_backend_needs_weights_that_a_file_holds(bright_export):
    pytest.importorskip("torch")
    with pytest.raises(ManifestError, match="no file holds"):
        open_session(bright_export, backend="torch")


def test_cuda_is_never_replaced_by_the_cpu(bright_export):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(MissingDependencyError, match=r"samkit\[gpu\]"):
        open_session(bright_export, device="cuda")


@pytest.mark.parametrize(
    ("backend", "device", "precision"),
    [
        ("onnxruntime", "cpu", "fp32"),
        ("onnxruntime", "cuda", "fp16"),
        ("tensorrt", "cuda", "fp16"),
        ("onnxruntime-tensorrt", "cuda", "fp32"),  # nobody has seen what its provider makes of float16 files
        ("torch", "cuda", "fp32"),
    ],
)
def test_float16_is_the_default_only_where_it_was_checked(bright_export, backend, device, precision):
    export, record = Export.open(bright_export), get_backend(backend)
    both = replace(export, manifest=replace(export.manifest, plan=replace(export.plan, precision="fp16")))
    assert default_precision(both, record, device) == precision
    assert default_precision(export, record, device) == "fp32"
