"""What `-i` may name: a scan, co-registered sequences one by one or in a folder, or a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samkit.errors import InputRefused, OptionError
from samkit.imageio.reading import is_picture, list_scans
from samkit.methods.method import Method, SliceMethod
from samkit.sequences import choose, sequence_of, sort_files


def find_inputs(texts: Sequence[str], method: Method, config: Any, patterns: Mapping[str, str]) -> dict[str, Path]:
    """Return the files that `-i` names, by sequence; the name is empty for a file given without one.

    Raises InputRefused where the method can't use what was given, OptionError for what is no such option.
    """
    files = _by_sequence(texts, method, config, patterns)
    picture = next((path for path in files.values() if is_picture(path)), None)
    if picture is not None and not isinstance(method, SliceMethod):
        raise InputRefused(
            "picture", f"{picture.name} is a picture, and {method.name} works on volumes", "give a scan of 3D NIfTI"
        )
    return files


def _by_sequence(texts: Sequence[str], method: Method, config: Any, patterns: Mapping[str, str]) -> dict[str, Path]:
    wanted = method.sequences(config)
    named = [_split(text) for text in texts]
    if patterns and not (len(named) == 1 and named[0][1].is_dir()):
        raise OptionError(
            "{sequences} says which file of a folder is meant; give a folder with {inputs}, or {inputs} NAME=FILE",
            options=("sequences", "inputs"),
        )
    if len(named) == 1 and not named[0][0]:
        ((_, path),) = named
        if path.is_dir():
            return _in_folder(path, method.name, wanted, patterns)
        return {"": path}
    if without := [path.name for name, path in named if not name]:
        raise OptionError(
            f"of several {{inputs}} each names its sequence, and {without[0]} does not; "
            "e.g. {inputs} t1c=a.nii.gz {inputs} t2w=b.nii.gz",
            options=("inputs",),
        )
    files: dict[str, Path] = {}
    for said, path in named:
        name = said if said in wanted else sequence_of(said) or said
        if name in files:
            raise OptionError(
                f"{{inputs}} names {name} twice, {files[name].name} and {path.name}; give one of them",
                options=("inputs",),
            )
        files[name] = path
    return files


def _split(text: str) -> tuple[str, Path]:
    """Return sequence and file of `NAME=FILE`; a file that is there may have any name."""
    name, found, rest = text.partition("=")
    if not found or not re.fullmatch(r"\w+", name) or Path(text).exists():
        return "", Path(text)
    return name.lower(), Path(rest)


def _in_folder(folder: Path, method: str, wanted: Sequence[str], patterns: Mapping[str, str]) -> dict[str, Path]:
    if not wanted:
        raise InputRefused(
            "folder", f"{folder.name} is a folder, and {method} takes one scan or picture", "give the file itself"
        )
    found = sort_files(list_scans(folder.iterdir()), patterns)
    return dict(zip(wanted, choose(found, wanted), strict=True))
