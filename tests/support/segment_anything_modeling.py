"""The networks of the package segment-anything, which tests compare with.

The package's own import needs torchvision, for a predictor that no test uses, and there is no torchvision for a torch
without CUDA on the public index. So the package stands here without its `__init__`.
"""

import importlib
import importlib.util
import sys
import types


def modeling():
    """Return the module `segment_anything.modeling`."""
    if "segment_anything" not in sys.modules:
        package = types.ModuleType("segment_anything")
        package.__path__ = list(importlib.util.find_spec("segment_anything").submodule_search_locations)
        sys.modules["segment_anything"] = package
    return importlib.import_module("segment_anything.modeling")
