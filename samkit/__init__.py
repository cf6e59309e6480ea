"""samkit: SAM-based segmentation of medical volumes and pictures; networks from PyTorch training to checked ONNX files.

    import samkit

    with samkit.open_session("exports/m-sam") as session:
        session.set_image(array, affine=affine)
        session.click((60, 70, 30))
        session.save("mask.nii.gz")

The folder is what `sam-export --method m-sam --out exports/m-sam` wrote; `triton://HOST:PORT/m-sam` is the same on a
server. `set_image` takes a file's path, an image of nibabel or SimpleITK, a numpy array (I, J, K) with the affine
(4, 4) that leads from voxel index to RAS+ millimetres, or a picture (H, W) or (H, W, 3) for methods of slices. A click
is a voxel index; `session.mask()` is the mask as an array, `session.overlay()` a picture of it. `list_methods()` names
the methods, `help(samkit.open_session)` and `help(samkit.Session)` tell the rest. Failures are `SamkitError`s that say
what to do; `help(samkit.errors)` has all kinds of them, and the exit code that each gives a command.

Not a medical device. Nothing here needs torch, and names load when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samkit.telemetry import switch_off
from samkit.version import __version__

if TYPE_CHECKING:
    from samkit import errors, runtime
    from samkit.errors import SamkitError
    from samkit.methods import get_method, list_methods
    from samkit.prompts import Box, Point, SliceBox, SlicePoint
    from samkit.runtime.opening import open_session
    from samkit.runtime.session.base import Session
    from samkit.runtime.session.updates import MaskUpdate

__all__ = [
    "Box",
    "MaskUpdate",
    "Point",
    "SamkitError",
    "Session",
    "SliceBox",
    "SlicePoint",
    "__version__",
    "errors",
    "get_method",
    "list_methods",
    "open_session",
    "runtime",
]

_HOMES = {
    "Box": "prompts",
    "MaskUpdate": "runtime.session.updates",
    "Point": "prompts",
    "SamkitError": "errors",
    "Session": "runtime.session.base",
    "SliceBox": "prompts",
    "SlicePoint": "prompts",
    "get_method": "methods",
    "list_methods": "methods",
    "open_session": "runtime.opening",
}

switch_off()


def __getattr__(name: str) -> Any:
    if name in ("errors", "runtime"):
        return import_module(f"samkit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'samkit' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"samkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
