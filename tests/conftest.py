"""What all tests share: the folder of shared data, an export that segments what is bright, tests that need a device.

A test marked `gpu` or `tensorrt` skips where that is missing; with --require-gpu or --require-tensorrt it fails,
whatever made it skip.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from samkit.engine_libraries import LIBRARIES, RTX
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.manifest import ExportPlan, Manifest, Weights, describe_files
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.runtime.backends import cuda_libraries
from samkit.runtime.backends.tensorrt_library import import_tensorrt
from support.bright_slices import write_export

DEVICES = ("gpu", "tensorrt")
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""One of several, each with a core: threads of one that wait, spinning, would keep the others from theirs."""

if IS_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch, not imported yet, reads it then


def pytest_addoption(parser):
    for marker in DEVICES:
        parser.addoption(
            f"--require-{marker}", action="store_true", help=f"tests marked {marker} fail where they would skip"
        )


def pytest_runtest_setup(item):
    for marker in DEVICES:
        if item.get_closest_marker(marker) and (missing := _MISSING[marker]()):
            pytest.skip(missing)


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command that a test runs, or what several tests share, shows progress; the next test hears of it no more."""
    _forget_progress()
    yield
    _forget_progress()


_LOGGER = logging.getLogger("samkit")
_PRISTINE = tuple(_LOGGER.handlers), _LOGGER.propagate, _LOGGER.level


def _forget_progress():
    handlers, propagate, level = _PRISTINE
    _LOGGER.handlers[:], _LOGGER.propagate = handlers, propagate
    _LOGGER.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    required = [m for m in DEVICES if item.get_closest_marker(m) and item.config.getoption(f"--require-{m}")]
    if report.skipped and required and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and --require-{required[0]} was given: {report.longrepr[2]}"
    return report


@functools.cache
def _without_gpu():
    """Why nothing can run on a CUDA device; empty where it can."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider; make clean, then make venv RUNTIME=gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1) is installed"
    count = ctypes.c_int(0)
    works = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return "" if works and count.value else "the CUDA driver finds no device"


def _without_tensorrt():
    """Why engines of neither library can be run; empty where one can, and a test says which it needs."""
    try:
        cuda_libraries.describe_device(RTX.extra)
    except MissingDependencyError as error:
        return str(error)
    if all(importlib.util.find_spec(name) is None for library in LIBRARIES for name in library.modules):
        return f"no library of engines is installed; {how_to_install(*(library.extra for library in LIBRARIES))}"
    return ""


_MISSING = {"gpu": _without_gpu, "tensorrt": _without_tensorrt}


