"""sam-segment from file to file: the mask, the JSON line, the exit codes and sentences."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import samkit
from samkit.imageio.reading import read_scan
from samkit.manifest import Manifest, Weights
from samkit.prompts import Point, write_clicks
from samkit.runtime import open_session

OBLIQUE = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])


def ball(shape=(40, 44, 30), centre=(20, 22, 15), radius=7.0):
    """A bright ball in dimmer, slightly uneven tissue."""
    i, j, k = np.indices(shape)
    inside = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < radius**2
    return (50 + (i + j + k) % 7 + 200 * inside).astype(np.int16), inside


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball()[0], np.diag([1.0, 1.0, 1.0, 1.0])), path)
    return path


def run(*arguments, blocked=()):
    """Run sam-segment in a fresh interpreter; modules in `blocked` can't be imported there."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}));"
    code = f"{block} from samkit.segment.cli import main; sys.argv[0] = 'sam-segment'; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def segment(export, scan, *arguments, blocked=()):
    return run("--export", export, "-i", scan, "-o", scan.with_name("mask.nii.gz"), *arguments, blocked=blocked)


def test_segments_without_torch(bright_export, scan):
    done = segment(bright_export, scan, "--point", "20,22,15,+", "--point", "2,2,2,-", "--show-names",
                   blocked=("torch", "monai", "lightning"))  # fmt: skip

    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    mask = nibabel.load(scan.with_name("mask.nii.gz"))
    values = np.asarray(mask.dataobj)
    truth = ball()[1]
    assert mask.get_data_dtype() == np.uint8
    assert 2 * (values & truth).sum() / (values.sum() + truth.sum()) > 0.7
    assert result["volume_ml"] == pytest.approx(values.sum() / 1000)
    assert result["mask"] == str(scan.with_name("mask.nii.gz"))
    assert result["clicks"] == 2
    assert result["method"] == "sam-med3d"
    assert result["precision"] == "fp32"
    assert result["notice"] == "not a medical device"
    assert {"load", "open", "encode", "decode", "restore", "write", "total"} <= set(result["seconds"])
    assert "click 2 of 2" in done.stderr
    assert "RANDOM WEIGHTS" in done.stderr


def test_command_agrees_with_session(bright_export, scan):
    assert segment(bright_export, scan, "--point", "20,22,15,+").returncode == 0

    with open_session(bright_export) as session:
        session.set_image(read_scan(scan).volume)
        session.add(Point((20, 22, 15), 1))
        written = np.asarray(nibabel.load(scan.with_name("mask.nii.gz")).dataobj)
        assert np.array_equal(session.mask(), written.astype(bool))


def test_quiet_says_nothing_but_the_result(bright_export, scan):
    done = segment(bright_export, scan, "--point", "20,22,15,+", "--quiet")

    assert done.stderr == ""
    assert json.loads(done.stdout)["warnings"]  # the weights are random, quiet or not


def test_clicks_come_before_points(bright_export, scan, tmp_path):
    clicks, report = tmp_path / "clicks.json", tmp_path / "run.json"
    write_clicks(clicks, [Point((20, 22, 15), 1), Point((1, 1, 1), 0)])
    done = segment(bright_export, scan, "--clicks", clicks, "--point", "21,22,15,+", "--report", report)

    assert done.returncode == 0, done.stderr
    used = json.loads(report.read_text())["points_voxel"]
    assert [entry["point"] for entry in used] == [[20, 22, 15], [1, 1, 1], [21, 22, 15]]


def test_world_points_give_the_same_mask(bright_export, tmp_path):
    path = tmp_path / "oblique.nii"
    nibabel.save(nibabel.Nifti1Image(ball()[0], OBLIQUE), path)
    affine = nibabel.load(path).affine
    point = ",".join(f"{v:.6f}" for v in affine[:3, :3] @ (20, 22, 15) + affine[:3, 3])

    assert segment(bright_export, path, "--point", "20,22,15,+").returncode == 0
    by_index = path.with_name("mask.nii.gz").read_bytes()
    assert segment(bright_export, path, "--world", "--point", f"{point},+").returncode == 0
    assert path.with_name("mask.nii.gz").read_bytes() == by_index


