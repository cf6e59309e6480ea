"""Backends: what runs a graph, and on which device."""
