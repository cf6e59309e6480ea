"""Guards the measuring: magnitudes are those of the tensors, sums bound every order of summation, runs add up."""

import numpy as np
import onnx
import pytest

from samkit.export.ranges import RangeRunner
from samkit.prompts import ABSENT_LOGIT

RNG = np.random.default_rng(3)
W = RNG.standard_normal((4, 4)).astype(np.float32)
X = RNG.standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def runner(small, tmp_path):
    model = small.build(
        [small.node("MatMul", ["x", "w"], ["a"]), small.node("Gemm", ["a", "w", "b"], ["y"], transB=1)],
        {"w": W, "b": np.arange(4)},
    )
    onnx.save(model, tmp_path / "g.onnx")
    with RangeRunner(tmp_path / "g.onnx", small.spec(), tmp_path) as opened:
        yield opened


def test_outputs_are_those_of_the_graph(runner):
    assert runner.run({"x": X}).keys() == {"y"}
    np.testing.assert_allclose(runner.run({"x": X})["y"], X @ W @ W.T + np.arange(4), rtol=1e-5)


def test_every_tensor_and_every_products_sum_is_measured(runner):
    runner.run({"x": X})
    a = X @ W
    assert runner.ranges.tensors == pytest.approx(
        {"x": np.abs(X).max(), "a": np.abs(a).max(), "y": np.abs(a @ W.T + np.arange(4)).max()}, rel=1e-5
    )
    assert runner.ranges.sums == pytest.approx(
        {
            "MatMul_a": (np.abs(X) @ np.abs(W)).max(),
            "Gemm_y": (np.abs(a) @ np.abs(W).T + np.arange(4)).max(),
        },
        rel=1e-5,
    )


def test_the_largest_of_all_runs_is_kept(runner):
    for scale in (1, 10, 2):
        runner.run({"x": scale * X})
    assert runner.ranges.tensors["x"] == pytest.approx(10 * np.abs(X).max())


def test_infinity_is_seen(runner):
    runner.run({"x": np.where(X.max() == X, np.inf, X).astype(np.float32)})
    assert runner.ranges.tensors["x"] == np.inf


def test_logits_of_absent_tokens_are_left_out(small, tmp_path):
    model = small.build(
        [small.node("Add", ["x", "penalty"], ["a"]), small.node("Softmax", ["a"], ["y"])],
        {"penalty": np.array([0, 0, ABSENT_LOGIT, 0])},
    )
    onnx.save(model, tmp_path / "g.onnx")
    with RangeRunner(tmp_path / "g.onnx", small.spec(), tmp_path) as runner:
        runner.run({"x": np.array([[1, -7, 30, 2]], np.float32)})
        assert runner.ranges.logits == {"Softmax_y": 7}


def test_cancelling_sum_shows_in_the_bound_alone(small, tmp_path):
    """Two large terms of opposite sign: the result is small, a partial sum is not."""
    model = small.build([small.node("MatMul", ["x", "w"], ["y"])], {"w": np.array([[3e4], [-3e4], [1], [0]])})
    onnx.save(model, tmp_path / "g.onnx")
    with RangeRunner(tmp_path / "g.onnx", small.spec(out=1), tmp_path) as runner:
        runner.run({"x": np.ones((1, 4), np.float32)})
        assert runner.ranges.tensors["y"] == 1
        assert runner.ranges.sums["MatMul_y"] == 6e4 + 1
