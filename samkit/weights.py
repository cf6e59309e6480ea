"""Demonstration weights: small networks trained on phantoms alone, to show the tool at work.

They have never seen a patient and are for no patient. They are a distribution of their own, samkit-demo-weights, whose
package holds nothing but files; everything with a checkpoint works without it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from samkit.errors import CheckpointError, MissingDependencyError
from samkit.extras import how_to_install_demo

_PACKAGE = "samkit_demo_weights"


def demo_checkpoint(method: str) -> Path:
    """Return the demonstration weights (.safetensors) of `method`.

    Raises MissingDependencyError where none are installed, CheckpointError where there are none of this method.
    """
    if (path := find_demo(method)) is not None:
        return path
    if (folder := _folder()) is None:
        raise MissingDependencyError(
            f"the demonstration weights are not installed; {how_to_install_demo()}, or give weights of your own with "
            "{checkpoint}",
            options=("checkpoint",),
        )
    there = ", ".join(sorted(path.stem for path in folder.glob("*.safetensors"))) or "none"
    raise CheckpointError(
        f"there are no demonstration weights for '{method}' (there are: {there}); give your own with {{checkpoint}}",
        options=("checkpoint",),
    )


def find_demo(method: str) -> Path | None:
    """Return the demonstration weights of `method`; None where there are none, or none are installed."""
    if (folder := _folder()) is None:
        return None
    path = folder / f"{method}.safetensors"
    return path if path.is_file() and path.with_suffix(".json").is_file() else None


def _folder() -> Path | None:
    spec = find_spec(_PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
