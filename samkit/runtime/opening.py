"""`open_session`: a session on an export folder or on a server, in the same words.

What each of the two needs is imported when it is wanted: a client of a server has numpy, nibabel and tritonclient.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samkit.errors import PromptError
from samkit.geometry import Triple
from samkit.runtime.client.remote_session import RemoteSession, open_remote_session
from samkit.runtime.client.triton_transport import Address, is_url

if TYPE_CHECKING:
    from samkit.runtime.session.slice_session import SliceSession
    from samkit.runtime.session.volume_session import Session


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
) -> Session | SliceSession | RemoteSession:
    """Return a session on an export folder, or on what a server serves: `triton://HOST:PORT/NAME`, `triton+http://...`.

    With a folder, a method of volumes gives a Session and a method of slices a SliceSession; their files are checked
    against the manifest first, and `backend`, `device`, `precision` and `threads` are those of `open_export`. With an
    address it is a RemoteSession, the server decides those four, and
    `timeout` [s] is how long one call may take, by default DEFAULT_TIMEOUT, and DECIDE_TIMEOUT for one that decides on
    many slices. `spacing` [mm] is for methods of volumes, `plane` and `intensities` (what becomes black and white) for
    those of slices; each is by default the method's own.
    """
    if is_url(target):
        address = Address.parse(str(target))  # first: what is none may hold a password, and is not repeated
        given = {"backend": backend, "device": device, "precision": precision, "threads": threads}
        if decided := [name for name, value in given.items() if value is not None]:
            raise PromptError(
                f"{', '.join(decided)} can't be chosen for {address}, the server decides how it runs its exports; "
                f"leave {'it' if len(decided) == 1 else 'them'} out"
            )
        return open_remote_session(str(target), spacing=spacing, plane=plane, intensities=intensities, timeout=timeout)
    from samkit.runtime.session.volume_session import open_export

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
