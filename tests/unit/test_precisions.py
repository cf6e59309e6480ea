"""A precision is one record; names, limits and files of graphs follow from it alone."""

import pytest

from samkit.errors import SamkitError
from samkit.methods import get_method, list_methods
from samkit.precisions import BASE, PRECISIONS, get_precision


def test_names_and_files_of_precisions_are_told_apart():
    assert len({one.name for one in PRECISIONS}) == len({one.suffix for one in PRECISIONS}) == len(PRECISIONS)
    assert [one.graph_file("mask_decoder") for one in PRECISIONS] == ["mask_decoder.onnx", "mask_decoder.fp16.onnx"]
    assert (BASE.name, BASE.writer, BASE.suffix) == ("fp32", None, "")
    assert all(one.writer is not None for one in PRECISIONS[1:])


def test_unknown_precision_is_refused_with_those_there_are():
    with pytest.raises(SamkitError, match="the precision 'fp8' is not known; known are fp32, fp16"):
        get_precision("fp8")


def test_every_graph_has_a_tolerance_in_every_precision():
    for name in list_methods():
        method = get_method(name)
        for graph in method.graphs(method.sizes["tiny"]):
            assert set(graph.tolerance) == {one.name for one in PRECISIONS}


def test_limits_are_those_that_docs_numerics_gives():
    half = get_precision("fp16")
    assert (BASE.encoder.relative, BASE.decoder.relative, BASE.decoder.min_dice) == (1e-5, 1e-4, 0.999)
    assert (half.encoder.relative, half.decoder.relative, half.decoder.min_dice) == (1e-2, 5e-2, 0.995)
    assert (BASE.absent_points, half.absent_points) == (5e-6, 5e-3)
    assert (BASE.min_dice, half.min_dice) == (0.9999, 0.995)


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda one: one.name)
def test_what_a_precision_names_by_its_path_is_there(precision):
    pytest.importorskip("onnx")
    from importlib import import_module

    for path in (precision.writer, precision.emulator):
        if path is not None:
            module, name = path.split(":")
            assert callable(getattr(import_module(module), name))
