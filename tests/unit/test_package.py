"""A stranger finds the way from `import samkit` to a mask: names, help, the example, an array in and a file out."""

from __future__ import annotations

import pydoc
import re
import shutil
import subprocess
import sys
import textwrap

import nibabel
import numpy as np
import pytest

import samkit

OBLIQUE = np.array([[0.8, -0.6, 0, -30.0], [0.6, 0.8, 0, 12.0], [0, 0, 1.5, 5.0], [0, 0, 0, 1]])


def ball(shape=(80, 90, 40), centre=(60, 70, 30), radius=6.0):
    """A bright ball in dimmer, slightly uneven tissue, and where it is."""
    i, j, k = np.indices(shape)
    inside = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < radius**2
    return (50 + (i + j + k) % 7 + 200 * inside).astype(np.int16), inside


def test_the_names_that_people_look_for_are_there():
    assert {"open_session", "list_methods", "get_method", "__version__"} <= set(dir(samkit))
    assert {"open_session", "Session", "MaskUpdate"} <= set(dir(samkit.runtime))
    assert all(getattr(samkit, name) is not None for name in dir(samkit))
    assert samkit.open_session is samkit.runtime.open_session
    assert samkit.get_method(samkit.list_methods()[0]).name == samkit.list_methods()[0]
    with pytest.raises(AttributeError, match=r"has no attribute 'segment_all'; it has .*open_session"):
        _ = samkit.segment_all


def test_help_shows_the_way():
    text = pydoc.plain(pydoc.render_doc(samkit))
    for words in ("open_session(", "list_methods(", "set_image(array, affine=affine)", "sam-export --method m-sam"):
        assert words in text
    acts = pydoc.plain(pydoc.render_doc(samkit.Session))
    for words in ("click(self", "save(self", "overlay(self", "SimpleITK.ReadImage"):
        assert words in acts


def test_import_brings_nothing_heavy():
    code = "import samkit, sys; dir(samkit); assert 'numpy' not in sys.modules; samkit.open_session; "
    code += "from samkit.imageio.in_memory import study_of; import numpy as np; "
    code += "study_of(np.arange(60).reshape(3, 4, 5), affine=np.eye(4)); "
    heavy = {"torch", "scipy.ndimage", "onnxruntime", "PIL", "SimpleITK", "tritonclient", "click"}
    code += f"assert not (found := {heavy} & set(sys.modules)), found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def examples():
    """The example of the package's docstring, and that of `open_session`."""
    for text in (samkit.__doc__, samkit.open_session.__doc__):
        lines = textwrap.dedent(text.partition("\n")[2]).splitlines()
        block = [line for line in lines if re.match(r" {4}|$", line)]
        yield "import samkit\nfrom samkit import open_session\n" + textwrap.dedent("\n".join(block))


def test_the_examples_run(bright_export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bright_export, tmp_path / "exports" / "m-sam")
    array, inside = ball()
    nibabel.save(nibabel.Nifti1Image(array, OBLIQUE), "scan.nii.gz")
    for code in examples():
        assert code.count("session.") >= 3
        exec(compile(code, "example", "exec"), {"array": array, "affine": OBLIQUE})  # noqa: S102 - our own docstring
        saved = np.asarray(nibabel.load("mask.nii.gz").dataobj) > 0
        assert 2 * (saved & inside).sum() / (saved.sum() + inside.sum()) > 0.7


def test_an_array_comes_back_as_a_file_in_its_place(bright_export, tmp_path):
    array, _ = ball()
    with samkit.open_session(bright_export) as session:
        session.set_image(array, affine=OBLIQUE)
        mask = session.click((60, 70, 30)).mask
        session.save(tmp_path / "mask.nii.gz")
    saved = nibabel.load(tmp_path / "mask.nii.gz")

    assert saved.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(saved.dataobj), mask)
    assert np.allclose(saved.affine, OBLIQUE, atol=1e-6)
    sitk = pytest.importorskip("SimpleITK", reason="pip install 'samkit[formats]'")
    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    assert np.allclose(np.diag([-1, -1, 1]) @ direction, OBLIQUE[:3, :3], atol=1e-5)
    assert np.allclose(np.array([-1, -1, 1]) * image.GetOrigin(), OBLIQUE[:3, 3], atol=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(), mask)
