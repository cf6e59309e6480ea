"""Guards that a server answers as the export does in-process: every method, prompt by prompt, on real scans.

The server is the real one. Where a test needs an encoder to take long, a gate stands before it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import onnx
import pytest
from nibabel.orientations import io_orientation

import samkit
from samkit.errors import (
    AtCapacity,
    GeometryError,
    InputRefused,
    PromptError,
    ServerRestarted,
    ServerTimeout,
    ServerUnreachable,
    SessionExpired,
    TensorMismatchError,
    UnknownSession,
    WrongTurn,
)
from samkit.geometry import Volume
from samkit.imageio.reading import read_scan
from samkit.manifest import Manifest
from samkit.methods import SliceMethod, get_method
from samkit.runtime import open_session
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import read_error
from samkit.triton_models.limits import Limits
from samkit.triton_models.model_config import parse_config
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from support.serving import gate, need_server, shut_gate

PROMPTLESS = ("brainseg-dmif",)
IN_SEQUENCES = {"t1n": "T1", "t1c": "T1POST", "t2w": "T2", "t2f": "FLAIR"}


@pytest.fixture(scope="module", autouse=True)
def _needs_server():
    need_server()


def url(server, name, scheme="triton"):
    return f"{scheme}://{server.grpc if scheme == 'triton' else server.http}/{name}"


def infer(server, model, tensors, outputs):
    """Call a model as any other client of Triton would."""
    import tritonclient.grpc as library

    inputs = []
    for name, array in tensors.items():
        inputs.append(library.InferInput(name, list(array.shape), library.np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    with library.InferenceServerClient(server.grpc) as client:
        result = client.infer(model, inputs, client_timeout=300)
        return {name: result.as_numpy(name) for name in outputs}


def ensemble(server, name, volumes, prompts, **options):
    """Return mask and report of one call."""
    packed, array = wire.pack_volumes([volume.array for volume in volumes.values()])
    tensors = {
        packed: array,
        wire.AFFINE: next(iter(volumes.values())).affine,
        wire.PROMPTS: wire.encode(prompts),
        wire.OPTIONS: wire.encode({**options, "sequences": [n for n in volumes if n]}),
    }
    found = infer(server, name.replace("-", "_"), tensors, [wire.MASK, wire.REPORT])
    return found[wire.MASK], wire.decode(found[wire.REPORT], wire.REPORT)


def executions(server, model):
    """Return how often a model ran. Triton counts a run a little after its answer: this waits for a second of rest."""
    seen, rest = -1, 0
    while rest < 10:
        now = read_executions(server, model)
        seen, rest = now, rest + 1 if now == seen else 0
        time.sleep(0.1)
    return seen


def read_executions(server, model):
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats") as page:
        return json.load(page)["model_stats"][0]["execution_count"]


def figure(server, name):
    """Return one of our own figures from the metrics page, where they stand within seconds."""
    with urllib.request.urlopen(server.metrics) as page:  # noqa: S310
        lines = [line.split() for line in page.read().decode().splitlines() if line.startswith(name + "{")]
    return float(lines[0][-1]) if lines else 0.0


# --- Every method, on real scans ---


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.xdist_group(f"export of {n}")) for n in samkit.list_methods()],
)
def one(request, export_of, tmp_path_factory):
    """A method, its export, and a server of it."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    write_repository([export_of(request.param)], repository)
    with EmbeddedServer(repository) as server:
        yield request.param, export_of(request.param), server


