"""What the first bytes of an engine of TensorRT for RTX say, read without its library, a driver or a GPU.

The layout is documented nowhere. It was read off engines that 1.7.1 built for every target, and off what its runtime
says of headers in which one field was changed (tests/unit/tensorrt/test_headers.py repeats both). The platform is not
in it, and neither is a sum of the rest, which the manifest's SHA-256 stands for.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samkit.engine_libraries import RTX
from samkit.errors import ManifestError, MissingDependencyError
from samkit.manifest import Manifest
from samkit.runtime.backends.tensorrt_library import is_known, tensorrt_version

_log = logging.getLogger(__name__)

HEADER_SIZE = 64
"""`Runtime.engine_header_size`."""
_LAYOUT = struct.Struct("<4s12xQ4B4sI")
"""Magic, size of the file, version, magic, targets; zeros and numbers of unknown meaning are left out."""
_MAGIC = b"vtrt"
_TARGETS = {"sm75": 1, "sm80": 2, "sm86": 4, "sm89": 8, "sm120": 16}


@dataclass(frozen=True)
class EngineHeader:
    """What an engine says of itself."""

    version: str
    """Of the library that built it."""
    size: int
    """Of the whole file."""
    targets: tuple[str, ...]
    """Those of the targets that samkit knows for which there are kernels."""

    @classmethod
    def read(cls, data: bytes) -> EngineHeader | None:
        """Return what an engine's first bytes say; None where they are no header."""
        if len(data) < HEADER_SIZE:
            return None
        magic, size, *version, again, targets = _LAYOUT.unpack_from(data)
        if (magic, again) != (_MAGIC, _MAGIC):
            return None
        return cls(".".join(map(str, version)), size, tuple(name for name, bit in _TARGETS.items() if targets & bit))


def check_headers(folder: Path, manifest: Manifest) -> int:
    """Hold each engine of TensorRT for RTX to its manifest's entry; return how many headers were read.

    An engine of a version whose layout is not known is logged and left to its SHA-256, and so are engines of TensorRT.
    Raises ManifestError where an engine is another than the manifest says.
    """
    checked, here = 0, _version_here()
    for name, entry in manifest.engines.items():
        if entry.get("library") != RTX.name:
            continue
        stated = str(entry.get(RTX.version_fact))
        if not is_known(stated, RTX):
            _log.warning("%s: its header was not read, that of %s %s is not known", name, RTX.title, stated)
            continue
        if name not in entry["files"]:
            raise ManifestError(
                f"the manifest of {folder} lists no file {name} for the engine of this name; build it "
                f"again: sam-export --build-engines {folder}"
            )
        _check(folder / name, entry, stated)
        checked += 1
        if here is not None and here != stated:
            _log.warning(
                "%s was built by %s %s, and here is %s, which may refuse it; build it again: sam-export "
                "--build-engines %s", name, RTX.title, stated, here, folder,
            )  # fmt: skip
    return checked


def _version_here() -> str | None:
    """Return the version of the library that is installed; None where it is not, which no check needs."""
    try:
        return tensorrt_version(RTX)
    except MissingDependencyError:
        return None


def _check(path: Path, entry: dict[str, Any], version: str) -> None:
    """Hold one engine to its entry."""
    with path.open("rb") as file:
        header = EngineHeader.read(file.read(HEADER_SIZE))
    found = None
    if header is None:
        found = f"begins as no engine of {RTX.title} does"
    elif header.size != path.stat().st_size:
        found = f"has {path.stat().st_size} bytes, and its header says {header.size}"
    elif header.version != version:
        found = f"was built by {RTX.title} {header.version}, and the manifest says {version}"
    elif header.targets != RTX.generations(str(entry.get("target"))):
        found = (
            f"was built for {', '.join(header.targets) or 'no known target'}, and the manifest says {entry['target']}"
        )
    if found is not None:
        raise ManifestError(f"{path} {found}; build it again: sam-export --build-engines {path.parent}")
