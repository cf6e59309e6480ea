"""The precisions of graphs: one file with a record each, and one line here.

Commands, file names, tolerances, gates, plots and Triton repositories know those of this list and no other.
"""

from __future__ import annotations

from samkit.errors import SamkitError
from samkit.precisions.fp16 import FP16
from samkit.precisions.fp32 import FP32
from samkit.precisions.precision import Precision, Tolerance

__all__ = ["BASE", "DECODER_TOLERANCE", "ENCODER_TOLERANCE", "PRECISIONS", "Precision", "Tolerance", "get_precision"]

PRECISIONS: tuple[Precision, ...] = (FP32, FP16)
"""All of them, in the order of tables."""
BASE = FP32
"""What every export has and the PyTorch originals compute in; the files of the others are made of its files."""
ENCODER_TOLERANCE = {precision.name: precision.encoder for precision in PRECISIONS}
"""Of a graph whose outputs are features, by precision."""
DECODER_TOLERANCE = {precision.name: precision.decoder for precision in PRECISIONS}
"""Of a graph that masks or boxes are made of, by precision."""


def get_precision(name: str) -> Precision:
    """Return the record of the precision called `name`; raises SamkitError with the names there are.

    >>> get_precision("fp16").suffix
    '.fp16'
    """
    for precision in PRECISIONS:
        if precision.name == name:
            return precision
    raise SamkitError(
        f"the precision '{name}' is not known; known are {', '.join(precision.name for precision in PRECISIONS)}"
    )
