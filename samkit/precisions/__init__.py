"""The precisions of graphs: one file with a `PRECISION` each, and its name in the list here.

Commands, file names, tolerances, gates, plots and Triton repositories know those of this list and no other.
"""

from __future__ import annotations

from importlib import import_module

from samkit.errors import OptionError
from samkit.precisions.precision import Precision, Tolerance

__all__ = ["BASE", "DECODER_TOLERANCE", "ENCODER_TOLERANCE", "PRECISIONS", "Precision", "Tolerance", "get_precision"]

_FILES = (
    "fp32",
    "fp16",
)
PRECISIONS: tuple[Precision, ...] = tuple(import_module(f"{__name__}.{file}").PRECISION for file in _FILES)
"""All of them, in the order of tables."""
BASE = PRECISIONS[0]
"""What every export has and the PyTorch originals compute in; the files of the others are made of its files."""
ENCODER_TOLERANCE = {precision.name: precision.encoder for precision in PRECISIONS}
"""Of a graph whose outputs are features, by precision."""
DECODER_TOLERANCE = {precision.name: precision.decoder for precision in PRECISIONS}
"""Of a graph that masks or boxes are made of, by precision."""


def get_precision(name: str) -> Precision:
    """Return the record of the precision called `name`; raises OptionError with the names there are.

    >>> get_precision("fp16").suffix
    '.fp16'
    """
    for precision in PRECISIONS:
        if precision.name == name:
            return precision
    meant = [f"; {name} is called {precision.name}" for precision in PRECISIONS if precision.title == name]
    raise OptionError(
        f"the precision '{name}' is not known; known are {', '.join(precision.name for precision in PRECISIONS)}"
        + "".join(meant)
    )
