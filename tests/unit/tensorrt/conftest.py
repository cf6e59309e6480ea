"""Stand-ins for tensorrt and pycuda, in this process and in its children."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from samkit.export import build_engine
from samkit.export import engines as engines_module
from samkit.manifest import Manifest

FOLDER = Path(__file__).parent
LOAD = """
import importlib.util, sys
def load(name):
    spec = importlib.util.spec_from_file_location(name, {folder!r} + "/" + name + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
MODULES = ("tensorrt", "pycuda", "pycuda.driver")


def install(monkeypatch, folder, version="11.4", *, gpu="Stand-in H100", devices=1):
    """Put the stand-ins first on the path of this process and of its children, as if they were installed."""
    load = LOAD.format(folder=str(FOLDER))
    (folder / "pycuda").mkdir(parents=True, exist_ok=True)
    (folder / "pycuda" / "__init__.py").write_text("")
    (folder / "pycuda" / "driver.py").write_text(
        f"{load}\nsys.modules[__name__] = load('stand_in_pycuda').make(__spec__, {gpu!r}, {devices})\n"
    )
    (folder / "tensorrt.py").write_text(
        f"{load}\nmade = load('stand_in_tensorrt').make({version!r}, lambda: sys.modules['pycuda.driver'], __spec__)\n"
        "sys.modules[__name__] = made\n"
    )
    forget()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("STAND_IN_FAULT", raising=False)


def forget():
    for name in MODULES:
        sys.modules.pop(name, None)


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
    """Return what the pycuda stand-in knows to be alive."""
    return lambda: sys.modules["pycuda.driver"].state


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
