"""Guards what every written graph is held to: names, axes and operators of its record."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from samkit.errors import ExportError
from samkit.export.graphs import check_graph, save_graph

W = np.eye(4)


def product(small, shape=("batch", 4)):
    return small.build([small.node("MatMul", ["x", "w"], ["y"])], {"w": W}, shape)


def test_graph_as_promised_passes(small, tmp_path):
    save_graph(product(small), tmp_path / "g.onnx", small.spec(), folded=True)
    assert onnx.load(tmp_path / "g.onnx").graph.node[0].op_type == "MatMul"


def test_axis_that_the_exporter_fixed_is_refused(small, tmp_path):
    with pytest.raises(ExportError, match="batch of x fixed to 2, and it goes from 1 to 8"):
        save_graph(product(small, (2, 4)), tmp_path / "g.onnx", small.spec(), folded=True)


def test_other_names_are_refused(small, tmp_path):
    spec = small.spec()
    other = replace(spec, outputs=(replace(spec.outputs[0], name="z"),))
    with pytest.raises(ExportError, match=r"outputs \['y'\]; its record disagrees"):
        save_graph(product(small), tmp_path / "g.onnx", other, folded=True)


def test_forbidden_operator_is_refused_but_in_the_unfolded_form(small, tmp_path):
    nodes = [small.node("Einsum", ["x", "w"], ["y"], equation="bi,ij->bj")]
    model = small.build(nodes, {"w": W})
    save_graph(model, tmp_path / "g.onnx", small.spec(), folded=False)
    with pytest.raises(ExportError, match="holds Einsum, which no exported graph may"):
        check_graph(model, tmp_path / "g.onnx", small.spec(), folded=True)
