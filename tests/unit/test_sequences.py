"""Guards how files are told apart by name: sequences, labels, and what is too much or missing."""

from pathlib import Path

import pytest

from samkit.errors import InputRefused, OptionError
from samkit.sequences import LABEL, choose, parse_pattern, sequence_of, sort_files


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("BraTS-GLI-00000-000-t1c.nii.gz", "t1c"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1n"),
        ("BraTS-GLI-00000-000-seg.nii.gz", LABEL),
        ("BraTS21_00001_t1ce.nii.gz", "t1c"),
        ("BraTS21_00001_flair.nii.gz", "t2f"),
        ("patient19_T1POST.nii.gz", "t1c"),
        ("T1.nii.gz", "t1n"),
        ("T2 axial.nii", "t2w"),
        ("sub01_FLAIR.nii", "t2f"),
        ("T2_FLAIR.nii.gz", "t2f"),
        ("T1-Gd.nii.gz", "t1c"),
        ("T1_post.nii.gz", "t1c"),
        ("T1_to_T2.nii.gz", "t1n"),
        ("lesions.nii.gz", LABEL),
        ("T1_consensus_gt.nii.gz", LABEL),
        ("ADC.nii.gz", None),
        ("T10.nii.gz", None),
        ("t1extra.nii.gz", None),
    ],
)
def test_a_name_says_its_sequence_by_whole_tokens(name, sequence):
    assert sequence_of(name) == sequence


def test_pattern_adds_a_sequence_and_goes_before_the_aliases():
    patterns = dict([parse_pattern("pd=*_PD*"), parse_pattern("t1c=*contrast*")])
    assert sequence_of("a_pd_t2.nii.gz", patterns) == "pd"
    assert sequence_of("a_Contrast_T1.nii.gz", patterns) == "t1c"
    assert sequence_of("a_T1Gd.nii.gz", patterns) is None  # the pattern alone says what t1c is
    assert sequence_of("brain_mask.nii.gz", {LABEL: "*tumour*"}) is None
    assert sequence_of("tumour.nii.gz", {LABEL: "*tumour*"}) == LABEL


@pytest.mark.parametrize("text", ["t1c", "=x", "t1c=", "a b=c"])
def test_a_pattern_that_is_none_is_usage(text):
    with pytest.raises(OptionError, match="NAME=PATTERN"):
        parse_pattern(text)


def test_two_files_for_one_sequence_are_refused_by_name():
    with pytest.raises(InputRefused, match=r"a_T1CE.nii and a_T1Gd.nii in p are both t1c.*sequences t1c="):
        sort_files([Path("p/a_T1Gd.nii"), Path("p/a_T1CE.nii")])


def test_wanted_files_come_in_order_and_missing_ones_by_name():
    found = sort_files(Path("p") / name for name in ("T1.nii", "T2.nii", "notes.nii", "seg.nii"))
    assert [path.name for path in choose(found, ("t2w", "t1n"))] == ["T2.nii", "T1.nii"]
    with pytest.raises(InputRefused, match=r"t1c, t2f not found; found are label \(seg.nii\), t1n \(T1.nii\)"):
        choose(dict(sorted(found.items())), ("t1c", "t1n", "t2f"))
