"""What TensorRT's ONNX parsers take: operators and the types of their data (facts).

Source: the operator chart of onnx-tensorrt, release 10.1 GA, opsets 9 to 20, and what the parser of TensorRT for RTX
1.7.1 said when it was asked. A graph has to go into engines of both, so what either refuses is out: the chart lacks
what came after 10.1 (Attention, RotaryEmbedding, Clip of integers, INT8 almost everywhere), RTX lacks some types and
plug-ins.
`tests/unit/export/test_tensorrt_operators.py` compares both where chart and library are at hand.
"""

from __future__ import annotations

LAST_OPSET = 20

_BY_TYPES = {
    "FP32 FP16 BF16": (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM "
        "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool "
        "MeanVarianceNormalization PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike "
        "RandomUniform RandomUniformLike Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax "
        "Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample"
    ),
    "FP32 FP16 BF16 INT32 INT64": (
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul "
        "Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK"
    ),
    "FP32 FP16 BF16 INT32 INT64 BOOL": (
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop "
        "OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
    ),
    "FP32 FP16": "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign",
    "BOOL": "And Not Or Xor",
    "FP32 FP16 BF16 INT32 INT64 UINT8 BOOL": "Cast CastLike",
    "INT8 FP8 INT4": "DequantizeLinear",
    "FP32 FP16 BF16 INT8 INT32 INT64": "Gelu",
    "FP32 FP16 BF16 FP8 INT32 INT64": "Mean",
}

SUPPORTED = {name: frozenset(types.split()) for types, names in _BY_TYPES.items() for name in names.split()}
"""Operator to the types it takes, as the chart calls them."""

_REFUSED_BY_RTX = {
    "BF16": (
        "GRU GlobalLpPool HardSwish LpNormalization LpPool RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Shrink"
    ),
    "FP16 BF16": "Celu MeanVarianceNormalization Range",
    "INT32": "Relu",
    "INT32 INT64": "Gelu IsNaN ReduceL2 ReduceLogSum ReduceLogSumExp",
    "FP8 INT32 INT64": "Mean",
    # Plug-ins that it lacks
    "FP32 FP16": "DeformConv NonZero RoiAlign",
}

REFUSED_BY_RTX = {name: frozenset(types.split()) for types, names in _REFUSED_BY_RTX.items() for name in names.split()}
"""Operator to the types of the chart that TensorRT for RTX does not take."""

TAKEN = {name: types - REFUSED_BY_RTX.get(name, frozenset()) for name, types in SUPPORTED.items()}
"""Operator to the types that both take; none for an operator that RTX does not have."""
