"""Guards the registry: a file in methods/ is a method, and its record is whole and numpy-only."""

import json

import numpy as np
import pytest

import samkit
from samkit.errors import CheckpointError, InputRefused, UnknownMethodError
from samkit.methods import Recipe
from samkit.networks.sam3d_config import Sam3DConfig

METHODS = samkit.list_methods()


@pytest.mark.parametrize("name", METHODS)
def test_name_matches_file(name):
    assert samkit.get_method(name).name == name


@pytest.mark.parametrize("name", METHODS)
def test_record_is_whole(name):
    method = samkit.get_method(name)
    assert set(method.sizes) == {"full", "small", "tiny"}
    assert set(method.recipes) == {"paper", "small", "tiny"}
    for part in method.parts:
        assert set(part.recipes) == {"paper", "small", "tiny"}
        assert hasattr(method.sizes["full"], part.name)
    assert method.official_refinement in method.refinements
    for text in (method.summary, method.paper, method.upstream, method.code_licence, method.weights_licence):
        assert text
    assert all(isinstance(recipe, Recipe) and recipe.size in method.sizes for recipe in method.recipes.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", ["full", "small", "tiny"])
def test_sizes_share_names_ranks_and_dynamic_axes(name, size):
    method = samkit.get_method(name)

    def skeleton(config):
        return [
            (graph.name, tensor.name, tensor.dtype, [(a.name, a.is_dynamic) for a in tensor.axes])
            for graph in method.graphs(config)
            for tensor in (*graph.inputs, *graph.outputs)
        ]

    assert skeleton(method.sizes[size]) == skeleton(method.sizes["full"])


@pytest.mark.parametrize("name", METHODS)
def test_configs_survive_json(name):
    for config in samkit.get_method(name).sizes.values():
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_full_shapes_are_the_promised_ones():
    graphs = samkit.get_method("m-sam").graphs(samkit.get_method("m-sam").sizes["full"])
    assert {t.name: t.shape[1:] for graph in graphs for t in (*graph.inputs, *graph.outputs)} == {
        "image": (1, 128, 128, 128),
        "image_embeddings": (384, 8, 8, 8),
        "image_features": (8, 8, 8, 384),
        "point_coords": (1, 3),
        "point_labels": (1,),
        "mask_input": (1, 32, 32, 32),
        "low_res_masks": (1, 32, 32, 32),
        "iou_predictions": (1,),
        "updated_embeddings": (384, 8, 8, 8),
    }


def test_unknown_method_names_the_nearest():
    with pytest.raises(UnknownMethodError, match="Did you mean 'm-sam'"):
        samkit.get_method("m-sma")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 100}, "no multiple of 16"),
        ({"channels": 100}, "no multiple of 24"),
        ({"window": 4}, "smaller than the grid"),
        ({"adapter": "other"}, "neither code nor paper"),
        ({"spacing": (1.0, 0.0, 1.0)}, "three positive numbers"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "three positive numbers"),
        *(
            ({name: 0}, f"{name} 0 is not at least 1")
            for name in (
                "patch",
                "width",
                "depth",
                "heads",
                "mlp_ratio",
                "window",
                "channels",
                "decoder_heads",
                "decoder_mlp",
                "iou_hidden",
                "adapter_heads",
            )
        ),
        ({"patch": -16}, "patch -16 is not at least 1"),
        ({"lora_rank": -1}, "lora_rank -1 is below 0"),
        ({"adapter": "code", "adapter_heads": 7}, "no multiple of 7 adapter_heads"),
        ({"global_blocks": (-1,)}, "negative index"),
    ],
)
def test_impossible_network_is_refused(change, words):
    with pytest.raises(CheckpointError, match=words):
        Sam3DConfig(**change)


def test_impossible_network_in_json_is_the_checkpoints_fault():
    with pytest.raises(CheckpointError, match="heads 0 is not at least 1"):
        Sam3DConfig.from_dict({"heads": 0})


def test_unknown_config_field_is_refused():
    with pytest.raises(CheckpointError, match="unknown fields"):
        Sam3DConfig.from_dict({"depht": 3})


def test_z_score_is_over_positive_voxels_unbiased():
    method = samkit.get_method("m-sam")
    crop = np.zeros((32, 32, 32), np.float32)
    crop[:2, 0, 0] = (1.0, 3.0)
    scored = method.preprocess(crop, method.sizes["tiny"])
    assert scored.dtype == np.float32
    np.testing.assert_allclose(scored[:3, 0, 0], [-0.70710678, 0.70710678, -1.41421356], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "code"), [(0.0, "no-positive-voxel"), (-5.0, "no-positive-voxel"), (7.0, "constant")]
)
def test_crop_without_a_z_score_is_refused(value, code):
    method = samkit.get_method("m-sam")
    with pytest.raises(InputRefused) as refused:
        method.preprocess(np.full((32, 32, 32), value, np.float32), method.sizes["tiny"])
    assert refused.value.code == code


def test_only_ct_is_clamped():
    method = samkit.get_method("sam-med3d")
    crop = np.linspace(-3000, 3000, 32**3, dtype=np.float32).reshape(32, 32, 32)
    as_ct = method.preprocess(crop, Sam3DConfig(modality="ct"))
    as_mr = method.preprocess(crop, Sam3DConfig())
    assert as_ct.max() == as_ct[-1, 16, 16]  # everything above 1000 HU is alike
    assert as_mr.max() > as_mr[-1, 16, 16]
