"""`make bench`: everything that can be measured without data, as the commands that anyone would type.

    python -m samkit.benchmarks.suite [--out bench] [--data FOLDER | --device cuda] [--method NAME ...] [--dry-run]

Every method's demonstration weights are exported in float32 and float16 below OUT/exports, and measured by `sam-bench
accuracy`, `latency` and `load`; M-SAM and SAM-Med3D also at full size, with random weights, encoder and click. OUT
gets one JSON per command and report.html. With `--data` it is accuracy on real scans instead, each method on the
folders that REAL names, and OUT/real.html; with `--device cuda` accuracy and latency on that device, and OUT/cuda.html.
A command that fails does not keep the others from running; the exit code is then 1. Where no server can be started,
what needs one is left out, and said.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from samkit.command import run_command
from samkit.errors import MissingDependencyError, SamkitError
from samkit.methods import VolumeMethod, get_method, list_methods
from samkit.triton_models.server_files import check_numpy, find_server

AT_ONCE = 2
"""Exports at once, with one thread each."""
FULL_SIZE = ("m-sam", "sam-med3d")
"""What is timed at full size, too."""
QUICK_RIVALS = ("torch", "torch-autocast")
"""What every method is timed against: compiling and exporting once more take minutes each."""
ALL_RIVALS = ("sam",)
"""What is timed against all rivals, and whose memory is measured."""
FULL_SIZE_GRAPHS = ("image_encoder", "mask_decoder")
FULL_SIZE_RIVALS = ("torch",)
"""What `--no-fold` takes at full size, `tools.rewrites` measures."""
LOADED = "m-sam"
"""What readers work with on a server."""
BACKENDS = "torch,onnxruntime,onnxruntime-fp16"
SERVED = f"{BACKENDS},triton"
CUDA_BACKENDS = "torch,onnxruntime-cuda,onnxruntime-cuda-fp16"
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


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of REAL's folders.")
@click.option("--method", "names", multiple=True, type=click.Choice(list_methods()), help="One method; else all.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--keep-exports", is_flag=True, help="Measure those that are there; else they are made again.")
@click.option("--dry-run", is_flag=True, help="Print the commands and stop.")
def suite(out: Path, data: Path | None, names: tuple[str, ...], device: str, keep_exports: bool, dry_run: bool) -> None:
    """Export, measure, report."""
    if data is not None and device != "cpu":
        raise click.UsageError("--data is measured on the CPU; for a GPU call sam-bench accuracy --data --device cuda")
    methods = names or tuple(list_methods())
    served = device == "cpu" and _has_server()
    exports = [] if keep_exports else export_commands(out, methods, full_size=data is None)
    if data is not None:
        name, measures = "real", real_commands(out, methods, data, served=served)
    elif device == "cuda":
        name, measures = "cuda", cuda_commands(out, methods)
    else:
        name, measures = "report", bench_commands(out, methods, served=served)
    if dry_run:
        for command in (*exports, *measures.values(), report_command(out, name, list(measures))):
            click.echo(shlex.join(command))
        return
    if failed := run_together(exports):
        raise SamkitError(f"{len(failed)} exports failed, their messages stand above: {_named(failed)}; run one alone")
    for path in measures:
        path.unlink(missing_ok=True)  # what an earlier run left is not reported as this one's
    failed = [command for command in measures.values() if _run(command)]
    if written := [path for path in measures if path.exists()]:
        _run(report_command(out, name, written))
    if failed:
        raise SamkitError(
            f"{len(failed)} of {len(measures)} commands failed, their messages stand above: {_named(failed)}; the "
            "report has what the others measured"
        )


def export_commands(out: Path, methods: Sequence[str], *, full_size: bool) -> list[Command]:
    """Return what makes the exports."""
    base = ["sam-export", "--no-engines", "--quiet", "--force"]
    full = [name for name in FULL_SIZE if name in methods and full_size]
    # The long ones first, so that the last ones to finish are short
    return [
        *([*base, "--method", name, "--size", "full", "--out", str(_folder(out, name, full=True))] for name in full),
        *([*base, "--method", name, "--fp16", "--out", str(_folder(out, name))] for name in methods),
    ]


def bench_commands(out: Path, methods: Sequence[str], *, served: bool = True) -> dict[Path, Command]:
    """Return what measures the exports on phantoms, by the file that it writes."""
    full = [name for name in FULL_SIZE if name in methods]
    loaded = LOADED if LOADED in methods else methods[0]
    small = _exports(out, methods)
    backends = SERVED if served else BACKENDS
    found = {"accuracy": ["accuracy", *small, "--backends", backends, "--cases", "2", "--clicks", "5"]}
    parts = _each("--part", ("graphs", "stages"))
    quick = [*_each("--rival", QUICK_RIVALS), *parts, "--rounds", "2", "--cold-starts", "1"]
    found["latency"] = ["latency", *small, *quick]
    if compared := [name for name in ALL_RIVALS if name in methods]:
        found["rivals"] = ["latency", *_exports(out, compared), *_each("--part", ("graphs", "memory")), "--rounds", "2"]
    if full:
        graphs = [*_each("--graph", FULL_SIZE_GRAPHS), *_each("--rival", FULL_SIZE_RIVALS), "--part", "graphs"]
        found["full-size"] = ["latency", *_exports(out, full, full=True), *graphs, "--rounds", "2"]
    if served:
        found["load"] = ["load", *_exports(out, [loaded]), "--sessions", "1,2,4", "--seconds", "8"]
    return _writing(out, found)


def real_commands(out: Path, methods: Sequence[str], data: Path, *, served: bool = True) -> dict[Path, Command]:
    """Return what measures the exports on real images, by the file that it writes."""
    backends = SERVED if served else BACKENDS
    found: dict[str, Command] = {}
    for name in methods:
        clicks = "5" if isinstance(get_method(name), VolumeMethod) else "3"
        words = ["accuracy", *_exports(out, [name]), "--backends", backends, "--cases", "4", "--clicks", clicks]
        found |= {f"real-{name}-{folder}": [*words, "--data", str(data / folder)] for folder in REAL[name]}
    return _writing(out, found)


def cuda_commands(out: Path, methods: Sequence[str]) -> dict[Path, Command]:
    """Return what measures the exports on a GPU, by the file that it writes."""
    words = [*_exports(out, methods), "--device", "cuda"]
    full = [name for name in FULL_SIZE if name in methods]
    found = {
        "cuda-accuracy": ["accuracy", *words, "--backends", CUDA_BACKENDS, "--cases", "2", "--clicks", "5"],
        "cuda-latency": ["latency", *words],
    }
    if full:
        found["cuda-full-size"] = ["latency", *_exports(out, full, full=True), "--device", "cuda", "--part", "graphs"]
    return _writing(out, found)


def report_command(out: Path, name: str, files: Sequence[Path]) -> Command:
    """Return what makes one page and one file of tables of `files`."""
    written = [str(path) for path in files]
    return ["sam-bench", "report", *written, "--out", str(out / f"{name}.html"), "--tables", str(out / f"{name}.md")]


def _writing(out: Path, found: Mapping[str, Command]) -> dict[Path, Command]:
    paths = {name: out / f"{name}.json" for name in found}
    return {paths[name]: ["sam-bench", *words, "--json", str(paths[name])] for name, words in found.items()}


def _exports(out: Path, methods: Sequence[str], *, full: bool = False) -> Command:
    return _each("--export", [str(_folder(out, name, full=full)) for name in methods])


def _each(option: str, values: Sequence[str]) -> Command:
    return [word for value in values for word in (option, value)]


def _folder(out: Path, method: str, *, full: bool = False) -> Path:
    return out / "exports" / (f"{method}-full" if full else method)


def _has_server() -> bool:
    """Return whether a server can be started here; where not, say why."""
    try:
        find_server()
        check_numpy()
    except MissingDependencyError as error:
        click.echo(f"bench: without Triton and load: {error}", err=True)
        return False
    return True


# --- Running ---


def run_together(commands: Sequence[Command]) -> list[Command]:
    """Run commands, AT_ONCE at once with one thread each, and return those that failed."""
    waiting = list(commands)
    running: list[tuple[Command, subprocess.Popen[bytes]]] = []
    failed = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            command = waiting.pop(0)
            click.echo(shlex.join(command), err=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append((command, subprocess.Popen(_program(command), stdout=subprocess.DEVNULL, env=environment)))
        time.sleep(0.1)
        failed += [command for command, process in running if process.poll()]
        running = [(command, process) for command, process in running if process.returncode is None]
    return failed


def _run(command: Command) -> int:
    """Run one command alone and return its exit code."""
    click.echo(shlex.join(command), err=True)
    return subprocess.run(_program(command)).returncode


def _program(command: Command) -> Command:
    """Return a command of this installation's, whatever PATH has."""
    return [str(Path(sys.executable).with_name(command[0])), *command[1:]]


def _named(commands: Sequence[Command]) -> str:
    return "; ".join(shlex.join(command[:4]) for command in commands)


def main() -> None:
    """Run the command."""
    run_command(suite, "bench")


if __name__ == "__main__":
    main()
