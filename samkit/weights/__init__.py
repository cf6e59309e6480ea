"""Demonstration weights: small networks trained on phantoms alone, to show the tool at work.

They have never seen a patient and are for no patient. `python -m samkit.training.demo_weights --out samkit/weights`
makes them again; the JSON beside each says how they were made.
"""

from __future__ import annotations

from pathlib import Path

from samkit.errors import CheckpointError

_FOLDER = Path(__file__).parent


def demo_checkpoint(method: str) -> Path:
    """Return the demonstration weights (.safetensors) of `method`; CheckpointError where there are none."""
    path = find_demo(method)
    if path is None:
        shipped = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.safetensors"))) or "none"
        raise CheckpointError(
            f"samkit has no demonstration weights for '{method}' (it has: {shipped}); give your own with --checkpoint"
        )
    return path


def find_demo(method: str) -> Path | None:
    """Return the demonstration weights of `method`; None where there are none."""
    path = _FOLDER / f"{method}.safetensors"
    return path if path.is_file() and path.with_suffix(".json").is_file() else None
