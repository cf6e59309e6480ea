"""float32: what every network is trained and exported in."""

from samkit.precisions.precision import Precision, Tolerance

PRECISION = Precision(
    name="fp32",
    title="float32",
    summary="Write float32 graphs, which every export has.",
    suffix="",
    encoder=Tolerance(1e-5, 0.0),
    decoder=Tolerance(1e-4, 0.999),
    # They add exact zeros; what is left is that a runtime blocks matrices of other sizes differently (at most 8.5e-7
    # was measured, and the tests hold 1e-6).
    absent_points=5e-6,
    min_dice=0.9999,
    rounding=1e-3,
)
