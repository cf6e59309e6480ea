"""Guards the comparison of graphs: calls at the same places, the first that is too far off kept, all graphs asked."""

import math

import numpy as np
import pytest

from samkit.benchmarks.accuracy.outcome import GraphCall, Outcome
from samkit.benchmarks.accuracy.outputs import ObservedRunner, OutputCheck, Recording
from samkit.benchmarks.record.rows import Identity
from samkit.methods import GraphSpec, get_method, list_methods
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
    return GraphCall(graph, {"x": np.zeros(size, np.float32)}, {"y": np.full(size, value, np.float32)})


@pytest.fixture
def recording():
    return Recording()


GRAPHS = {name: Times(name, 1).graph for name in ("image_encoder", "mask_decoder", "mask_decoder_no_mask")}


@pytest.fixture
def outcome():
    return Outcome(Identity("sam", "onnxruntime", "cpu", "fp32", stage="masks", policy="centre"))


@pytest.fixture
def check(recording, outcome):
    """A check of three graphs in float32, on its first scan."""
    found = OutputCheck(recording, GRAPHS, "fp32")
    found.begin(outcome, 0)
    return found


def step(recording, check, theirs, ours, where="case 1, click 1"):
    """Let both take their calls."""
    recording.start()
    for one in theirs:
        recording.take(one)
    with check.expecting(where):
        for one in ours:
            check.take(one)


