"""Which weights a loss does not reach."""

LEAST = 1e-9
"""Of a gradient, in float64 on weights of the size of 1: what is smaller is rounding of a sum that is zero."""


def without_gradient(module):
    """Return the names of the parameters whose gradient is missing, or zero but for rounding."""
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > LEAST]
