"""`make bench`: everything that can be measured without data, as the commands that anyone would type.

Every method's demonstration weights are exported in float32 and float16 below OUT/exports, and measured by `sam-bench
accuracy`, `latency` and `load`; M-SAM and SAM-Med3D also at full size, with random weights, encoder and click. OUT
gets one JSON per command and report.html. With `--data` it is accuracy on real scans instead, each method on the
folders that REAL names, and OUT/real.html; with `--device cuda` accuracy and latency on that device, and OUT/cuda.html.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from samkit.command import run_command, show_progress
from samkit.errors import MissingDependencyError, SamkitError
from samkit.methods import VolumeMethod, get_method, list_methods
from samkit.triton_models.server_files import check_numpy, find_server

AT_ONCE = 2
"""Exports at once, with one thread each."""
FULL_SIZE = ("m-sam", "sam-med3d")
"""What is timed at full size, too."""
BACKENDS = "torch,onnxruntime,onnxruntime-fp16"
EXPORT = "sam-export --engines none --quiet --force"
REAL: Mapping[str, tuple[str, ...]] = {
    "m-sam": ("hippocampus",),
    "sam-med3d": ("hippocampus",),
    "sam": ("breast-ultrasound",),
    "medsam": ("breast-ultrasound",),
    "sam-med2d": ("breast-ultrasound",),
    "lmsfe-sam": ("breast-ultrasound", "fetal-head"),
    "lora-sam": ("subcortical",),
    "brainseg-dmif": ("ms-lesions",),
    "medsam-yolo": ("ms-lesions", "brain-tumour-boxes"),
}
"""The folders of real images that each method's kind of data is in."""

Command = list[str]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """One command of sam-bench, on exports of some methods."""

    words: str
    """As a shell takes them; `{backends}` are those that run here."""
    methods: tuple[str, ...] = tuple(list_methods())
    most: int | None = None
    """How many of them are taken, the first that are asked for; None: all."""
    is_full_size: bool = False
    needs_server: bool = False


