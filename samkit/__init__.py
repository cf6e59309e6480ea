"""samkit: SAM-based segmentation networks from PyTorch training to checked ONNX, and to a mask.

    >>> import samkit
    >>> samkit.get_method("m-sam").refinements
    ('recurrent', 'anchored')

`samkit.runtime.open_session(TARGET)` opens an export folder, or what a server serves at `triton://host:port/m-sam`.
Nothing imported here needs torch.
"""

__version__ = "0.1.0"

from samkit import runtime
from samkit.methods import get_method, list_methods

__all__ = ["__version__", "get_method", "list_methods", "runtime"]
