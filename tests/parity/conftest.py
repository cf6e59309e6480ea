"""Fixtures of the parity tests: the weights and inputs behind the golden outputs."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def recipe(shared):
    """The module that makes every weight and input from names and shapes."""
    spec = importlib.util.spec_from_file_location("recipe", shared / "golden" / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
