"""`sam-train` trains every 2D method from a folder to a checkpoint, resumes it, and trains a part alone."""

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import samkit
from samkit.checkpoints import read_info, read_part, read_weights
from samkit.methods import get_method
from samkit.methods.method import SliceMethod
from samkit.phantoms import make_phantom, make_structures, write_phantoms
from samkit.training import cli
from samkit.training.slice_module import SliceModule

METHODS = [name for name in samkit.list_methods() if isinstance(get_method(name), SliceMethod)]
TINY = ["--preset", "tiny", "--threads", "1", "--quiet", "--set", "samples_per_epoch=4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of phantoms that each kind of method learns from."""
    root = tmp_path_factory.mktemp("data")
    write_phantoms(str(root / "grey"), cases=3, seed=0, size=40, long_share=0.0)
    for number in range(3):
        phantom = make_phantom(number, (40, 40, 24))
        case = root / "sequences" / f"case{number}"
        case.mkdir(parents=True)
        for name, volume in phantom.sequences.items():
            nib.save(nib.Nifti1Image(np.rint(volume.array).astype(np.int16), volume.affine), case / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(phantom.lesions, phantom.affine), case / "label.nii.gz")
        scan, labels = make_structures(number, (48, 36, 48), 3.0)
        for kind, array in (("images", np.rint(scan.array).astype(np.int16)), ("labels", labels)):
            (root / "structures" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, scan.affine), root / "structures" / kind / f"{number}.nii.gz")

    def of(name):
        method = get_method(name)
        config = method.sizes["tiny"]
        if not isinstance(method, SliceMethod):
            return root / "grey"
        return root / (
            "sequences" if method.sequences(config) else "structures" if method.structures(config) else "grey"
        )

    return of


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_to_a_checkpoint(name, folders, tmp_path, sam_train):
    out = tmp_path / "run"
    code, stdout, stderr = sam_train("--method", name, "--data", folders(name), "--out", out, *TINY)

    assert code == 0, stderr
    info, state, _ = read_weights(out, get_method(name))
    assert info.metrics == json.loads(stdout)["best"]
    assert "dice" in info.metrics
    assert info.config == get_method(name).sizes["tiny"]
    with (out / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    assert str(tmp_path) not in (out / "run.json").read_text() + (out / "best.json").read_text()
    # a part that nobody trained is not in the file: an export takes it from elsewhere and says so
    assert not [key for key in state if any(key.startswith(part.prefix) for part in get_method(name).parts)]


def test_a_killed_run_resumes_to_the_same_weights(folders, tmp_path, sam_train, monkeypatch):
    words = ["--method", "sam-med2d", "--data", folders("sam-med2d"), *TINY, "--set", "epochs=3"]
    assert sam_train(*words, "--out", tmp_path / "whole")[0] == 0
    step = SliceModule.training_step

    def power_cut(self, batch, index):
        if self.trainer.current_epoch == 1 and index == 1:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    with monkeypatch.context() as broken:
        broken.setattr(SliceModule, "training_step", power_cut)
        broken.setattr(sys, "argv", ["sam-train", *map(str, words), "--out", str(tmp_path / "killed")])
        with pytest.raises(RuntimeError, match="power cut"):
            cli.main()
    assert sam_train(*words, "--out", tmp_path / "killed", "--resume")[0] == 0

    whole, killed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    for key in whole:
        torch.testing.assert_close(killed[key], whole[key], rtol=1e-5, atol=1e-7)


def test_the_detector_trains_alone_and_resumes_with_its_anchors(folders, tmp_path, sam_train):
    out, method = tmp_path / "run", get_method("medsam-yolo")
    words = ["--method", "medsam-yolo", "--part", "detector", "--data", folders("medsam-yolo"), "--out", out, *TINY]
    code, stdout, stderr = sam_train(*words)

    assert code == 0, stderr
    assert json.loads(stdout)["best"].keys() == {"map50", "map50_95"}
    assert json.loads(stdout)["warnings"] == ["map50_95 stayed at 0 on what is held back"]
    assert "NOTHING WAS LEARNT that shows on what is held back: map50_95 stayed at 0 in 2 epoch(s)." in stderr
    assert "train longer, by --resume and --set epochs=N; else begin with --init" in stderr
    config, state = read_part(out, method, method.parts[0])
    assert read_info(out / "best.safetensors").part == "detector"
    wanted = method.parts[0].build(config).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in wanted.items()}
    code, _, stderr = sam_train(*words, "--set", "epochs=3", "--resume")
    assert code == 0, stderr
    assert read_part(out, method, method.parts[0])[0].anchors == config.anchors


def test_a_run_of_the_base_starts_a_method_that_adds_to_it(folders, tmp_path, sam_train):
    base, out = tmp_path / "base", tmp_path / "run"
    data = folders("sam")
    assert sam_train("--method", "sam", "--data", data, "--out", base, *TINY)[0] == 0
    words = [word for word in TINY if word != "--quiet"]
    code, _, stderr = sam_train("--method", "sam-med2d", "--data", data, "--out", out, "--init", base, *words)

    assert code == 0, stderr
    assert "tensors are fresh: image_encoder.blocks" in stderr
    before, after = (load_file(folder / "best.safetensors") for folder in (base, out))
    kept = "image_encoder.blocks.0.mlp.lin1.weight"
    assert torch.equal(before[kept], after[kept])


def test_two_sequences_of_four_are_enough_where_the_network_is_told(folders, tmp_path, sam_train):
    out = tmp_path / "run"
    words = ["--method", "brainseg-dmif", "--data", folders("brainseg-dmif"), "--out", out, *TINY]
    code, _, stderr = sam_train(*words, "--set", "sequences=t1c,t2f")

    assert code == 0, stderr
    assert read_info(out / "best.safetensors").config.sequences == ("t1c", "t2f")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--method", "medsam", "--part", "detector"], 2, "no part 'detector'"),
        (["--method", "m-sam", "--format", "images"], 2, "are of 2D methods"),
        (["--method", "sam", "--sequence", "t1c"], 2, "NAME=PATTERN"),
        (["--method", "sam-med2d", "--devices", "2"], 2, "several steps"),
        (["--method", "brainseg-dmif", "--set", "sequences=t1c,dwi"], 3, "dwi not found"),
        (["--method", "sam", "--label", "77"], 3, "with --label"),
        (["--method", "lora-sam", "--format", "freesurfer"], 3, ""),
        (["--method", "sam", "--init", "nowhere.pth"], 3, "there is no checkpoint"),
        (["--method", "lora-sam", "--base", "sam.pth"], 2, "has no --init here"),
        (["--method", "sam", "--init", "nowhere.pth", "--base", "sam.pth"], 2, "sam takes none"),
    ],
)
def test_what_is_refused_is_one_line_and_an_exit_code(words, code, says, folders, tmp_path, sam_train):
    out = tmp_path / "run"

    ended, stdout, stderr = sam_train("--data", folders(words[1]), "--out", out, *words, *TINY)

    assert ended == code, stderr
    assert says in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert stdout == ""
