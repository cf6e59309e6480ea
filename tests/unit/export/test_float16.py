"""Guards the way from measuring to the gate: levels are climbed for a reason, and what gains nothing is not written."""

import numpy as np
import onnx
import pytest

from samkit.errors import ExportError, ParityError
from samkit.export.emulation import EmulatedRunner
from samkit.export.float16 import write_float16
from samkit.export.sensitivity import measure_effects

RNG = np.random.default_rng(1)
W = RNG.standard_normal((4, 4))
X = RNG.standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def folder(small, tmp_path):
    """A folder with the float32 file of a graph with a softmax."""
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Add", ["a", "x"], ["b"]),
        small.node("Softmax", ["b"], ["s"]),
        small.node("MatMul", ["s", "w"], ["y"]),
    ]
    onnx.save(small.build(nodes, {"w": W}), tmp_path / "g.onnx")
    return tmp_path


def checking(refused):
    """Return a parity check that refuses the first emulated files, `refused` of them, and all it was called with."""
    calls = []

    def check(runners, precision):
        runners["g"].run({"x": X})
        emulated = isinstance(runners["g"], EmulatedRunner)
        calls.append((precision, emulated))
        if emulated and sum(was for _, was in calls) <= refused:
            raise ParityError("the mask has Dice 0.9")
        return {"g": {"dice": 1.0}}

    return check, calls


@pytest.mark.parametrize(
    ("refused", "level", "kept"),
    [
        (0, "all that its range allows", []),
        (1, "without softmax", ["Softmax_s"]),
        (2, "products alone", ["Add_b", "Softmax_s"]),
    ],
)
def test_levels_are_climbed_until_the_gate_opens(refused, level, kept, folder, small):
    check, calls = checking(refused)
    notes = write_float16(folder, [small.spec()], check)["g.fp16.onnx"]
    assert calls == [("fp32", False)] + [("fp16", True)] * (refused + 1)
    assert (notes["level"], notes["gate"]) == (level, {"dice": 1.0})
    assert [entry["node"] for entry in notes["kept_in_float32"]] == kept
    assert sum("Dice 0.9" in entry["reason"] for entry in notes["kept_in_float32"]) == len(kept)
    assert sorted(path.name for path in folder.iterdir()) == ["g.fp16.onnx", "g.onnx"]


def test_gate_that_never_opens_fails_with_the_node_to_blame(folder, small):
    check, _ = checking(9)
    with pytest.raises(ParityError, match=r"Dice 0\.9; the worst node is \w+ of g, with a relative error of"):
        write_float16(folder, [small.spec()], check)


def test_nobody_is_blamed_where_no_graph_was_reached(folder, small):
    def check(runners, precision):
        if isinstance(runners["g"], EmulatedRunner):
            raise ParityError("nothing ran")
        runners["g"].run({"x": X})
        return {"g": {}}

    with pytest.raises(ParityError, match=r"^nothing ran$"):
        write_float16(folder, [small.spec()], check)


def test_product_that_matters_most_goes_back_to_float32_first(small, tmp_path):
    """One of twelve adds a thousand, which is taken away again: its rounding is a hundred times the others'."""
    rotation = np.linalg.qr(W)[0]
    nodes, before = [], "x"
    for number in range(12):
        after = "y" if number == 11 else f"p{number}"
        if number == 7:
            nodes.append(small.node("Gemm", [before, "w", "thousand"], ["high"]))
            nodes.append(small.node("Sub", ["high", "thousand"], [after]))
        else:
            nodes.append(small.node("MatMul", [before, "w"], [after]))
        before = after
    onnx.save(small.build(nodes, {"w": rotation, "thousand": np.full(4, 1000)}), tmp_path / "g.onnx")
    effects = measure_effects(tmp_path / "g.onnx", small.spec(), ["MatMul_p3", "Gemm_high"], {"x": X}, tmp_path)
    assert effects["Gemm_high"] > 0.05 > 1e-3 > effects["MatMul_p3"] > 1e-5
    check, _ = checking(2)
    notes = write_float16(tmp_path, [small.spec()], check)["g.fp16.onnx"]
    assert notes["level"] == "products alone, without the 12.5% that matter most"
    assert notes["products_in_float16"] == 11
    sensitive = [one["node"] for one in notes["kept_in_float32"] if "moves the output most" in one["reason"]]
    assert sensitive == ["Gemm_high"]


def test_given_list_is_taken_as_it_is_and_measures_nothing(folder, small):
    check, calls = checking(0)
    notes = write_float16(folder, [small.spec()], check, {"g": []})["g.fp16.onnx"]
    assert calls == [("fp16", True)]
    assert (notes["level"], notes["kept_in_float32"]) == ("as the keep-list says", [])


def test_given_list_does_not_put_norms_into_float16(small, tmp_path):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("LayerNormalization", ["a", "one"], ["b"]),
        small.node("MatMul", ["b", "w"], ["y"]),
    ]
    onnx.save(small.build(nodes, {"w": W, "one": np.ones(4)}), tmp_path / "g.onnx")
    check, _ = checking(0)
    notes = write_float16(tmp_path, [small.spec()], check, {"g": []})["g.fp16.onnx"]
    assert [entry["node"] for entry in notes["kept_in_float32"]] == ["LayerNormalization_b"]


def test_half_of_the_products_in_float32_gains_nothing(small, tmp_path):
    nodes = [
        small.node("MatMul", ["x", "big"], ["a"]),
        small.node("MatMul", ["x", "big"], ["b"]),
        small.node("MatMul", ["x", "w"], ["c"]),
        small.node("Concat", ["a", "b", "c"], ["d"], axis=1),
        small.node("Mul", ["d", "d"], ["y"]),
    ]
    onnx.save(small.build(nodes, {"w": W, "big": np.full((4, 4), 1e5)}), tmp_path / "g.onnx")
    check, _ = checking(0)
    with pytest.raises(ExportError, match="2 of 3 matrix products and convolutions have to stay in float32") as failed:
        write_float16(tmp_path, [small.spec(out=12)], check)
    assert "weight big is beyond float16" in str(failed.value)
    assert failed.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx"]