@pytest.fixture(scope="session")
def shared():
    """The folder of real scans beside the repository; tests that need it skip without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder beside the repository ({folder.name}/)")
    return folder


@pytest.fixture(scope="session")
def rtx():
    """Return the real module of TensorRT for RTX."""
    try:
        return import_tensorrt(RTX)
    except MissingDependencyError:
        pytest.skip(f"TensorRT for RTX is not installed; {how_to_install(RTX.extra)}")


@pytest.fixture(scope="session")
def bright_export(tmp_path_factory):
    """An export whose mask is what lies one deviation above the crop's mean: no training, yet a sensible mask.

    It has the graph names, tensors and axes of sam-med3d. Patch 32, spacing 1 mm.
    """
    folder = tmp_path_factory.mktemp("bright")
    config = Sam3DConfig(patch=32, spacing=(1.0, 1.0, 1.0), channels=72, width=24, depth=1, heads=2, window=2)
    _write_bright_graphs(folder, config)
    files = ["image_encoder.onnx", "mask_decoder.onnx"]
    plan = ExportPlan(
        method="sam-med3d",
        weights=Weights("random", None, None),
        size="tiny",
        config=config,
        refinement="anchored",
        precision="fp32",
        folded=True,
        opset=20,
        graphs=("image_encoder", "mask_decoder"),
    )
    Manifest(plan, describe_files(folder, files), {}, None).save(folder)
    return folder


@pytest.fixture(scope="session")
def bright_slices(tmp_path_factory):
    """The folder of an export of `sam` that segments what is bright, inside the boxes it is given."""
    folder = tmp_path_factory.mktemp("bright-slices")
    write_export(folder, "sam")
    return folder


@pytest.fixture(scope="session")
def bright_boxes(tmp_path_factory):
    """The folder of an export of `medsam` that segments what is bright, inside the boxes it is given."""
    folder = tmp_path_factory.mktemp("bright-boxes")
    write_export(folder, "medsam")
    return folder


@pytest.fixture(scope="session")
def bright_structures(tmp_path_factory):
    """The folder of an export of `lora-sam` to which what is bright is the left thalamus."""
    folder = tmp_path_factory.mktemp("bright-structures")
    write_export(folder, "lora-sam")
    return folder


def _write_bright_graphs(folder, config):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, grid, channels, patch = config.logits, config.grid, config.channels, config.patch

    def tensor(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    def constant(name, values):
        return numpy_helper.from_array(np.asarray(values), name)

    def save(name, nodes, inputs, outputs, constants):
        graph = helper.make_graph(nodes, name, inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{name}.onnx")

    # The embedding holds the crop averaged over 4 x 4 x 4 voxels: 64 of them in the channels of each token.
    save(
        "image_encoder",
        [
            helper.make_node("AveragePool", ["image"], ["low"], kernel_shape=[4] * 3, strides=[4] * 3),
            helper.make_node("Reshape", ["low", "split"], ["cells"]),
            helper.make_node("Transpose", ["cells"], ["tokens"], perm=[0, 2, 4, 6, 1, 3, 5]),
            helper.make_node("Reshape", ["tokens", "joined"], ["used"]),
            helper.make_node("Pad", ["used", "padding"], ["image_embeddings"]),
        ],
        [tensor("image", 1, patch, patch, patch)],
        [tensor("image_embeddings", channels, grid, grid, grid)],
        [
            constant("split", np.array([-1, grid, 4, grid, 4, grid, 4])),
            constant("joined", np.array([-1, 64, grid, grid, grid])),
            constant("padding", np.array([0] * 6 + [channels - 64, 0, 0, 0])),
        ],
    )
    # Points and mask enter with weights too small to show, so that the runtime has to pass them.
    save(
        "mask_decoder",
        [
            helper.make_node("Slice", ["image_embeddings", "zero", "count", "one"], ["used"]),
            helper.make_node("Reshape", ["used", "apart"], ["cells"]),
            helper.make_node("Transpose", ["cells"], ["low"], perm=[0, 4, 1, 5, 2, 6, 3]),
            helper.make_node("Reshape", ["low", "cube"], ["brightness"]),
            helper.make_node("Sub", ["brightness", "level"], ["above"]),
            helper.make_node("Mul", ["mask_input", "tiny"], ["little"]),
            helper.make_node("Add", ["above", "little"], ["low_res_masks"]),
            helper.make_node("ReduceSum", ["point_coords", "two"], ["along"], keepdims=0),
            helper.make_node("Mul", ["along", "point_labels"], ["products"]),
            helper.make_node("ReduceSum", ["products", "one"], ["iou_predictions"], keepdims=1),
        ],
        [
            tensor("image_embeddings", channels, grid, grid, grid),
            tensor("point_coords", "points", 3),
            tensor("point_labels", "points"),
            tensor("mask_input", 1, side, side, side),
        ],
        [tensor("low_res_masks", 1, side, side, side), tensor("iou_predictions", 1)],
        [
            constant("zero", np.array([0])),
            constant("one", np.array([1])),
            constant("two", np.array([2])),
            constant("count", np.array([64])),
            constant("apart", np.array([-1, 4, 4, 4, grid, grid, grid])),
            constant("cube", np.array([-1, 1, side, side, side])),
            constant("level", np.float32(1.0)),
            constant("tiny", np.float32(1e-6)),
        ],
    )


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Return a function that runs a command's `main` in this process and gives its exit code, stdout and stderr."""

    def run(main, name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder that all workers of a run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if IS_WORKER else own


@pytest.fixture(scope="session", autouse=True)
def one_core():
    """Let threads of ONNX Runtime, which reads no OMP_NUM_THREADS, sleep in a worker as soon as a run is done.

    As many as ever compute: on another number of them the bits would not be those of a server.
    """
    if not IS_WORKER:
        yield
        return
    import onnxruntime

    class SessionOptions(onnxruntime.SessionOptions):
        def __init__(self):
            super().__init__()
            self.add_session_config_entry("session.intra_op.allow_spinning", "0")

    with mock.patch.object(onnxruntime, "SessionOptions", SessionOptions):
        yield


@pytest.fixture
def options_as_shipped(monkeypatch):
    """Use ONNX Runtime's own options in this test, in a worker, too."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state

    monkeypatch.setattr(onnxruntime, "SessionOptions", onnxruntime_pybind11_state.SessionOptions)


@pytest.fixture(scope="session", autouse=True)
def traces(run_folder):
    """Trace each graph once in a run, in whichever worker; without torch nothing is traced, and it is not imported."""
    if "torch" not in sys.modules:
        yield
        return
    from support.traces import traced_once

    folder = run_folder / "traces"
    folder.mkdir(exist_ok=True)
    with traced_once(folder):
        yield


@pytest.fixture
def traced_anew(monkeypatch):
    """Trace in this test as often as it asks."""
    import torch

    traced = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", getattr(traced, "__wrapped__", traced))


@pytest.fixture(scope="session")
def export_of(run_folder):
    """Return what `sam-export --method NAME --fp16` writes from the demonstration weights, or of other options: made
    once in a run. The folder is everybody's: a test that changes files changes a copy.
    """
    from filelock import FileLock

    from samkit.export.export import run_export
    from samkit.export.plan import plan_export

    @functools.cache
    def export(name, *, size=None, precision="fp16", refinement=None):
        folder = run_folder / "exports" / "-".join(filter(None, (size, precision, refinement))) / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # the second finds what the first made, and keeps it
            run_export(plan_export(name, size=size, precision=precision, refinement=refinement), folder)
        return folder

    return export


@pytest.fixture(scope="session")
def tiny_export(export_of):
    """What `sam-export --method m-sam --size tiny --fp16` writes: real graphs of a seeded random network."""
    return export_of("m-sam", size="tiny")