def test_a_volume_of_a_series_is_segmented_and_shown(bright_export, scan, tmp_path):
    series, picture = tmp_path / "series.nii.gz", tmp_path / "shown.png"
    array = ball()[0]
    nibabel.save(nibabel.Nifti1Image(np.stack([array // 2, array], -1), np.eye(4)), series)
    done = segment(bright_export, series, "--volume", 1, "--point", "20,22,15,+", "--overlay", picture)
    assert done.returncode == 0, done.stderr

    with open_session(bright_export) as session:
        session.set_image(array, affine=np.eye(4))
        session.click((20, 22, 15))
        assert np.array_equal(np.asarray(nibabel.load(scan.with_name("mask.nii.gz")).dataobj), session.mask())
        assert np.array_equal(np.asarray(Image.open(picture)), session.overlay())


@pytest.mark.parametrize("command", ["sam-bench", "sam-export", "sam-segment", "sam-serve", "sam-train"])
def test_every_command_tells_its_version(command):
    program = Path(sys.executable).with_name(command)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{command}, version {samkit.__version__}\n"


def test_report_says_what_is_needed_to_do_it_again(bright_export, scan, tmp_path):
    report, logits = tmp_path / "run.json", tmp_path / "logits.nii.gz"
    done = segment(bright_export, scan, "--point", "20,22,15,+", "--threads", "1", "--spacing", "2,2,2",
                   "--report", report, "--save-logits", logits)  # fmt: skip

    assert done.returncode == 0, done.stderr
    text = report.read_text()
    data = json.loads(text)
    assert str(tmp_path) not in text
    assert str(bright_export) not in text
    assert len(data["input_sha256"]) == len(data["output_sha256"]) == len(data["manifest_sha256"]) == 64
    assert data["spacing_mm"] == [2, 2, 2]
    assert data["providers"]["mask_decoder"] == ["CPUExecutionProvider"]
    assert data["crop_origins"]
    assert "onnxruntime" in data["versions"]
    mask = np.asarray(nibabel.load(scan.with_name("mask.nii.gz")).dataobj) > 0
    assert np.array_equal(np.asarray(nibabel.load(logits).dataobj) > 0, mask)


# --- What is refused ---


def images(folder):
    """Every bad scan of the gate: name, its file, and words of the sentence."""
    good, _ = ball()
    affine = np.eye(4)

    def write(name, array, affine=affine):
        path = folder / name
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    def raw(name, content):
        path = folder / name
        path.write_bytes(content)
        return path

    whole = write("whole.nii.gz", good).read_bytes()
    plain = write("plain.nii", good).read_bytes()
    broken = good.astype(np.float32)
    broken[3, 4, 5] = np.nan
    singular = write("singular.nii", good)
    block = bytearray(singular.read_bytes())
    block[280:328] = bytes(48)  # srow_x, y, z; sform_code stays
    block[252:254] = b"\0\0"
    singular.write_bytes(bytes(block))
    return {
        "not a NIfTI": (raw("text.nii", b"this is no scan" * 100), "not a NIfTI file"),
        "not a gzip": (raw("text.nii.gz", b"this is no scan" * 100), "not a NIfTI file"),
        "other suffix": (raw("scan.dcm", plain), "of no format that is known, by its name"),
        "truncated": (raw("cut.nii", plain[: len(plain) // 2]), "truncated"),
        "truncated gzip": (raw("cut.nii.gz", whole[: len(whole) // 2]), "truncated"),
        "2D": (write("slice.nii", good[:, :, 0]), "a slice, not a volume"),
        "4D": (write("series.nii", np.stack([good] * 2, -1)), "more than one volume"),
        "5D": (write("five.nii", np.stack([good] * 2, -1)[:, :, :, None]), "more than one volume"),
        "no positive voxel": (write("dark.nii", (good - 1000).astype(np.int16)), "no voxel above zero"),
        "NaN": (write("nan.nii", broken), "1 of 52800 voxels of nan.nii are NaN"),
        "constant": (write("flat.nii", np.full_like(good, 7)), "have the value 7"),
        "singular affine": (singular, "singular"),
        "metres": (raw("metres.nii", plain[:123] + b"\x01" + plain[124:]), "states its geometry in metres"),
        "missing": (folder / "nowhere.nii", "there is no file nowhere.nii"),
    }


@pytest.mark.parametrize("kind", [
    "not a NIfTI", "not a gzip", "other suffix", "truncated", "truncated gzip", "2D", "4D", "5D", "no positive voxel",
    "NaN", "constant", "singular affine", "metres", "missing",
])  # fmt: skip
def test_bad_scan_is_refused_in_one_sentence(kind, bright_export, tmp_path, capsys, monkeypatch):
    path, words = images(tmp_path)[kind]
    code, out, err = call(
        capsys, monkeypatch, "--export", bright_export, "-i", path, "-o", tmp_path / "mask.nii", "--point", "9,9,9,+"
    )

    assert code == 3
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("sam-segment: ")
    assert words in line
    assert str(tmp_path) not in line
    assert not (tmp_path / "mask.nii").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--point", "60,22,15,+"], 3, "the click (60, 22, 15) lies outside the volume of 40 x 44 x 30 voxels"),
        (["--point", "20,22,15,+", "--point", "-1,2,2,-"], 3, "lies outside the volume"),
        ([], 2, "no click was given"),
        (["--point", "20,22,15,-"], 3, "none of the 1 click(s) is on the object"),
        (["--point", "20,22,+"], 2, "has two, 20 and 22; e.g. --point 60,70,30,+"),
        (["--point", "20,22,nan,+"], 2, "finite numbers"),
        (["--point", "20,22,15,+", "--clicks", "gone.json"], 2, "the clicks file gone.json can't be read"),
        (["--point", "20,22,15,+", "--spacing", "1,0,1"], 2, "three positive numbers"),
        (["--point", "20,22,15,+", "--backend", "torch", "--precision", "fp16"], 2, "the torch backend runs float32"),
        (["--point", "20,22,15,+", "--precision", "fp16"], 3, "in fp16, it has fp32"),
        (["--point", "20,22,15,+", "--device", "tpu"], 2, "'tpu' is not one of"),
        (["--unknown"], 2, "No such option"),
    ],
)
def test_bad_request_ends_with_its_exit_code(
    arguments, exit_code, words, bright_export, scan, tmp_path, capsys, monkeypatch
):
    code, out, err = call(
        capsys, monkeypatch, "--export", bright_export, "-i", scan, "-o", tmp_path / "m.nii", "--quiet", *arguments
    )

    assert (code, out) == (exit_code, "")
    (line,) = err.splitlines()
    assert words in line


def test_output_must_not_be_the_scan(bright_export, scan, capsys, monkeypatch):
    before = scan.read_bytes()
    linked = scan.with_name("other.nii.gz")
    linked.symlink_to(scan)
    for output in (scan, linked):
        code, _, err = call(
            capsys, monkeypatch, "--export", bright_export, "-i", scan, "-o", output, "--point", "20,22,15,+"
        )
        assert code == 3
        assert "is one of the inputs" in err
    assert scan.read_bytes() == before


@pytest.mark.parametrize("name", ["clicks.json", "export/manifest.json", "export/mask_decoder.onnx"])
def test_report_must_not_be_an_input(name, bright_export, scan, tmp_path, capsys, monkeypatch):
    folder, clicks = tmp_path / "export", tmp_path / "clicks.json"
    shutil.copytree(bright_export, folder)
    write_clicks(clicks, [Point((20, 22, 15), 1)])
    before = (tmp_path / name).read_bytes()
    code, out, err = call(
        capsys, monkeypatch,
        "--export", folder, "-i", scan, "-o", tmp_path / "m.nii", "--clicks", clicks, "--report", tmp_path / name,
    )  # fmt: skip

    assert (code, out) == (3, "")
    assert f"{name.split('/')[-1]} is one of the inputs" in err
    assert (tmp_path / name).read_bytes() == before


def test_demonstration_weights_are_named_wherever_they_were_given_from(
    bright_export, scan, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "export"
    shutil.copytree(bright_export, folder)
    manifest = Manifest.load(folder)
    weights = Weights("checkpoint", str(tmp_path / "best.safetensors"), "0" * 64, demonstration=True)
    replace(manifest, plan=replace(manifest.plan, weights=weights)).save(folder)
    arguments = ("--export", folder, "-i", scan, "-o", tmp_path / "m.nii", "--point", "20,22,15,+")
    code, out, err = call(capsys, monkeypatch, *arguments)

    assert code == 0
    assert json.loads(out)["demonstration_weights"] is True
    assert "DEMONSTRATION WEIGHTS" in err


def test_changed_export_is_refused(bright_export, scan, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "export"
    shutil.copytree(bright_export, folder)
    changed = bytearray((folder / "mask_decoder.onnx").read_bytes())
    changed[-20] ^= 1
    (folder / "mask_decoder.onnx").write_bytes(bytes(changed))
    code, _, err = call(
        capsys, monkeypatch, "--export", folder, "-i", scan, "-o", tmp_path / "m.nii", "--point", "20,22,15,+"
    )

    assert code == 3
    assert "changed since it was exported" in err


def test_folder_without_manifest_is_refused(scan, tmp_path, capsys, monkeypatch):
    code, _, err = call(
        capsys, monkeypatch, "--export", tmp_path, "-i", scan, "-o", tmp_path / "m.nii", "--point", "20,22,15,+"
    )

    assert code == 3
    assert "manifest.json" in err


def call(capsys, monkeypatch, *arguments):
    """Run the command in this process; return exit code, stdout, stderr."""
    from samkit.segment.cli import main

    monkeypatch.setattr(sys, "argv", ["sam-segment", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err
