"""A graph behind another model answers as its runner does, in chunks that the model takes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.errors import InputRefused, ServingError, TensorMismatchError
from samkit.methods import get_method
from samkit.methods.method import GraphSpec
from samkit.prompts import ABSENT
from samkit.runtime.protocol.failure import error_text
from samkit.tensors import Axis, TensorSpec
from samkit.triton_models.bls_runner import BlsRunner
from samkit.triton_models.model_config import batch_size
from support import stand_ins as the

_BATCH = Axis("batch", 1, 1, 4)
_SIDES = [Axis.fixed(name, 3) for name in ("channel", "row", "column")]
GRAPH = GraphSpec(
    "image_encoder",
    (TensorSpec("image", "float32", (_BATCH, *_SIDES)),),
    (TensorSpec("image_embeddings", "float32", (_BATCH, *_SIDES)), TensorSpec("sum", "float32", (_BATCH,))),
    {},
)


@pytest.fixture
def server(monkeypatch):
    """Models that BLS finds; `rows` notes how many each call brought."""
    models = {}
    utils = the.fake_backend(models)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    rows = []

    def encode(inputs):
        rows.append(len(inputs["image"]))
        assert inputs["image"].flags.c_contiguous
        return {"image_embeddings": inputs["image"] * 2, "sum": inputs["image"].sum(axis=(1, 2, 3))}

    models["m_image_encoder"] = encode
    return SimpleNamespace(models=models, rows=rows, utils=utils)


def images(count):
    return np.random.default_rng(count).random((count, 3, 3, 3), np.float32)


@pytest.mark.parametrize(("count", "chunks"), [(1, [1]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3])])
def test_rows_go_in_chunks_that_the_model_takes(count, chunks, server, monkeypatch):
    monkeypatch.setattr("samkit.triton_models.bls_runner.check_inputs", lambda graph, inputs: None)  # any count
    runner = BlsRunner("m_image_encoder", GRAPH)
    found = runner.run({"image": images(count)})

    assert batch_size(GRAPH) == 8  # two requests share a batch
    assert server.rows == chunks
    assert np.array_equal(found["image_embeddings"], images(count) * 2)
    assert np.array_equal(found["sum"], images(count).sum(axis=(1, 2, 3)))


def test_model_without_batches_gets_everything_at_once(server):
    graph = next(g for g in get_method("sam").graphs(get_method("sam").sizes["tiny"]) if g.name == "mask_decoder")
    assert batch_size(graph) == 0
    asked = []
    server.models["m_mask_decoder"] = lambda inputs: (
        asked.append(inputs) or {spec.name: np.zeros(1, np.float32) for spec in graph.outputs}
    )
    rows = {spec.name: 3 if spec.name.startswith("point") else 1 for spec in graph.inputs}
    feed = {
        spec.name: np.zeros([rows[spec.name] if a is spec.axes[0] else a.opt for a in spec.axes], spec.dtype)
        for spec in graph.inputs
    }
    if "mask_input" in feed:
        for name in ("mask_input", "has_mask_input"):
            feed[name] = np.repeat(feed[name], 3, axis=0)
    BlsRunner("m_mask_decoder", graph).run(feed)

    assert len(asked) == 1
    assert all(np.array_equal(asked[0][name], feed[name]) for name in feed)


def test_embeddings_that_are_kept_are_on_the_host(server):
    kept = BlsRunner("m_image_encoder", GRAPH).run_keeping({"image": images(2)}, ("image_embeddings",))

    assert isinstance(kept["image_embeddings"], np.ndarray)


def test_tensors_that_do_not_fit_are_never_sent(server):
    runner = BlsRunner("m_image_encoder", GRAPH)
    for feed in (
        {},
        {"image": images(1)[0]},
        {"image": images(1).astype("f8")},
        {"image": images(1), "other": images(1)},
    ):
        with pytest.raises(TensorMismatchError):
            runner.run(feed)

    assert server.rows == []


def test_error_of_the_model_comes_through_as_it_was(server):
    def refuse(inputs):
        raise ValueError(error_text(InputRefused("air", "nothing is there", "click elsewhere")))

    def fail(inputs):
        raise ValueError("out of memory")

    runner = BlsRunner("m_image_encoder", GRAPH)
    server.models["m_image_encoder"] = refuse
    with pytest.raises(InputRefused, match="nothing is there; click elsewhere"):
        runner.run({"image": images(1)})
    server.models["m_image_encoder"] = fail
    with pytest.raises(ServingError, match="model m_image_encoder failed; see"):
        runner.run({"image": images(1)})
    del server.models["m_image_encoder"]
    with pytest.raises(ServingError, match="model m_image_encoder failed"):
        runner.run({"image": images(1)})


def test_runner_says_who_runs_the_graph(server):
    assert BlsRunner("m_image_encoder", GRAPH).providers == ("triton model m_image_encoder",)


@pytest.mark.parametrize("engine", [False, True])
def test_engine_is_never_sent_an_empty_row_of_points(engine, server):
    graph = next(g for g in get_method("sam").graphs(get_method("sam").sizes["tiny"]) if g.name == "mask_decoder")
    asked = []
    server.models["m_mask_decoder"] = lambda inputs: (
        asked.append(inputs) or {spec.name: np.zeros(1, np.float32) for spec in graph.outputs}
    )
    sizes = {"batch": 1, "images": 1, "points": 0}
    feed = {spec.name: np.zeros([sizes.get(a.name, a.opt) for a in spec.axes], spec.dtype) for spec in graph.inputs}
    BlsRunner("m_mask_decoder", graph, engine=engine).run(feed)
    (sent,) = asked

    assert sent["point_coords"].shape == (1, int(engine), 2)
    assert sent["point_labels"].tolist() == [[ABSENT] if engine else []]