def test_first_call_beyond_its_tolerance_is_kept_with_its_inputs(recording, check, outcome):
    worse, worst = call("mask_decoder", 1.001), call("mask_decoder", 2)
    step(recording, check, [call("image_encoder", 1)], [call("image_encoder", 1.00001)])
    step(recording, check, [call("mask_decoder", 1)] * 2, [worse, worst], "case 1, click 2")
    (found,) = outcome.failures
    assert (found.where, found.graph, found.call) == ("case 1, click 2", "mask_decoder", worse)
    assert found.measure == "y has a relative error of 1.0e-03 against PyTorch's, needed is at most 1e-04"
    assert outcome.relative_error["mask_decoder"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_breaks(value, recording, check, outcome):
    step(recording, check, [call("mask_decoder", 1)], [call("mask_decoder", value)])
    assert outcome.failures[0].graph == "mask_decoder"
    step(recording, check, [call("mask_decoder", 1)], [call("mask_decoder", 1)])
    assert not math.isfinite(outcome.relative_error["mask_decoder"])


def test_fast_form_is_compared_with_the_graph_that_does_its_work(recording, check, outcome):
    step(recording, check, [call("mask_decoder", 1)], [call("mask_decoder_no_mask", 2)])
    assert outcome.failures[0].graph == "mask_decoder_no_mask"


@pytest.mark.parametrize(
    "ours", [[call("mask_decoder", 2)], [call("image_encoder", 1)] * 2, [], [call("image_encoder", 1, size=2)]]
)
def test_other_calls_than_pytorchs_part_and_are_not_compared_until_the_next_scan(ours, recording, check, outcome):
    step(recording, check, [call("image_encoder", 1)], ours)
    step(recording, check, [call("mask_decoder", 1)], [call("mask_decoder", 2)], "case 1, click 2")
    assert (check.diverged, outcome.failures) == ("case 1, click 1", [])
    check.begin(outcome, 0)
    step(recording, check, [call("mask_decoder", 1)], [call("mask_decoder", 2)], "case 2, click 1")
    assert outcome.failures[0].where == "case 2, click 1"


def test_calls_between_steps_are_not_compared(recording, check, outcome):
    step(recording, check, [call("image_encoder", 1)], [call("image_encoder", 1)])
    check.take(call("mask_decoder", 5))
    assert (check.diverged, outcome.failures) == (None, [])


def test_stem_is_run_by_pytorch_after_each_encoding():
    class Stem(HostRunner):
        graph = GraphSpec("adapter_stem", (TensorSpec("image_embeddings", "float32", ONE.axes),), (), TOLERANCE)

        def run(self, inputs):
            return {"image_features": inputs["image_embeddings"] + 1}

    recording = Recording([Stem()])
    recording.take(GraphCall("image_encoder", {}, {"image_embeddings": np.ones(2)}))
    recording.take(call("mask_decoder", 1))
    assert [one.graph for one in recording.calls] == ["image_encoder", "adapter_stem", "mask_decoder"]
    assert recording.calls[1].outputs["image_features"].tolist() == [2, 2]


def test_watched_runner_shows_what_runs_and_closes(recording):
    runner = Times("mask_decoder", 3)
    with ObservedRunner(runner, recording.take) as watched:
        assert watched.run({"x": np.ones(1)})["y"] == watched.run_keeping({"x": np.ones(1)}, ())["y"] == 3
    assert [(one.graph, float(one.outputs["y"][0])) for one in recording.calls] == [("mask_decoder", 3)] * 2
    assert not runner.is_open


def compare_with(recording, check, runners, where="case 1, click 1"):
    originals = {name: Times(name, 1) for name in GRAPHS}
    check.compare_apart(originals, runners, where)


def test_graph_that_no_click_runs_gets_pytorchs_inputs(recording, check, outcome):
    recording.take(GraphCall("mask_decoder", {"x": np.ones(1, np.float32), "more": np.ones(1)}, {"y": np.ones(1)}))
    compare_with(recording, check, {name: Times(name, 3) for name in GRAPHS})
    assert outcome.failures[0].graph == "mask_decoder"
    assert outcome.relative_error == {"mask_decoder": 2, "mask_decoder_no_mask": 2}
    assert "image_encoder" not in check._seen


class Alone(Times):
    """Forgets the second row of two."""

    def run(self, inputs):
        (out,) = super().run(inputs).values()
        out[1:] = 0
        return {self.out: out}


def test_fault_that_two_rows_alone_show_is_found_and_asked_for_once(recording, check, outcome):
    theirs = [call("mask_decoder", 1)]
    theirs[0].inputs["x"][:] = 1
    step(recording, check, theirs, [call("mask_decoder", 1)])
    runners = {name: Alone(name, 1) for name in GRAPHS}
    compare_with(recording, check, runners)
    found = outcome.failures.pop()
    assert (found.graph, found.where) == ("mask_decoder", "case 1, click 1")
    assert "against PyTorch's for two rows at once, needed" in found.measure
    compare_with(recording, check, runners)
    assert outcome.failures == []


@pytest.mark.parametrize("sees_session", [True, False], ids=["parted", "served"])
def test_graphs_get_pytorchs_inputs_where_calls_have_no_counterpart(sees_session, recording, check, outcome):
    check = OutputCheck(recording, GRAPHS, "fp32", sees_session=sees_session)
    check.begin(outcome, 0)
    step(recording, check, [call("mask_decoder", 0)], [])
    runners = {name: Times(name, 1) for name in GRAPHS}
    compare_with(recording, check, runners)
    assert outcome.failures == []
    runners["mask_decoder"].factor = 1.01
    theirs = [GraphCall("mask_decoder", {"x": np.ones(1, np.float32)}, {"y": np.ones(1, np.float32)})]
    step(recording, check, theirs, [], "case 1, click 3")
    compare_with(recording, check, runners, "case 1, click 3")
    assert (outcome.failures[0].graph, outcome.failures[0].where) == ("mask_decoder", "case 1, click 3")
    assert check.diverged == ("case 1, click 1" if sees_session else None)


def test_mask_is_blamed_on_the_graph_nearest_to_its_tolerance(recording, check):
    assert check.suspect() == "the session"
    both = [call("image_encoder", 1), call("mask_decoder", 1)]
    step(recording, check, both, [call("image_encoder", 1.00002), call("mask_decoder", 1.00001)])
    assert check.suspect() == "image_encoder"


def test_every_fast_form_has_a_graph_that_does_its_work():
    methods = [get_method(name) for name in list_methods()]
    graphs = [graph for method in methods for graph in method.graphs(method.sizes["tiny"])]
    works_for = {graph.name: graph.official for graph in graphs if graph.is_rewrite}
    names = {"mask_decoder_no_mask": "mask_decoder", "mask_decoder_anchored": "mask_decoder"}
    assert works_for == {**names, "adapter_stem": "adapter_stem"}
    assert all(graph.official == graph.name for graph in graphs if not graph.is_rewrite)


def test_fast_form_that_does_no_other_graphs_work_follows_an_encoding():
    for name in list_methods():
        graphs = {graph.name: graph for graph in get_method(name).graphs(get_method(name).sizes["tiny"])}
        encoded = {tensor.name for tensor in graphs["image_encoder"].outputs}
        for graph in graphs.values():
            if graph.is_rewrite and graph.works_for is None:
                assert {tensor.name for tensor in graph.inputs} <= encoded
