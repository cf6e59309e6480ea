"""sam-segment with 2D methods, from file to file: boxes, propagation, pictures, sequences, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage
from PIL import Image

from samkit.imageio.reading import read_scan
from samkit.prompts import Box
from samkit.runtime import open_session

OBLIQUE = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])
BOX = "18,18,8,32,36,8"


def block():
    """A bright block, (20..29, 20..33), in slices 5 to 11 of dim tissue."""
    array = np.full((60, 64, 20), 20, np.int16)
    array[20:30, 20:34, 5:12] = 200
    return array


def save(path, array=None, affine=None):
    nibabel.save(
        nibabel.Nifti1Image(block() if array is None else array, np.eye(4) if affine is None else affine), path
    )
    return path


@pytest.fixture
def scan(tmp_path):
    return save(tmp_path / "scan.nii.gz")


@pytest.fixture
def picture(tmp_path):
    array = np.full((64, 60, 3), 20, np.uint8)
    array[20:34, 20:30] = 235
    Image.fromarray(array).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def segment(capsys, monkeypatch, bright_slices):
    """Run the command in this process; return exit code, stdout, stderr."""

    def call(*arguments, export=bright_slices):
        from samkit.segment.cli import main

        monkeypatch.setattr(sys, "argv", ["sam-segment", "--export", str(export), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return stopped.value.code, printed.out, printed.err

    return call


def written(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_segments_without_torch(bright_slices, scan):
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'monai', 'lightning', 'onnx']));"
    arguments = ["--export", bright_slices, "-i", scan, "-o", scan.with_name("m.nii.gz"), "--box", BOX, "--propagate"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code} from samkit.segment.cli import main; main()", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert np.array_equal(written(scan.with_name("m.nii.gz")), block() > 100)
    assert result["volume_ml"] == pytest.approx(0.98)
    assert (result["method"], result["plane"], result["clicks"], result["voxels"]) == ("sam", "axial", 1, 980)
    assert (result["slices_prompted"], result["slices_answered"], result["sequences"]) == ([8], 7, [])
    assert {"load", "open", "prepare", "encode", "decode", "write", "total"} <= set(result["seconds"])
    assert "6 slice(s) by propagation" in done.stderr
    assert "RANDOM WEIGHTS" in done.stderr


def test_command_agrees_with_session(segment, bright_slices, scan, tmp_path):
    code, out, err = segment("-i", scan, "-o", tmp_path / "m.nii", "--box", BOX, "--point", "2,2,8,-")
    assert code == 0, err
    with open_session(bright_slices) as session:
        session.set_image(read_scan(scan).volume)
        session.add(Box((18, 18, 8), (32, 36, 8)))

        assert np.array_equal(session.mask(), written(tmp_path / "m.nii"))
    assert json.loads(out)["iou_predicted"] == [0.6]


def test_world_box_gives_the_same_mask(segment, tmp_path):
    scan = save(tmp_path / "oblique.nii", affine=OBLIQUE)
    affine = nibabel.load(scan).affine
    corners = (affine[:3, :3] @ np.array([[18, 18, 8], [32, 36, 8]]).T).T + affine[:3, 3]
    world = ",".join(f"{v:.6f}" for v in corners.ravel())

    assert segment("-i", scan, "-o", tmp_path / "a.nii.gz", "--box", BOX)[0] == 0
    assert segment("-i", scan, "-o", tmp_path / "b.nii.gz", "--box", world, "--world")[0] == 0
    assert written(tmp_path / "a.nii.gz").sum() == 140
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_report_and_logits_and_clicks_file(segment, scan, tmp_path):
    clicks, report, logits = tmp_path / "clicks.json", tmp_path / "run.json", tmp_path / "logits.nii.gz"
    clicks.write_text(json.dumps([{"box": [18, 18, 8, 32, 36, 8]}, {"point": [25, 25, 8], "label": 1}]))
    code, _, err = segment(
        "-i", scan, "-o", tmp_path / "m.nii", "--clicks", clicks, "--report", report, "--save-logits", logits,
        "--threads", "1", "--show-names",
    )  # fmt: skip

    assert code == 0, err
    data = json.loads(report.read_text())
    assert str(tmp_path) not in report.read_text()
    assert data["boxes_voxel"] == [{"box": [18, 18, 8, 32, 36, 8]}]
    assert data["points_voxel"] == [{"point": [25, 25, 8], "label": 1}]
    assert data["inputs"][""]["file"] == "scan.nii.gz"
    assert len(data["input_sha256"]) == len(data["output_sha256"]) == len(data["manifest_sha256"]) == 64
    assert np.array_equal(written(logits) > 0, written(tmp_path / "m.nii") > 0)


def test_json_line_and_report_call_a_case_by_its_hash_and_the_terminal_by_its_name(segment, tmp_path):
    ward = tmp_path / "ward-7"
    ward.mkdir()
    array = block()
    array[:4] = -200  # as the air of a CT, of which a warning speaks
    scan, report = save(ward / "Mueller_Anna_1961.nii.gz", array), tmp_path / "report.json"
    code, out, err = segment(
        "-i", scan, "-o", ward / "Mueller_Anna_mask.nii.gz", "--box", BOX, "--plane", "axial", "--report", report
    )

    assert code == 0, err
    told = json.loads(out)
    handed_on = out + report.read_text()
    assert "Mueller" not in handed_on
    assert "ward-7" not in handed_on
    assert told["case"] == hashlib.sha256(scan.read_bytes()).hexdigest()[:12]
    assert json.loads(report.read_text())["inputs"] == {"": {"sha256": hashlib.sha256(scan.read_bytes()).hexdigest()}}
    assert "Mueller_Anna_1961.nii.gz" in err


def test_plane_can_be_chosen(segment, scan, tmp_path):
    code, out, err = segment(
        "-i", scan, "-o", tmp_path / "m.nii", "--plane", "sagittal", "--box", "25,18,3,25,36,14", "--propagate"
    )

    assert code == 0, err
    assert json.loads(out)["plane"] == "sagittal"
    assert written(tmp_path / "m.nii").any(axis=(1, 2)).sum() == 10


def test_picture_gives_a_picture(segment, picture, tmp_path):
    output, report = tmp_path / "m.png", tmp_path / "r.json"
    code, out, err = segment(
        "-i", picture, "-o", output, "--box", "18,18,32,36", "--point", "2,2,-", "--report", report
    )

    assert code == 0, err
    mask = np.asarray(Image.open(output))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask == 255, np.asarray(Image.open(picture))[..., 0] > 100)
    result = json.loads(out)
    assert (result["volume_ml"], result["voxels"], result["plane"]) == (None, 140, None)
    assert json.loads(report.read_text())["boxes_voxel"] == [{"box": [18, 18, 32, 36]}]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ([], 2, "no click was given"),
        (["--point", "20,22,8,-"], 3, "none of the 1 click(s) is on the object"),
        (["--box", "18,18,8,32,36,9"], 3, "goes from k 8 to 9, and axial slices are flat along k"),
        (["--box", "18,18,8,32,36,8", "--plane", "coronal"], 3, "coronal slices are flat along j"),
        (["--box", "18,18,8,32,36"], 2, "a box is written i0,j0,k0,i1,j1,k1"),
        (["--box", "18,18,32,36"], 2, "two indices are for pictures"),
        (["--box", "18,18,8,32,66,8"], 3, "lies outside the volume of 60 x 64 x 20 voxels"),
        (["--structure", "thalamus_left=20,22,8,+"], 2, "sam tells no structures apart"),
        (["--structure", "20,22,8,+"], 2, "is written NAME=i,j,k,+"),
        (["--box", BOX, "--spacing", "1,1,1"], 2, "sam works on slices as they are; leave --spacing out"),
        (["--box", BOX, "--plane", "oblique"], 2, "'oblique' is not one of"),
        (["--box", BOX, "--sequence", "t1c"], 2, "--sequence is written NAME=PATTERN"),
        (["--box", BOX, "--sequence", "t1c=s*"], 2, "give a folder with --input"),
        (["--box", BOX, "-i", "b.nii"], 2, "of several --input each names its sequence"),
    ],
)
def test_bad_request_ends_with_its_exit_code(arguments, exit_code, words, segment, scan, tmp_path):
    code, out, err = segment("-i", scan, "-o", tmp_path / "m.nii", "--quiet", *arguments)

    assert (code, out) == (exit_code, "")
    (line,) = err.splitlines()
    assert words in line
    assert not (tmp_path / "m.nii").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--box", BOX], 2, "a picture has no third index"),
        (["--box", "18,18,32,36", "--world"], 2, "--world is for scans, and a picture is given"),
        (["--box", "18,18,32,36", "--plane", "axial"], 2, "--plane is for scans"),
        (["--box", "18,18,32,36", "--propagate"], 2, "--propagate is for scans"),
        (["--box", "18,18,32,36", "--save-logits", "l.nii"], 2, "--save-logits is for scans"),
        (["--point", "60,2,+"], 3, "lies outside the picture of 60 x 64 pixels"),
    ],
)
def test_bad_request_on_a_picture_ends_with_its_exit_code(
    arguments, exit_code, words, segment, picture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = segment("-i", picture, "-o", tmp_path / "m.png", "--quiet", *arguments)

    assert (code, out) == (exit_code, "")
    assert words in err


def test_output_is_named_as_what_it_is(segment, scan, picture, tmp_path):
    for source, output, words in (
        (scan, "m.png", "the mask of a scan must end in .nii or .nii.gz"),
        (picture, "m.nii", "the mask of a picture must end in .png"),
        (picture, "m.jpg", "must end in .nii or .nii.gz or .png"),
    ):
        code, _, err = segment("-i", source, "-o", tmp_path / output, "--point", "3,4,+", "--quiet")
        assert code == 2
        assert words in err
    code, _, err = segment("-i", picture, "-o", picture, "--point", "3,4,+")
    assert code == 3
    assert "is one of the inputs" in err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--box", BOX], 2, "sam-med3d takes no box; click on the object"),
        (["--point", "20,22,8,+", "--plane", "axial"], 2, "--plane is for 2D methods, and sam-med3d works on volumes"),
        (["--point", "20,22,8,+", "--propagate"], 2, "--propagate is for 2D methods"),
        (["--structure", "thalamus_left=20,22,8,+"], 2, "sam-med3d tells no structures apart"),
    ],
)
def test_volume_method_refuses_what_is_for_slices(
    arguments, exit_code, words, segment, bright_export, scan, picture, tmp_path
):
    code, _, err = segment("-i", scan, "-o", tmp_path / "m.nii", *arguments, "--quiet", export=bright_export)

    assert code == exit_code
    assert words in err
    code, _, err = segment("-i", picture, "-o", tmp_path / "m.png", "--point", "3,4,+", export=bright_export)
    assert code == 3
    assert "is a picture, and sam-med3d works on volumes" in err


# --- Structures ---


def brain():
    """A head of 60 x 40 x 60 voxels in a larger volume, and in it a bright block of 12 x 8 x 10."""
    array = np.zeros((150, 60, 130), np.uint8)
    array[40:100, 10:50, 30:90] = 40
    array[62:74, 20:28, 52:62] = 220
    return array


@pytest.fixture
def mgz(tmp_path):
    affine = np.array([[-1.0, 0, 0, 70], [0, 0, 1, -30], [0, -1, 0, 60], [0, 0, 0, 1]])
    nibabel.save(MGHImage(np.ascontiguousarray(brain().transpose(0, 2, 1)), affine), tmp_path / "norm.mgz")
    return tmp_path / "norm.mgz"


def test_volume_becomes_a_label_map_with_its_table(segment, bright_structures, mgz, tmp_path):
    code, out, err = segment("-i", mgz, "-o", tmp_path / "labels.nii.gz", export=bright_structures)

    assert code == 0, err
    labels = nibabel.load(tmp_path / "labels.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_allclose(labels.affine, nibabel.load(mgz).affine, atol=1e-6)
    found, expected = np.asarray(labels.dataobj), brain().transpose(0, 2, 1) > 200
    assert set(np.unique(found)) == {0, 1}
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.8
    rows = [line.split("\t") for line in (tmp_path / "labels.tsv").read_text().splitlines()]
    assert rows[0] == ["index", "name", "voxels", "mL"]
    assert rows[1] == ["1", "thalamus_left", str(found.sum()), f"{found.sum() / 1000:.4f}"]
    assert len(rows) == 13
    result = json.loads(out)
    assert (result["plane"], result["clicks"], result["slices_prompted"]) == ("coronal", 0, [])
    assert result["structures"]["thalamus_left"] == found.sum()
    assert result["volume_ml"] == pytest.approx(found.sum() / 1000)


def test_structure_is_prompted_on_its_slice_and_the_others_stay_automatic(segment, bright_structures, mgz, tmp_path):
    assert segment("-i", mgz, "-o", tmp_path / "a.nii.gz", export=bright_structures)[0] == 0
    code, out, err = segment(
        "-i",
        mgz,
        "-o",
        tmp_path / "b.nii.gz",
        "--structure",
        "thalamus_left=60,50,24,66,64,24",
        export=bright_structures,
    )

    assert code == 0, err
    assert json.loads(out)["slices_prompted"] == [24]
    automatic, prompted = written(tmp_path / "a.nii.gz"), written(tmp_path / "b.nii.gz")
    assert np.array_equal(np.delete(automatic, 24, axis=2), np.delete(prompted, 24, axis=2))
    assert 0 < prompted[:, :, 24].sum() < automatic[:, :, 24].sum()
    assert prompted[63:66, 54:60, 24].all()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--structure", "thalamus=60,50,24,+"], 2, "the structure 'thalamus' is not known; those of lora-sam are"),
        (["--structure", "thalamus_left=2,50,24,+"], 3, "sees only the part of a slice around what is not zero"),
        (["--structure", "thalamus_left=60,50,2,+"], 3, "nothing but zeros"),
        (["--propagate"], 2, "was given no prompt that could lead on"),
    ],
)
def test_bad_structure_ends_with_its_exit_code(arguments, exit_code, words, segment, bright_structures, mgz, tmp_path):
    code, _, err = segment("-i", mgz, "-o", tmp_path / "m.nii", "--quiet", *arguments, export=bright_structures)

    assert code == exit_code
    assert words in err


def test_table_must_not_be_an_input_or_another_output(segment, bright_structures, mgz, tmp_path):
    code, _, err = segment(
        "-i", mgz, "-o", tmp_path / "m.nii", "--report", tmp_path / "m.tsv", export=bright_structures
    )
    assert code == 2
    assert "name the same file" in err
