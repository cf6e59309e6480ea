"""The registry: every module here that does not begin with an underscore is one method; the file is the
registration. `method.py` holds the record itself.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from samkit.errors import UnknownMethodError
from samkit.methods.method import GraphSpec, Method, Recipe, SliceMethod, VolumeMethod

__all__ = [
    "GraphSpec",
    "Method",
    "Recipe",
    "SliceMethod",
    "VolumeMethod",
    "get_method",
    "list_methods",
]


def list_methods() -> list[str]:
    """Return the names of all methods, sorted.

    >>> "m-sam" in list_methods()
    True
    """
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "method" and not name.startswith("_"))


def get_method(name: str) -> Method:
    """Return the record of the method called `name`; raises UnknownMethodError with the nearest name.

    >>> get_method("sam-med3d").sizes["full"].patch
    128
    """
    known = list_methods()
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UnknownMethodError(f"unknown method '{name}'; available: {', '.join(known)}.{hint}")
    method: Method = importlib.import_module(f"samkit.methods.{name.replace('-', '_')}").METHOD
    return method
