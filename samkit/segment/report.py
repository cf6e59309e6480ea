"""The report of a segmentation: its result, and all that is needed to do it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from samkit.files import write_whole
from samkit.imageio.study import Study
from samkit.manifest import Weights, file_sha256
from samkit.prompts import Point, Prompt, SlicePoint, prompt_json
from samkit.runtime.session.base import Session
from samkit.version import __version__

_PACKAGES = ("numpy", "scipy", "nibabel", "pillow", "onnxruntime", "onnxruntime-gpu", "torch")
_CLIENT_PACKAGES = ("numpy", "scipy", "nibabel", "pillow", "tritonclient")


_CASE_DIGITS = 12


def first_sha256(study: Study) -> str:
    """Return the SHA-256 of a study's first file."""
    return file_sha256(next(iter(_files(study).values())))


def case_of(sha256: str) -> str:
    """Return what a case is called where it may be handed on: the first digits of its first file's SHA-256."""
    return sha256[:_CASE_DIGITS]


def without_names(sentence: str, study: Study, case: str) -> str:
    """Return a sentence about a study in which its files are called by the case's id.

    >>> without_names("scan.nii: no window", Study({"": Path("scan.nii")}, {}, None), "3f9a1c20b7d4")
    'case 3f9a1c20b7d4: no window'
    """
    names = {path.name for path in (*study.sources, *study.files.values())}
    for name in sorted(names, key=len, reverse=True):  # one may be a part of another
        sentence = sentence.replace(name, f"case {case}")
    return sentence


def provenance(
    session: Session,
    study: Study,
    sha256: str,
    prompts: Sequence[Prompt],
    mask_path: Path,
    *,
    show_names: bool = False,
) -> dict[str, Any]:
    """Return what a report adds; `sha256` is of the study's first file.

    Names of files, which may name a patient, are in it with `show_names` alone.
    """
    plan = session.manifest.plan
    files = _files(study)
    first = next(iter(files.values()))
    names = {"mask": mask_path.name, "input": first.name} if show_names else {}
    how = (
        {"spacing_mm": list(session.spacing), "crop_origins": [list(origin) for origin in session.origins]}
        if session.spacing is not None
        else {
            "inputs": {
                name: {
                    **({"file": path.name} if show_names else {}),
                    "sha256": sha256 if path == first else file_sha256(path),
                }
                for name, path in files.items()
            }
        }
    )
    return {
        **names,
        "samkit": __version__,
        "manifest_sha256": session.manifest.digest,
        "weights": _weights(plan.weights),
        "other_weights": {name: _weights(weights) for name, weights in plan.others.items()},
        "refinement": plan.refinement,
        "input_sha256": sha256,
        **({} if study.volume is None else {"volume": study.volume}),
        **how,
        "output_sha256": file_sha256(mask_path),
        "points_voxel": [prompt_json(prompt) for prompt in prompts if isinstance(prompt, (Point, SlicePoint))],
        "boxes_voxel": [prompt_json(prompt) for prompt in prompts if not isinstance(prompt, (Point, SlicePoint))],
        "providers": {graph: list(names) for graph, names in session.providers.items()},
        "versions": {"python": platform.python_version(), **_versions(session)},
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, complete or not at all."""
    write_whole(path, json.dumps(report, indent=1) + "\n")


def _files(study: Study) -> dict[str, Path]:
    """Return the file that each input was read from."""
    return {
        name: (scan.path if (scan := study.scans.get(name)) else None) or path for name, path in study.files.items()
    }


def _weights(weights: Weights) -> dict[str, str | None]:
    return {"kind": weights.kind, "sha256": weights.sha256}


def _versions(session: Session) -> dict[str, str]:
    """Return versions of what took part here; a server tells of its samkit."""
    found: dict[str, str] = {}
    packages: tuple[str, ...] = _PACKAGES
    if session.server_samkit is not None:
        found["server_samkit"] = session.server_samkit
        packages = _CLIENT_PACKAGES
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
