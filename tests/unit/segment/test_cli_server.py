"""`sam-segment --server` writes what `--export` writes, and refuses beside it what the server decides."""

from __future__ import annotations

import functools
import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused
from samkit.runtime import open_session
from samkit.runtime.client import remote_session
from samkit.segment import cli

URL = "triton://localhost:8001/bright"


@pytest.fixture
def sam_segment(in_process):
    return functools.partial(in_process, cli.main, "sam-segment")


@pytest.fixture
def served(serve, wired, monkeypatch):
    """Return a function that serves an export folder at every address, and gives the transports that were made."""

    def start(folder, **limits):
        host, made = serve(folder, **limits), []

        def connect(address):
            made.append(wired(host))
            return made[-1]

        monkeypatch.setattr(remote_session, "connect", connect)
        return made

    return start


@pytest.fixture
def scan(tmp_path):
    """A bright ball in dimmer, slightly uneven tissue, on an oblique grid."""
    i, j, k = np.indices((40, 44, 30))
    inside = (i - 20) ** 2 + (j - 22) ** 2 + (k - 15) ** 2 < 49
    affine = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image((50 + (i + j + k) % 7 + 200 * inside).astype(np.int16), affine), path)
    return path


@pytest.fixture
def both(sam_segment, tmp_path):
    """Return a function that segments by the folder and by the server, and gives the two JSON lines and reports."""

    def run(export, source, mask_name, *words):
        written, results = [], []
        for way, where in (("here", ("--export", export)), ("there", ("--server", URL))):
            (tmp_path / way).mkdir()
            report = tmp_path / f"{way}.json"
            code, out, err = sam_segment(
                *where, "-i", source, "-o", tmp_path / way / mask_name, "--report", report, "--show-names", *words
            )
            assert code == 0, err
            written.append({path.name: path.read_bytes() for path in (tmp_path / way).iterdir()})
            results.append((json.loads(out), json.loads(report.read_text())))
        assert written[0] == written[1]
        return *results, written[0]

    return run


def differing(here, there):
    return {key for key in {**here, **there} if here.get(key) != there.get(key)}


def test_clicks_give_the_same_bytes(bright_export, served, both, scan):
    transports = served(bright_export)

    (here, here_report), (there, there_report), written = both(
        bright_export, scan, "mask.nii.gz", "--point", "20,22,15,+", "--point", "3,3,3,-", "--spacing", "1.5,1,1"
    )

    assert set(written) == {"mask.nii.gz"}
    assert differing(here, there) == {"mask", "seconds", "backend", "device", "server"}
    assert (there["backend"], there["device"], there["server"]) == ("triton", None, URL)
    assert differing(here_report, there_report) == {
        "seconds", "backend", "device", "server", "providers", "versions"
    }  # fmt: skip
    assert there_report["versions"]["server_samkit"]
    assert here_report["spacing_mm"] == [1.5, 1, 1]
    assert here_report["crop_origins"]
    assert not transports[0].is_open
    assert not transports[0].host._held
    assert transports[0].asked == ["describe", "open", "check", "click", "click", "close"]


def test_help_says_how_long_a_pass_over_a_scan_may_take(sam_segment):
    code, out, _ = sam_segment("--help")

    assert code == 0
    assert "Default: 120, and 3600 for" in " ".join(out.split())


def test_world_clicks_give_the_same_bytes(bright_export, served, both, scan):
    served(bright_export)
    affine = nibabel.load(scan).affine
    place = ",".join(f"{v:.6f}" for v in affine[:3, :3] @ (20, 22, 15) + affine[:3, 3])

    both(bright_export, scan, "mask.nii.gz", "--world", "--point", f"{place},+")


def test_boxes_and_propagation_give_the_same_bytes(bright_slices, served, both, scan):
    served(bright_slices)

    (here, _), (there, there_report), _ = both(
        bright_slices, scan, "mask.nii", "--box", "10,22,5,30,22,25", "--propagate", "--plane", "coronal",
        "--intensities", "0,255",
    )  # fmt: skip

    assert differing(here, there) == {"mask", "seconds", "backend", "device", "server"}
    assert there["plane"] == "coronal"
    assert there["intensities"] == there_report["intensities"] == [{"black": 0, "white": 255, "origin": "given"}]
    assert there_report["inputs"][""]["file"] == scan.name


