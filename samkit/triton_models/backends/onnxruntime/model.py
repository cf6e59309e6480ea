"""A Python-based backend of Triton: it serves every model whose config says `backend: "onnxruntime"`.

The embedded server has no C++ backend of that name, NVIDIA's container has one and never sees this file.
"""

from samkit.triton_models.onnxruntime_backend import OnnxRuntimeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
