"""The ensemble's three steps give the mask that a session gives, and refuse what a session refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from samkit.errors import GeometryError, InputRefused, OptionError, PromptError, SamkitError, TensorMismatchError
from samkit.geometry import Volume, voxel_to_world
from samkit.prompts import BACKGROUND, FOREGROUND, SliceBox, SlicePrompts, prompts_from_json
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.readers import MOST_PROMPTS
from samkit.runtime.protocol.requests import ScanOptions
from samkit.triton_models.pipeline import postprocess, preprocess, refine
from support import stand_ins as the

AFFINES = {"identity": np.eye(4), "oblique": the.oblique(), "flipped": the.FLIPPED, "coarse": np.diag([2, 0.7, 3, 1.0])}


def said(data):
    """What arrives of JSON on the other side."""
    return wire.decode(wire.encode(data), "task")


def run(served, tensors, prompts, options=None, runners=None):
    """The ensemble, with everything between its steps as Triton carries it."""
    prepared, task = preprocess(served, tensors, said(prompts), said(options or {}))
    assert prepared.dtype == np.float32
    assert prepared.ndim == 4
    runners = the.runners("volume" if not served.is_slices else "slices") if runners is None else runners
    found, result = refine(served, runners, np.ascontiguousarray(prepared), said(task))
    assert (result.dtype, result.ndim) == ((np.uint8, 3) if served.is_slices else (np.float32, 1))
    mask, report = postprocess(served, said(found), np.ascontiguousarray(result))
    assert mask.dtype == np.uint8
    return mask, said(report.to_json())


def with_method(served, method):
    return replace(served, export=replace(served.export, method=method))


def tensors_of(array, affine):
    return {"volume_int16": array[None], "affine": affine}


def clicks(array, labels=(FOREGROUND, FOREGROUND, BACKGROUND, FOREGROUND)):
    return [{"point": the.bright_voxel(array, number), "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("seed", [1, 2])
def test_volumes_get_the_sessions_mask(affine, seed):
    array = the.scan(seed)
    session = the.alone("volume", array, affine)
    for point in prompts_from_json(clicks(array), "the test"):
        step = session.add(point).step
    mask, report = run(the.served("volume"), tensors_of(array, affine), clicks(array))

    assert np.array_equal(mask, session.labels())
    assert mask.any()
    assert report["volume_ml"] == pytest.approx(step.volume_ml, rel=1e-12)
    assert (report["crops"], report["limit_reached"]) == (step.crops, step.limit_reached)
    assert report["voxels"] == np.count_nonzero(mask)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_crops_far_apart_and_over_the_edge_get_the_sessions_mask(affine):
    array = np.concatenate([the.scan(1), np.full((160, 36, 44), 12, np.int16), the.scan(3)])
    places = [*np.argwhere(the.scan(1) > 100)[[0, -1]], *(np.argwhere(the.scan(3) > 100)[[0, -1]] + (200, 0, 0))]
    prompts = [{"point": place.tolist(), "label": 1} for place in places]
    prompts += [{"point": [0, 0, 0], "label": 1}, {"point": [239, 35, 43], "label": 0}]
    session = the.alone("volume", array, affine)
    for point in prompts_from_json(prompts, "the test"):
        step = session.add(point).step
    mask, report = run(the.served("volume"), tensors_of(array, affine), prompts)

    assert step.crops > 2
    assert np.array_equal(mask, session.labels())
    assert mask[:40].any()
    assert mask[200:].any()
    assert report["volume_ml"] == pytest.approx(step.volume_ml, rel=1e-12)


def test_object_that_is_followed_gets_the_sessions_mask():
    array = np.full((120, 40, 40), 12, np.int16)
    array[10:110, 16:26, 16:26] = 200
    array += np.indices(array.shape).sum(axis=0).astype(np.int16) % 5
    prompts = [{"point": [60, 20, 20], "label": 1}]
    session = the.alone("volume", array, the.FLIPPED)
    for point in prompts_from_json(prompts, "the test"):
        step = session.add(point).step
    mask, report = run(the.served("volume"), tensors_of(array, the.FLIPPED), prompts)

    assert step.followed > 1
    assert report["crops"] == step.crops
    assert np.array_equal(mask, session.labels())


def test_another_spacing_is_the_sessions():
    array, spacing = the.scan(1), [1.5, 0.9, 2]
    session = the.alone("volume", array, the.oblique(), spacing=tuple(spacing))
    for point in prompts_from_json(clicks(array), "the test"):
        session.add(point)
    mask, _ = run(the.served("volume"), tensors_of(array, the.oblique()), clicks(array), {"spacing": spacing})

    assert np.array_equal(mask, session.labels())
    assert mask.any()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_other_kinds_of_voxels_get_the_sessions_mask(dtype):
    array = the.scan(2).astype(dtype)
    session = the.alone("volume", array)
    for point in prompts_from_json(clicks(array), "the test"):
        session.add(point)
    name, tensor = wire.pack_volumes([array])
    mask, _ = run(the.served("volume"), {name: tensor, "affine": np.eye(4)}, clicks(array))

    assert np.array_equal(mask, session.labels())


@pytest.mark.parametrize("kind", ["volume", "slices"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_millimetres_lead_to_the_same_mask(kind, affine):
    array = the.scan(1)
    prompts = clicks(array)
    places = voxel_to_world(affine, np.array([entry["point"] for entry in prompts], float))
    in_world = [{**entry, "point": place.tolist()} for entry, place in zip(prompts, places, strict=True)]
    served = the.served(kind)
    mask, _ = run(served, tensors_of(array, affine), prompts)
    same, _ = run(served, tensors_of(array, affine), in_world, {"world": True})

    assert np.array_equal(mask, same)
    assert mask.any()


# --- Slices ---


def session_mask(session, prompts, *, propagate=False):
    if prompts:
        session.add(*prompts_from_json(prompts, "the test"))
    if session.is_automatic:
        session.segment_automatically()
    if propagate:
        session.propagate()
    return session.labels(), session.steps[-1]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("propagate", [False, True])
def test_slices_get_the_sessions_mask(affine, plane, propagate):
    array = the.scan(1)
    prompts = clicks(array)
    options = {"plane": plane, "propagate": propagate}
    expected, step = session_mask(the.alone("slices", array, affine, plane=plane), prompts, propagate=propagate)
    mask, report = run(the.served("slices"), tensors_of(array, affine), prompts, options)

    assert np.array_equal(mask, expected)
    assert mask.any()
    assert report["volume_ml"] == pytest.approx(step.volume_ml, rel=1e-12)
    assert report["iou"] == list(step.iou)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_automatic_method_gets_the_sessions_mask(affine, prompted):
    array = the.scan(2)
    array[:, :, 30:33] = 0
    prompts = clicks(array) if prompted else []
    expected, _ = session_mask(the.alone("automatic", array, affine), prompts)
    mask, report = run(the.served("automatic"), tensors_of(array, affine), prompts)

    assert np.array_equal(mask, expected)
    assert mask.any()
    assert report["boxes"] == 0


def test_boxes_of_a_detector_are_counted():
    method = replace(
        the.AUTOMATIC,
        propose=lambda run, image, config: SlicePrompts(boxes=(SliceBox(0, 0, 39, 35),) if image.max() > 100 else ()),
    )
    served = with_method(the.served("automatic"), method)
    array = the.scan(2)
    session = served.session(the.runners("slices"), ScanOptions())
    session.set_image(Volume(array, np.eye(4)))
    expected, step = session_mask(session, [])
    mask, report = run(served, tensors_of(array, np.eye(4)), [])

    assert np.array_equal(mask, expected)
    assert report["boxes"] == step.boxes > 0


def test_intensities_are_the_sessions():
    array, limits = the.scan(2), [-200, 400]
    prompts = clicks(array, (FOREGROUND,))
    expected, _ = session_mask(the.alone("slices", array, intensities=tuple(limits)), prompts)
    mask, _ = run(the.served("slices"), tensors_of(array, np.eye(4)), prompts, {"intensities": limits})

    assert np.array_equal(mask, expected)
    assert mask.any()


def test_sequences_go_in_by_their_names():
    method = replace(the.SLICES, sequences=lambda config: ("t1c", "t2w"))
    served = with_method(the.served("slices"), method)
    arrays, affine = {"t2w": the.scan(1), "t1c": the.scan(2)}, the.oblique()
    session = served.session(the.runners("slices"), ScanOptions())
    session.set_image({name: Volume(array, affine) for name, array in arrays.items()})
    prompts = clicks(arrays["t1c"], (FOREGROUND,))
    expected, _ = session_mask(session, prompts)
    tensors = {"volume_int16": np.stack(list(arrays.values())), "affine": affine}
    mask, _ = run(served, tensors, prompts, {"sequences": list(arrays)})

    assert np.array_equal(mask, expected)
    assert mask.any()


# --- The report ---


@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_report_says_what_made_the_mask_and_names_no_file(kind):
    array = the.scan(1)
    served = the.served(kind, digest="3f9a1c")
    _, report = run(served, tensors_of(array, np.eye(4)), clicks(array))

    assert (report["method"], report["precision"], report["manifest_sha256"]) == (served.method.name, "fp32", "3f9a1c")
    assert report["warnings"] == ["RANDOM WEIGHTS, for timing and tests: the mask means nothing"]
    assert set(report["seconds"]) == {"preprocess", "refine", "postprocess"}
    assert "/" not in json.dumps(report)


# --- What is refused ---


def failed(act):
    try:
        act()
    except SamkitError as error:
        return type(error), str(error)
    return None


OUTSIDE = {"point": [40, 2, 2], "label": 1}


@pytest.mark.parametrize(
    ("kind", "prompts"),
    [
        ("volume", [OUTSIDE]),
        ("volume", [{"point": [2, 2, 2], "label": 1}, OUTSIDE]),
        ("volume", [{"box": [1, 1, 1, 9, 9, 1]}]),
        ("volume", [{"point": [2, 2], "label": 1}]),
        ("volume", [{"point": [2, 2, 2], "label": 1, "structure": "liver"}]),
        ("slices", [OUTSIDE]),
        ("slices", [{"box": [1, 1, 1, 9, 9, 2]}]),
        ("slices", [{"box": [1, 1, 9, 9]}]),
        ("slices", [{"point": [2, 2, 2], "label": 1, "structure": "liver"}]),
    ],
)
def test_prompts_are_refused_in_the_sessions_words(kind, prompts):
    array = the.scan(1)
    session = the.alone(kind, array)

    def prompt():
        for one in prompts_from_json(prompts, "the request"):
            session.add(one)

    expected = failed(prompt)
    assert expected is not None
    assert failed(lambda: run(the.served(kind), tensors_of(array, np.eye(4)), prompts)) == expected


@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_air_is_refused_in_the_sessions_words(kind):
    array = np.zeros((80, 36, 44), np.int16)
    array[:40] = the.scan(1)
    array[:, :, 43] = 0
    prompts = [{"point": [79, 2, 43], "label": 1}]
    session = the.alone(kind, array)
    expected = failed(lambda: session.add(prompts_from_json(prompts, "the request")[0]))

    assert expected is not None
    assert failed(lambda: run(the.served(kind), tensors_of(array, np.eye(4)), prompts)) == expected


@pytest.mark.parametrize(
    ("kind", "prompts", "options", "error", "words"),
    [
        ("volume", [], {}, PromptError, "none of 0"),
        ("volume", [{"point": [2, 2, 2], "label": 0}], {}, PromptError, r"none of 1 click\(s\) is on the object"),
        ("volume", {}, {}, PromptError, "the request holds a dict"),
        ("volume", [], [], PromptError, "needed is a JSON object"),
        ("volume", [], {"plane": "axial"}, OptionError, "plane is for methods of slices"),
        ("volume", [{"point": [2, 2, 2], "label": 1}], {"propagate": True}, PromptError, "propagate is for methods"),
        ("volume", [], {"World": True}, PromptError, "does not know 'World'"),
        ("volume", [], {"picture": True}, PromptError, "does not know 'picture'"),
        ("volume", [], {"sequences": ["a", "b"]}, PromptError, "1 volumes are sent and 2 sequences"),
        ("slices", [], {}, PromptError, "segments nothing without a prompt"),
        ("slices", [], {"spacing": [1, 1, 1]}, OptionError, "takes no spacing"),
        ("slices", [], {"plane": "oblique"}, OptionError, "'oblique' is not known"),
    ],
)
def test_what_makes_no_mask_is_refused(kind, prompts, options, error, words):
    with pytest.raises(error, match=words):
        preprocess(the.served(kind), tensors_of(the.scan(1), np.eye(4)), prompts, options)


def test_several_scans_for_a_method_of_one_are_refused():
    tensors = {"volume_int16": np.stack([the.scan(1), the.scan(2)]), "affine": np.eye(4)}
    with pytest.raises(PromptError, match="takes one scan, and 2 are given"):
        preprocess(the.served("volume"), tensors, clicks(the.scan(1)), {"sequences": ["a", "b"]})
    with pytest.raises(InputRefused, match="takes one volume, and 2 are given"):
        preprocess(the.served("slices"), tensors, clicks(the.scan(1)), {"sequences": ["", "b"]})


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({}, TensorMismatchError),
        ({"volume_int16": the.scan()[None]}, GeometryError),
        ({"volume_int16": the.scan(), "affine": np.eye(4)}, InputRefused),
        ({"volume": np.full((1, 4, 4, 4), np.nan, np.float32), "affine": np.eye(4)}, InputRefused),
    ],
)
@pytest.mark.parametrize("kind", ["volume", "automatic"])
def test_scan_that_does_not_fit_is_refused(kind, tensors, error):
    with pytest.raises(error):
        preprocess(the.served(kind), tensors, [], {})


@pytest.mark.parametrize(
    ("affine", "options"),
    [
        (np.diag([1e4, 1e4, 1e4, 1]), {}),
        (np.eye(4), {"spacing": [1e-3, 1e-3, 1e-3]}),
        (np.eye(4), {"spacing": [1e-6, 1, 1]}),
    ],
)
def test_small_scan_that_becomes_a_huge_grid_is_refused_before_memory_is_taken(affine, options):
    array = the.scan(1)
    with pytest.raises(InputRefused, match="this server's limit is 100000; ask for a larger spacing") as caught:
        preprocess(the.served("volume", max_voxels=100_000), tensors_of(array, affine), clicks(array), options)
    assert caught.value.code == "too-large"


def test_three_indices_reach_no_slice():
    served, array = the.served("slices"), the.scan(1)
    prepared, task = preprocess(served, tensors_of(array, np.eye(4)), clicks(array), {})
    task["prompts"] = [{"slice": 1, "point": [1, 2, 3], "label": 1}]
    with pytest.raises(PromptError, match="run preprocess before refine"):
        refine(served, the.runners("slices"), prepared, task)


@pytest.mark.parametrize("across", range(3))
def test_one_slice_gets_the_sessions_mask_and_no_method_of_volumes_takes_it(across):
    scan, affine = the.scan(1), the.oblique()
    array = scan.take([np.argwhere(scan > 100)[0][across]], across)
    prompts = [{"point": np.argwhere(array > 100)[0].tolist(), "label": 1}]
    session = the.alone("slices", array, affine)
    for point in prompts_from_json(prompts, "the test"):
        session.add(point)
    mask, report = run(the.served("slices"), tensors_of(array, affine), prompts)

    assert mask.any()
    assert np.array_equal(mask, session.labels())
    assert report["slices"] == [0]
    with pytest.raises(InputRefused, match="a slice, not a volume"):
        preprocess(the.served("volume"), tensors_of(array, affine), said(prompts), {})


# --- Steps that are called by themselves ---


@pytest.fixture(scope="module")
def steps():
    """What goes from step to step, by the kind of method."""
    found, array = {}, the.scan(1)
    for kind in ("volume", "slices"):
        served = the.served(kind)
        given = clicks(array) if kind == "volume" else [{"point": np.argwhere(array > 100)[0].tolist(), "label": 1}]
        prepared, task = preprocess(served, tensors_of(array, np.eye(4)), said(given), {})
        found[kind] = (served, prepared, said(task), *refine(served, the.runners(kind), prepared, said(task)))
    return found


WRONG = [None, [], {}, "text", -1, 1e300, [1, 2], [[1]], {"a": 1}, True]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["prompts", "shape", "affine", "options", "seconds"])
@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_task_that_no_step_wrote_is_refused_or_done(steps, kind, key, value):
    served, prepared, task, _, _ = steps[kind]
    with suppress(SamkitError):
        refine(served, the.runners(kind), prepared, {**task, key: value})


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["pieces", "crops", "limit_reached", "iou", "boxes", "slices", "shape", "affine"])
@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_finding_that_no_step_wrote_is_refused_or_done(steps, kind, key, value):
    served, _, _, found, result = steps[kind]
    with suppress(SamkitError):
        postprocess(served, {**said(found), key: value}, result)


@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_steps_refuse_tensors_that_belong_to_no_other(steps, kind):
    served, prepared, task, found, result = steps[kind]
    with pytest.raises(TensorMismatchError, match="run the step before"):
        refine(served, the.runners(kind), np.concatenate([prepared] * 9), task)
    with pytest.raises(TensorMismatchError, match="run the step before"):
        postprocess(served, said(found), result[:-1])
    other = steps["slices" if kind == "volume" else "volume"]
    with pytest.raises(PromptError):
        postprocess(served, said(other[3]), result)


@pytest.mark.parametrize(
    "box", [{"origin": [10**9, 0, 0]}, {"origin": [-(10**9), 0, 0]}, {"shape": [0, 1, 1]}, {"shape": [2**40] * 3}]
)
def test_piece_beyond_the_scan_takes_no_memory(steps, box):
    served, _, _, found, result = steps["volume"]
    told = said(found)
    told["pieces"][0].update(box)
    with pytest.raises((PromptError, TensorMismatchError)):
        postprocess(served, told, result)


@pytest.mark.parametrize("place", [[1e300, 1, 1], [-1e6, 1, 1]])
def test_click_of_a_task_far_outside_is_refused(steps, place):
    served, prepared, task, _, _ = steps["volume"]
    with pytest.raises(PromptError, match="run preprocess before"):
        refine(served, the.runners("volume"), prepared, {**task, "prompts": [{"point": place, "label": 1}]})


def test_slice_of_a_task_that_is_not_there_is_refused(steps):
    served, prepared, task, found, result = steps["slices"]
    with pytest.raises(PromptError, match="is none of the scan's"):
        refine(served, the.runners("slices"), prepared, {**task, "prompts": [{**task["prompts"][0], "slice": 999}]})
    with pytest.raises(PromptError, match="is none of the scan's"):
        postprocess(served, {**said(found), "slices": [999]}, result)


def test_more_prompts_than_a_request_may_have_are_refused_at_once():
    many = clicks(the.scan(1)) * (MOST_PROMPTS + 1)
    with pytest.raises(PromptError, match=f"a server takes {MOST_PROMPTS}; send them in several"):
        preprocess(the.served("volume"), tensors_of(the.scan(1), np.eye(4)), said(many), {})
