"""Layers that the real parser makes of a graph, counted."""

from __future__ import annotations

import json

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from samkit.engine_libraries import RTX
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.runtime.backends.tensorrt_library import import_tensorrt
from tools import layers


@pytest.fixture(autouse=True)
def rtx():
    try:
        return import_tensorrt(RTX)
    except MissingDependencyError:
        pytest.skip(f"TensorRT for RTX is not installed; {how_to_install(RTX.extra)}")


def test_what_computes_in_whole_numbers_is_counted(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="read"),
        helper.make_node("Mul", ["shape", "two"], ["twice"], name="double"),
        helper.make_node("Cast", ["twice"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    two = helper.make_tensor("two", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "g", [x], [y], [two])
    path = tmp_path / "shapes.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)

    result = CliRunner().invoke(layers.layers, [str(path), "--list", "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    assert "shapes.onnx: ELEMENTWISE INT64 double (Mul)" in result.output
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["whole"] == sum("ELEMENTWISE" in kind for kind in row["types"]) == 1
    assert row["layers"] > row["whole"]


def test_export_is_built_when_asked(tiny_export, tmp_path):
    result = CliRunner().invoke(layers.layers, [str(tiny_export), "--build", "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row["engine_mib"] > 0 and row["build_seconds"] > 0 for row in rows)
