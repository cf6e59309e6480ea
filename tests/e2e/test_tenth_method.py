"""Guards the promise of docs/how-to/add-a-method.md: a method is one file and its network, and nothing else changes."""

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import samkit
import samkit.methods
import samkit.networks
from samkit.phantoms import make_phantom

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"
MODULES = ("samkit.networks.plain_net", "samkit.methods.plain_net")


@pytest.fixture
def tenth(tmp_path, monkeypatch):
    """The page's two files, where a new method's would lie."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    for package, code in zip((samkit.networks, samkit.methods), blocks, strict=True):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "plain_net.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield "plain-net"
    for name in MODULES:
        sys.modules.pop(name, None)
    for package in (samkit.networks, samkit.methods):
        if hasattr(package, "plain_net"):
            del package.plain_net


def run(capsys, module, *arguments):
    """Run a command in this process, which alone knows the tenth method, and return its JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        try:
            module.main()
        except SystemExit as end:
            if end.code:
                pytest.fail(capsys.readouterr().err)
    text = capsys.readouterr().out
    return json.loads(text if text.startswith("{\n") else text.splitlines()[-1])


def test_a_tenth_method_is_exported_verified_and_segmented_with(tenth, tmp_path, capsys):
    from samkit.export import cli as export
    from samkit.segment import cli as segment

    assert tenth in samkit.list_methods()
    made = run(capsys, export, "--method", tenth, "--size", "tiny", "--fp16", "--quiet", "--out", tmp_path / "export")
    assert set(made["parity"]) == {f"{g}{p}.onnx" for g in ("image_encoder", "mask_decoder") for p in ("", ".fp16")}
    run(capsys, export, "--verify", tmp_path / "export", "--quiet")
    phantom = make_phantom(5, (48, 56, 40), 3.5, sequences=("flair",))
    image = phantom.sequences["flair"]
    nib.save(nib.Nifti1Image(image.array.astype(np.float32), image.affine), tmp_path / "scan.nii.gz")
    done = run(
        capsys, segment, "--export", tmp_path / "export", "-i", tmp_path / "scan.nii.gz",
        "-o", tmp_path / "mask.nii.gz", "--quiet",
    )  # fmt: skip
    assert done["method"] == tenth
    assert nib.load(tmp_path / "mask.nii.gz").shape == image.array.shape


def test_a_tenth_method_is_trained_and_its_run_exported(tenth, tmp_path, capsys):
    from PIL import Image

    from samkit.export import cli as export
    from samkit.training import cli as train

    rng = np.random.default_rng(0)
    for number in range(5):
        mask = np.zeros((48, 64), np.uint8)
        mask[10 + number : 30, 20:40] = 255
        Image.fromarray(np.where(mask > 0, 200, 60).astype(np.uint8) + rng.integers(0, 20, mask.shape, np.uint8)).save(
            tmp_path / f"case{number}.png"
        )
        Image.fromarray(mask).save(tmp_path / f"case{number}_mask.png")
    done = run(
        capsys, train, "--method", tenth, "--data", tmp_path, "--out", tmp_path / "run", "--preset", "tiny", "--quiet",
        "--threads", 1,
    )  # fmt: skip
    assert 0 <= done["best"]["dice"] <= 1
    plan = run(capsys, export, "--method", tenth, "--checkpoint", tmp_path / "run", "--dry-run")
    assert plan["weights"]["kind"] == "checkpoint"
