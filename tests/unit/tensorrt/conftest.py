"""Stand-ins for NVIDIA's libraries and for what drives CUDA, in this process and in its children."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.export import build_engine
from samkit.export import engines as engines_module
from samkit.geometry import Volume
from samkit.manifest import Manifest
from samkit.prompts import Point
from samkit.runtime import open_session
from samkit.runtime.backends import tensorrt_library

FOLDER = Path(__file__).parent
LOAD = """
import importlib.util, sys
def load(name):
    spec = importlib.util.spec_from_file_location(name, {folder!r} + "/" + name + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
MODULES = (
    "tensorrt", "tensorrt_rtx", "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.driver",
)  # fmt: skip
PYCUDA, BINDINGS = "pycuda.driver", "cuda.bindings.driver"
RTX = "rtx-1.7"


def install(
    monkeypatch, folder, version="11.4", *, gpu="Stand-in H100", devices=1, drivers=(PYCUDA,), capability=(9, 0)
):
    """Put the stand-ins first on the path of this process and of its children, as if they were installed.

    `drivers` are the packages that drive CUDA; the library's memory is that of the first.
    """
    load = LOAD.format(folder=str(FOLDER))
    shutil.rmtree(folder, ignore_errors=True)
    _FOLDERS.add(str(folder))
    made = {
        PYCUDA: f"load('stand_in_pycuda').make(__spec__, {gpu!r}, {devices})",
        BINDINGS: "load('stand_in_cuda_bindings').make("
        f"load('stand_in_pycuda').State(), __spec__, {gpu!r}, {devices}, {capability})",
    }
    for name in drivers:
        file = folder / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True)
        for package in file.relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").write_text("")
        file.write_text(f"{load}\nsys.modules[__name__] = {made[name]}\n")
    folder.mkdir(exist_ok=True)
    (folder / f"{'tensorrt_rtx' if version == RTX else 'tensorrt'}.py").write_text(
        f"{load}\nmade = load('stand_in_tensorrt').make({version!r}, lambda: sys.modules[{drivers[0]!r}], __spec__)\n"
        "sys.modules[__name__] = made\n"
    )
    forget()
    for name in _REAL:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("STAND_IN_FAULT", raising=False)


_FOLDERS = set()
"""Where stand-ins lie."""
_REAL = {}
"""Modules that were loaded before a stand-in took their place: those of cuda-bindings load once in a process."""


def forget():
    """Take the stand-ins away, and put back what they stood for."""
    for name in MODULES:
        module = sys.modules.pop(name, None)
        if module is not None and not any(str(module.__spec__.origin).startswith(folder) for folder in _FOLDERS):
            _REAL[name] = module
    sys.modules.update(_REAL)
    tensorrt_library._logger.cache_clear()  # it is the class of a module that is gone


@pytest.fixture(params=["10.16", "11.4"])
def version(request):
    """Which TensorRT; tests that don't ask for it by parameter run with both."""
    return request.param


@pytest.fixture
def stand_ins(version, monkeypatch, tmp_path):
    """Install both stand-ins; return a function that installs others."""
    install(monkeypatch, tmp_path / "packages", version)

    def change(**facts):
        install(monkeypatch, tmp_path / "packages", facts.pop("version", version), **facts)

    yield change
    forget()


@pytest.fixture
def cuda():
    """Return what the stand-in that drives CUDA knows to be alive."""
    return lambda: next(sys.modules[name] for name in (PYCUDA, BINDINGS) if name in sys.modules).state


@pytest.fixture
def export(tiny_export, tmp_path, version):
    """A copy of an export; with the older TensorRT, its float32 graphs alone."""
    folder = shutil.copytree(tiny_export, tmp_path / "export")
    if version == "10.16":
        only_float32(folder)
    return folder


def only_float32(folder):
    manifest = Manifest.load(folder)
    replace(manifest, plan=replace(manifest.plan, precision="fp32")).save(folder)


@pytest.fixture
def quick(export, monkeypatch):
    """Build what is quick to build: float32 graphs alone, in this process, and parity not run."""
    only_float32(export)
    monkeypatch.setattr(engines_module, "repeat_parity", lambda *arguments: {})
    monkeypatch.setattr(
        engines_module.subprocess,
        "run",
        lambda command, **options: SimpleNamespace(returncode=build_engine.main([command[-1]])),
    )


@pytest.fixture
def two_clicks(built):
    """Return a function that gives the logits after each of two clicks, (2, I, J, K), on one backend."""
    folder, manifest, _ = built
    rng = np.random.default_rng(3)
    volume = Volume(rng.uniform(1, 2, (40, 40, 40)).astype(np.float32), np.diag([*manifest.plan.config.spacing, 1]))

    def logits_on(backend):
        with open_session(folder, backend=backend, precision="fp32") as session:
            session.set_image(volume)
            session.add(Point((20, 20, 20), 1))
            first = session.logits()
            session.add(Point((12, 25, 22), 0))
            second = session.logits()
            session.undo()
            np.testing.assert_array_equal(session.logits(), first)  # what a state holds was not written over
            session.redo()
            np.testing.assert_array_equal(session.logits(), second)
        return np.stack([first, second])

    return logits_on
