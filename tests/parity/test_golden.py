"""Guards equality with the official networks: PyTorch and exported ONNX against golden outputs nobody here made, in
both formulations, which also equal each other; the adapter's pair of graphs among them.
"""

import copy
import json

import numpy as np
import pytest
import torch

import samkit
from samkit.checkpoints import load_network
from samkit.export.graphs import write_graph
from samkit.export.parity import relative_error
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.torch_runner import TorchRunner

KEYS = {"sam-med3d": "sam_med3d_vit_b_ori.json", "m-sam": "m_sam_combined_lora_r16.json"}
COMPARED = {"sam-med3d": 9, "m-sam": 9 + 8 + 6}
"""Golden outputs that are met: embedding, IoU and masks of three clicks and of all points at once; M-SAM's once more
from its pair of graphs, and masks and embeddings of its recurrent loop."""
PAIR = "pair "
"""Begins the labels of what `adapter_stem` and `mask_decoder_anchored` answered together."""

pytestmark = pytest.mark.slow


# One group for each method, so that its network is loaded and run once.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"golden {name}")) for name in KEYS]
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name, shared, recipe, tmp_path_factory):
    """The network of a method, loaded from an official-format file; nothing may change it but its formulation."""
    state = recipe.state_dict(shared / "keys" / KEYS[name], "open")
    state = {k: v * np.float32(0.3) if "linear_a_" in k or "linear_b_" in k else v for k, v in state.items()}
    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save({"model_state_dict": {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}}, path)
    loaded = load_network(path, samkit.get_method(name)).network
    path.unlink()
    return loaded


@pytest.fixture(scope="module")
def golden(name, shared):
    return dict(np.load(shared / "golden" / f"{name}.npz"))


@pytest.fixture(scope="module")
def answers(name, network, golden, shared, recipe):
    """Everything that PyTorch answers, by formulation."""
    specs = samkit.get_method(name).graphs(network.config)
    runners = {spec.name: TorchRunner(network, spec) for spec in specs}
    found = {}
    for formulation in ("official", "folded"):
        network.set_folded(formulation == "folded")
        found[formulation] = every_answer(name, runners, golden, shared, recipe)
    return found


def every_answer(name, runners, golden, shared, recipe):
    """Return all outputs by label: the encoder's, along every loop of the golden file, and of all points at once."""
    points = json.loads((shared / "golden" / f"{name}.json").read_text())["points"]
    image = recipe.noise(f"open/{name}/input", (1, 1, 128, 128, 128))
    encoded = runners["image_encoder"].run({"image": image})
    answers = {"image_embedding": encoded["image_embeddings"]}
    zeros = np.zeros((1, 1, 32, 32, 32), np.float32)

    def decode(kept, points, mask):
        prompt = {
            "point_coords": np.array([[p[:3] for p in points]], np.float32),
            "point_labels": np.array([[p[3] for p in points]], np.float32),
            "mask_input": mask,
        }
        return runners["mask_decoder_anchored" if "image_features" in kept else "mask_decoder"].run({**kept, **prompt})

    def loop(label, mode, kept):
        mask = zeros
        for number, point in enumerate(points):
            outputs = decode(kept, [point], mask)
            answers.update({f"{label}{mode}.step{number}.{key}": value for key, value in outputs.items()})
            mask = outputs["low_res_masks"]
            if mode == "recurrent":
                kept = {"image_embeddings": outputs["updated_embeddings"]}
        if mode == "anchored":
            outputs = decode(kept, points, zeros)
            answers.update({f"{label}all_points.{key}": value for key, value in outputs.items()})

    loop("", "anchored", encoded)
    if "recurrent.step0.low_res_masks" in golden:
        loop("", "recurrent", encoded)
    if "adapter_stem" in runners:
        stem = runners["adapter_stem"].run(encoded)
        answers["image_features"] = stem["image_features"]
        loop(PAIR, "anchored", {**encoded, **stem})
    return answers


def golden_errors(answers, golden):
    """Return how far each answer is from its golden output, by label; those without one are left out."""
    thinned = {"image_embedding_sub": ("image_embedding", 4)}
    for key in golden:
        if key.endswith("low_res_masks"):
            thinned[key] = (key, 1)
        if key.endswith(".iou"):
            thinned[key] = (key.removesuffix("iou") + "iou_predictions", 1)
        if key.endswith("updated_embedding_sub"):
            thinned[key] = (key.removesuffix("updated_embedding_sub") + "updated_embeddings", 16)
    return {
        label: relative_error(answers[label][:, ::step], golden[key])
        for key, (plain, step) in thinned.items()
        for label in (plain, PAIR + plain)
        if label in answers
    }


@pytest.mark.parametrize("formulation", ["official", "folded"])
def test_network_gives_the_official_outputs(name, formulation, answers, golden):
    errors = golden_errors(answers[formulation], golden)
    assert len(errors) == COMPARED[name]
    assert all(error < 1e-5 for error in errors.values()), errors


def test_formulations_give_equal_outputs(name, answers):
    official, folded = answers["official"], answers["folded"]
    assert official.keys() == folded.keys()
    errors = {label: relative_error(folded[label], official[label]) for label in official}
    assert all(error < 1e-5 for error in errors.values()), errors


def test_exported_graphs_give_the_official_outputs(name, network, golden, shared, recipe, tmp_path):
    network = copy.deepcopy(network)
    network.set_folded(True)
    network.merge_lora()
    network.freeze()
    runners = {}
    for spec in samkit.get_method(name).graphs(network.config):
        write_graph(network, spec, tmp_path / f"{spec.name}.onnx", opset=20, folded=True)
        runners[spec.name] = OnnxRuntimeRunner(tmp_path / f"{spec.name}.onnx", spec)
    errors = golden_errors(every_answer(name, runners, golden, shared, recipe), golden)
    assert len(errors) == COMPARED[name]
    assert all(error < 1e-5 for error in errors.values()), errors
