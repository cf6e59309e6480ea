"""Guards loading: official wrappers, our own files, one error for all misfits, and nothing from a file is run."""

import argparse
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch

import samkit
from samkit.checkpoints import CheckpointInfo, load_network, read_state, save_checkpoint
from samkit.errors import CheckpointError

M_SAM, SAM_MED3D = samkit.get_method("m-sam"), samkit.get_method("sam-med3d")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return M_SAM.build(M_SAM.sizes["tiny"]).eval()


@pytest.fixture
def info(network):
    return CheckpointInfo("m-sam", "tiny", network.config, "recurrent", {"command": "test"}, {"dice": 0.5})


@pytest.mark.parametrize("wrap", [None, "model_state_dict", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_wrappers_are_opened(tmp_path, wrap, prefix):
    state = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.bias": torch.zeros(3)}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "c.pth")
    assert {name: tuple(t.shape) for name, t in read_state(tmp_path / "c.pth").items()} == {
        "a.weight": (2,),
        "b.bias": (3,),
    }


class Optimizer:
    """Stands for the optimizer object that sam-med2d_b.pth holds."""

    def __init__(self):
        self.state = {"lr": 1e-4}

    def __setstate__(self, state):
        raise AssertionError("an object from the file was constructed")


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_in_a_file_are_never_constructed(tmp_path, legacy):
    content = {
        "model": {"a.weight": torch.arange(3.0)},
        "optimizer": Optimizer(),
        "args": argparse.Namespace(lr=1e-4),
    }
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(read_state(tmp_path / "c.pth")["a.weight"], torch.arange(3.0))


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_runs_nothing(tmp_path, legacy):
    target = tmp_path / "made-by-the-file"
    content = {"model": {"a": torch.ones(1)}, "x": Hostile(str(target))}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    read_state(tmp_path / "c.pth")
    assert not target.exists()


def test_bare_hostile_pickle_runs_nothing(tmp_path):
    target = tmp_path / "made-by-the-file"
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Hostile(str(target))))
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "c.pth")
    assert not target.exists()


class Part(torch.nn.Module):
    """A module of a class that samkit does not know, as in files of YOLOv5."""

    def __init__(self, value):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)
        self.parts = torch.nn.ModuleList([torch.nn.BatchNorm2d(2), torch.nn.SiLU()])
        self.register_buffer("kept", torch.tensor([value]))
        self.register_buffer("made_anew", torch.ones(1), persistent=False)
        self.register_buffer("absent", None)
        self.note = argparse.Namespace(value=value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("has_ema", [False, True])
def test_pickled_network_gives_its_state_dict(tmp_path, has_ema, legacy):
    content = {"model": Part(1.0).half(), "ema": Part(2.0).half() if has_ema else None, "epoch": 3}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    state, expected = read_state(tmp_path / "c.pt"), content["ema" if has_ema else "model"].state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor.float() if tensor.is_floating_point() else tensor)
        assert not state[name].requires_grad


def test_bare_pickled_network_gives_its_state_dict(tmp_path):
    torch.save(Part(1.0), tmp_path / "c.pt")
    assert list(read_state(tmp_path / "c.pt")) == list(Part(1.0).state_dict())


def test_hostile_part_of_a_pickled_network_runs_nothing(tmp_path):
    target = tmp_path / "made-by-the-file"
    network = Part(1.0)
    network.kind = network._modules["evil"] = Hostile(str(target))
    torch.save({"model": network}, tmp_path / "c.pt")
    assert "conv.weight" in read_state(tmp_path / "c.pt")
    assert not target.exists()


def test_endless_pickled_network_is_read_once(tmp_path):
    """A module inside itself, and one that doubles at every level: both would never end."""
    network = Part(1.0)
    network._modules["itself"] = network
    part = network
    for _ in range(60):
        part._modules["left"] = part._modules["right"] = torch.nn.Module()
        part = part._modules["left"]
    torch.save({"model": network}, tmp_path / "c.pt")
    assert list(read_state(tmp_path / "c.pt")) == list(Part(1.0).state_dict())


@pytest.mark.parametrize("name", ["_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"])
def test_malformed_pickled_network_is_refused(tmp_path, name):
    network = torch.nn.Linear(1, 1)
    network.__dict__[name] = [1, 2]
    torch.save({"model": {"a": 1}, "ema": network}, tmp_path / "c.pt")
    if name == "_parameters":
        with pytest.raises(CheckpointError, match="holds no weights"):
            read_state(tmp_path / "c.pt")
    else:
        assert list(read_state(tmp_path / "c.pt")) == ["weight", "bias"]


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04broken"])
def test_garbage_is_refused_in_a_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="c\\."):
        read_state(tmp_path / name)


def test_file_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_state(tmp_path / "c.pth")


