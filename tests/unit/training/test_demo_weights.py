"""Every method has demonstration weights that one command makes, from settings that its recipe knows."""

import pytest

import samkit
from samkit.methods import get_method
from samkit.training.demo_data import DATA
from samkit.training.demo_weights import DEMOS
from samkit.training.plan import plan_training


def test_every_method_has_a_demonstration():
    assert set(DEMOS) == set(samkit.list_methods())


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_a_demonstration_can_be_planned(name):
    method, demo = get_method(name), DEMOS[name]

    plan_training(method, "small", demo.settings)
    assert {part.name for part in method.parts} == set(demo.parts)
    for part, settings in demo.parts.items():
        plan_training(method, "small", settings, part=part)
    assert demo.data in DATA
    names = list(DEMOS)
    assert not demo.start or names.index(demo.start) < names.index(name)
