"""Guards equality of the SAM 2D family with the official networks: golden outputs nobody here made, in both
formulations, which also equal each other; with a mask prompt, and without from either decoder.
"""

import json

import numpy as np
import pytest
import torch

from samkit.export.parity import relative_error
from samkit.networks.convert2d import lora_sam, sam_config
from samkit.networks.sam2d import Sam2D

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


# One group for each file, so that its network is loaded and run once.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"golden {name}")) for name in FILES]
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def answers(name, shared, recipe):
    """Every output by label, by formulation: as loaded in upstream's, and ready for export in the fast one."""
    cases = json.loads((shared / "golden" / f"{name}.json").read_text())["cases"]
    config, state = FILES[name](shared, recipe)
    network = Sam2D(config)
    network.load_state_dict(state)
    network.eval()
    image = torch.from_numpy(recipe.noise(f"open/{name}/input", (1, 3, *(config.image,) * 2)))
    found = {}
    with torch.no_grad():
        for formulation in ("official", "folded"):
            network.set_folded(formulation == "folded")
            if formulation == "folded":
                network.merge_lora()
                network.freeze()
            found[formulation] = every_answer(name, network, image, cases)
    return found


def every_answer(name, network, image, cases):
    """Return the embedding, and masks and IoU of every case; without a mask prompt from both decoders."""
    embedding = network.encode(image)
    found, previous = {"embedding": embedding}, None
    for case_name, case in cases.items():
        feed = prompt_of(case, network.config)
        if "mask" in case:
            feed["mask_input"], feed["has_mask_input"] = previous, torch.ones(1, 1, 1, 1)
        else:
            plain = network.decode_without_mask(embedding, feed["point_coords"], feed["point_labels"])
            found[f"{case_name}, no mask: low_res"], found[f"{case_name}, no mask: iou"] = plain
        low_res, iou = network.decode(embedding, **feed)
        found[f"{case_name}: low_res"], found[f"{case_name}: iou"] = low_res, iou
        previous = low_res[:, :1].sigmoid() if name == "sam-med2d" else low_res[:, :1]
    return {label: tensor.numpy() for label, tensor in found.items()}


def golden_errors(found, golden):
    """Return how far each answer is from its golden output, by label."""
    embedding, wanted = found["embedding"], golden["image_embedding_sub"]
    step = 4 if embedding.shape[-1] > 16 else 1
    errors = {"embedding": relative_error(embedding[:, ::step, ::step, ::step], wanted)}
    for label in found:
        case, _, kind = label.partition(": ")
        case = case.removesuffix(", no mask")
        if kind == "low_res":
            masks = found[label]
            thin = masks[..., ::4, ::4] if masks.shape[-1] > 64 else masks
            if f"{case}.low_res_sub" in golden:
                errors[label] = relative_error(thin, golden[f"{case}.low_res_sub"])
            else:
                errors[f"{label} single"] = relative_error(thin[:, :1], golden[f"{case}.low_res_single_sub"])
                errors[f"{label} multi"] = relative_error(thin[:, 1:], golden[f"{case}.low_res_multimask_sub"])
        elif kind == "iou":
            if f"{case}.iou" in golden:
                errors[label] = relative_error(found[label], golden[f"{case}.iou"])
            else:
                errors[f"{label} single"] = relative_error(found[label][:, :1], golden[f"{case}.iou_single"])
                errors[f"{label} multi"] = relative_error(found[label][:, 1:], golden[f"{case}.iou_multimask"])
    return errors


@pytest.mark.parametrize("formulation", ["official", "folded"])
def test_network_gives_the_official_outputs(name, formulation, answers, shared):
    golden = dict(np.load(shared / "golden" / f"{name}.npz"))
    errors = golden_errors(answers[formulation], golden)
    # Every golden output, those of the two cases without a mask prompt from both decoders (LoRA-SAM's three have none).
    assert len(errors) == {"lora-sam": 1 + 2 * 3 * 2}.get(name, 1 + 4 * 3 + 4 * 2)
    assert all(error < 1e-5 for error in errors.values()), errors


def test_formulations_give_equal_outputs(name, answers):
    official, folded = answers["official"], answers["folded"]
    assert official.keys() == folded.keys()
    errors = {label: relative_error(folded[label], official[label]) for label in official}
    assert all(error < 1e-5 for error in errors.values()), errors
