"""Which MR sequence a file holds, told from its name: training and segmentation go by the same rule.

A file name is cut into tokens at `.`, `_`, `-` and blanks. A token, or two neighbours joined, that is an alias names
the sequence, in any case; the longest alias wins, so `T2_FLAIR` is a FLAIR and `T1_post` no plain T1. A token that
speaks of a label makes the file a label, whatever else its name says. Patterns (`--sequence NAME=PATTERN`) go before
all of that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from samkit.errors import InputRefused, OptionError

ALIASES: Mapping[str, tuple[str, ...]] = {
    "t1n": ("t1",),
    "t1c": ("t1post", "t1ce", "t1gd"),
    "t2w": ("t2",),
    "t2f": ("flair",),
}
"""Other names of each sequence, in lower case: native and contrast-enhanced T1, T2, and T2 with fluid suppressed."""
LABEL = "label"
"""What `sort_files` calls the label's file; a pattern may name it as if it were a sequence."""

_LABEL_WORDS = frozenset(
    ("label", "labels", "mask", "masks", "seg", "segmentation", "consensus", "lesion", "lesions", "gt", "truth")
)
_SEQUENCE_OF = {alias: name for name, aliases in ALIASES.items() for alias in (name, *aliases)}


def parse_pattern(text: str) -> tuple[str, str]:
    """Return name and pattern of `NAME=PATTERN`; OptionError where it is none.

    >>> parse_pattern("t1c=*_contrast.nii.gz")
    ('t1c', '*_contrast.nii.gz')
    """
    name, found, pattern = (part.strip() for part in text.partition("="))
    if not found or not pattern or not re.fullmatch(r"\w+", name):
        raise OptionError(
            f"{{sequences}} is written NAME=PATTERN and this one is '{text}'; "
            "e.g. {sequences} t1c='*_contrast.nii.gz'",
            options=("sequences",),
        )
    return name.lower(), pattern


def sequence_of(file_name: str, patterns: Mapping[str, str] | None = None) -> str | None:
    """Return the sequence that a file of this name holds, LABEL for a label, None where the name does not say.

    `patterns` are globs by sequence, matched in any case; where a sequence has one, its aliases count no more.

    >>> sequence_of("patient19_T1POST.nii.gz"), sequence_of("sub-01_T2-FLAIR_seg.nii.gz")
    ('t1c', 'label')
    """
    patterns = patterns or {}
    lower = file_name.lower()
    for wanted, pattern in patterns.items():
        if fnmatchcase(lower, pattern.lower()):
            return wanted
    tokens = [token for token in re.split(r"[._\-\s]+", lower) if token]
    if _LABEL_WORDS.intersection(tokens):
        return None if LABEL in patterns else LABEL
    said = [*tokens, *(a + b for a, b in itertools.pairwise(tokens))]
    # `max` keeps the first of equals: `T1_to_T2` is a T1, moved onto the T2
    alias = max((word for word in said if word in _SEQUENCE_OF), key=len, default=None)
    name = _SEQUENCE_OF[alias] if alias else None
    return None if name in patterns else name


def sort_files(paths: Iterable[Path], patterns: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Return the files by sequence, LABEL among them; InputRefused where two claim one place.

    A file whose name says nothing is left out.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        name = sequence_of(path.name, patterns)
        if name is None:
            continue
        if name in found:
            raise InputRefused(
                "two-files",
                f"{found[name].name} and {path.name} in {path.parent.name} are both {name} by their names",
                f"remove one of them, or say which is meant with {{sequences}} {name}=PATTERN",
                options=("sequences",),
            )
        found[name] = path
    return found


def choose(found: Mapping[str, Path], wanted: Sequence[str]) -> tuple[Path, ...]:
    """Return the files of the `wanted` sequences, in their order; InputRefused names those that are missing."""
    if missing := [name for name in wanted if name not in found]:
        there = ", ".join(f"{name} ({path.name})" for name, path in found.items()) or "none that is known"
        raise InputRefused(
            "missing-sequence",
            f"{', '.join(missing)} not found; found are {there}",
            f"add the file, or say which it is with {{sequences}} {missing[0]}=PATTERN",
            options=("sequences",),
        )
    return tuple(found[name] for name in wanted)
