"""`open_session`: a session on an export folder or on a server, in the same words.

What each of the two needs is imported when it is wanted: a client of a server has numpy, nibabel and tritonclient.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from samkit.errors import ExportError, OptionError
from samkit.geometry import Triple
from samkit.runtime.client.remote_session import open_remote_session
from samkit.runtime.client.triton_transport import Address, is_url
from samkit.runtime.session.base import Session

if TYPE_CHECKING:
    from samkit.manifest import Export
    from samkit.runtime.backends.runner import Runner
    from samkit.runtime.session.slice_session import SliceSession
    from samkit.runtime.session.volume_session import VolumeSession


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
) -> Session:
    """Return a session on an export folder, or on what a server serves: `triton://HOST:PORT/NAME`, `triton+http://...`.

    With a folder, its files are checked against the manifest first, and `backend`, `device`, `precision` and `threads`
    are those of `open_export`. With an address the server decides those four, and `timeout` [s] is how long one call
    may take, by default DEFAULT_TIMEOUT, and LONG_TIMEOUT for one that works on many slices. `spacing` [mm] is for
    methods of volumes, `plane` and `intensities` (what becomes black and white) for those of slices; each is by default
    the method's own.
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
        return open_remote_session(str(target), spacing=spacing, plane=plane, intensities=intensities, timeout=timeout)
    return open_export(
        target,
        backend="onnxruntime" if backend is None else backend,
        device=device,
        precision=precision,
        threads=threads,
        spacing=spacing,
        plane=plane,
        intensities=intensities,
    )


def open_export(
    folder: str | Path,
    *,
    backend: str = "onnxruntime",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
) -> VolumeSession | SliceSession:
    """Return a session on an export folder; files that it could use are checked against the manifest first.

    `backend` is `onnxruntime`,
    `onnxruntime-tensorrt` (its TensorRT provider), `tensorrt` (engines that the manifest lists, built here) or `torch`
    (float32, needs the checkpoint that the manifest names); `device` is `cpu` or `cuda`, by default `cuda` for the two
    of TensorRT, which need it, and `cpu` for the others; `precision` is by default `fp16` on CUDA where the export has
    it, else `fp32`, which `onnxruntime-tensorrt` always runs unless it is told. `spacing` [mm] is for methods of
    volumes, `plane` and `intensities` (what becomes black and white) for those of slices; each is by default the
    method's own.
    """
    from samkit.manifest import Export
    from samkit.runtime.backends.runner import add_substitutes
    from samkit.runtime.session.volume_session import (
        BACKENDS,
        DEVICES,
        TENSORRT,
        default_device,
        default_precision,
        open_runners,
    )

    device = default_device(backend) if device is None else device
    if backend not in BACKENDS or device not in DEVICES:
        raise ExportError(
            f"backend '{backend}' on device '{device}' is not known; backends are {', '.join(BACKENDS)}, devices "
            f"{', '.join(DEVICES)}"
        )
    # The runners of TensorRT check the very bytes that they load, and need nothing else of the export
    export = Export.open(folder, verify=backend != TENSORRT)
    if precision is None:
        precision = default_precision(export.manifest, backend, device)
    with ExitStack() as opened:
        runners, warnings = open_runners(export.folder, export.manifest, backend, device, precision, threads)
        for runner in runners.values():
            opened.callback(runner.close)
        add_substitutes(runners, export.graphs)
        session = make_session(export, runners, precision, spacing=spacing, plane=plane, intensities=intensities)
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
    if isinstance(method, SliceMethod):
        if spacing is not None:
            raise OptionError(
                f"{method.name} works on slices as they are and takes no spacing; leave {{spacing}} out",
                options=("spacing",),
            )
        return SliceSession(
            method, config, runners, plane=plane, intensities=intensities, precision=precision, manifest=manifest
        )
    if not isinstance(method, VolumeMethod) or not isinstance(config, Sam3DConfig):
        raise ExportError(f"{method.name} is neither a method of slices nor of volumes; upgrade samkit")
    if plane is not None or intensities is not None:
        option = "plane" if plane is not None else "intensities"
        raise OptionError(
            f"{{{option}}} is for methods of slices, and {method.name} works on volumes; leave it out",
            options=(option,),
        )
    refinement = str(export.plan.refinement)
    return VolumeSession(method, config, refinement, runners, spacing=spacing, precision=precision, manifest=manifest)
