"""Guards the simulated reader: it prompts as its policy says, in the scan's own indices, and the same for everybody."""

from types import SimpleNamespace

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.geometry import Volume
from samkit.methods import get_method
from samkit.planes import PlaneView
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SliceBox, SlicePoint
from samkit.protocols.case import Case
from samkit.protocols.simulated_user import POLICIES, Prompting, SimulatedUser, policies_of

AFFINE = np.array([[0, 0, -1.5, 40], [-1.0, 0, 0, 30], [0, 3, 0, -20], [0, 0, 0, 1]])
"""Array axes along -y, z and -x: nothing is where a careless reader would look."""


def scan(*corners, structure=""):
    """Return a case (20, 12, 16) whose targets are boxes of voxels."""
    target = np.zeros((20, 12, 16), bool)
    for first, last in corners:
        target[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    volume = Volume(np.ones(target.shape, np.float32), AFFINE)
    return Case("case 1", {"": volume}, {structure: target})


def user_of(name, policy, case, number=0):
    method = get_method(name)
    return SimulatedUser.of(case, policy, method, method.sizes["small"], "small", number)


BLOCK = scan(((4, 2, 3), (13, 6, 11)))


@pytest.mark.parametrize(
    ("name", "policies"),
    [
        ("m-sam", ("trained", "centre")),
        ("sam-med2d", ("trained", "centre")),
        ("lora-sam", ("centre", "automatic")),
        ("brainseg-dmif", ("automatic",)),
        ("medsam-yolo", ("trained", "centre", "automatic")),
    ],
)
def test_policies_are_those_that_a_method_knows(name, policies):
    method = get_method(name)
    assert policies_of(method, "small") == policies


@pytest.mark.parametrize("name", ["m-sam", "sam-med2d", "sam"])
@pytest.mark.parametrize("policy", ["trained", "centre"])
def test_same_case_and_click_give_the_same_question(name, policy):
    def first(number, click=1):
        user = user_of(name, policy, BLOCK, number)
        return user.prompt(click, np.zeros(user.target.shape, bool))

    assert first(0) == first(0)
    assert policy == "centre" or len({str(first(number)) for number in range(5)}) > 1


@pytest.mark.parametrize("name", ["m-sam", "medsam"])
def test_careful_reader_clicks_the_middle_in_the_scans_own_indices(name):
    user = user_of(name, "centre", scan(((6, 3, 5), (10, 7, 9))))
    (point,) = user.prompt(1, np.zeros(user.target.shape, bool)).prompts
    across = 5 if user.view is None else user.view.file_index(user.place)
    assert point == Point((8.0, float(across), 7.0), FOREGROUND)


def test_click_on_a_surplus_is_background():
    user = user_of("sam-med2d", "centre", BLOCK)
    question = user.prompt(2, np.ones(user.target.shape, bool))
    assert question.prompts[0].label == BACKGROUND
    assert not BLOCK.targets[""][tuple(map(int, question.prompts[0].index))]


def test_nothing_is_said_where_nothing_is_wrong():
    for name in ("m-sam", "sam-med2d"):
        user = user_of(name, "centre", BLOCK)
        assert user.prompt(2, user.target) is None


def test_slice_with_most_of_the_target_is_prompted_and_judged():
    case = scan(((4, 2, 3), (9, 3, 8)), ((4, 5, 3), (13, 5, 11)))
    user = user_of("medsam", "trained", case)
    view = PlaneView.of((20, 12, 16), AFFINE, "axial")
    number = view.file_index(user.place)
    assert (view.axes[0], number) == (1, 5)
    assert int(user.target.sum()) == 10 * 9
    assert sorted(user.spacing_mm) == [1.0, 1.5]
    (box,) = user.prompt(1, np.zeros(user.target.shape, bool)).prompts
    low, high = np.minimum(box.first, box.last), np.maximum(box.first, box.last)
    assert isinstance(box, Box)
    assert low[1] == high[1] == 5
    assert (low[[0, 2]] <= (4, 3)).all()
    assert (high[[0, 2]] >= (13, 11)).all()


def test_each_component_gets_a_box_that_stays_inside():
    case = scan(((0, 5, 0), (5, 5, 4)), ((10, 5, 8), (19, 5, 15)))
    for number in range(20):
        question = user_of("lmsfe-sam", "trained", case, number).prompt(1, np.zeros((16, 20), bool))
        assert len(question.prompts) == 2
        for prompt in question.prompts:
            places = [prompt.index] if isinstance(prompt, Point) else [prompt.first, prompt.last]
            assert all((np.array(place) >= 0).all() and (np.array(place) <= (19, 11, 15)).all() for place in places)


def test_trained_rounds_refine_and_others_stop_after_the_first_prompt():
    known, once = user_of("sam-med2d", "trained", BLOCK), user_of("medsam", "trained", BLOCK)
    question = known.prompt(2, np.zeros(known.target.shape, bool))
    assert question.refine
    assert BLOCK.targets[""][tuple(map(int, question.prompts[0].index))]
    assert [user.most_clicks(6) for user in (known, once)] == [6, 1]
    assert user_of("medsam", "centre", BLOCK).most_clicks(6) == 6
    assert user_of("m-sam", "trained", BLOCK).most_clicks(6) == 6


def test_picture_is_prompted_in_pixels():
    mask = np.zeros((30, 40), bool)
    mask[5:15, 20:36] = True
    case = Case("case 1", {}, {"": mask}, picture=np.zeros((30, 40, 1), np.float32))
    user = user_of("medsam", "trained", case)
    (box,) = user.prompt(1, np.zeros_like(mask)).prompts
    assert isinstance(box, SliceBox)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((20, 5, 35, 14), abs=1)
    (point,) = user_of("medsam", "centre", case).prompt(1, np.zeros_like(mask)).prompts
    assert isinstance(point, SlicePoint)
    assert mask[int(point.y), int(point.x)]


def test_largest_structure_is_prompted_and_all_are_judged_automatically():
    small, large = scan(((0, 5, 0), (1, 5, 1))).targets[""], scan(((4, 5, 3), (13, 5, 11))).targets[""]
    case = Case("case 1", BLOCK.volumes, {"caudate_left": small, "caudate_right": large})
    names = get_method("lora-sam").structures(get_method("lora-sam").sizes["small"])
    prompted, automatic = (user_of("lora-sam", policy, case) for policy in ("centre", "automatic"))
    assert (prompted.structure, list(prompted.labels)) == ("caudate_right", ["caudate_right"])
    assert prompted.prompt(1, np.zeros(prompted.target.shape, bool)).prompts[0].structure == "caudate_right"
    assert (automatic.prompt(1, large), list(automatic.labels)) == (Prompting(()), list(names))
    labels = np.full((2, 2), names.index("caudate_right") + 1)
    assert prompted.masks(labels)["caudate_right"].all()
    assert not automatic.masks(labels)["caudate_left"].any()


def test_subject_without_a_target_is_refused():
    with pytest.raises(InputRefused, match="nothing to prompt"):
        user_of("medsam", "centre", scan())


def test_mask_prompt_that_does_not_fit_is_left_out():
    asked = []

    def add(*prompts, refine=False):
        asked.append(refine)
        if refine:
            raise InputRefused("mask-prompt", "it has other rows", "leave it out")

    session = SimpleNamespace(add=add, labels=lambda: np.ones((20, 12, 16), np.uint8))
    user = user_of("sam-med2d", "trained", BLOCK)
    labels = user.apply(Prompting((Point((5.0, 4.0, 5.0), FOREGROUND),), refine=True), session)
    assert asked == [True, False]
    assert labels.shape == user.target.shape


def test_every_policy_is_listed():
    from samkit import list_methods

    methods = [get_method(name) for name in list_methods()]
    assert {policy for m in methods for policy in policies_of(m, "full")} == set(POLICIES)