@pytest.mark.parametrize("half", [False, True])
def test_own_checkpoint_comes_back(tmp_path, network, info, half):
    save_checkpoint(tmp_path / "best.safetensors", network, info, half=half)
    loaded = load_network(tmp_path, M_SAM)  # a run's folder: its best one
    assert loaded.info == replace(info, weights_sha256=loaded.sha256)
    for name, tensor in network.state_dict().items():
        kept = loaded.network.state_dict()[name]
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, tensor.half().float() if half else tensor, rtol=0, atol=0)


def test_all_misfits_stand_in_one_error(tmp_path, network, info):
    save_checkpoint(tmp_path / "c.safetensors", network, info)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "c.safetensors")
    del state["bidatt.mlp.lin1.bias"]
    state["stranger"] = torch.ones(1)
    state["mask_decoder.iou_token.weight"] = torch.ones(2, 2)
    state["image_encoder.pos_embed"][0] = float("nan")
    save_file(state, tmp_path / "c.safetensors")
    facts = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**facts, "weights_sha256": ""}))
    with pytest.raises(CheckpointError) as error:
        load_network(tmp_path / "c.safetensors", M_SAM)
    for words in (
        "1 missing: bidatt.mlp.lin1.bias",
        "1 unexpected: stranger",
        "1 misshapen: mask_decoder.iou_token.weight is (2, 2), needed (1, 24)",
        "1 with NaN or Inf: image_encoder.pos_embed",
    ):
        assert words in str(error.value)


def test_weights_beside_another_json_are_refused(tmp_path, network, info):
    save_checkpoint(tmp_path / "a.safetensors", network, info)
    save_checkpoint(tmp_path / "b.safetensors", noisy_copy(network), info)
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_network(tmp_path / "a.safetensors", M_SAM)


def noisy_copy(network):
    copy = M_SAM.build(network.config)
    copy.load_state_dict({name: tensor + 1 for name, tensor in network.state_dict().items()})
    return copy


def test_checkpoint_of_another_method_is_refused(tmp_path, network, info):
    save_checkpoint(tmp_path / "c.safetensors", network, info)
    with pytest.raises(CheckpointError, match="trained for 'm-sam', not 'sam-med3d'; pass method m-sam"):
        load_network(tmp_path / "c.safetensors", SAM_MED3D)


def test_official_file_of_another_network_is_refused(tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "sam_vit_b.pth")
    with pytest.raises(CheckpointError, match=r"misshapen: image_encoder\.pos_embed"):
        load_network(tmp_path / "sam_vit_b.pth", SAM_MED3D)


@pytest.mark.parametrize(("method", "telltale"), [(M_SAM, "pos_embed"), (SAM_MED3D, "bidatt.x")])
def test_official_file_of_the_sister_method_is_refused(tmp_path, method, telltale):
    """SAM-Med3D's file would load as an M-SAM without adapter, and its export would lack an output."""
    names = {"image_encoder.pos_embed": torch.zeros(1), telltale: torch.zeros(1)}
    torch.save(names, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"method (sam-med3d|m-sam)"):
        load_network(tmp_path / "c.pth", method)


@pytest.mark.parametrize("rank", [2, 5])
def test_lora_rank_is_read_from_shapes(rank):
    state = {
        "lora_sam.sam.image_encoder.blocks.0.attn.qkv.linear_a_q.weight": torch.zeros(rank, 768),
        "lora_sam.sam.bidatt.add_norm.weight": torch.zeros(384),
    }
    config, ours = M_SAM.official(state, {})
    assert (config.lora_rank, config.adapter) == (rank, "code")
    assert sorted(ours) == ["bidatt.add_norm.weight", "image_encoder.blocks.0.attn.qkv.linear_a_q.weight"]


def test_folder_without_best_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no best\.safetensors"):
        load_network(tmp_path, M_SAM)


def test_newer_schema_is_refused(tmp_path, network, info):
    save_checkpoint(tmp_path / "c.safetensors", network, info)
    facts = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**facts, "schema_version": 99}))
    with pytest.raises(CheckpointError, match="reads up to 1; upgrade samkit"):
        load_network(tmp_path / "c.safetensors", M_SAM)


def test_a_size_that_the_method_does_not_have_is_refused(tmp_path, network, info):
    save_checkpoint(tmp_path / "c.safetensors", network, info)
    facts = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**facts, "size": "huge"}))
    with pytest.raises(CheckpointError, match="its size is 'huge', m-sam has"):
        load_network(tmp_path / "c.safetensors", M_SAM)


def test_weights_with_nan_are_not_saved(tmp_path, info):
    network = M_SAM.build(M_SAM.sizes["tiny"])
    with torch.no_grad():
        network.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        save_checkpoint(tmp_path / "c.safetensors", network, info)
    assert list(tmp_path.iterdir()) == []