# Compiling and exporting once more take minutes for each method, so one alone meets all baselines. What `--no-fold`
# takes at full size, tools.rewrites measures.
PHANTOMS: Mapping[str, Measure] = {
    "accuracy": Measure("accuracy --backends {backends} --cases 2 --clicks 5"),
    "latency": Measure(
        "latency --baseline torch --baseline torch-autocast --part graphs --part stages --rounds 2 --cold-starts 1"
    ),
    "baselines": Measure("latency --part graphs --part memory --rounds 2", ("sam",)),
    "full-size": Measure(
        "latency --graph image_encoder --graph mask_decoder --baseline torch --part graphs --rounds 2",
        FULL_SIZE, is_full_size=True,
    ),
    "load": Measure("load --sessions 1,2,4 --seconds 8", ("m-sam", *list_methods()), most=1, needs_server=True),
}  # fmt: skip
CUDA: Mapping[str, Measure] = {
    "cuda-accuracy": Measure(
        "accuracy --device cuda --backends torch,onnxruntime-cuda,onnxruntime-cuda-fp16 --cases 2 --clicks 5"
    ),
    "cuda-latency": Measure("latency --device cuda"),
    "cuda-full-size": Measure("latency --device cuda --part graphs", FULL_SIZE, is_full_size=True),
}
"""By the file that each writes."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of REAL's folders.")
@click.option("--method", "names", multiple=True, type=click.Choice(list_methods()), help="One method; else all.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--keep-exports", is_flag=True, help="Measure those that are there; else they are made again.")
@click.option("--dry-run", is_flag=True, help="Print the commands and stop.")
def bench(out: Path, data: Path | None, names: tuple[str, ...], device: str, keep_exports: bool, dry_run: bool) -> None:
    """Export, measure, report."""
    if data is not None and device != "cpu":
        raise click.UsageError("--data is measured on the CPU; for a GPU call sam-bench accuracy --data --device cuda")
    show_progress(quiet=False)
    methods = names or tuple(list_methods())
    exports = [] if keep_exports else export_commands(out, methods, full_size=data is None)
    table: Mapping[str, Measure]
    if data is not None:
        name, table = "real", real_images(data)
    else:
        name, table = ("cuda", CUDA) if device == "cuda" else ("report", PHANTOMS)
    measures = measure_commands(out, methods, table, is_served=device == "cpu" and _has_server())
    if dry_run:
        for command in (*exports, *measures.values(), report_command(out, name, list(measures))):
            click.echo(shlex.join(command))
        return
    if failed := run_together(exports):
        raise SamkitError(f"{len(failed)} exports failed, their messages stand above: {_named(failed)}; run one alone")
    for path in measures:
        path.unlink(missing_ok=True)  # what an earlier run left is not reported as this one's
    failed = [command for command in measures.values() if _run(command)]  # one alone has the machine to itself
    if written := [path for path in measures if path.exists()]:
        _run(report_command(out, name, written))
    if failed:
        raise SamkitError(
            f"{len(failed)} of {len(measures)} commands failed, their messages stand above: {_named(failed)}; the "
            "report has what the others measured"
        )


def export_commands(out: Path, methods: Sequence[str], *, full_size: bool) -> list[Command]:
    """Return what makes the exports: the long ones first, so that the last ones to finish are short."""
    wanted = [(name, "--size full") for name in FULL_SIZE if name in methods and full_size]
    wanted += [(name, "--fp16") for name in methods]
    return [
        [*EXPORT.split(), "--method", name, *how.split(), "--out", str(_folder(out, name, "full" in how))]
        for name, how in wanted
    ]


def real_images(data: Path) -> dict[str, Measure]:
    """Return what measures exports on the folders in `data`."""
    found = {}
    for name, folders in REAL.items():
        clicks = 5 if isinstance(get_method(name), VolumeMethod) else 3
        words = f"accuracy --backends {{backends}} --cases 4 --clicks {clicks} --data"
        for folder in folders:
            found[f"real-{name}-{folder}"] = Measure(f"{words} {shlex.quote(str(data / folder))}", (name,))
    return found


def measure_commands(
    out: Path, methods: Sequence[str], table: Mapping[str, Measure], *, is_served: bool = True
) -> dict[Path, Command]:
    """Return what measures the exports, by the file that it writes; without a server what needs one is left out."""
    backends = f"{BACKENDS},triton" if is_served else BACKENDS
    found = {}
    for name, measure in table.items():
        asked = [method for method in dict.fromkeys(measure.methods) if method in methods][: measure.most]
        if asked and (is_served or not measure.needs_server):
            path = out / f"{name}.json"
            found[path] = ["sam-bench", *shlex.split(measure.words.replace("{backends}", backends))]
            for method in asked:
                found[path] += ["--export", str(_folder(out, method, measure.is_full_size))]
            found[path] += ["--json", str(path)]
    return found


def report_command(out: Path, name: str, files: Sequence[Path]) -> Command:
    """Return what makes one page and one file of tables of `files`."""
    written = [str(path) for path in files]
    return ["sam-bench", "report", *written, "--out", str(out / f"{name}.html"), "--tables", str(out / f"{name}.md")]


def _folder(out: Path, method: str, is_full_size: bool) -> Path:
    return out / "exports" / (f"{method}-full" if is_full_size else method)


def _has_server() -> bool:
    """Return whether a server can be started here; where not, say why."""
    try:
        find_server()
        check_numpy()
    except MissingDependencyError as error:
        logger.warning("bench: without Triton and load: %s", error)
        return False
    return True


def run_together(commands: Sequence[Command]) -> list[Command]:
    """Run commands, AT_ONCE at once with one thread each, and return those that failed."""
    run = partial(_run, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [command for command, code in zip(commands, pool.map(run, commands), strict=True) if code]


def _run(command: Command, **options: Any) -> int:
    """Run a command and return its exit code."""
    logger.info(shlex.join(command))
    return subprocess.run(_program(command), **options).returncode


def _program(command: Command) -> Command:
    """Return a command of this installation's, whatever PATH has."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def _named(commands: Sequence[Command]) -> str:
    return "; ".join(shlex.join(command[:4]) for command in commands)


if __name__ == "__main__":
    run_command(bench, "bench")
