"""The adapter's stem may be computed beforehand: same outputs, both topologies, both formulations, and as exported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import samkit
from samkit.export.graphs import write_graph
from samkit.networks.adapter3d import _Norm
from samkit.networks.sam3d import Sam3D
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner

METHOD = samkit.get_method("m-sam")


def built(topology, noisy):
    config = replace(METHOD.sizes["tiny"], patch=48, adapter=topology)
    network = noisy(Sam3D(config))
    graphs = {graph.name: graph for graph in METHOD.graphs(config)}
    generator = torch.Generator().manual_seed(1)
    prompt = {
        "image_embeddings": torch.randn(2, config.channels, *(config.grid,) * 3, generator=generator),
        "point_coords": torch.rand(2, 2, 3, generator=generator) * config.patch,
        "point_labels": torch.tensor([[1.0, 0.0], [1.0, -2.0]]),
        "mask_input": torch.randn(2, 1, *(config.logits,) * 3, generator=generator),
    }
    return network, graphs, {name: tensor.double() for name, tensor in prompt.items()}


def anchored(network, prompt):
    features = network.run_graph("adapter_stem", prompt["image_embeddings"])[0]
    image, *rest = prompt.values()
    return features, network.run_graph("mask_decoder_anchored", image, features, *rest)


def worst(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["code", "paper"])
@pytest.mark.parametrize("folded", [True, False])
def test_anchored_step_equals_the_whole_one(topology, folded, noisy):
    network, _, prompt = built(topology, noisy)
    network.set_folded(folded)
    with torch.no_grad():
        expected = network.run_graph("mask_decoder", *prompt.values())
        features, found = anchored(network, prompt)
        other = network.run_graph(
            "mask_decoder_anchored", prompt["image_embeddings"], -features, *list(prompt.values())[1:]
        )

    assert worst(found, expected) < 1e-13
    assert worst(other[:1], expected[:1]) > 1e-3  # the features do decide


@pytest.mark.parametrize("topology", ["code", "paper"])
def test_folded_adapter_equals_the_official_one(topology, noisy):
    network, _, prompt = built(topology, noisy)
    with torch.no_grad():
        folded = network.run_graph("mask_decoder", *prompt.values())
        network.set_folded(False)
        official = network.run_graph("mask_decoder", *prompt.values())

    assert worst(folded, official) < 1e-12


def test_norm_is_upstreams_on_the_last_axis(noisy):
    norm = noisy(_Norm(5))
    x = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3 + 1
    deviation = (x.var(dim=-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = (x - x.mean(dim=-1, keepdim=True)) / deviation * norm.weight + norm.bias
    with torch.no_grad():
        for folded in (True, False):
            norm.folded = folded
            torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["code", "paper"])
def test_exported_pair_equals_the_whole_step(topology, noisy, tmp_path):
    """On a grid of 3 x 3 x 3 with tables that are not zero, against PyTorch in float64."""
    network, graphs, prompt = built(topology, noisy)
    with torch.no_grad():
        expected = network.run_graph("mask_decoder", *prompt.values())
    network.float()
    network.merge_lora()
    network.freeze()
    runners = {}
    for name in ("adapter_stem", "mask_decoder_anchored"):
        path = tmp_path / f"{name}.onnx"
        write_graph(network, graphs[name], path, opset=20, folded=True)
        runners[name] = OnnxRuntimeRunner(path, graphs[name], threads=1)
    feed = {name: tensor.float().numpy() for name, tensor in prompt.items()}
    features = runners["adapter_stem"].run({"image_embeddings": feed["image_embeddings"]})
    outputs = runners["mask_decoder_anchored"].run({**feed, **features})

    names = [spec.name for spec in graphs["mask_decoder"].outputs]
    for name, value in zip(names, expected, strict=True):
        error = np.linalg.norm(outputs[name] - value.numpy()) / np.linalg.norm(value.numpy())
        assert error < 1e-5, name
