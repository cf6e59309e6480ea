"""Cases are split alike every time, apart where they can be, and what can't be loaded is told in a sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.training.slice_cases import GAP, FoundCases, LoadedCase, SliceCase, check_slice_cases, hold_back
from samkit.training.slice_task import SliceTask, SplitSlices

COUNT = 60


def read_labelled(case):
    """Slices 10 to 49 are labelled."""
    labels = np.zeros((len(case.slices), 4, 5), np.uint8)
    labels[[10 <= number < 50 for number in case.slices]] = 1
    return LoadedCase(np.ones((*labels.shape, 1), np.float32), labels, (1.0, 1.0))


def read_empty(case):
    empty = read_labelled(case)
    return replace(empty, labels=np.zeros_like(empty.labels))


def read_boxes(case):
    return replace(read_empty(case), boxes=(np.ones((1, 5), np.float32),))


def read_broken(case):
    raise InputRefused("broken", f"{case.images[0].name} is broken", "mend it")


def volume(name, reader=read_labelled):
    return SliceCase(name, "", (Path(f"{name}.nii"),), (), reader, tuple(range(COUNT)), plane="axial")


def picture(name, group="", reader=read_boxes):
    return SliceCase(name, group, (Path(f"{name}.png"),), (), reader)


def test_one_volume_in_five_is_held_back_and_order_does_not_matter():
    cases = [volume(f"v{number:02}") for number in range(11)]
    split, again = hold_back(cases), hold_back(cases[::-1])
    assert split == again
    assert (len(split.training), len(split.held_back)) == (9, 2)
    assert not {case.name for case in split.training} & {case.name for case in split.held_back}
    assert split.said == "2 of 11 volumes are held back"


def test_three_volumes_hold_one_back():
    assert len(hold_back([volume(name) for name in "abc"]).held_back) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_few_volumes_hold_back_blocks_of_slices_with_gaps(count):
    split = hold_back([volume(f"v{number}") for number in range(count)])
    assert len(split.training) == len(split.held_back) == count
    for training, held in zip(split.training, split.held_back, strict=True):
        assert training.name == held.name
        assert all(abs(a - b) > GAP for a in training.slices for b in held.slices)
        assert len(held.slices) == 8
        assert set(held.slices) <= set(range(10, 50))
        assert len(training.slices) + len(held.slices) == COUNT - 2 * 2 * GAP  # two blocks of four
        assert held.load().labels.shape == (8, 4, 5)
    assert f"only {count} volume" in split.said
    assert "the same patients" in split.said


def test_a_volume_without_labels_is_trained_on_whole():
    split = hold_back([volume("a"), volume("b", read_empty)])
    assert [len(case.slices) for case in split.held_back] == [8]
    assert split.training[1].slices == tuple(range(COUNT))


def test_too_few_labelled_slices_and_too_few_cases_are_refused():
    few = replace(volume("a"), slices=(8, 9, 10, 11, 12))
    with pytest.raises(InputRefused, match="a has 3 slices with a label, too few"):
        hold_back([few])
    with pytest.raises(InputRefused, match="no slice is labelled"):
        hold_back([volume("a", read_empty)])
    with pytest.raises(InputRefused, match="there are 1 usable cases and 2 are needed"):
        hold_back([picture("x")])


def test_pictures_are_held_back_from_each_group_and_the_doubt_is_said():
    cases = [
        picture(f"{g}{n}", g) for g, many in (("benign", 28), ("malignant", 20), ("normal", 4)) for n in range(many)
    ]
    split = hold_back(cases)
    groups = [case.group for case in split.held_back]
    assert (groups.count("benign"), groups.count("malignant"), groups.count("normal")) == (6, 4, 1)
    assert len(split.training) == 41
    assert "patient" in split.said


def test_a_folders_own_split_is_taken_and_its_test_left_alone():
    cases = [picture(f"{g}{n}", f"set/{g}") for g in ("train", "valid", "test") for n in range(4)]
    split = hold_back(cases)
    assert {case.group for case in split.training} == {"set/train"}
    assert {case.group for case in split.held_back} == {"set/valid"}
    assert "4 for testing left alone" in split.said


def test_a_split_above_the_kinds_of_pictures_is_taken_too():
    cases = [picture(f"{g}{k}{n}", f"{g}/{k}") for g in ("train", "val") for k in ("benign", "normal") for n in "abc"]
    split = hold_back(cases)
    assert {case.group for case in split.training} == {"train/benign", "train/normal"}
    assert {case.group for case in split.held_back} == {"val/benign", "val/normal"}


def test_cases_of_one_name_are_not_on_both_sides():
    cases = tuple(replace(volume("a"), images=(Path(f"{n}/a.nii"),)) for n in range(5))
    split = SplitSlices.of(FoundCases("volumes", cases, ()))
    assert [bool(training) + bool(held) for training, held in zip(split.training, split.held_back, strict=True)] == [
        1, 1, 1, 1, 1
    ]  # fmt: skip


def test_boxes_without_masks_are_refused_but_for_a_detector():
    with pytest.raises(InputRefused, match=r"boxes and no masks.*part detector"):
        SliceTask(FoundCases("boxes", (picture("a"), picture("b")), ()))


def test_what_can_not_be_loaded_is_skipped_with_a_sentence():
    found = FoundCases("images", (picture("a"), picture("b", reader=read_broken)), ("c skipped: no mask",))
    seen = []
    checked = check_slice_cases(found, seen.append)
    assert [case.name for case in checked.cases] == ["a"]
    assert checked.skipped == ("c skipped: no mask", "b skipped: b.png is broken; mend it")
    assert len(seen) == 2


def test_nothing_usable_and_nothing_labelled_are_refused():
    with pytest.raises(InputRefused, match=r"no case can be used: b skipped: b\.png is broken"):
        check_slice_cases(FoundCases("images", (picture("b", reader=read_broken),), ()))
    with pytest.raises(InputRefused, match="none of the 1 cases has anything labelled"):
        check_slice_cases(FoundCases("images", (picture("b", reader=read_empty),), ()))
    assert check_slice_cases(FoundCases("boxes", (picture("b"),), ())).cases  # boxes are labels too
