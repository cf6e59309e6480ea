"""Where files come in: a command and what has to lie around the file that it is given."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from tools.hostile import documents, pictures, scans


@dataclass(frozen=True)
class Goods:
    """What is good about the rest: an export of each kind of method."""

    volumes: Path
    """Of sam-med3d."""
    slices: Path
    """Of sam."""
    run: Path
    """A training of sam-med3d, on two cases."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return those in a folder, by their methods."""
        return cls(folder / "sam-med3d", folder / "sam", folder / "run")

    @classmethod
    def made(cls, folder: Path) -> Self:
        """Export tiny networks into a folder."""
        from samkit.export.export import run_export
        from samkit.export.plan import plan_export

        goods = cls.of(folder)
        for path in (goods.volumes, goods.slices):
            run_export(plan_export(path.name, size="tiny"), path)
        write_cases(folder)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "samkit.training.cli",
                *map(str, training("sam-med3d", folder / "data", goods.run)[1:]),
            ],
            check=True,
        )
        return goods


@dataclass(frozen=True)
class Stage:
    """Where one file is shown: a folder that nothing else uses."""

    root: Path
    goods: Goods

    @property
    def out(self) -> Path:
        """Return the folder that outputs are named in."""
        return self.root / "out"


@dataclass(frozen=True)
class Door:
    """A command that takes a file."""

    name: str
    takes: str
    """Which kinds of files come here."""
    main: str
    """Module whose `main` it is."""
    words: Callable[[Stage, Path], Sequence[object]]
    """The command line for the path of a file."""
    where: str = "in"
    """The folder that the file is made in."""
    beside: Callable[[Stage, Path], None] = lambda stage, path: None
    """Puts what else is needed around the file."""
    writes: tuple[str, ...] = ()
    """What it may write in the folder of outputs when it takes the file, or, where these end in /, below it."""
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What it runs in."""
    is_list: bool = False
    """Whether it may say several sentences, a line each."""
    tells: str = "a^"
    """Lines besides the sentence that it may show, a regular expression."""

    replaces: tuple[str, ...] = ()
    """Outputs of which half of the files find one there from before."""
    program: str = ""
    """What its sentence begins with."""


_TRAIN = ("--preset", "tiny", "--threads", 1, "--quiet", "--set", "epochs=1")


def _segment(stage: Stage, path: Path) -> Sequence[object]:
    return _segmenting(stage.goods.volumes, path, stage)


def _segmenting(export: Path, scan: object, stage: Stage, *more: object) -> Sequence[object]:
    clicked = more or ("--point", "8,8,8,+")
    return (
        "sam-segment", "--export", export, "-i", scan, "-o", stage.out / "mask.nii.gz", *clicked, "--threads", 1,
        "--quiet",
    )  # fmt: skip


def _segment_picture(stage: Stage, path: Path) -> Sequence[object]:
    return (
        "sam-segment", "--export", stage.goods.slices, "-i", path, "-o", stage.out / "mask.png", "--point", "30,30,+",
        "--threads", 1, "--quiet",
    )  # fmt: skip


def _good_scan(stage: Stage, path: Path) -> None:
    (stage.root / "good.nii").write_bytes(scans.plain())


def _session(export: str, mask: str, place: str) -> Callable[[Stage, Path], Sequence[object]]:
    return lambda stage, path: ("session", getattr(stage.goods, export), path, stage.out / mask, place)


def _label_beside(stage: Stage, path: Path) -> None:
    _put(stage, f"data/labels/{path.name.partition('.')[0]}.nii.gz", scans.label())


def _image_beside(stage: Stage, path: Path) -> None:
    _put(stage, f"data/images/{path.name.partition('.')[0]}.nii", scans.plain())


def _mask_beside(stage: Stage, path: Path) -> None:
    _put(stage, f"data/masks/{path.stem}.png", pictures.mask())


def _picture_beside(stage: Stage, path: Path) -> None:
    _put(stage, f"data/images/{path.stem}.png", pictures.png())


def _put(stage: Stage, name: str, content: bytes) -> None:
    path = stage.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def training(method: str, data: Path, out: Path, *words: object) -> Sequence[object]:
    """Return a command line that trains for a moment."""
    return ("sam-train", "--method", method, "--data", data, "--out", out, *_TRAIN, *words)


def _train(method: str, *words: object) -> Callable[[Stage, Path], Sequence[object]]:
    return lambda stage, path: training(method, stage.root / "data", stage.out / "run", *words)


def _measure(export: str) -> Callable[[Stage, Path], Sequence[object]]:
    return lambda stage, path: (
        "sam-bench", "accuracy", "--export", getattr(stage.goods, export), "--data", stage.root / "data", "--backends",
        "torch", "--cases", 1, "--clicks", 1, "--threads", 1, "--json", stage.out / "run.json",
    )  # fmt: skip


def _export(stage: Stage, *words: object) -> Sequence[object]:
    return (
        "sam-export",
        "--method",
        "sam-med3d",
        "--out",
        stage.out / "export",
        "--quiet",
        "--engines",
        "none",
        *words,
    )


def write_cases(root: Path) -> None:
    """Write data that a training can be made of."""
    for number in range(2):
        for name, content in (("images", scans.packed()), ("labels", scans.label())):
            path = root / "data" / name / f"c{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _run_beside(stage: Stage, path: Path) -> None:
    """Put a run where it can be gone on with, but for the file that was made."""
    write_cases(stage.root)
    shutil.copytree(stage.goods.run, stage.out / "run")
    shutil.copyfile(path, stage.out / "run" / path.name)


_QUICK_MACHINE = partial(patch.multiple, "samkit.benchmarks.measure.machine", SIDE=64, COPIED_MB=1, LOOK_SECONDS=0.0)
"""What the machine can do is measured beside all else, and is not asked here."""

DOORS: tuple[Door, ...] = (
    Door("segment a scan", "scan", "samkit.segment.cli", _segment, writes=("mask.nii.gz",), replaces=("mask.nii.gz",),
         program="sam-segment", tells="sam-segment: .*RANDOM"),
    Door("set_image of a scan", "scan", "tools.hostile.session", _session("volumes", "mask.nii.gz", "8,8,8"),
         writes=("mask.nii.gz",), replaces=("mask.nii.gz",), program="session"),
    Door("train on a scan", "scan", "samkit.training.cli", _train("sam-med3d"), "data/images", _label_beside,
         program="sam-train"),
    Door("measure on a scan", "scan", "samkit.benchmarks.cli", _measure("volumes"), "data/images", _label_beside,
         replaces=("run.json",), program="sam-bench", tells="sam-med3d: (opening|case)", within=_QUICK_MACHINE),
    Door("calibrate on a scan", "scan", "samkit.export.cli",
         lambda stage, path: _export(stage, "--size", "tiny", "--fp16", "--calibration", path.parent),
         "calibration", program="sam-export", tells=".*RANDOM"),
    Door("train on a label", "label", "samkit.training.cli", _train("sam-med3d"), "data/labels", _image_beside,
         program="sam-train"),
    Door("train slices on a label", "label", "samkit.training.cli", _train("sam"), "data/labels", _image_beside,
         program="sam-train"),
    Door("measure on a label", "label", "samkit.benchmarks.cli", _measure("volumes"), "data/labels", _image_beside,
         replaces=("run.json",), program="sam-bench", tells="sam-med3d: (opening|case)", within=_QUICK_MACHINE),
    Door("segment a picture", "picture", "samkit.segment.cli", _segment_picture, writes=("mask.png",),
         replaces=("mask.png",), program="sam-segment", tells="sam-segment: .*RANDOM"),
    Door("set_image of a picture", "picture", "tools.hostile.session", _session("slices", "mask.png", "30,30"),
         writes=("mask.png",), replaces=("mask.png",), program="session"),
    Door("train on a picture", "picture", "samkit.training.cli", _train("sam"), "data/images", _mask_beside,
         program="sam-train"),
    Door("measure on a picture", "picture", "samkit.benchmarks.cli", _measure("slices"), "data/images", _mask_beside,
         replaces=("run.json",), program="sam-bench", tells="sam: (opening|case)", within=_QUICK_MACHINE),
    Door("train on a mask", "mask", "samkit.training.cli", _train("sam"), "data/masks", _picture_beside,
         program="sam-train"),
    Door("train on boxes", "boxes", "samkit.training.cli", _train("medsam-yolo", "--part", "detector"), "data/labels",
         _picture_beside, program="sam-train"),
    Door("train on a list of cases", "set", "samkit.training.cli", _train("sam-med3d"), "data", program="sam-train"),
    Door("segment with clicks", "clicks", "samkit.segment.cli",
         lambda stage, path: _segmenting(stage.goods.volumes, stage.root / "good.nii", stage, "--clicks", path),
         beside=_good_scan, writes=("mask.nii.gz",), replaces=("mask.nii.gz",), program="sam-segment",
         tells="sam-segment: .*RANDOM"),
    Door("segment with an export", "export", "samkit.segment.cli",
         lambda stage, path: _segmenting(path, stage.root / "good.nii", stage), beside=_good_scan,
         replaces=("mask.nii.gz",), program="sam-segment"),
    Door("open_session of an export", "export", "tools.hostile.session",
         lambda stage, path: ("session", path, stage.root / "good.nii", stage.out / "mask.nii.gz", "8,8,8"),
         beside=_good_scan, program="session"),
    Door("verify an export", "export", "samkit.export.cli",
         lambda stage, path: ("sam-export", "--verify", path, "--quiet"),
         program="sam-export"),
    Door("serve an export", "export", "samkit.triton_models.cli",
         lambda stage, path: ("sam-serve", "write", path, "--out", stage.out / "repository"), program="sam-serve"),
    Door("measure an export", "export", "samkit.benchmarks.cli",
         lambda stage, path: ("sam-bench", "latency", "--export", path, "--json", stage.out / "run.json"),
         replaces=("run.json",), program="sam-bench", within=_QUICK_MACHINE),
    Door("check a repository", "repository", "samkit.triton_models.cli",
         lambda stage, path: ("sam-serve", "check", path), program="sam-serve", is_list=True),
    Door("compare a run", "run", "samkit.benchmarks.cli",
         lambda stage, path: (
             "sam-bench", "compare", stage.root / "good.json", path, "--json", stage.out / "changes.json"),
         beside=lambda stage, path: _put(stage, "good.json", documents.run()), replaces=("changes.json",),
         program="sam-bench"),
    Door("report a run", "run", "samkit.benchmarks.cli",
         lambda stage, path: ("sam-bench", "report", path, "--out", stage.out / "report.html"),
         replaces=("report.html",), program="sam-bench"),
    Door("export a checkpoint", "weights", "samkit.export.cli",
         lambda stage, path: _export(stage, "--checkpoint", path), program="sam-export"),
    Door("train from a checkpoint", "weights", "samkit.training.cli",
         lambda stage, path: _train("sam-med3d", "--init", path)(stage, path),
         beside=lambda stage, path: write_cases(stage.root), program="sam-train"),
    Door("go on with a run", "resumed", "samkit.training.cli", _train("sam-med3d", "--resume"), beside=_run_beside,
         program="sam-train"),
)  # fmt: skip
