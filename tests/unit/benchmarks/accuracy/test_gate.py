"""Guards the gate: calls are compared at the same places, the first that breaks is kept, masks are held to limits."""

import math

import numpy as np
import pytest

from samkit.benchmarks.accuracy.gate import (
    Break,
    Call,
    CallJudge,
    CallTape,
    Limits,
    RecordedRunner,
    compare_apart,
    judge_mask,
)
from samkit.methods import GraphSpec, get_method
from samkit.precisions import Tolerance
from samkit.runtime.backends.runner import HostRunner
from samkit.tensors import Axis, TensorSpec

ONE = TensorSpec("x", "float32", (Axis("batch", 1, 1, 8),))
TOLERANCE = {"fp32": Tolerance(1e-4, 0.999), "fp16": Tolerance(1e-2, 0.995)}


class Times(HostRunner):
    """Multiplies by a number."""

    providers = ("numpy",)

    def __init__(self, name, factor, out="y"):
        works_for = "mask_decoder" if name == "mask_decoder_no_mask" else None
        self.graph = GraphSpec(name, (ONE,), (TensorSpec(out, "float32", ONE.axes),), TOLERANCE, works_for=works_for)
        self.factor, self.out, self.is_open = factor, out, True

    def run(self, inputs):
        return {self.out: self.factor * inputs["x"]}

    def close(self):
        self.is_open = False


def call(graph, value, size=1):
    return Call(graph, {"x": np.zeros(size, np.float32)}, {"y": np.full(size, value, np.float32)})


@pytest.fixture
def tape():
    return CallTape()


@pytest.fixture
def judge(tape):
    """A judge of three graphs in float32, on its first scan."""
    names = ("image_encoder", "mask_decoder", "mask_decoder_no_mask")
    found = CallJudge(tape, {name: Times(name, 1).graph for name in names}, "fp32")
    found.begin("centre")
    return found


def step(tape, judge, theirs, ours, where="case 1, click 1"):
    """Let both take their calls."""
    tape.start()
    for one in theirs:
        tape.take(one)
    judge.start(where)
    for one in ours:
        judge.take(one)
    judge.stop()


