"""Which files go to which doors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tools.hostile.documents import CLICKS, EXPORTS, REPOSITORIES, RESUMED, RUNS, SETS
from tools.hostile.doors import DOORS, Door, Goods
from tools.hostile.kind import Case, Kind
from tools.hostile.pictures import BOXES, MASKS, PICTURES
from tools.hostile.scans import LABELS, SCANS
from tools.hostile.showing import Shown, judge, show
from tools.hostile.weights import WEIGHTS

KINDS: Mapping[str, tuple[Kind, ...]] = {
    "scan": SCANS, "label": LABELS, "picture": PICTURES, "mask": MASKS, "boxes": BOXES, "set": SETS, "clicks": CLICKS,
    "export": EXPORTS, "repository": REPOSITORIES, "run": RUNS, "weights": WEIGHTS, "resumed": RESUMED,
}  # fmt: skip
"""By what they are taken as."""
_BY_NAME = {door.name: door for door in DOORS}


def cases(seed: int) -> Iterator[Case]:
    """Yield every file at every door that takes its kind."""
    for door in DOORS:
        for kind in KINDS[door.takes]:
            if not kind.doors or door.name in kind.doors:
                for number in range(kind.count):
                    yield Case(kind, door.name, number, seed)


def shown(chosen: Iterable[Case], goods: Goods, folder: Path) -> Iterator[tuple[Case, Shown, list[str]]]:
    """Show cases to their doors, each in a folder of its own; yield what came of each, and what of that is wrong.

    A door's first case is shown twice, so that what a command imports is no cost of the file.
    """
    warm: set[str] = set()
    for case in chosen:
        door = door_of(case)
        if door.name not in warm:
            show(case, door, goods, folder)
            warm.add(door.name)
        again = Case(case.kind, case.door, case.number, case.seed)
        found = show(again, door, goods, folder)
        yield case, found, judge(case, door, found)


def door_of(case: Case) -> Door:
    """Return the door that a case is shown to."""
    return _BY_NAME[case.door]
