"""One graph as an engine of TensorRT for RTX. Triton runs this file."""

from samkit.triton_models.rtx_model import RtxModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
