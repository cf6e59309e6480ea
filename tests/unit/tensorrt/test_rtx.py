"""NVIDIA's own parser and builder as judge: TensorRT for RTX, which needs no GPU, takes every graph of every method.

What it builds can't be run or inspected without a GPU, so types are read off the network that it parsed.
"""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from samkit.engine_libraries import RTX, TENSORRT
from samkit.errors import ExportError, ManifestError, MissingDependencyError
from samkit.export import build_engine as child
from samkit.export.build_engine import EnginePlan, graph_sha256
from samkit.export.engine_headers import check_headers
from samkit.export.engines import EngineSettings, build_engines, check_library, engine_profile
from samkit.export.graphs import write_graph
from samkit.export.loading import random_network
from samkit.export.plan import OPSET
from samkit.export.precision import choose_kept, convert_to_fp16, count_products
from samkit.export.typed_graph import PRODUCTS, TypedGraph
from samkit.manifest import Export, Manifest
from samkit.methods import get_method, list_methods
from support.one_node_models import loop_around, one_node_model
from support.rtx import SHAPES, built, check_types, one_node, parse
from tools.layers import layers_of, too_many_whole

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"export of {name}")) for name in list_methods()]
)
def test_every_graph_is_parsed_typed_and_built(name, rtx, export_of, tmp_path):
    folder = shutil.copytree(export_of(name), tmp_path / name)
    manifest = build_engines(folder, RTX)

    export = Export.open(folder, engines=True)
    graphs = [(spec, precision) for spec in export.specs for precision in export.plan.precisions]
    assert list(manifest.engines) == [RTX.engine_file(spec.name, precision) for spec, precision in graphs]
    assert manifest == Manifest.load(folder)
    for spec, precision in graphs:
        path, facts = export.path(spec.name, precision), manifest.engines[RTX.engine_file(spec.name, precision)]
        assert (facts["library"], facts["tensorrt_rtx"], facts["run"]) == ("rtx", rtx.__version__, None)
        assert (facts["target"], facts["platform"], facts["onnx_sha256"]) == ("portable", "linux", graph_sha256(path))
        assert facts["bytes"] == (folder / facts["files"][0]).stat().st_size > path.stat().st_size
        network = parse(path).network
        check_types(rtx, network, path, manifest.precision_notes.get(path.name, {}))
        assert too_many_whole(spec.name, layers_of(network)) is None
        check_shapes(network, spec)
    check_headers(folder, manifest)


def check_shapes(network, spec):
    """The library's own inference gives outputs the shapes of their specs, at the smallest, usual and largest inputs.

    Changes the network's inputs.
    """
    outputs = engine_profile(replace(spec, inputs=spec.outputs))
    for which in range(3):
        for tensor in map(network.get_input, range(network.num_inputs)):
            tensor.shape = engine_profile(spec)[tensor.name][which]
        found = {tensor.name: list(tensor.shape) for tensor in map(network.get_output, range(network.num_outputs))}
        assert found == {name: shapes[which] for name, shapes in outputs.items()}


def test_engines_of_another_library_stay(rtx, tiny_export, tmp_path, caplog):
    folder = shutil.copytree(tiny_export, tmp_path / "export")
    plain = Manifest.load(folder)
    entry = {"library": "tensorrt", "graph": "image_encoder", "files": []}
    other = {TENSORRT.engine_file("image_encoder", "fp32"): entry}
    type(plain)(**{**plain.__dict__, "engines": other}).save(folder)

    first = build_engines(folder, RTX)
    assert first.engines.items() >= other.items()
    caplog.set_level("INFO", "samkit")
    assert build_engines(folder, RTX) == first
    assert "nothing to do" in caplog.messages[0]
    engine = folder / RTX.engine_file("mask_decoder", "fp16")
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"mask_decoder\.fp16\.rtx\.engine changed since it was exported.*build it"):
        first.verify(folder)
    again = build_engines(folder, RTX, settings=EngineSettings(target="sm86"))
    assert {facts["target"] for facts in again.engines.values() if facts["library"] == "rtx"} == {"sm86"}
    again.verify(folder)


@pytest.mark.parametrize("name", ["sam-med3d", pytest.param("sam", marks=pytest.mark.full)])
def test_full_size_encoder_is_parsed_typed_and_built(name, rtx, tmp_path):
    method = get_method(name)
    (spec,) = (spec for spec in method.graphs(method.sizes["full"]) if spec.name == "image_encoder")
    path, half = tmp_path / "encoder.onnx", tmp_path / "encoder.fp16.onnx"
    network = random_network(method, method.sizes["full"])
    network.set_folded(True)
    network.freeze()
    write_graph(network, spec, path, opset=OPSET, folded=True)
    del network
    gc.collect()  # the exporter's programs hold the network in cycles
    graph = TypedGraph(onnx.load(path))
    kept = [one.node for one in choose_kept(graph)]
    kept += [node.name for node in graph.nodes if node.op_type in PRODUCTS][::10]
    onnx.save(convert_to_fp16(graph, kept), half)
    notes = {
        "kept_in_float32": [{"node": node} for node in kept],
        "products_in_float16": count_products(graph, kept)[1],
    }
    for file, what in ((path, {}), (half, notes)):
        parsed = parse(file).network
        check_types(rtx, parsed, file, what)
        check_shapes(parsed, spec)
    # Only one of them, for the seconds: both were built by hand
    shapes = {tensor: tuple(map(tuple, three)) for tensor, three in engine_profile(spec).items()}
    assert len(built(half, shapes).engine) > half.stat().st_size


