"""What the embedded server is made of, and where it lies on this machine.

The nvidia-pytriton wheel holds tritonserver, its Python backend and one stub for each version of Python. Nothing of its
Python package is imported.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where the Python backend has its tensors, no file of ours
SHARED_BYTES = 16 << 20
"""What each model that runs in Python takes of it at once; more when it needs more."""
PYTHONS = ("3.11", "3.12")
"""Those that samkit runs on; the wheel has a stub for each."""


@dataclass(frozen=True)
class ServerFiles:
    """Where the parts of the embedded server are, on this machine."""

    program: Path
    """tritonserver itself."""
    python_backend: Path
    """Folder of the Python backend."""
    stub: Path
    """The program that runs a Python model, of the running Python's version."""
    libraries: tuple[Path, ...]
    """Folders of shared libraries: the wheel's, and the running Python's."""
    python: Path
    """Folder of the running Python: the stub finds its packages through the `python3` there."""


def find_server() -> ServerFiles:
    """Return the parts of the server; raises MissingDependencyError naming what is missing or does not fit."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"nvidia-pytriton, whose wheel holds the Triton server, is not installed; {how_to_install('serve')}"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    files = ServerFiles(
        program=package / "tritonserver" / "bin" / "tritonserver",
        python_backend=package / "tritonserver" / "backends" / "python",
        stub=package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=(package.parent / "nvidia_pytriton.libs", _library_folder()),
        python=Path(sys.executable).parent,
    )
    if version not in PYTHONS or not files.stub.is_file():
        raise MissingDependencyError(
            f"this is Python {version}, and the server runs models in Python {' or '.join(PYTHONS)}; make a virtual "
            "environment of one of those"
        )
    for path in (files.program, files.python_backend, *files.libraries):
        if not path.exists():
            raise MissingDependencyError(
                f"the nvidia-pytriton that is installed lacks {path.name}; install version 0.7: "
                f"{how_to_install('serve')}"
            )
    found = files.python / "python3"
    if not found.exists() or found.resolve() != Path(sys.executable).resolve():
        raise MissingDependencyError(
            f"{found} is not the Python that runs this, {sys.executable}, and the server would take the packages of "
            "that one; run sam-serve from a virtual environment"
        )
    return files


def check_numpy() -> None:
    """Raise MissingDependencyError for a numpy that the server's stub can't read tensors of."""
    if int(np.__version__.split(".")[0]) >= 2:
        raise MissingDependencyError(
            f"numpy {np.__version__} is installed, and the server's stub reads wrong numbers from tensors of numpy 2; "
            "pip install 'numpy<2', or serve with NVIDIA's container"
        )


def _library_folder() -> Path:
    """Return the folder of the running Python's shared library, which the stub links."""
    name, folder = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or not (Path(folder) / name).is_file():
        raise MissingDependencyError(
            f"the Python that runs this, {sys.executable}, has no shared libpython, and the server's stub links one; "
            "use one built with --enable-shared"
        )
    return Path(folder)


def lay_out_backends(files: ServerFiles, folder: Path) -> None:
    """Fill `folder` with the backends: the wheel's Python one, with the stub of this Python, and our stand-in."""
    python = folder / "python"
    shutil.copytree(files.python_backend, python, ignore=shutil.ignore_patterns("__pycache__"))
    stub = python / files.stub.name
    shutil.copy(files.stub, stub)
    stub.chmod(0o755)  # the wheel's files lost their run bit
    stand_in = folder / "onnxruntime"
    stand_in.mkdir()
    shutil.copy(Path(__file__).parent / "backends" / "onnxruntime" / "model.py", stand_in)


def server_environment(files: ServerFiles, given: Mapping[str, str], device: str) -> dict[str, str]:
    """Return the environment of the server: this Python first, libraries of wheel and Python, GPUs for cuda only."""

    def before(name: str, *folders: Path) -> str:
        return os.pathsep.join([*map(str, folders), *filter(None, [given.get(name)])])

    return {
        **{name: value for name, value in given.items() if name not in ("PYTHONHOME", "PYTHONPATH")},
        "PATH": before("PATH", files.python),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", *files.libraries),
        # Scans come and go in messages of tens of megabytes: mapped, they are given back; on the heap of one of many
        # threads they leave gaps, and the server grows with every session
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        **({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
    }