def test_percentiles_of_a_ct_are_told_alike(bright_slices, served, both, scan):
    served(bright_slices)
    image = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) - 200, image.affine), scan)

    (here, _), (there, _), _ = both(bright_slices, scan, "mask.nii", "--box", "10,22,5,30,22,25", "--plane", "coronal")

    assert differing(here, there) == {"mask", "seconds", "backend", "device", "server"}
    (limits,) = there["intensities"]
    assert limits["origin"] == "percentiles"
    assert -150 <= limits["black"] < limits["white"] < 60
    assert sum("values down to -150 and no window given" in warning for warning in here["warnings"]) == 1


def test_a_picture_gives_the_same_bytes(bright_slices, served, both, tmp_path):
    served(bright_slices)
    picture = tmp_path / "picture.png"
    i, j = np.indices((40, 50))
    Image.fromarray((60 + 190 * ((i - 20) ** 2 + (j - 22) ** 2 < 49)).astype(np.uint8)).save(picture)

    both(bright_slices, picture, "mask.png", "--box", "10,8,36,33")


def test_a_label_map_and_its_table_give_the_same_bytes(bright_structures, served, both, scan):
    served(bright_structures)

    (here, _), (there, _), written = both(bright_structures, scan, "labels.nii.gz", "--intensities", "0,255")

    assert set(written) == {"labels.nii.gz", "labels.tsv"}
    assert here["structures"] == there["structures"]
    assert any(here["structures"].values())


# --- Options ---


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "neither --export nor --server is given"),
        (("--server", URL, "--export", "."), "--export and --server are both given"),
        (("--server", URL, "--backend", "onnxruntime"), "--backend is the server's to decide"),
        (("--server", URL, "--device", "cpu"), "--device is the server's to decide"),
        (("--server", URL, "--precision", "fp32"), "--precision is the server's to decide"),
        (("--server", URL, "--threads", "2"), "--threads is the server's to decide"),
        (("--server", URL, "--save-logits", "logits.nii"), "a server sends masks and no logits"),
        (("--server", "http://localhost/x"), "needed is triton://HOST:PORT/NAME"),
        (("--server", "exports/m-sam"), "needed is triton://HOST:PORT/NAME"),
        (("--server", URL, "--timeout", "0"), "'--timeout'"),
        (("--export", ".", "--timeout", "5"), "--timeout is for a server's answers"),
    ],
)
def test_options_that_clash_are_usage_errors_before_anything_is_sent(sam_segment, monkeypatch, scan, words, sentence):
    monkeypatch.setattr(remote_session, "connect", lambda address: pytest.fail("a server was asked"))
    code, _, err = sam_segment(*words, "-i", scan, "-o", scan.with_name("mask.nii"), "--point", "1,2,3,+")

    assert code == 2
    assert sentence in err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "no click was given"),
        (("--point", "3,3,3,-"), 3, "none of the 1 click(s) is on the object"),
        (("--point", "3,3,3,+", "--plane", "axial"), 2, "--plane is for 2D methods"),
        (("--box", "1,1,1,2,2,1"), 2, "takes no box"),
        (("--point", "3,3,3,+", "--point", "99,3,3,+"), 3, "lies outside the volume"),
    ],
)
def test_what_is_refused_by_the_folder_is_refused_by_the_server(
    bright_export, served, sam_segment, scan, words, code, sentence
):
    transports = served(bright_export)
    ended = [
        sam_segment(*where, "-i", scan, "-o", scan.with_name("mask.nii"), *words)
        for where in (("--export", bright_export), ("--server", URL))
    ]

    for found, _, err in ended:
        assert found == code
        assert sentence in err
    assert ended[0][2].splitlines()[-1] == ended[1][2].splitlines()[-1]
    assert "click" not in transports[0].asked
    assert not transports[0].is_open


def test_a_scan_beyond_the_servers_limit_is_input_refused(bright_export, served, sam_segment, scan):
    transports = served(bright_export, max_voxels=1000)
    code, _, err = sam_segment("--server", URL, "-i", scan, "-o", scan.with_name("m.nii"), "--point", "1,2,3,+")

    assert code == 3
    assert "this server's limit is 1000" in err
    assert "open" not in transports[0].asked


