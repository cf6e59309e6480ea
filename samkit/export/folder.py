"""The folder of an export: what may be replaced there, what is kept, and how finished files move in."""

from __future__ import annotations

import shutil
from pathlib import Path

from samkit.errors import ExportError, ManifestError
from samkit.manifest import FILE_NAME, Manifest


def check_folder(out: Path) -> None:
    """Raise ExportError where `out` is no folder, or one that holds anything but an export of ours."""
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file, and an export is a folder; choose another {{out}}", options=("out",))
    if out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).is_file():
        raise ExportError(
            f"{out} holds files that no export of samkit's wrote, and nothing of yours is replaced; "
            "choose an empty or a new folder with {out}",
            options=("out",),
        )


def finished_export(out: Path) -> Manifest | None:
    """Return the manifest of the unchanged export in `out`, None where there is none; ExportError for a changed one."""
    if not (out / FILE_NAME).exists():
        return None
    try:
        there = Manifest.load(out)
        there.verify(out, engines=False)
    except ManifestError as error:
        raise ExportError(f"{error}. To replace what is in {out}, pass {{force}}", options=("force",)) from error
    return there


def move_export(source: Path, out: Path, manifest: Manifest) -> None:
    """Move the finished files of `source` into `out`: the old manifest goes first, the new one comes last.

    Of what is there, only files that the old manifest lists are removed.
    """
    out.mkdir(exist_ok=True)
    if (out / FILE_NAME).is_file():
        try:
            stale = [artifact.file for artifact in Manifest.load(out).artifacts]
        except ManifestError:
            stale = []
        (out / FILE_NAME).unlink()
        for name in stale:
            (out / Path(name).name).unlink(missing_ok=True)
    for name in [*(artifact.file for artifact in manifest.artifacts), FILE_NAME]:
        shutil.move(source / name, out / name)
