"""Guards equality with the official networks: PyTorch and exported ONNX against golden outputs nobody here made."""

import json

import numpy as np
import pytest
import torch

import samkit
from samkit.checkpoints import load_network
from samkit.export.graphs import write_graph
from samkit.export.parity import relative_error
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.torch_runner import TorchRunner

KEYS = {"sam-med3d": "sam_med3d_vit_b_ori.json", "m-sam": "m_sam_combined_lora_r16.json"}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", KEYS)]


@pytest.fixture(scope="module")
def load(shared, recipe, tmp_path_factory):
    """Return a function from a method's name to its network, loaded from an official-format file."""

    def load(name):
        state = recipe.state_dict(shared / "keys" / KEYS[name], "open")
        state = {k: v * np.float32(0.3) if "linear_a_" in k or "linear_b_" in k else v for k, v in state.items()}
        path = tmp_path_factory.mktemp("official") / "official.pth"
        torch.save({"model_state_dict": {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}}, path)
        return load_network(path, samkit.get_method(name)).network

    return load


def worst_error(name, runners, shared, recipe):
    """Return the largest relative error against the golden outputs: encoder, loops, all points at once."""
    golden = np.load(shared / "golden" / f"{name}.npz")
    points = json.loads((shared / "golden" / f"{name}.json").read_text())["points"]
    image = recipe.noise(f"open/{name}/input", (1, 1, 128, 128, 128))
    embeddings = runners["image_encoder"].run({"image": image})["image_embeddings"]
    errors = [relative_error(embeddings[:, ::4], golden["image_embedding_sub"])]
    zeros = np.zeros((1, 1, 32, 32, 32), np.float32)

    def decode(fed, points, mask):
        return runners["mask_decoder"].run(
            {
                "image_embeddings": fed,
                "point_coords": np.array([[p[:3] for p in points]], np.float32),
                "point_labels": np.array([[p[3] for p in points]], np.float32),
                "mask_input": mask,
            }
        )

    for mode in ("anchored", "recurrent"):
        if f"{mode}.step0.low_res_masks" not in golden:
            continue
        fed, mask = embeddings, zeros
        for number, point in enumerate(points):
            outputs = decode(fed, [point], mask)
            mask = outputs["low_res_masks"]
            errors.append(relative_error(mask, golden[f"{mode}.step{number}.low_res_masks"]))
            if mode == "recurrent":
                fed = outputs["updated_embeddings"]
                sub = golden[f"recurrent.step{number}.updated_embedding_sub"]
                errors.append(relative_error(fed[:, ::16], sub))
            else:
                errors.append(relative_error(outputs["iou_predictions"], golden[f"{mode}.step{number}.iou"]))
    errors.append(
        relative_error(decode(embeddings, points, zeros)["low_res_masks"], golden["all_points.low_res_masks"])
    )
    return float(np.max(errors))


def test_network_gives_the_official_outputs(name, load, shared, recipe):
    method, network = samkit.get_method(name), load(name)
    specs = method.graphs(network.config)
    runners = {spec.name: TorchRunner(network, spec) for spec in specs}
    assert worst_error(name, runners, shared, recipe) < 1e-5


def test_exported_graphs_give_the_official_outputs(name, load, shared, recipe, tmp_path):
    method, network = samkit.get_method(name), load(name)
    network.merge_lora()
    network.freeze()
    runners = {}
    for spec in method.graphs(network.config):
        write_graph(network, spec, tmp_path / f"{spec.name}.onnx", opset=20, folded=True)
        runners[spec.name] = OnnxRuntimeRunner(tmp_path / f"{spec.name}.onnx", spec)
    assert worst_error(name, runners, shared, recipe) < 1e-5
