"""Repository and ServedExport: what `samkit.json` says about a model repository.

Triton ignores files in the root of a repository, so the record of what was written lies beside the models. Everything
that the record hashes is samkit's; `config.pbtxt` is not hashed, because whoever runs a server tunes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samkit.errors import ManifestError, SamkitError
from samkit.files import write_whole
from samkit.json_files import read_json, take_version
from samkit.json_records import from_json

SCHEMA_VERSION = 1
FILE_NAME = "samkit.json"

ONNXRUNTIME, TENSORRT, RTX, PYTHON, ENSEMBLE = "onnxruntime", "tensorrt", "tensorrt-rtx", "python", "ensemble"
"""What runs a model."""


@dataclass(frozen=True)
class ServedExport:
    """One export as a repository serves it."""

    method: str
    precision: str
    """Of all its graphs."""
    manifest: str
    """The export's `Manifest.digest`: reports carry it. The manifests in the repository have another one wherever
    weights came from a file, because they don't say where it lies."""
    models: Mapping[str, str]
    """Model name to what runs it: onnxruntime, tensorrt, tensorrt-rtx, python or ensemble."""
    files: Mapping[str, str]
    """Path relative to the repository to SHA-256: model files, model.py and manifest.json."""
    engines: Mapping[str, Any] = field(default_factory=dict)
    """Of each model that is an engine, the manifest's entry: its library, and the GPU or the target it needs."""


@dataclass(frozen=True)
class Repository:
    """What is in a model repository."""

    samkit: str
    """Version that wrote it."""
    exports: Mapping[str, ServedExport]
    """By the name that they are served under: `m_sam`, which is also the ensemble's."""

    @property
    def models(self) -> dict[str, str]:
        """Return every model of the repository and what runs it."""
        return {model: kind for export in self.exports.values() for model, kind in export.models.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def save(self, folder: Path) -> None:
        """Write the record into a repository that nobody serves yet."""
        write_whole(folder / FILE_NAME, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Repository:
        """Return the record of a repository; raises ManifestError when it is missing, broken or too new."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise ManifestError(
                f"{folder} holds no {FILE_NAME}, so it is no repository of samkit's; write one: "
                f"sam-serve write EXPORT --out {folder}"
            )
        try:
            version, data = take_version(read_json(path))
            if version <= SCHEMA_VERSION:
                return from_json(cls, data, "it")
        except (ValueError, SamkitError) as error:
            raise ManifestError(f"{path} is no record of a repository ({error}); write the repository again") from error
        raise ManifestError(
            f"{path} has schema {version}, this samkit reads up to {SCHEMA_VERSION}; upgrade samkit or write the "
            "repository again"
        )