# --- Overlays, volumes of a series, and examples that fit ---


def test_an_overlay_is_the_picture_that_the_session_shows(bright_export, served, sam_segment, scan, tmp_path):
    served(bright_export)
    for place, name in ((("--export", bright_export), "here.png"), (("--server", URL), "there.png")):
        code, _, err = sam_segment(
            *place, "-i", scan, "-o", tmp_path / "m.nii", "--point", "20,22,15,+", "--overlay", tmp_path / name
        )
        assert code == 0, err
    with open_session(bright_export) as session:
        session.set_image(scan)
        session.click((20, 22, 15))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "here.png")), session.overlay())
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--overlay", "a.jpg"), 2, "'a.jpg' must end in .png"),
        (("--overlay", "nowhere/a.png"), 3, "the folder of a.png, nowhere, does not exist"),
        (("--overlay", "a.png", "--report", "a.png"), 2, "--overlay and --report name the same file"),
    ],
)
def test_an_overlay_that_can_not_be_written_is_refused_first(bright_export, sam_segment, scan, words, code, sentence):
    found, _, err = sam_segment(
        "--export", bright_export, "-i", scan, "-o", scan.with_name("m.nii"), "--point", "20,22,15,+", *words
    )
    assert found == code
    assert sentence in err
    assert not scan.with_name("m.nii").exists()


def test_a_volume_of_a_series_is_chosen_and_reported(bright_export, sam_segment, scan, tmp_path):
    image = nibabel.load(scan)
    array = np.asarray(image.dataobj)
    series = nibabel.Nifti1Image(np.stack([array * 0 + array % 5, array], -1), image.affine, image.header)
    nibabel.save(series, tmp_path / "series.nii.gz")
    words = ("--export", bright_export, "--point", "20,22,15,+", "--report", tmp_path / "run.json")
    masks = []
    for name, volume in ((scan, ()), (tmp_path / "series.nii.gz", ("--volume", 1))):
        code, _, err = sam_segment(*words, "-i", name, "-o", tmp_path / "mask.nii", *volume)
        assert code == 0, err
        masks.append((tmp_path / "mask.nii").read_bytes())

    assert masks[0] == masks[1]
    assert json.loads((tmp_path / "run.json").read_text())["volume"] == 1
    for volume, sentence in (
        ((), "is 40 x 44 x 30 x 2: more than one volume; say which one by --volume N, 0 is the first"),
        (("--volume", 2), "holds 2 volume(s), and number 2 is asked for, counted from 0; give --volume from 0 to 1"),
        (("--volume", -1), "'--volume'"),
    ):
        code, _, err = sam_segment(*words, "-i", tmp_path / "series.nii.gz", "-o", tmp_path / "no.nii", *volume)
        assert code in (2, 3)
        assert sentence in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "no click was given, at least one on the object is needed; e.g. --point 60,70,+"),
        (("--point", "10"), "a point is written x,y,+ or x,y,- and this one is '10'; e.g. --point 60,70,+"),
        (("--box", "10"), "a box is written x0,y0,x1,y1 and this one is '10'; e.g. --box 40,52,88,97"),
        (("--point", "1,2,3,+"), "a picture has no third index; a point is --point x,y,+ and a box --box x0,y0,x1,y1"),
        (("--point", "1,2,+", "--volume", "0"), "--volume is for scans, and a picture is given; leave it out"),
    ],
)
def test_a_picture_is_told_of_pixels(bright_slices, sam_segment, tmp_path, words, sentence):
    Image.fromarray(np.full((30, 40), 200, np.uint8)).save(tmp_path / "a.png")
    code, _, err = sam_segment("--export", bright_slices, "-i", tmp_path / "a.png", "-o", tmp_path / "m.png", *words)
    assert code == 2
    assert sentence in err


def test_millimetres_are_told_in_millimetres_and_not_advised_again(bright_export, sam_segment, scan):
    words = ("--export", bright_export, "-i", scan, "-o", scan.with_name("m.nii"))
    code, _, err = sam_segment(*words, "--world", "--point", "500,0,0,+")
    assert code == 3
    assert "the click (500, 0, 0) mm lies outside the volume, which reaches from " in err
    assert "--world" not in err
    code, _, err = sam_segment(*words, "--point", "500,0,0,+")
    assert code == 3
    assert "the click (500, 0, 0) lies outside the volume of 40 x 44 x 30 voxels" in err
    assert "or world millimetres with --world" in err


