"""From nothing to the first mask: a new process that opens an export, reads a scan and answers one prompt.

    python -m samkit.benchmarks.latency.cold_start EXPORT [NAME=]SCAN ... --prompts FILE.json --backend torch

The parent takes the time, from before the process until its line of JSON is there, which says how much memory it took
at most [MB, 10^6 bytes]. Linux only. What is imported up here is what `sam-segment` imports, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from samkit.benchmarks.measure.originals import original_network, original_runners
from samkit.benchmarks.measure.processes import ask_process, resident_mb
from samkit.command import run_command
from samkit.imageio.study import read_study
from samkit.manifest import Export
from samkit.prompts import Prompt, prompt_json, read_prompts
from samkit.runtime.opening import make_session, open_export
from samkit.runtime.session.base import Session
from samkit.segment.inputs import find_inputs

ORIGINAL = "torch"
"""The backend that is PyTorch on upstream's formulation, LoRA apart: not what `open_export` calls by that name."""


def open_reader(
    folder: Path, backend: str, precision: str, *, device: str = "cpu", threads: int | None = None
) -> Session:
    """Return a session on an export folder by ORIGINAL or a backend of `open_export`, and raise as they do."""
    if backend != ORIGINAL:
        return open_export(folder, backend=backend, precision=precision, device=device, threads=threads)
    export = Export.open(folder, verify=False)
    network = original_network(export.plan, device=device, threads=threads)
    return make_session(export, original_runners(network, export.plan, device), precision)


@click.command()
@click.argument("export", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("scans", nargs=-1, required=True)
@click.option("--prompts", "prompts_file", required=True, type=click.Path(path_type=Path))
@click.option("--backend", required=True)
@click.option("--precision", required=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
def cold_start(
    export: Path,
    scans: tuple[str, ...],
    prompts_file: Path,
    backend: str,
    precision: str,
    device: str,
    threads: int | None,
) -> None:
    """Answer the first prompt of a file, or decide on the whole scan where it holds none."""
    with open_reader(export, backend, precision, device=device, threads=threads) as session:
        given = read_study(find_inputs(scans, session.method, session.config, {}))
        session.set_image({name: scan.volume for name, scan in given.scans.items()}, automatic=False)
        prompts = read_prompts(prompts_file)
        if prompts:
            session.add(prompts[0])
        else:
            session.segment_automatically()
        voxels = int(session.mask().sum())
        click.echo(json.dumps({"peak_mb": resident_mb("VmHWM"), "voxels": voxels}))


def measure_cold_start(
    export: Path,
    scans: Mapping[str, Path],
    prompts: Sequence[Prompt],
    backend: str,
    precision: str,
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> tuple[float, float]:
    """Return how long a new process took until the first mask [s], and its peak memory [MB]; raises SamkitError."""
    prompts_file = next(iter(scans.values())).with_name("prompts.json")
    prompts_file.write_text(json.dumps([prompt_json(prompt) for prompt in prompts]))
    words = [str(export), *(f"{name}={path}" if name else str(path) for name, path in scans.items())]
    words += ["--prompts", str(prompts_file), "--backend", backend, "--precision", precision, "--device", device]
    words += [] if threads is None else ["--threads", str(threads)]
    seconds, found = ask_process(__name__, words, f"{backend} {precision} gave no first mask")
    return seconds, float(found["peak_mb"])


def main() -> None:
    """Run the command."""
    run_command(cold_start, "cold_start")


if __name__ == "__main__":
    main()
