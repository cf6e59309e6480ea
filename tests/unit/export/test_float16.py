"""Guards the way from measuring to the gate: levels are climbed for a reason, and what gains nothing is not written."""

import numpy as np
import onnx
import pytest

from samkit.errors import ExportError, ParityError
from samkit.export.emulation import EmulatedRunner
from samkit.export.float16 import write_float16

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
    notes = write_float16(folder, [small.spec()], check, lambda line: None)["g.fp16.onnx"]
    assert calls == [("fp32", False)] + [("fp16", True)] * (refused + 1)
    assert (notes["level"], notes["gate"]) == (level, {"dice": 1.0})
    assert [entry["node"] for entry in notes["kept_in_float32"]] == kept
    assert sum("Dice 0.9" in entry["reason"] for entry in notes["kept_in_float32"]) == len(kept)
    assert sorted(path.name for path in folder.iterdir()) == ["g.fp16.onnx", "g.onnx"]


def test_gate_that_never_opens_fails_with_the_node_to_blame(folder, small):
    check, _ = checking(3)
    with pytest.raises(ParityError, match=r"Dice 0\.9; the worst node is \w+ of g, with a relative error of"):
        write_float16(folder, [small.spec()], check, lambda line: None)


def test_given_list_is_taken_as_it_is_and_measures_nothing(folder, small):
    check, calls = checking(0)
    notes = write_float16(folder, [small.spec()], check, lambda line: None, {"g": []})["g.fp16.onnx"]
    assert calls == [("fp16", True)]
    assert (notes["level"], notes["kept_in_float32"]) == ("as the keep-list says", [])


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
        write_float16(tmp_path, [small.spec(out=12)], check, lambda line: None)
    assert "weight big is beyond float16" in str(failed.value)
    assert failed.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx"]