def test_first_call_beyond_its_tolerance_is_kept_with_its_inputs(tape, judge):
    worse, worst = call("mask_decoder", 1.001), call("mask_decoder", 2)
    step(tape, judge, [call("image_encoder", 1)], [call("image_encoder", 1.00001)])
    step(tape, judge, [call("mask_decoder", 1)] * 2, [worse, worst], "case 1, click 2")
    found = judge.broken["centre"]
    assert (found.where, found.graph, found.call) == ("case 1, click 2", "mask_decoder", worse)
    assert found.measure == "y has a relative error of 1.0e-03 against PyTorch's, needed is at most 1e-04"
    assert judge.errors["centre"]["mask_decoder"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_breaks(value, tape, judge):
    step(tape, judge, [call("mask_decoder", 1)], [call("mask_decoder", value)])
    assert judge.broken["centre"].graph == "mask_decoder"
    step(tape, judge, [call("mask_decoder", 1)], [call("mask_decoder", 1)])
    assert not math.isfinite(judge.errors["centre"]["mask_decoder"])


def test_fast_form_is_compared_with_the_graph_that_does_its_work(tape, judge):
    step(tape, judge, [call("mask_decoder", 1)], [call("mask_decoder_no_mask", 2)])
    assert judge.broken["centre"].graph == "mask_decoder_no_mask"


@pytest.mark.parametrize(
    "ours", [[call("mask_decoder", 2)], [call("image_encoder", 1)] * 2, [], [call("image_encoder", 1, size=2)]]
)
def test_other_calls_than_pytorchs_part_and_are_not_compared_until_the_next_scan(ours, tape, judge):
    step(tape, judge, [call("image_encoder", 1)], ours)
    step(tape, judge, [call("mask_decoder", 1)], [call("mask_decoder", 2)], "case 1, click 2")
    assert (judge.parted, judge.broken) == ("case 1, click 1", {})
    judge.begin("centre")
    step(tape, judge, [call("mask_decoder", 1)], [call("mask_decoder", 2)], "case 2, click 1")
    assert judge.broken["centre"].where == "case 2, click 1"


def test_calls_between_steps_are_not_compared(tape, judge):
    step(tape, judge, [call("image_encoder", 1)], [call("image_encoder", 1)])
    judge.take(call("mask_decoder", 5))
    assert (judge.parted, judge.broken) == (None, {})


def test_stem_is_run_by_pytorch_after_each_encoding():
    class Stem(Times):
        def run(self, inputs):
            return {"image_features": inputs["image_embeddings"] + 1}

    tape = CallTape(Stem("adapter_stem", 1))
    tape.take(Call("image_encoder", {}, {"image_embeddings": np.ones(2)}))
    tape.take(call("mask_decoder", 1))
    assert [one.graph for one in tape.calls] == ["image_encoder", "adapter_stem", "mask_decoder"]
    assert tape.calls[1].outputs["image_features"].tolist() == [2, 2]


def test_watched_runner_shows_what_runs_and_closes(tape):
    runner = Times("mask_decoder", 3)
    with RecordedRunner(runner, tape) as watched:
        assert watched.run({"x": np.ones(1)})["y"] == watched.run_keeping({"x": np.ones(1)}, ())["y"] == 3
    assert [(one.graph, float(one.outputs["y"][0])) for one in tape.calls] == [("mask_decoder", 3)] * 2
    assert not runner.is_open


def compare_with(tape, judge, runners, where="case 1, click 1"):
    originals = {name: Times(name, 1) for name in judge.specs}
    compare_apart(judge, tape, originals, runners, where)


def test_graph_that_no_click_runs_gets_pytorchs_inputs(tape, judge):
    tape.take(Call("mask_decoder", {"x": np.ones(1, np.float32), "more": np.ones(1)}, {"y": np.ones(1)}))
    compare_with(tape, judge, {name: Times(name, 3) for name in judge.specs})
    assert judge.broken["centre"].graph == "mask_decoder"
    assert judge.errors["centre"] == {"mask_decoder": 2, "mask_decoder_no_mask": 2}
    assert "image_encoder" not in judge.seen


class Alone(Times):
    """Forgets the second row of two."""

    def run(self, inputs):
        (out,) = super().run(inputs).values()
        out[1:] = 0
        return {self.out: out}


def test_fault_that_two_rows_alone_show_is_found_and_asked_for_once(tape, judge):
    theirs = [call("mask_decoder", 1)]
    theirs[0].inputs["x"][:] = 1
    step(tape, judge, theirs, [call("mask_decoder", 1)])
    runners = {name: Alone(name, 1) for name in judge.specs}
    compare_with(tape, judge, runners)
    found = judge.broken.pop("centre")
    assert (found.graph, found.where) == ("mask_decoder", "case 1, click 1")
    assert "against PyTorch's for two rows at once, needed" in found.measure
    compare_with(tape, judge, runners)
    assert judge.broken == {}


@pytest.mark.parametrize("is_watching", [True, False], ids=["parted", "served"])
def test_graphs_get_pytorchs_inputs_where_calls_have_no_counterpart(is_watching, tape, judge):
    judge = CallJudge(tape, judge.specs, "fp32", is_watching=is_watching)
    judge.begin("centre")
    step(tape, judge, [call("mask_decoder", 0)], [])
    runners = {name: Times(name, 1) for name in judge.specs}
    compare_with(tape, judge, runners)
    assert judge.broken == {}
    runners["mask_decoder"].factor = 1.01
    theirs = [Call("mask_decoder", {"x": np.ones(1, np.float32)}, {"y": np.ones(1, np.float32)})]
    step(tape, judge, theirs, [], "case 1, click 3")
    compare_with(tape, judge, runners, "case 1, click 3")
    assert (judge.broken["centre"].graph, judge.broken["centre"].where) == ("mask_decoder", "case 1, click 3")
    assert judge.parted == ("case 1, click 1" if is_watching else None)


@pytest.mark.parametrize(
    ("dice", "flipped", "distance", "size", "found"),
    [
        (0.99991, 900, 1.0, 10**6, None),
        (0.9998, 90, 0.0, 10**6, "the mask has Dice 0.99980 against PyTorch's, needed is at least 0.9999"),
        (0.9, 5, 2.0, 100, None),
        (0.9, 6, 2.0, 100, "the mask has 6 voxels other than PyTorch's 100, needed are at most 5"),
        (0.99991, 9, 2.1, 10**6, "the mask has HD95 2.1 mm against PyTorch's, needed is at most 2 mm"),
        (0.0, 3, math.inf, 0, "the mask has HD95 inf mm against PyTorch's, needed is at most 2 mm"),
    ],
)
def test_mask_is_held_to_limits(dice, flipped, distance, size, found):
    parity = {"dice": dice, "flipped_voxels": flipped, "hd95_mm": distance}
    tolerance = Limits().tolerance("fp32", (1.0, 1.0, 2.0))
    broken = judge_mask(parity, size, tolerance, "mask_decoder", "case 1, click 1", "the mask")
    assert (broken and broken.measure) == found


def test_limits_that_are_given_are_used():
    tolerance = Limits({"fp32": 0.5, "fp16": 0.4}, 7.0).tolerance("fp16", (1.0, 1.0))
    assert (tolerance.min_dice, tolerance.max_hd95) == (0.4, 7.0)
    assert Limits().tolerance("fp16", (1.0, 1.0)).min_dice == 0.995


def test_mask_is_blamed_on_the_graph_nearest_to_its_tolerance(tape, judge):
    assert judge.nearest_to_blame() == "the session"
    both = [call("image_encoder", 1), call("mask_decoder", 1)]
    step(tape, judge, both, [call("image_encoder", 1.00002), call("mask_decoder", 1.00001)])
    assert judge.nearest_to_blame() == "image_encoder"


def test_sentence_names_everything():
    row = {"method": "m-sam", "backend": "onnxruntime", "precision": "fp16", "device": "cpu"}
    found = Break("case 1, click 2", "mask_decoder", "the mask has Dice 0.9", node="MatMul_3")
    assert found.sentence(row) == (
        "m-sam, mask_decoder on onnxruntime (fp16, cpu), case 1, click 2: the mask has Dice 0.9; the first node that "
        "is not finite is MatMul_3"
    )


def test_every_fast_form_has_a_graph_that_does_its_work():
    from samkit import list_methods
    from samkit.benchmarks.accuracy.candidates import STEM

    methods = [get_method(name) for name in list_methods()]
    graphs = [graph for method in methods for graph in method.graphs(method.sizes["tiny"])]
    works_for = {graph.name: graph.official for graph in graphs if graph.is_rewrite}
    names = {"mask_decoder_no_mask": "mask_decoder", "mask_decoder_anchored": "mask_decoder", STEM: STEM}
    assert works_for == names
    assert all(graph.official == graph.name for graph in graphs if not graph.is_rewrite)


def test_limits_can_be_read():
    said = str(Limits(min_dice={"fp32": 0.99}, max_hd95_mm=1.5))

    assert "at least 0.99 in fp32" in said
    assert said.endswith("HD95 at most 1.5 mm")
