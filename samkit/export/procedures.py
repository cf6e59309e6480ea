"""Which procedure puts a method to the test: ten clicks on a volume, or every kind of prompt on a slice.

A procedure is a module with `Reference`, `make_references`, `new_figures` and `findings`.
"""

from __future__ import annotations

from typing import Any

from samkit.export import click_parity, slice_parity
from samkit.methods import Method, SliceMethod


def procedure_of(method: Method) -> Any:
    """Return the module that knows how a method of this kind is put to the test."""
    return slice_parity if isinstance(method, SliceMethod) else click_parity