def slab(file, method, folder):
    """Return a file in `folder` of the middle eighth of a scan's slices."""
    image = nibabel.load(file)
    axis = axis_across(method, image.affine)
    count = image.shape[axis]
    kept = [slice(None)] * 3
    kept[axis] = slice(7 * count // 16, 9 * count // 16)
    nibabel.save(image.slicer[tuple(kept)], folder / file.name)
    return folder / file.name


def axis_across(method, affine):
    """Return which axis of a scan's array leads from slice to slice."""
    return io_orientation(affine)[:, 0].tolist().index({"axial": 2, "coronal": 1, "sagittal": 0}[method.plane])


def scans_of(name, shared, folder):
    """Return real scans for a method, or parts of them in `folder`: files by sequence, and where an object lies."""
    method = get_method(name)
    data = shared / "data"
    sequences = method.sequences(method.sizes["small"]) if isinstance(method, SliceMethod) else ()
    if sequences:
        patient = data / "ms-lesions" / "patient19"  # every slice is segmented: those through some lesions are enough
        names = {n: f"{IN_SEQUENCES[n]}.nii.gz" for n in sequences}
        cut = {file: slab(patient / file, method, folder) for file in (*names.values(), "lesions.nii.gz")}
        return [({n: cut[file] for n, file in names.items()}, cut["lesions.nii.gz"])]
    if name == "lora-sam":  # which segments every slice: those through the thalami are enough
        brain, label = (slab(data / "subcortical" / f, method, folder) for f in ("norm.mgz", "aparc.a2009s+aseg.mgz"))
        return [({"": brain}, label)]
    return [
        ({"": data / "abdomen" / "example_mr_sm.nii.gz"}, data / "abdomen" / "example_seg_mr.nii.gz"),  # int16, LPS
        ({"": data / "lung-nodule" / "image.nii.gz"}, data / "lung-nodule" / "label.nii.gz"),  # float32, five axes
    ]


def read_label(path):
    """Return a label map and its affine."""
    image = nibabel.load(path)
    label = np.asarray(image.dataobj).squeeze()
    # Of FreeSurfer's parcellation the two thalami
    return (np.where(np.isin(label, (10, 49)), label, 0) if path.suffix == ".mgz" else label), image.affine


def prompts_of(method, label, affine):
    """Return calls of a session that a reader might make, around the largest object of a label map."""
    values, counts = np.unique(label[label > 0], return_counts=True)
    voxels = np.argwhere(label == values[counts.argmax()])
    middle = voxels[len(voxels) // 2].tolist()
    if not isinstance(method, SliceMethod):
        return [
            ("click", (middle, True)),
            ("click", (voxels[len(voxels) // 4].tolist(), True)),
            ("click", ([min(m + 9, n - 1) for m, n in zip(middle, label.shape, strict=True)], False)),
            ("click", ([0.25, 1.5, 2.0], False)),
        ]
    axis = axis_across(method, affine)
    inside = voxels[voxels[:, axis] == middle[axis]]
    low, high = inside.min(axis=0).tolist(), inside.max(axis=0).tolist()
    calls = [("box", (low, high)), ("click", (middle, True)), ("click", (low, False))]
    beside = [*middle]
    beside[axis] = min(middle[axis] + 1, label.shape[axis] - 1)
    return [*calls, ("click", (beside, True))]


def as_json(call, given):
    if call == "click":
        return {"point": list(map(float, given[0])), "label": int(given[1])}
    return {"box": [*map(float, given[0]), *map(float, given[1])]}


def assert_same(served, local):
    assert np.array_equal(served.labels, local.labels)
    assert served.changed == local.changed
    assert served.volume_ml == local.volume_ml
    assert served.iou == local.iou


def test_mask_after_each_prompt_is_that_of_the_export(one, shared, tmp_path):
    name, export, server = one
    method = get_method(name)
    for files, label_file in scans_of(name, shared, tmp_path):
        image = files.get("", files)
        calls = [] if name in PROMPTLESS else prompts_of(method, *read_label(label_file))
        with open_session(export) as local, open_session(url(server, name)) as served:
            assert_same(served.set_image(image), local.set_image(image))
            expected = [local.last_update().labels]
            for call, given in calls:
                assert_same(getattr(served, call)(*given), getattr(local, call)(*given))
                expected.append(local.last_update().labels)
            for back in ("undo", "undo", "redo", "reset") if calls else ("undo", "redo"):
                assert_same(getattr(served, back)(), getattr(local, back)())
        assert expected[-1].any(), "an empty mask shows nothing"
        volumes = {n: read_scan(path).volume for n, path in files.items()}
        # A whole volume takes a while: without prompts and with all of them
        counts = (0, len(calls)) if method_decides(name) else range(1, len(calls) + 1)
        for count in sorted(set(counts)):
            mask, report = ensemble(server, name, volumes, [as_json(*call) for call in calls[:count]])
            assert np.array_equal(mask, expected[count])
            assert report["voxels"] == np.count_nonzero(expected[count])
            assert report["manifest_sha256"] == Manifest.load(export).digest


def method_decides(name):
    return getattr(get_method(name), "is_automatic", False)


def test_sam_segment_writes_the_same_bytes(one, shared, tmp_path, in_process):
    from samkit.segment import cli

    name, export, server = one
    method = get_method(name)
    files, label_file = scans_of(name, shared, tmp_path)[0]
    options = [f"--input={n}={path}" if n else f"--input={path}" for n, path in files.items()]
    if name not in PROMPTLESS:
        call, (first, *rest) = prompts_of(method, *read_label(label_file))[0]
        options.append(
            "--point=" + ",".join(map(str, first)) + ",+"
            if call == "click"
            else "--box=" + ",".join(map(str, [*first, *rest[0]]))
        )  # fmt: skip
    written = {}
    for way, target in (("local", f"--export={export}"), ("served", f"--server={url(server, name, 'triton+http')}")):
        folder = tmp_path / way
        folder.mkdir()
        code, out, _ = in_process(cli.main, "sam-segment", target, *options, f"--output={folder / 'mask.nii.gz'}")
        assert code == 0
        written[way] = {path.name: path.read_bytes() for path in folder.iterdir()}, json.loads(out)
    assert written["local"][0] == written["served"][0]
    same = ("volume_ml", "method", "clicks", "warnings", "notice")
    assert {key: written["local"][1][key] for key in same} == {key: written["served"][1][key] for key in same}


def outcome(call, *given):
    """Return what a call of a session leads to: an update, or the kind of refusal and its code."""
    try:
        return call(*given)
    except (InputRefused, PromptError) as refusal:
        return type(refusal), getattr(refusal, "code", "")


def test_picture_is_answered_or_refused_as_in_process(one, shared):
    name, export, server = one
    picture = shared / "data" / "fetal-head" / "images" / "001_HC.png"
    answered = []
    with open_session(export) as local, open_session(url(server, name)) as served:
        for call, *given in (("set_image", picture), ("box", (200, 120), (600, 420)), ("click", (400, 260))):
            here, there = outcome(getattr(local, call), *given), outcome(getattr(served, call), *given)
            if isinstance(here, tuple):
                assert there == here
            else:
                assert_same(there, here)
                assert there.mask.ndim == 2
                answered.append(call)
    # Volumes and four sequences are no picture's; lora-sam looks at a part of it, where this box is not
    expected = {"m-sam": 0, "sam-med3d": 0, "brainseg-dmif": 0, "lora-sam": 2}
    assert len(answered) == expected.get(name, 3)


def test_configs_are_what_the_files_take(one):
    """Names, dtypes and dims of every config against the inputs and outputs of the ONNX file beside it."""
    _, _, server = one
    seen = 0
    for path in server.repository.glob("*/1/model.onnx"):
        config = parse_config((path.parents[1] / "config.pbtxt").read_text(), path.parents[1].name)
        graph = onnx.load(path, load_external_data=False).graph
        for listed, real in ((config.input, graph.input), (config.output, graph.output)):
            assert [tensor.name for tensor in listed] == [tensor.name for tensor in real]
            for tensor, value in zip(listed, real, strict=True):
                shape = [
                    axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim
                ]
                assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
                assert tensor.data_type == config.input[0].data_type  # all float32
                assert list(tensor.dims) == shape[1 if config.max_batch_size else 0 :]
        seen += 1
    assert seen >= 2


# --- Sessions of one method, M-SAM ---

GROUP = pytest.mark.xdist_group("export of m-sam")
SESSIONS = 16
CLICKS = 10


def repository_of(export_of, tmp_path_factory, **limits):
    """Write a repository whose encoder waits while a gate is shut."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    write_repository([export_of("m-sam")], folder, limits=Limits(**limits))
    gate(folder, "m_sam_image_encoder")
    return folder


def shut(server):
    """Keep the encoder from running; opens the gate at the end, and when what is yielded is called."""
    return shut_gate(server.repository, "m_sam_image_encoder")


@pytest.fixture(scope="module")
def said():
    """What the server says, line by line."""
    lines, logger = [], logging.getLogger("samkit.triton_models.server")
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(listener)
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def server(export_of, tmp_path_factory, said):
    with EmbeddedServer(repository_of(export_of, tmp_path_factory, max_sessions=SESSIONS)) as server:
        yield server


@pytest.fixture
def export(export_of):
    return export_of("m-sam")


def noisy(number, side=40):
    """Return a scan with a bright ball, and clicks on it and beside."""
    random = np.random.default_rng(number)
    centre = random.uniform(0.35, 0.65, 3) * side
    distance = np.linalg.norm(np.indices((side,) * 3).T - centre, axis=-1).T
    array = (random.normal(100, 20, (side,) * 3) + 150 * (distance < side / 5)).clip(1).astype(np.float32)
    places = centre + random.uniform(-0.2, 0.2, (CLICKS, 3)) * side
    return Volume(array, np.diag([1.5, 1.5, 1.5, 1.0])), [(p.tolist(), n % 3 != 2) for n, p in enumerate(places)]


def are_equal(found, expected):
    """Return whether all masks of all sessions are the same."""
    pairs = [pair for both in zip(found, expected, strict=True) for pair in zip(*both, strict=True)]
    return all(np.array_equal(one, other) for one, other in pairs)


@GROUP
def test_interleaved_sessions_give_the_masks_they_give_alone(server, export):
    cases = [noisy(number) for number in range(SESSIONS)]
    alone = []
    with open_session(export) as session:
        for volume, clicks in cases:
            session.set_image(volume)
            alone.append([session.click(*click).labels for click in clicks])
    sessions = [open_session(url(server, "m-sam")) for _ in cases]
    try:
        for session, (volume, _) in zip(sessions, cases, strict=True):
            session.set_image(volume)
        order = np.random.default_rng(5).permutation(np.repeat(np.arange(SESSIONS), CLICKS))
        found = [[] for _ in cases]
        for number in order:  # in turn, any which way
            found[number].append(sessions[number].click(*cases[number][1][len(found[number])]).labels)
        assert all(
            np.array_equal(a, b)
            for one, other in zip(found, alone, strict=True)
            for a, b in zip(one, other, strict=True)
        )

        def all_clicks(number):
            sessions[number].reset()
            return [sessions[number].click(*click).labels for click in cases[number][1]]

        with ThreadPoolExecutor(SESSIONS) as pool:  # at once
            found = list(pool.map(all_clicks, range(SESSIONS)))
        assert all(
            np.array_equal(a, b)
            for one, other in zip(found, alone, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        assert len({labels.tobytes() for one in alone for labels in one[-1:]}) == SESSIONS  # they do differ
        with pytest.raises(AtCapacity, match="close one"), open_session(url(server, "m-sam")) as more:
            more.set_image(cases[0][0])
    finally:
        for session in sessions:
            session.close()


@GROUP
def test_second_session_on_a_scan_encodes_nothing(server):
    volume, clicks = noisy(100)
    with open_session(url(server, "m-sam")) as first, open_session(url(server, "m-sam", "triton+http")) as second:
        before = executions(server, "m_sam_image_encoder")
        first.set_image(volume)
        mask = first.click(*clicks[0]).mask
        encoded = executions(server, "m_sam_image_encoder")
        assert encoded > before
        second.set_image(volume)
        assert np.array_equal(second.click(*clicks[0]).mask, mask)
        assert executions(server, "m_sam_image_encoder") == encoded
    with open_session(url(server, "m-sam")) as third:  # nobody holds the scan any more
        third.set_image(volume)
        third.click(*clicks[0])
        assert executions(server, "m_sam_image_encoder") == encoded + encoded - before


@GROUP
def test_what_a_session_can_not_do_has_its_own_error(server):
    volume, clicks = noisy(101)
    with open_session(url(server, "m-sam")) as session:
        with pytest.raises(PromptError, match="no image is set"):
            session.click((1, 2, 3))
        session.set_image(volume)
        with pytest.raises(PromptError, match="no click to undo"):
            session.undo()
        with pytest.raises(InputRefused) as refused:
            session.click((400, 2, 3))
        assert refused.value.code == "click-outside"
        with pytest.raises(PromptError, match="takes no box"):
            session.box((1, 1, 1), (3, 3, 1))
        assert session.click(*clicks[0]).mask.any()  # none of it did any harm
    opened = session_call(server, {"op": "open"}, None, volume)
    with pytest.raises(WrongTurn):
        raw(session_call, server, {"op": "undo", "turn": 7}, opened["token"])
    session_call(server, {"op": "close"}, opened["token"])


def session_call(server, request, token, volume=None):
    tensors = {wire.REQUEST: wire.encode(request)}
    if token is not None:
        tensors[wire.TOKEN] = np.array([token.encode()], object)
    if volume is not None:
        tensors |= {
            wire.pack_volumes([volume.array])[0]: wire.pack_volumes([volume.array])[1],
            wire.AFFINE: volume.affine,
        }
    return wire.decode(infer(server, "m_sam_session", tensors, [wire.ANSWER])[wire.ANSWER], wire.ANSWER)


def raw(call, *given):
    """Raise what a message of Triton's carries."""
    from tritonclient.utils import InferenceServerException

    try:
        return call(*given)
    except InferenceServerException as error:
        raise read_error(str(error)) from error


@GROUP
def test_log_names_no_file_and_no_token(server, said, tmp_path):
    volume, clicks = noisy(102)
    path = tmp_path / "Mueller_Anna_1961.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
    with open_session(url(server, "m-sam")) as session:
        session.set_image(path)
        session.click(*clicks[0])
        token = session_call(server, {"op": "open"}, None, volume)["token"]
    session_call(server, {"op": "close"}, token)
    log = "\n".join(said)
    assert " click turn 1 " in log
    assert "Mueller" not in log
    assert token not in log


@GROUP
@pytest.mark.parametrize("missing", ["volume", wire.AFFINE])
def test_ensemble_says_which_tensor_is_missing_and_the_page_counts_it(server, missing):
    volume, _ = noisy(107)
    tensors = {"volume": volume.array[None].astype(np.float32), wire.AFFINE: volume.affine}
    del tensors[missing]
    kind = {"volume": TensorMismatchError, wire.AFFINE: GeometryError}[missing]
    label = f'samkit_errors_total{{model="m_sam_preprocess",name="m_sam",type="{kind.__name__}"}}'
    before = exactly(server, label)
    with pytest.raises(kind, match="send"):
        raw(infer, server, "m_sam", tensors, [wire.MASK])

    assert exactly(server, label) == before + 1


@GROUP
def test_page_counts_what_sessions_answer_with_an_error(server):
    label = 'samkit_errors_total{model="m_sam_session",name="m_sam",type="UnknownSession"}'
    before = exactly(server, label)
    for _ in range(2):
        with pytest.raises(UnknownSession):
            raw(session_call, server, {"op": "state"}, "nobody's")

    assert exactly(server, label) == before + 2


def exactly(server, label):
    """Return the figure of this name and these labels from the metrics page; 0 where there is none yet."""
    with urllib.request.urlopen(server.metrics) as page:  # noqa: S310
        lines = [line.rpartition(" ") for line in page.read().decode().splitlines()]
    return sum(float(value) for found, _, value in lines if found == label)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to pass within a minute")


@GROUP
def test_encoding_for_one_session_keeps_no_other_waiting(server, export):
    (volume, clicks), (other, others) = noisy(103), noisy(104)
    with open_session(export) as local:
        local.set_image(volume)
        expected = local.click(*clicks[0]).mask
    with open_session(url(server, "m-sam")) as slow, open_session(url(server, "m-sam")) as quick:
        slow.set_image(volume)
        quick.set_image(other)
        quick.click(*others[0])
        misses = figure(server, "samkit_cache_misses_total")
        with ThreadPoolExecutor(1) as pool, shut(server) as unlock:
            waiting = pool.submit(slow.click, *clicks[0])
            wait_for(lambda: figure(server, "samkit_cache_misses_total") > misses)  # it has come to the encoder
            assert quick.click(*others[0]).mask.any()
            assert not waiting.done()
            unlock()
            assert np.array_equal(waiting.result().mask, expected)


@GROUP
def test_time_out_leaves_a_session_that_goes_on(server):
    volume, clicks = noisy(105)
    with open_session(url(server, "m-sam"), timeout=3) as session:
        session.set_image(volume)
        with shut(server), pytest.raises(ServerTimeout):
            session.click(*clicks[0])
        second = session.click(*clicks[1])  # the first one was done after all, or was not: the server knows
        with open_session(url(server, "m-sam")) as other:
            other.set_image(volume)
            other.click(*clicks[0])
            assert np.array_equal(other.click(*clicks[1]).mask, second.mask)


@GROUP
def test_killed_server_is_a_typed_error_and_a_new_one_serves_new_sessions(export_of, tmp_path_factory):
    repository = repository_of(export_of, tmp_path_factory)
    volume, clicks = noisy(106)
    with EmbeddedServer(repository) as server:
        port = server.grpc_port
        session = open_session(url(server, "m-sam"), timeout=20)  # which is waited for
        session.set_image(volume)
        other = open_session(url(server, "m-sam"), restore=False)
        other.set_image(volume)
        misses = figure(server, "samkit_cache_misses_total")
        with ThreadPoolExecutor(1) as pool, shut(server):
            clicked = pool.submit(session.click, *clicks[0])
            wait_for(lambda: figure(server, "samkit_cache_misses_total") > misses)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises((ServerUnreachable, ServerTimeout)):
                clicked.result(timeout=60)
    with EmbeddedServer(repository, grpc_port=port):
        with pytest.raises(ServerRestarted, match="open the scan again"):
            other.click(*clicks[0])
        assert other.set_image(volume).volume_ml == 0
        mask = other.click(*clicks[0]).mask
        assert mask.any()
        update = session.click(*clicks[0])
        assert update.restored
        assert np.array_equal(update.mask, mask)
        other.close()
        session.close()


@GROUP
def test_session_that_nobody_used_is_expired(export_of, tmp_path_factory):
    volume, clicks = noisy(107)
    repository = repository_of(export_of, tmp_path_factory, idle_seconds=1)
    with EmbeddedServer(repository) as server, open_session(url(server, "m-sam"), restore=False) as session:
        session._asked = replace(session._asked, heartbeat=False)  # as other clients do
        session.set_image(volume)
        time.sleep(1.5)
        with pytest.raises(SessionExpired, match="open the scan again"):
            session.click(*clicks[0])
        session.set_image(volume)
        assert session.click(*clicks[0]).mask.any()
