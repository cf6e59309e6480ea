"""Stands in for the C++ backend of this name."""
