"""Where `sam-segment` lets the work be done: an export in its folder, or what a server has under a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samkit.manifest import Export
from samkit.methods.method import Method
from samkit.runtime.backends import find_backend
from samkit.runtime.client.remote_session import open_remote_session
from samkit.runtime.opening import open_export
from samkit.runtime.session.base import Session
from samkit.runtime.session.view import View


@dataclass(frozen=True)
class Place:
    """What is known of an export before a session on it is needed, and how to get one."""

    method: Method
    config: Any
    open: Callable[[], Session]
    """Gives the session, which whoever made the place closes."""
    figures: Mapping[str, str | None]
    """What the JSON line says of it."""
    said: str
    """What a person is told."""
    files: tuple[Path, ...] = ()
    """Files of the export, which nothing may be written over."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Return the names of what the method tells apart."""
        return self.method.structures(self.config)


def in_folder(
    folder: Path,
    view: View,
    opened: ExitStack,
    *,
    backend: str,
    device: str | None,
    precision: str | None,
    threads: int | None,
) -> Place:
    """Return the export in a folder; `opened` closes its session. Raises ManifestError, ExportError, OptionError."""
    export = Export.open(folder, verify=False)  # the session's own opening verifies
    record, device = find_backend(backend, device, precision)

    def start() -> Session:
        session = open_export(
            export,
            backend=record.name,
            device=device,
            precision=precision,
            threads=threads,
            spacing=view.spacing,
            plane=view.plane,
            intensities=view.intensities,
        )
        opened.callback(session.close)
        return session

    figures = {"backend": record.name, "device": device}
    said = f"on {record.name}, {device}"
    return Place(export.method, export.config, start, figures, said, tuple(folder.iterdir()))


def on_server(url: str, view: View, opened: ExitStack, *, timeout: float | None) -> Place:
    """Return what is served at `url`; `opened` closes its session. Raises as `open_remote_session` does."""
    session = opened.enter_context(
        open_remote_session(url, spacing=view.spacing, plane=view.plane, intensities=view.intensities, timeout=timeout)
    )
    figures = {"backend": "triton", "device": None, "server": url}
    return Place(session.method, session.config, lambda: session, figures, f"at {url}")