# --- Scans that do not know left from right ---


@pytest.fixture
def unplaced(scan):
    """The scan, without the place of its voxels."""
    image = nibabel.load(scan)
    made = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
    made.header.set_zooms((0.9, 1.1, 1.9))
    nibabel.save(made, scan)
    return scan


def click_in_millimetres(session, scan):
    session.set_image(scan)
    session.click((1, 2, 3), world=True)


@pytest.mark.parametrize(
    ("fixture", "words", "needs"),
    [
        ("bright_export", ("--world", "--point", "1,2,3,+"), "places in millimetres need"),
        ("bright_structures", (), "structures of one side, such as thalamus_left, need"),
    ],
)
def test_what_needs_left_and_right_is_refused_before_a_scan_is_sent(
    fixture, words, needs, request, served, sam_segment, unplaced, tmp_path
):
    export = request.getfixturevalue(fixture)
    transports = served(export)
    for where in (("--export", export), ("--server", URL)):
        code, _, err = sam_segment(*where, "-i", unplaced, "-o", tmp_path / "m.nii", *words)
        assert code == 3
        assert needs in err
        assert "give --assume-ras where its axes do run towards left, front and head" in err
    with open_session(URL) as session, pytest.raises(InputRefused, match="assume_ras=True"):
        click_in_millimetres(session, unplaced)

    sent = [word for transport in transports for word in transport.asked]
    assert sent.count("open") == (fixture == "bright_export")  # by open_session: the scan may be clicked by voxels
    assert not {"click", "segment"} & set(sent)


def test_who_vouches_for_the_axes_gets_the_same_bytes(bright_export, served, both, unplaced):
    served(bright_export)
    i, j, k = nibabel.load(unplaced).affine[:3] @ (20, 22, 15, 1)
    (here, _), _, _ = both(
        bright_export, unplaced, "mask.nii.gz", "--world", "--point", f"{i},{j},{k},+", "--assume-ras"
    )
    assert any("left and right are unknown" in warning for warning in here["warnings"])


def test_structures_of_who_vouches_are_written(bright_structures, served, both, unplaced):
    served(bright_structures)
    both(bright_structures, unplaced, "labels.nii.gz", "--intensities", "0,255", "--assume-ras")


# --- One slice ---


@pytest.fixture
def thin(scan, tmp_path):
    """One coronal slice of the scan."""
    nibabel.save(nibabel.load(scan).slicer[:, 22:23], tmp_path / "thin.nii.gz")
    return tmp_path / "thin.nii.gz"


def test_one_slice_gives_the_same_bytes(bright_slices, served, both, thin):
    served(bright_slices)

    (here, _), (there, _), written = both(
        bright_slices, thin, "mask.nii", "--box", "10,0,5,30,0,25", "--intensities", "0,255"
    )

    assert here["plane"] == there["plane"] == "coronal"
    mask = nibabel.Nifti1Image.from_bytes(written["mask.nii"])
    assert mask.shape == (40, 1, 30)
    assert np.array_equal(mask.dataobj, np.asarray(nibabel.load(thin).dataobj) > 200)
    assert np.array_equal(mask.affine, nibabel.load(thin).affine)


@pytest.mark.parametrize(
    ("fixture", "words", "sentence"),
    [
        (
            "bright_slices",
            ("--box", "10,0,5,30,0,25", "--plane", "axial"),
            "is 40 x 1 x 30, one coronal slice, and axial slices are asked for; leave --plane out, or give "
            "--plane coronal",
        ),
        (
            "bright_export",
            ("--point", "20,0,15,+"),
            "is 40 x 1 x 30: a slice, not a volume; give a 3D scan of several slices, or use a 2D method, such as",
        ),
    ],
)
def test_one_slice_is_refused_alike_where_it_means_nothing(
    fixture, words, sentence, request, served, sam_segment, thin, tmp_path
):
    export = request.getfixturevalue(fixture)
    served(export)
    for where in (("--export", export), ("--server", URL)):
        code, _, err = sam_segment(*where, "-i", thin, "-o", tmp_path / "m.nii", *words)
        assert code == 3
        assert sentence in err
