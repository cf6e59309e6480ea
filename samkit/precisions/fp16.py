"""float16: sums of products in float32, everything else in 11 bits of mantissa and numbers up to 65504."""

from samkit.precisions.precision import Precision, Tolerance

PRECISION = Precision(
    name="fp16",
    title="float16",
    summary="Also write float16 graphs (float32 at their borders).",
    suffix=".fp16",
    encoder=Tolerance(1e-2, 0.0),
    decoder=Tolerance(5e-2, 0.995),
    # A difference of float32 may round to the next number, so that what is left is float16's own error (1.1e-3 was
    # measured).
    absent_points=5e-3,
    min_dice=0.995,
    rounding=0.1,
    preferred_on=frozenset({"cuda"}),
    writer="samkit.export.float16:write_files",
    options=frozenset({"calibration", "keep_list"}),
    # ONNX Runtime computes float16 in float32 on a CPU, and would hide an overflow.
    emulator="samkit.export.emulation:EmulatedRunner",
    emulated="a CPU computes float16 through float32; a GPU does not",
)
