"""Triton serving: not part of this version (docs/serving.md)."""