# --- What fails ---


UNIQUE = helper.make_model(
    helper.make_graph(
        [helper.make_node("Unique", ["x"], ["y"], name="odd")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    ),
    opset_imports=[helper.make_opsetid("", 20)],
    ir_version=10,
)


def changed(operator, kind="FP32", **attributes):
    """Return a valid model with other attributes."""
    model = one_node_model(operator, kind)
    model.graph.node[0].attribute.extend(helper.make_attribute(*one) for one in attributes.items())
    return model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (UNIQUE, r"node 0 'odd' \(Unique\): it does not take this operator"),
        (loop_around("Det"), r"node \d 'inside' \(Det\): it does not take this operator"),
        (one_node_model("Relu", "INT32"), r"node 0 'odd' \(Relu\): .*Found unsupported input type of INT32"),
        (one_node_model("Gelu", "INT64"), r"node 0 'odd' \(Gelu\): .*input has type Int64 but must have type Float.*"),
        (one_node_model("DeformConv", "FP32"), r"node 0 'odd' \(DeformConv\): .*Plugin not found.*"),
        (
            changed("Resize", keep_aspect_ratio_policy="not_larger"),
            r"node 0 'odd' \(Resize\): .*Only `stretch` is supported.*",
        ),
        (changed("ScatterND", reduction="mul"), r"node 0 'odd' \(ScatterND\): .*with reduction is not supported\."),
    ],
    ids=["operator", "operator in a loop", "type", "type of a layer", "plug-in", "attribute", "option"],
)
def test_what_the_parser_does_not_take_is_one_sentence(rtx, model, sentence, tmp_path):
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(ExportError, match=rf"^TensorRT for RTX can't parse g\.onnx: {sentence}$"):
        built(tmp_path / "g.onnx", {})


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"x": ((4, 4), (2, 4), (8, 4))}, "takes no profile"),
        ({"x": ((1, 5), (2, 5), (8, 5))}, "built no engine of Relu.onnx .*profile has min=5"),
        ({"z": ((1, 4), (2, 4), (8, 4))}, "built no engine of Relu.onnx .*input tensor x is missing"),
    ],
)
def test_profile_that_it_does_not_take_is_told(rtx, tmp_path, profile, words):
    with pytest.raises(ExportError, match=words) as refused:
        built(one_node(tmp_path, "Relu", ("y", ["n", 4])), profile)
    assert "\n" not in str(refused.value)
    assert "driver" not in str(refused.value)  # that there is none is no reason


def test_file_that_is_cut_is_told(rtx, tmp_path):
    path = one_node(tmp_path, "Relu", ("y", ["n", 4]))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ExportError, match=r"can't parse Relu\.onnx: .*Failed to parse the ONNX model"):
        built(path)


def test_targets_are_other_engines(rtx, tmp_path):
    path = one_node(tmp_path, "Softmax", ("y", ["n", 4]))
    assert len({built(path, target=target).engine for target in RTX.targets}) == len(RTX.targets)
    assert built(path, platform="windows").engine  # may be the very bytes of Linux's


def test_product_that_turing_lacks_is_named(rtx, export_of):
    path = export_of("m-sam", size="tiny") / "mask_decoder.onnx"
    (spec,) = (spec for spec in Export.open(path.parent, verify=False).specs if spec.name == "mask_decoder")
    shapes = {name: tuple(map(tuple, three)) for name, three in engine_profile(spec).items()}
    with pytest.raises(
        ExportError, match=r"built no engine of mask_decoder\.onnx .*'node_.*Turing.*FP32 .* is not supported"
    ):
        built(path, shapes, target="sm75")


def test_full_disk_is_one_sentence(rtx, tmp_path, monkeypatch):
    path = one_node(tmp_path, "Relu", ("y", ["n", 4]))
    plan = EnginePlan(
        onnx=str(path), onnx_sha256=graph_sha256(path), engine="/dev/full", library="rtx", target="portable",
        platform="linux", profile={name: [list(s) for s in shapes] for name, shapes in SHAPES.items()},
        workspace_bytes=1 << 30, optimization_level=3, timing_caches=[], log=str(tmp_path / "log"),
        result=str(tmp_path / "result.json"),
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    assert child.main([str(tmp_path / "plan.json")]) == 1
    assert json.loads((tmp_path / "result.json").read_text())["error"] == (
        "full can't be written (No space left on device); make room for it"
    )


def test_without_the_library_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr("samkit.runtime.backends.tensorrt_library.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"^TensorRT for RTX is not installed, .*\[tensorrt-rtx\]"):
        check_library(RTX)
