"""`open_session`: a session on an export folder or on a server, in the same words.

What each of the two needs is imported when it is wanted: a client of a server has numpy, nibabel and tritonclient.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from samkit.errors import ExportError, OptionError
from samkit.files import given_path
from samkit.geometry import Triple
from samkit.runtime.client.remote_session import open_remote_session
from samkit.runtime.client.triton_transport import GRPC, Address, is_url, meant_address
from samkit.runtime.session.base import Session
from samkit.runtime.session.view import View

if TYPE_CHECKING:
    from samkit.manifest import Export
    from samkit.runtime.backends.runner import Runner
    from samkit.runtime.session.slice_session import SliceSession
    from samkit.runtime.session.volume_session import VolumeSession

_LOG = logging.getLogger(__name__)


def open_session(
    target: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
    timeout: float | None = None,
    restore: bool | None = None,
) -> Session:
    """Return a session on an export folder, or on what a server serves: `triton://HOST:PORT/NAME`, `triton+http://...`.

        with open_session("exports/m-sam") as session:  # what `sam-export --method m-sam --out exports/m-sam` wrote
            session.set_image("scan.nii.gz")            # or an image of nibabel or SimpleITK, or a numpy array:
            session.set_image(array, affine=affine)     # (I, J, K), and (4, 4) from voxel index to RAS+ millimetres
            update = session.click((60, 70, 30))        # a voxel of the object; positive=False is one beside it
            mask = update.mask                          # bool, (I, J, K), on the scan's own array
            session.save("mask.nii.gz")                 # where the scan lies; session.overlay() is a picture of it

    Methods of slices also take `session.box(first, last)` and pictures, automatic ones segment as soon as an image is
    set; `help(session)` has all acts, `samkit.list_methods()` all methods.

    With a folder, its files are checked against the manifest first, and these say what runs them:

    - `backend`: `onnxruntime`, which is the default, `onnxruntime-tensorrt`, `tensorrt`, `tensorrt-rtx`,
      `tensorrt-rtx-eager` or `torch`
    - `device`: `cpu` or `cuda`; by default the backend's own, `cpu` of `onnxruntime` and `torch`, else `cuda`
    - `precision`: `fp32` or `fp16`, which an export has if it was made so; by default `fp16` on `cuda` where backend
      and export have it, else `fp32`
    - `threads`: of one operator on the CPU; by default all cores

    With an address the server decides those four, and `timeout` [s] is how long one call may take: by default 120, and
    3600 for one that works on many slices. Where the server was started again, or forgot the session because nobody
    used it, the next call sends scan and prompts again, within that time, and its update says `restored`; with
    `restore=False` it raises `ServerRestarting`, `ServerRestarted` or `SessionExpired` instead.

    `spacing` [mm], three numbers, is for methods of volumes; `plane`, which is `axial`, `coronal` or `sagittal`, and
    `intensities`, what becomes black and what white, are for those of slices. Each is by default the method's own.

    What must be known of weights, backend and server (`session.warnings`: RANDOM WEIGHTS) is logged as warnings of
    `samkit`, which Python shows on stderr where nothing else is set up. Failures are of `samkit.errors`.
    """
    if is_url(target):
        address = Address.parse(str(target))  # first: what is none may hold a password, and is not repeated
        given = {"backend": backend, "device": device, "precision": precision, "threads": threads}
        if decided := [name for name, value in given.items() if value is not None]:
            names = ", ".join(f"{{{name}}}" for name in decided)
            raise OptionError(
                f"{names} can't be chosen for {address}, the server decides how it runs its exports; "
                f"leave {'it' if len(decided) == 1 else 'them'} out",
                options=decided,
            )
        session: Session = open_remote_session(
            str(target),
            spacing=spacing,
            plane=plane,
            intensities=intensities,
            timeout=timeout,
            restore=True if restore is None else restore,
        )
    else:
        if (meant := meant_address(target)) is not None:
            raise OptionError(f"there is no folder {target}; did you mean the server's address '{meant}'?")
        if served := [name for name, value in {"timeout": timeout, "restore": restore}.items() if value is not None]:
            raise OptionError(
                f"{{{served[0]}}} is for a server's answers, and an export in a folder waits for none; leave it out",
                options=served[:1],
            )
        session = open_export(
            target,
            backend=backend,
            device=device,
            precision=precision,
            threads=threads,
            spacing=spacing,
            plane=plane,
            intensities=intensities,
        )
    for warning in session.warnings:
        _LOG.warning("%s: %s", session.target, warning)
    return session


def open_export(
    export: str | Path | Export,
    *,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
) -> VolumeSession | SliceSession:
    """Return a session on an export, or on that of a folder; files that it could use are compared with the manifest.

    `backend` is one of `samkit.runtime.backends.BACKENDS`; `device` is `cpu` or `cuda`, by default the backend's own;
    `precision` is by default what the device prefers where backend and export have it, else `fp32`. `spacing` [mm] is
    for methods of volumes, `plane` and `intensities` (what becomes black and white) for those of slices; each is by
    default the method's own.
    """
    from samkit.manifest import Export
    from samkit.runtime import backends

    view = View.of(spacing, plane, intensities)  # all that a user says first: to open an export takes long
    threads = backends.checked_threads(threads)
    name = backends.DEFAULT.name if backend is None else backend
    record, device = backends.find_backend(name, device, precision)
    if not isinstance(export, Export):
        if not isinstance(export, (str, os.PathLike)):
            raise OptionError(
                f"the export is of the type {type(export).__name__}; give the folder that sam-export wrote, such as "
                f"'exports/m-sam', or a server's address, such as '{GRPC}://127.0.0.1:8001/m-sam'"
            )
        export = Export.open(given_path(export, "the export"), verify=False)
    if not record.checks_bytes:
        export.verify()
    variant = backends.Variant(record.name, precision or backends.default_precision(export, record, device), device)
    with ExitStack() as opened:
        runners, warnings = backends.open_runners(export, variant, threads)
        for runner in runners.values():
            opened.callback(runner.close)
        session = make_session(
            export,
            runners,
            variant.precision,
            spacing=view.spacing,
            plane=view.plane,
            intensities=view.intensities,
        )
        session.warn(*warnings)
        opened.pop_all()  # the session closes them from here on
    return session


def make_session(
    export: Export,
    runners: Mapping[str, Runner],
    precision: str,
    *,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
) -> VolumeSession | SliceSession:
    """Return a session of the method's kind on `runners`; raises OptionError for an option of the other kind."""
    from samkit.methods.method import SliceMethod, VolumeMethod
    from samkit.networks.sam3d_config import Sam3DConfig
    from samkit.runtime.session.slice_session import SliceSession
    from samkit.runtime.session.volume_session import VolumeSession

    method, config, manifest = export.method, export.config, export.manifest
    session: VolumeSession | SliceSession
    if isinstance(method, SliceMethod):
        if spacing is not None:
            raise OptionError(
                f"{method.name} works on slices as they are and takes no spacing; leave {{spacing}} out",
                options=("spacing",),
            )
        session = SliceSession(
            method, config, runners, plane=plane, intensities=intensities, precision=precision, manifest=manifest
        )
    elif isinstance(method, VolumeMethod) and isinstance(config, Sam3DConfig):
        if plane is not None or intensities is not None:
            option = "plane" if plane is not None else "intensities"
            raise OptionError(
                f"{{{option}}} is for methods of slices, and {method.name} works on volumes; leave it out",
                options=(option,),
            )
        refinement = str(export.plan.refinement)
        session = VolumeSession(
            method, config, refinement, runners, spacing=spacing, precision=precision, manifest=manifest
        )
    else:
        raise ExportError(f"{method.name} is neither a method of slices nor of volumes; upgrade samkit")
    session.target = f"export {export.folder.name}"
    return session
