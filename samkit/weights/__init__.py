"""Small demonstration checkpoints, trained on phantoms alone: they show the tool at work and are never for patients.

`make weights` makes them again.
"""

from __future__ import annotations

from pathlib import Path

from samkit.errors import CheckpointError


def demo_checkpoint(method_name: str) -> Path:
    """Return the demonstration weights of a method; raises CheckpointError where none are shipped."""
    path = Path(__file__).parent / f"{method_name}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"samkit ships no demonstration weights for '{method_name}'; give your own with --checkpoint, or use "
            "--size tiny for random ones"
        )
    return path
