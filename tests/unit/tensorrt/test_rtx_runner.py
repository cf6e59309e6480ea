"""Guards the runner on engines of TensorRT for RTX: what is loaded and where, kernels that are kept, CUDA graphs, and
both packages that drive CUDA.

TensorRT for RTX, pycuda and cuda-bindings are stand-ins that know the names of the real ones alone; engines run by ONNX
Runtime on the CPU, and a captured graph keeps its addresses.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from samkit.engine_libraries import RTX
from samkit.errors import ManifestError, MissingDependencyError, SamkitError
from samkit.export.engines import build_engines
from samkit.manifest import Export
from samkit.runtime import open_session
from samkit.runtime.backends import cuda_libraries, get_backend
from samkit.runtime.backends.tensorrt_library import import_tensorrt
from samkit.runtime.backends.tensorrt_runner import TensorRTRunner
from support.stand_ins import Request, fake_backend

from . import conftest as here

VERSION = "1.7.0.106"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]


@pytest.fixture(params=[here.BINDINGS])
def driver(request):
    return request.param


@pytest.fixture
def version():
    return here.RTX


@pytest.fixture
def stand_ins(version, driver, monkeypatch, tmp_path):
    def change(**facts):
        facts = {"drivers": (driver,), "gpu": "Stand-in RTX 4090", "capability": (8, 9), **facts}
        here.install(monkeypatch, tmp_path / "packages", version, **facts)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change()
    yield change
    here.forget()


@pytest.fixture
def built(stand_ins, quick, export):
    manifest = build_engines(export, RTX)
    return export, manifest, {graph.name: graph for graph in manifest.plan.specs}


@pytest.fixture
def open_runner(built):
    folder, manifest, graphs = built

    def opened(name="mask_decoder", manifest=manifest, **options):
        return TensorRTRunner(Export.of(folder, manifest), graphs[name], "fp32", RTX, **options)

    return opened


def with_facts(manifest, **facts):
    return replace(manifest, engines={name: {**entry, **facts} for name, entry in manifest.engines.items()})


def feed_of(graph, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {spec.name: [1 if axis.name in ("batch", "points") else axis.opt for axis in spec.axes]
              for spec in graph.inputs}  # fmt: skip
    return {
        name: np.ones(shape, np.float32) if name == "point_labels" else rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


# --- What it answers ---


@pytest.mark.parametrize("driver", [here.BINDINGS, here.PYCUDA], indirect=True)
def test_session_answers_as_on_the_graphs_and_keeps_its_kernels(built, two_clicks, cuda, tmp_path):
    logits = {"onnxruntime": two_clicks("onnxruntime")}
    for backend in ("tensorrt-rtx", "tensorrt-rtx-eager"):
        logits[backend] = two_clicks(backend)
        assert cuda().left() == {}
    for backend in ("tensorrt-rtx", "tensorrt-rtx-eager"):
        np.testing.assert_allclose(logits[backend], logits["onnxruntime"], rtol=1e-3, atol=1e-4)
    assert len([*(tmp_path / "cache" / "samkit" / "kernels").iterdir()]) == len(built[1].plan.specs)


def test_clicks_are_captured_and_pictures_are_not_lazily_or_eagerly(open_runner):
    rtx = import_tensorrt(RTX)
    graphs, kernels = rtx.CudaGraphStrategy, rtx.DynamicShapesKernelSpecializationStrategy
    for name, options, expected in (
        ("mask_decoder", {}, (graphs.WHOLE_GRAPH_CAPTURE, kernels.LAZY)),
        ("mask_decoder", {"kernels": "eager"}, (graphs.WHOLE_GRAPH_CAPTURE, kernels.EAGER)),
        ("image_encoder", {}, (graphs.DISABLED, kernels.LAZY)),
    ):
        with open_runner(name, **options) as runner:
            config = rtx.configs[-1]
            found = config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy
            assert found == expected
            assert runner.providers == (f"TensorRT for RTX {VERSION}",)


@pytest.mark.parametrize("driver", [here.BINDINGS, here.PYCUDA], indirect=True)
def test_captured_graph_reads_and_writes_what_it_is_given(built, open_runner, cuda):
    graphs = built[2]
    images = [feed_of(graphs["image_encoder"], seed) for seed in range(3)]
    feed = feed_of(graphs["mask_decoder"], 7)
    with open_runner("image_encoder") as encoder, open_runner() as decoder:
        kept = [encoder.run_keeping(image, {"image_embeddings"})["image_embeddings"] for image in images]
        assert len({tensor.address for tensor in kept}) == 3
        answers = [decoder.run({**feed, "image_embeddings": tensor}) for tensor in kept]
        for tensor, answer in zip(kept, answers, strict=True):
            again = decoder.run({**feed, "image_embeddings": tensor.numpy()})
            np.testing.assert_array_equal(again["low_res_masks"], answer["low_res_masks"])
        assert not np.array_equal(answers[0]["low_res_masks"], answers[1]["low_res_masks"])
        stay = [decoder.run_keeping({**feed, "image_embeddings": one}, {"low_res_masks"}) for one in kept]
        for outputs, answer in zip(stay, answers, strict=True):
            np.testing.assert_array_equal(outputs["low_res_masks"].numpy(), answer["low_res_masks"])
        del stay, outputs
    gc.collect()
    assert cuda().left() == {}


# --- What it does not load ---


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            {"tensorrt_rtx": "1.8.0.1"},
            rf"was built for TensorRT for RTX 1\.8\.0\.1, and here is {VERSION}; build it ag",
        ),
        (
            {"target": "sm120"},
            r"was built for compute capability 12\.0, and here is 8\.9; build it again here: sam-exp",
        ),
        ({"target": "sm75"}, r"was built for compute capability 7\.5, and here is 8\.9"),
        ({"target": "sm999"}, r"was built for 'sm999', which is none of portable, sm75"),
        ({"platform": "windows"}, r"was built for windows, and here is linux"),
    ],
)
def test_engine_for_another_machine_is_refused_in_a_sentence(built, open_runner, facts, words):
    with pytest.raises(ManifestError, match=rf"^mask_decoder\.fp32\.rtx\.engine {words}"):
        open_runner(manifest=with_facts(built[1], **facts))
    assert "cuda.bindings.driver" in sys.modules


def test_target_is_held_to_the_gpu(built, open_runner, stand_ins):
    open_runner(manifest=with_facts(built[1], target="sm89")).close()
    stand_ins(capability=(7, 5))
    with pytest.raises(ManifestError, match=r"was built for compute capability 8\.0 and later, and here is 7\.5"):
        open_runner()
    open_runner(manifest=with_facts(built[1], target="sm75")).close()


def test_gpu_in_no_list_is_told_loudly_and_not_refused(built, stand_ins):
    stand_ins(gpu="Stand-in H200", capability=(9, 0))
    with open_session(built[0], backend="tensorrt-rtx", precision="fp32") as session:
        told = [line for line in session.warnings if "in no list" in line]
    assert told == [
        "compute capability 9.0 (Stand-in H200) is in no list of TensorRT for RTX: its engines were never tried there"
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("invalid1", "VERSION_MISMATCH: another release built it"),
        (
            "invalid6",
            "UNSUPPORTED_CC: it was not built for this GPU's compute capability, OLD_CUDA_DRIVER: the CUDA dri",
        ),
        ("invalid8", "OLD_CUDA_RUNTIME: "),
        ("invalid16", "INSUFFICIENT_GPU_MEMORY: "),
        ("invalid64", "CUDA_ERROR: "),
        ("invalid0", "it gives no reason"),
    ],
)
def test_reason_of_the_library_is_told_before_anything_is_loaded(open_runner, monkeypatch, cuda, fault, reason):
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(ManifestError, match=rf"for RTX does not run mask_decoder\.fp32\.rtx\.engine here \({reason}"):
        open_runner()
    assert cuda().left() == {}


def test_real_library_knows_what_is_no_engine():
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    from samkit.runtime.backends import tensorrt_library

    tensorrt_library._logger.cache_clear()
    reason = tensorrt_library.invalidity(rtx.Runtime(tensorrt_library._logger(RTX)), bytes(200), "noise")
    assert reason == "MALFORMED_ENGINE: it is no engine of this library"


def test_engine_that_may_be_slower_is_told(open_runner, monkeypatch, caplog):
    monkeypatch.setenv("STAND_IN_FAULT", "slow")
    open_runner().close()
    assert "mask_decoder.fp32.rtx.engine may run slower here than it could" in caplog.text


@pytest.mark.parametrize("driver", [here.BINDINGS, here.PYCUDA], indirect=True)
def test_no_device_and_no_export_of_engines_are_told_apart(built, open_runner, stand_ins):
    backend = get_backend("tensorrt-rtx")
    lacking = replace(built[1], engines={})
    assert backend.missing(Export.of(built[0], built[1]), "fp32") is None
    assert backend.missing(Export.of(built[0], lacking), "fp32") == (
        "the export has no TensorRT for RTX engine image_encoder.fp32.rtx.engine; sam-export --build-engines"
    )
    stand_ins(devices=0)
    with pytest.raises(MissingDependencyError, match=r"CUDA driver does not start \(.*no.*device.*check nvidia-smi"):
        open_runner()


def test_pycuda_is_taken_where_it_is_installed(stand_ins):
    stand_ins(drivers=(here.PYCUDA, here.BINDINGS))
    assert cuda_libraries.cuda_library("tensorrt-rtx").name == "pycuda"
    stand_ins(drivers=(here.BINDINGS,))
    assert cuda_libraries.cuda_library("tensorrt-rtx").name == "cuda-bindings"
    assert cuda_libraries.describe_device("tensorrt-rtx").items() >= {
        "gpu": "Stand-in RTX 4090", "compute_capability": "8.9", "cuda": "13.5", "cuda_driver": "13.4",
    }.items()  # fmt: skip


def test_error_of_cuda_is_a_sentence(stand_ins):
    sentence = r"\(CUDA_ERROR_INVALID_CONTEXT: invalid context\); free memory"
    with cuda_libraries.cuda_library("tensorrt-rtx").open() as device, pytest.raises(SamkitError, match=sentence):
        device.allocate(1)


# --- Served ---


def test_served_behind_triton_it_answers_as_here(built, open_runner, stand_ins, tmp_path, monkeypatch, cuda):
    pytest.importorskip("tritonclient")
    from samkit.triton_models.model_config import parse_config
    from samkit.triton_models.repository import write_repository

    stand_ins(gpu="Stand-in H200", capability=(9, 0))
    graph, utils = built[2]["mask_decoder"], fake_backend()
    feed = feed_of(graph)
    with open_runner() as runner:
        expected = runner.run(feed)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    record = write_repository([built[0]], tmp_path / "served", name="it")
    assert {kind for model, kind in record.models.items() if "coder" in model} == {"tensorrt-rtx"}
    from samkit.triton_models.models.engine import TritonPythonModel

    config = parse_config((tmp_path / "served" / "it_mask_decoder" / "config.pbtxt").read_text(), "it_mask_decoder")
    model = TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(
                {
                    "name": config.name,
                    "max_batch_size": config.max_batch_size,
                    "input": [{"name": tensor.name} for tensor in config.input],
                    "output": [{"name": tensor.name} for tensor in config.output],
                    "parameters": {key: {"string_value": one.string_value} for key, one in config.parameters.items()},
                }
            ),
            "model_repository": str(tmp_path / "served" / "it_mask_decoder"),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
    )
    assert [line for line in utils.lines if "compute capability 9.0 (Stand-in H200) is in no list" in line]
    request = Request(**feed)
    request.requested_output_names = lambda: list(expected)
    model.execute([request])
    for name, value in expected.items():
        np.testing.assert_array_equal(request.sender.response.array(name), value)
    model.finalize()
    assert cuda().left() == {}


# --- Kernels ---


def test_kernels_are_taken_by_the_next_runner_and_dropped_where_the_library_refuses(
    built, open_runner, monkeypatch, caplog, tmp_path
):
    caplog.set_level("INFO", "samkit")
    rtx, graph = import_tensorrt(RTX), built[2]["mask_decoder"]
    folder = tmp_path / "cache" / "samkit" / "kernels"
    with open_runner() as runner:
        runner.run(feed_of(graph))
    (file,) = folder.iterdir()
    assert "Stand-in-RTX-4090-8.9-" in file.name
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    with open_runner():
        assert len(rtx.configs[-1]._cache._shapes) == 1
    monkeypatch.setenv("STAND_IN_FAULT", "cache")
    with open_runner() as runner:
        assert not rtx.configs[-1]._cache._shapes
        assert "does not take the kernels of earlier runs; they are compiled anew" in caplog.text
    export = built[0]
    assert not [path for path in export.rglob("*") if path.suffix == ".kernels"]


def test_kernels_that_can_not_be_kept_cost_a_warning_and_no_run(built, open_runner, monkeypatch, caplog, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    with open_runner() as runner:
        runner.run(feed_of(built[2]["mask_decoder"]))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "so the next session compiles them again; make room" in record.message
