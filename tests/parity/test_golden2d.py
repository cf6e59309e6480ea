"""Guards equality of the SAM 2D family with the official networks: golden outputs nobody here made."""

import json

import numpy as np
import pytest
import torch

from samkit.models.convert2d import lora_sam, sam_config
from samkit.models.sam2d import Sam2D

pytestmark = pytest.mark.slow


def tensors(state):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}


def plain(name):
    """Return a function to config and state of an official file that holds the whole network."""

    def load(shared, recipe):
        state = tensors(recipe.state_dict(shared / "keys" / name, "open"))
        return sam_config({name: tuple(tensor.shape) for name, tensor in state.items()}), state

    return load


def low_rank(shared, recipe):
    """Return config and state of a SAMed file on a base whose encoder is at 512 pixels already."""
    base = {}
    for name, (shape, dtype) in json.loads((shared / "keys" / "sam_vit_b.json").read_text())["keys"].items():
        at_512 = {(1, 64, 64, 768): (1, 32, 32, 768), (127, 64): (63, 64)}.get(tuple(shape), tuple(shape))
        base[name] = recipe.parameter(name, at_512, dtype, "open")
    file = recipe.state_dict(shared / "keys" / "lora_sam_lora_vit_b_512_nc12_r16.json", "open")
    file = {name: array * np.float32(0.3) if name.startswith("w_") else array for name, array in file.items()}
    return lora_sam(tensors(file), tensors(base))


FILES = {
    "sam-vit-b": plain("sam_vit_b.json"),
    "sam-med2d": plain("sammed2d_vit_b_adapter_256.json"),
    "lora-sam": low_rank,
}


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def prompt_of(case, config):
    """Return the tensors of a case of golden/<name>.json, but for the mask prompt."""
    coords, labels = ([*case["points"][0]], [*case["points"][1]]) if "points" in case else ([], [])
    if "box" in case:
        coords, labels = [*coords, case["box"][:2], case["box"][2:]], [*labels, 2, 3]
    return {
        "point_coords": torch.tensor(coords, dtype=torch.float32).reshape(1, -1, 2),
        "point_labels": torch.tensor(labels, dtype=torch.float32).reshape(1, -1),
        "mask_input": torch.zeros(1, 1, config.logits, config.logits),
        "has_mask_input": torch.zeros(1, 1, 1, 1),
    }


@pytest.mark.parametrize("ready", [False, True], ids=["as loaded", "ready for export"])
@pytest.mark.parametrize("name", FILES)
def test_network_gives_the_official_outputs(name, ready, shared, recipe):
    golden = np.load(shared / "golden" / f"{name}.npz")
    cases = json.loads((shared / "golden" / f"{name}.json").read_text())["cases"]
    config, state = FILES[name](shared, recipe)
    network = Sam2D(config)
    network.load_state_dict(state)
    network.eval()
    network.set_folded(ready)
    if ready:
        network.merge_lora()
        network.freeze()

    def thin(low_res):
        return low_res[..., ::4, ::4] if config.logits > 64 else low_res

    errors = {}
    with torch.no_grad():
        embedding = network.encode(torch.from_numpy(recipe.noise(f"open/{name}/input", (1, 3, *(config.image,) * 2))))
        found = embedding[:, ::4, ::4, ::4] if config.grid > 16 else embedding
        errors["embedding"] = relative(found.numpy(), golden["image_embedding_sub"])
        previous = None
        for case_name, case in cases.items():
            feed = prompt_of(case, config)
            if "mask" in case:
                feed["mask_input"], feed["has_mask_input"] = previous, torch.ones(1, 1, 1, 1)
            low_res, iou = network.decode(embedding, **feed)
            low_res = low_res.numpy()
            if config.masks > 4:
                errors[case_name] = relative(thin(low_res), golden[f"{case_name}.low_res_sub"])
                continue
            errors[f"{case_name} single"] = relative(thin(low_res[:, :1]), golden[f"{case_name}.low_res_single_sub"])
            multi = golden[f"{case_name}.low_res_multimask_sub"]
            errors[f"{case_name} multi"] = relative(thin(low_res[:, 1:]), multi)
            errors[f"{case_name} iou"] = relative(iou[:, 1:].numpy(), golden[f"{case_name}.iou_multimask"])
            previous = torch.from_numpy(low_res[:, :1])
            previous = previous.sigmoid() if name == "sam-med2d" else previous
    assert max(errors.values()) < 1e-5, errors
