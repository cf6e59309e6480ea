"""A session of slices answers in the frame of what it was given, prompts act on their slice, and undo is exact."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from samkit.errors import GeometryError, InputRefused, ManifestError, OptionError, PromptError, TensorMismatchError
from samkit.geometry import Volume, voxel_to_world, world_to_voxel
from samkit.imageio.reading import read_scan
from samkit.methods import sam
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SliceBox, SlicePoint, SlicePrompts
from samkit.runtime import SliceSession, open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import add_substitutes
from samkit.runtime.session import slice_session

CODES = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
BOX = Box((18, 18, 8), (32, 36, 8))


def blocks():
    """Two bright blocks, (20..29, 20..33) and (46..49, 20..33), in slices 5 to 11 of dim tissue."""
    array = np.full((60, 64, 20), 20, np.int16)
    array[20:30, 20:34, 5:12] = 200
    array[46:50, 20:34, 5:12] = 200
    return array


@pytest.fixture
def session(bright_slices):
    with open_session(bright_slices) as opened:
        opened.set_image(Volume(blocks(), AFFINE))
        yield opened


def test_export_of_slices_opens_as_a_session_of_slices(session):
    assert isinstance(session, SliceSession)
    assert session.plane == "axial"
    assert session.warnings == ("RANDOM WEIGHTS, for timing and tests: the mask means nothing",)


def test_box_segments_its_slice_alone(session):
    step = session.add(BOX).step
    mask = session.mask()

    assert (mask.dtype, mask.shape) == (np.dtype(bool), blocks().shape)
    assert np.array_equal(mask[:, :, 8], blocks()[:, :, 8] * (np.arange(60) < 40)[:, None] > 100)
    assert not np.delete(mask, 8, axis=2).any()
    assert (step.number, step.slices, session.prompted) == (1, (8,), (8,))
    assert step.voxels == 140
    assert step.volume_ml == pytest.approx(0.28)
    assert step.iou == pytest.approx((0.6,))
    assert set(step.seconds) == {"prepare", "propose", "encode", "decode", "total"}


def test_change_holds_the_slices_in_between_and_is_made_without_the_whole_mask(session, monkeypatch):
    session.add(BOX)
    update = session.add(*(replace(BOX, first=(*BOX.first[:2], k), last=(*BOX.last[:2], k)) for k in (6.0, 10.0)))
    labels = session.labels()
    monkeypatch.setattr(slice_session, "_whole", None)

    region, change = update.change

    assert region[2] == slice(6, 11)
    assert np.array_equal(change, labels[region])
    assert change[:, :, 2].any()


def test_logits_are_above_zero_where_the_mask_is(session):
    session.add(BOX)

    assert session.logits().dtype == np.float32
    assert np.array_equal(session.logits() > 0, session.mask())
    assert session.logits()[0, 0, 0] == -20
    assert np.array_equal(session.labels(), session.mask().astype(np.uint8))


def test_prompts_of_a_slice_go_in_together(session):
    session.add(BOX)
    step = session.add(Box((44, 18, 8.2), (51, 36, 7.9))).step

    assert step.voxels == 140 + 56
    assert len(step.iou) == 2
    one_by_one = session.mask()
    session.reset()
    session.add(BOX, Box((44, 18, 8), (51, 36, 8)))
    assert np.array_equal(session.mask(), one_by_one)
    assert len(session.steps) == 1


def test_single_point_takes_the_best_proposal(session):
    step = session.add(Point((25, 25, 8), FOREGROUND)).step

    assert step.iou == pytest.approx((0.9,))
    assert step.voxels == 140 + 56


def test_slice_is_encoded_once(session):
    session.add(BOX)
    step = session.add(Point((2, 2, 8), BACKGROUND)).step

    assert step.seconds["encode"] == 0
    assert step.slices == (8,)


def test_background_alone_is_no_object(session):
    step = session.add(Point((2, 2, 8), BACKGROUND)).step

    assert step.voxels == 0
    assert session.prompted == (8,)
    assert session.add(BOX).step.voxels == 140


def test_background_alone_is_no_object_behind_a_detector_either(session):
    method = replace(sam.METHOD, is_automatic=True, propose=lambda run, image, config: SlicePrompts())
    detecting = SliceSession(method, session.config, session._runners)
    detecting.set_image(Volume(blocks(), AFFINE), automatic=False)
    detecting.add(BOX)

    assert detecting.add(Point((2, 2, 9), BACKGROUND)).step.voxels == 140


def test_propagation_ends_where_the_object_does(session):
    session.add(BOX)
    step = session.propagate().step

    assert step.slices == (5, 6, 7, 9, 10, 11)
    expected = blocks() > 100
    expected[40:] = False
    assert np.array_equal(session.mask(), expected)


def test_propagation_stops_at_the_next_prompted_slice_and_meets_others_halfway(session):
    session.add(BOX, Box((44, 18, 11), (51, 36, 11)), Point((2, 2, 6), BACKGROUND))
    session.propagate()
    mask = session.mask()

    assert [int(mask[:, :, k].sum()) for k in range(4, 13)] == [0, 0, 0, 140, 140, 196, 196, 56, 0]


def test_propagation_needs_something_to_start_from(session):
    with pytest.raises(PromptError, match="give a point or a box first"):
        session.propagate()


def test_empty_slices_are_background(session):
    array = blocks()
    array[:, :, 9] = 0
    session.set_image(Volume(array, AFFINE))
    session.add(BOX)
    session.propagate()

    assert session.mask().any(axis=(0, 1)).nonzero()[0].tolist() == [5, 6, 7, 8]
    with pytest.raises(InputRefused, match="nothing but zeros"):
        session.add(Box((18, 18, 9), (32, 36, 9)))


def test_every_orientation_gives_the_same_mask(session):
    world = voxel_to_world(AFFINE, np.array([[18.0, 18.2, 8.5], [32.0, 36.1, 8.5]]))
    masks = []
    for codes in CODES:
        change = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
        affine = AFFINE @ inv_ornt_aff(change, blocks().shape)
        affine[:3] += np.random.default_rng(len(masks)).uniform(-3e-6, 3e-6, (3, 4))
        session.set_image(Volume(apply_orientation(blocks(), change), affine))
        first, last = world_to_voxel(affine, world)
        session.add(Box(tuple(first), tuple(last)))
        session.propagate()
        back = ornt_transform(axcodes2ornt(codes), io_orientation(AFFINE))
        masks.append(apply_orientation(session.mask(), back))

    assert masks[0].sum() == 7 * 140
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_real_scan_gives_one_mask_in_every_orientation(bright_slices, shared):
    paths = sorted((shared / "data" / "orientations").glob("*.nii.gz"))
    assert len(paths) == 48
    reference = read_scan(paths[0]).volume
    middle = (np.array(reference.array.shape) - 1) / 2
    world = voxel_to_world(reference.affine, np.array([middle + 0.3]))
    masks = []
    with open_session(bright_slices, plane="coronal") as session:
        for path in paths:
            volume = read_scan(path).volume
            session.set_image(volume)
            (index,) = world_to_voxel(volume.affine, world)
            session.add(Point(tuple(index), FOREGROUND))
            change = ornt_transform(io_orientation(volume.affine), axcodes2ornt("RAS"))
            masks.append(apply_orientation(session.mask(), change))

    assert masks[0].sum() > 100
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize(
    ("plane", "box"),
    [("axial", BOX), ("coronal", Box((18, 25, 4), (32, 25, 12))), ("sagittal", Box((25, 18, 4), (25, 36, 12)))],
)
def test_plane_decides_which_slices(plane, box, bright_slices):
    with open_session(bright_slices, plane=plane) as session:
        session.set_image(Volume(blocks(), AFFINE))
        session.add(box)
        (flat,) = [axis for axis in range(3) if box.first[axis] == box.last[axis]]

        assert session.mask().any(axis=tuple({0, 1, 2} - {flat})).sum() == 1
        assert session.mask()[25, 25, 8]


def test_undo_and_redo_are_exact(session):
    logits = [session.logits()]
    for act in (
        lambda: session.add(BOX),
        session.propagate,
        lambda: session.add(Box((44, 18, 8), (51, 36, 8))),
    ):
        act()
        logits.append(session.logits())
    for number in (2, 1, 0):
        session.undo()
        assert np.array_equal(session.logits(), logits[number])
        assert len(session.steps) == number
    for number in (1, 2, 3):
        session.redo()
        assert np.array_equal(session.logits(), logits[number])
    with pytest.raises(PromptError, match="nothing to redo"):
        session.redo()


def test_mask_prompt_is_given_only_when_asked_for(session):
    session.add(BOX)
    first = session.logits()
    session.add(Point((25, 25, 8), FOREGROUND))
    assert np.array_equal(session.logits(), first)
    session.add(Point((26, 25, 8), FOREGROUND), refine=True)

    assert 0 < np.abs(session.logits() - first)[:, :, 8].max() < 1
    with pytest.raises(InputRefused, match="mask prompt"):  # one more object than the answer before had
        session.add(Box((44, 18, 8), (51, 36, 8)), refine=True)


# --- What is refused ---


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Box((18, 18, 8), (32, 36, 9)), "goes from k 8 to 9, and axial slices are flat along k"),
        (Point((60, 2, 2), FOREGROUND), r"the click \(60, 2, 2\) lies outside the volume of 60 x 64 x 20 voxels"),
        (Box((18, 18, 8), (32, 64, 8)), r"a corner of the box \(32, 64, 8\) lies outside the volume"),
    ],
)
def test_prompt_in_a_wrong_place_is_refused_and_changes_nothing(prompt, words, session):
    for act in (session.check, session.add, lambda prompt: session.add(BOX, prompt)):
        with pytest.raises(InputRefused, match=words):
            act(prompt)
    assert session.steps == ()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (SlicePoint(3, 4, FOREGROUND), "two indices are for pictures"),
        (Point((3, 4, 5), FOREGROUND, "thalamus_left"), "sam tells no structures apart"),
    ],
)
def test_prompt_of_a_wrong_kind_is_refused(prompt, words, session):
    with pytest.raises(PromptError, match=words):
        session.add(prompt)


def test_kind_of_prompt_that_the_method_does_not_take_is_refused(session):
    for taken, prompt, words in (
        ({"box"}, Point((3, 4, 5), FOREGROUND), "takes no point; give a box"),
        (set(), BOX, "takes no box; give no prompt at all"),
    ):
        other = replace(sam.METHOD, prompts=frozenset(taken))
        made = SliceSession(other, session.config, session._runners)
        made.set_image(Volume(blocks(), AFFINE))
        with pytest.raises(PromptError, match=words):
            made.check(prompt)


def test_method_that_needs_prompts_segments_nothing_by_itself(session):
    with pytest.raises(PromptError, match="sam segments nothing without a prompt; give a box or a point"):
        session.segment_automatically()
    with pytest.raises(PromptError, match="no prompt was given"):
        session.add()


def test_volume_must_be_set_first(bright_slices):
    with (
        open_session(bright_slices) as session,
        pytest.raises(PromptError, match="no image is set; call set_image first"),
    ):
        session.add(BOX)


@pytest.mark.parametrize(("shape", "words"), [((4, 4), "a slice, not a volume"), ((4, 4, 4, 2), "more than one")])
def test_volume_must_have_three_axes(session, shape, words):
    with pytest.raises(InputRefused, match=words):
        session.set_image(Volume(np.zeros(shape), np.eye(4)))
    with pytest.raises(GeometryError, match="three axes"):
        session.take({"": Volume(np.zeros(shape), np.eye(4))})


def test_option_of_the_other_kind_of_method_is_refused(bright_slices, bright_export):
    with pytest.raises(OptionError, match="takes no spacing; leave spacing out"):
        open_session(bright_slices, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(OptionError, match=r"^plane is for methods of slices"):
        open_session(bright_export, plane="axial")
    with pytest.raises(OptionError, match="axial, coronal, sagittal"):
        open_session(bright_slices, plane="oblique")


# --- Pictures ---


def test_picture_is_one_slice(session):
    picture = np.full((64, 60, 3), 20.0)
    picture[20:34, 20:30] = 235
    session.set_image(picture)
    step = session.add(SliceBox(18, 18, 32, 36)).step

    assert session.mask().shape == (64, 60)
    assert np.array_equal(session.mask(), picture[..., 0] > 100)
    assert (step.voxels, step.volume_ml, step.slices) == (140, None, (0,))
    assert session.logits().shape == (64, 60)
    with pytest.raises(PromptError, match="has no neighbours"):
        session.propagate()
    with pytest.raises(PromptError, match="no third index"):
        session.add(BOX)
    with pytest.raises(InputRefused, match=r"\(60, 3\) lies outside the picture of 60 x 64 pixels"):
        session.add(SlicePoint(60, 3, FOREGROUND))


def test_grey_picture_may_leave_its_channel_out(session):
    session.set_image(np.full((8, 9), 20.0))
    assert session.mask().shape == (8, 9)
    with pytest.raises(InputRefused, match=r"8 x 9 x 2, and sam needs rows, columns and 1 or 3 channel"):
        session.set_image(np.zeros((8, 9, 2)))


def test_grey_picture_stands_for_three_sequences(session):
    picture = np.full((64, 60), 20.0)
    picture[20:34, 20:30] = 235
    method = replace(sam.METHOD, sequences=lambda config: ("t1c", "t2w", "t2f"))
    three = SliceSession(method, session.config, session._runners)
    three.set_image(picture)
    three.add(SliceBox(18, 18, 32, 36))

    assert np.array_equal(three.mask(), picture > 100)


# --- Sequences ---


@pytest.fixture
def two(session):
    """A session of a method that takes two sequences."""
    return SliceSession(replace(sam.METHOD, sequences=lambda config: ("t1c", "t2w")), session.config, session._runners)


def test_sequences_are_named_when_they_do_not_fit(two):
    volume = Volume(blocks(), AFFINE)
    moved, smaller = Volume(blocks(), AFFINE + np.eye(4, k=3)), Volume(blocks()[1:], AFFINE)
    for given, words in (
        ({"t1c": volume}, "t2w missing: these weights of sam take t1c and t2w, and given is t1c"),
        (volume, "t1c and t2w missing"),
        ({"t1c": volume, "t2w": volume, "t2f": volume}, "t2f can't be used: these weights of sam take t1c and t2w"),
        ({"t1c": volume, "t2w": moved}, "t2w lies 1 voxels off t1c by their affines, so they are not co-registered"),
        ({"t1c": volume, "t2w": smaller}, "t2w has 59 x 64 x 20 voxels and t1c 60 x 64 x 20"),
        ({"t1c": volume, "t2w": Volume((blocks() > 100) * 7, AFFINE)}, "t2w has no contrast"),
    ):
        with pytest.raises(InputRefused, match=words):
            two.set_image(given)


def test_one_volume_is_taken_where_no_sequence_has_a_name(session):
    with pytest.raises(InputRefused, match="takes one volume, and 2 are given: a, b"):
        session.set_image({"a": Volume(blocks(), AFFINE), "b": Volume(blocks(), AFFINE)})
    session.set_image({"t1c": Volume(blocks(), AFFINE)})
    assert session.add(BOX).step.voxels == 140


def without_graph(bright_slices, folder, name):
    """Return a copy of an export that lacks a graph."""
    shutil.copytree(bright_slices, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["plan"]["graphs"].remove(name)
    manifest["artifacts"] = [entry for entry in manifest["artifacts"] if entry["file"] != f"{name}.onnx"]
    (folder / f"{name}.onnx").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_export_without_the_decoder_that_takes_no_mask_answers_the_same(bright_slices, tmp_path):
    """Such as one that an earlier samkit made, or --no-fold: `mask_decoder` given no mask does that work."""
    folder = without_graph(bright_slices, tmp_path / "old", "mask_decoder_no_mask")
    volume = Volume(blocks(), AFFINE)
    answers = []
    for export in (bright_slices, folder):
        with open_session(export) as session:
            session.set_image(volume)
            session.add(BOX, Point((12, 14, 8), 1))  # a box and a point beside it: two rows
            session.add(Point((2, 3, 8), 0), refine=True)
            session.propagate()
            answers.append(session.logits())
            assert set(session.providers) == {"image_encoder", "mask_decoder", "mask_decoder_no_mask"}
    assert (answers[0] > 0).any()
    np.testing.assert_array_equal(*answers)


def test_substitute_takes_what_the_missing_graph_takes(bright_slices):
    graphs = {graph.name: graph for graph in sam.METHOD.graphs(sam.METHOD.sizes["tiny"])}
    specs = graphs["mask_decoder_no_mask"].inputs
    rows = 3
    feed = {
        spec.name: np.ones([{"batch": rows, "points": 2}.get(axis.name, axis.min) for axis in spec.axes], np.float32)
        for spec in specs
    }
    with OnnxRuntimeRunner(bright_slices / "mask_decoder.onnx", graphs["mask_decoder"], threads=1) as decoder:
        runners = {"mask_decoder": decoder}
        add_substitutes(runners, tuple(graphs.values()))
        assert set(runners) == {"mask_decoder", "mask_decoder_no_mask"}
        runner = runners["mask_decoder_no_mask"]
        assert runner.run(feed)["low_res_masks"].shape[0] == rows
        for wrong in ({}, {**feed, "mask_input": feed["point_coords"]}, {**feed, "point_labels": np.float32(1)}):
            with pytest.raises(TensorMismatchError):
                runner.run(wrong)
        runner.close()  # belongs to nobody
        kept = decoder.run({**feed, **blank_masks(graphs["mask_decoder"], rows)})
        for name, value in runner.run_keeping(feed, ("iou_predictions",)).items():
            np.testing.assert_array_equal(value, kept[name])


def blank_masks(graph, rows):
    return {
        spec.name: np.zeros([rows, *spec.shape[1:]], np.float32)
        for spec in graph.inputs
        if spec.name in ("mask_input", "has_mask_input")
    }


def test_export_without_a_graph_that_the_method_needs_is_refused(bright_slices, tmp_path):
    folder = without_graph(bright_slices, tmp_path / "old", "mask_decoder")
    with pytest.raises(ManifestError, match="has no graph mask_decoder, which sam needs; export again"):
        open_session(folder)
