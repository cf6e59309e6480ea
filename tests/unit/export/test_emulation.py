"""Guards the emulation: each float16 result is rounded and overflows as float16 does, and the offender is named."""

import math

import numpy as np
import onnx
import pytest

from samkit.export.emulation import EmulatedRunner, emulate, first_non_finite, first_offender
from samkit.export.precision import convert_to_fp16

RNG = np.random.default_rng(5)
W = RNG.standard_normal((4, 4)).astype(np.float32)
X = RNG.standard_normal((3, 4)).astype(np.float32)


def half(values):
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)


def blame(small, runner, folder):
    """Return the offender among the nodes of the files that `emulated` wrote, on the runner's last inputs."""
    return first_offender(folder / "g.onnx", folder / "g.fp16.onnx", small.spec(), runner.last, folder)


@pytest.fixture
def emulated(small, tmp_path):
    """Return a runner of the float16 form of `nodes`, everything but `kept` in float16."""
    opened = []

    def make(nodes, weights, kept=(), out=4):
        graph = small.typed(nodes, weights)
        onnx.save(graph.model, tmp_path / "g.onnx")
        onnx.save(convert_to_fp16(graph, kept), tmp_path / "g.fp16.onnx")
        opened.append(EmulatedRunner(tmp_path / "g.fp16.onnx", small.spec(out=out), tmp_path))
        return opened[-1]

    yield make
    for runner in opened:
        runner.close()


def test_every_result_is_rounded(small, emulated):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Add", ["a", "b"], ["c"]),
        small.node("Transpose", ["c"], ["d"], perm=[0, 1]),
        small.node("MatMul", ["d", "w"], ["y"]),
    ]
    bias = np.arange(4) / 3
    actual = emulated(nodes, {"w": W, "b": bias}).run({"x": X})["y"]
    c = half(half(half(X) @ half(W)) + half(bias))
    np.testing.assert_array_equal(actual, half(c @ half(W)))
    assert not np.array_equal(actual, half(X @ W + bias) @ W)


def test_float32_nodes_are_not_rounded(small, emulated):
    nodes = [small.node("MatMul", ["x", "w"], ["a"]), small.node("Add", ["a", "a"], ["y"])]
    actual = emulated(nodes, {"w": W}, kept=["MatMul_a", "Add_y"]).run({"x": X})["y"]
    np.testing.assert_allclose(actual, 2 * (X @ W), rtol=1e-6)


@pytest.mark.parametrize(("scale", "expected"), [(65504, 65504), (65519, 65504), (65520, math.inf), (-7e4, -math.inf)])
def test_overflow_is_infinite_at_float16s_own_bound(scale, expected, small, emulated):
    nodes = [small.node("Mul", ["x", "s"], ["a"]), small.node("Mul", ["a", "one"], ["y"])]
    # The scale is made of two weights that float16 holds.
    runner = emulated([small.node("Mul", ["x", "one"], ["b"]), *nodes], {"s": 1.0, "one": 1.0}, kept=["Mul_b"])
    assert (runner.run({"x": np.full((1, 4), scale, np.float32)})["y"] == expected).all()


def test_small_numbers_lose_digits_and_vanish(small, emulated):
    runner = emulated([small.node("Mul", ["x", "one"], ["y"])], {"one": 1.0})
    x = np.array([[1e-8, 3e-8, 1e-7, 1.0]], np.float32)
    np.testing.assert_array_equal(runner.run({"x": x})["y"], half(x))


def test_onnxruntime_alone_sees_no_overflow(small):
    """Why the emulation is there at all: on a CPU the float16 graph itself runs in float32."""
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("MatMul", ["a", "v"], ["y"]),
    ]
    model = convert_to_fp16(small.typed(nodes, {"w": 1000 * np.eye(4), "v": 0.001 * np.eye(4)}), [])
    x = np.full((1, 4), 100, np.float32)
    assert np.isfinite(small.run(model, x)).all()
    assert not np.isfinite(small.run(emulate(model), x)).any()


def test_node_that_overflows_first_is_named(small, emulated, tmp_path):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("MatMul", ["a", "v"], ["b"]),
        small.node("Sub", ["b", "b"], ["y"]),
    ]
    runner = emulated(nodes, {"w": 1000 * np.eye(4), "v": 1000 * np.eye(4)})
    outputs = runner.run({"x": np.full((1, 4), 1, np.float32)})
    assert np.isnan(outputs["y"]).all()
    offender = blame(small, runner, tmp_path)
    assert (offender.node, offender.is_overflow) == ("MatMul_b", True)
    assert str(offender) == "the first node beyond float16's range is MatMul_b of g"


def test_node_whose_error_is_too_large_is_named(small, emulated, tmp_path):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Add", ["a", "big"], ["b"]),
        small.node("Sub", ["b", "big"], ["c"]),
        small.node("MatMul", ["c", "w"], ["y"]),
    ]
    runner = emulated(nodes, {"w": W, "big": 2048.0})
    runner.run({"x": X})
    offender = blame(small, runner, tmp_path)
    assert (offender.node, offender.is_overflow, offender.is_beyond) == ("Sub_c", False, True)


def test_nobody_is_blamed_where_nothing_is_float16(small, emulated, tmp_path):
    nodes = [small.node("MatMul", ["x", "w"], ["y"])]
    runner = emulated(nodes, {"w": W}, kept=["MatMul_y"])
    runner.run({"x": X})
    assert blame(small, runner, tmp_path) is None


def test_worst_node_is_named_where_none_is_beyond(small, emulated, tmp_path):
    runner = emulated([small.node("MatMul", ["x", "w"], ["y"])], {"w": W})
    runner.run({"x": X})
    offender = blame(small, runner, tmp_path)
    assert (offender.node, offender.is_beyond) == ("MatMul_y", False)
    assert 0 < offender.error < 1e-3


def test_first_node_that_is_not_finite_is_named_in_either_precision(small, tmp_path):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Sqrt", ["a"], ["b"]),
        small.node("Reshape", ["b", "axes"], ["c"]),
        small.node("MatMul", ["c", "v"], ["y"]),
    ]
    weights = {"w": 1000 * np.eye(4), "axes": [-1, 4], "v": 1000 * np.eye(4)}
    graph = small.typed(nodes, weights)
    onnx.save(graph.model, tmp_path / "g.onnx")
    onnx.save(convert_to_fp16(graph, []), tmp_path / "g.fp16.onnx")

    def first(name, value):
        return first_non_finite(tmp_path / name, small.spec(), {"x": np.full((1, 4), value, np.float32)}, tmp_path)

    assert [first("g.onnx", value) for value in (1, -1, np.inf)] == [None, "Sqrt_b", "MatMul_a"]
    assert [first("g.fp16.onnx", value) for value in (1, -1, 100, 1e-3)] == [None, "Sqrt_b", "MatMul_a", None]
