"""Backends that samkit adds to the embedded server."""
