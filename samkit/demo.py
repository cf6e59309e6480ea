"""The main job, done once on made-up data: export M-SAM, click on a lesion, look at the mask, serve the same.

    python -m samkit.demo --out demo

Runs the same commands a user would, on a phantom (no patient, no download) with the demonstration weights, which
are trained on phantoms and never for patients. Writes scan, label, clicks, masks, a Triton repository and demo.png into
the folder. The server is a real one, on this machine's loopback, and stopped at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from samkit.clicks import central_click
from samkit.command import run_command
from samkit.engine_libraries import get_library
from samkit.errors import ExportError, ParityError
from samkit.files import make_folder
from samkit.geometry import Volume
from samkit.imageio.reading import read_label
from samkit.imageio.writing import write_volume
from samkit.manifest import Manifest
from samkit.masks import dice
from samkit.phantoms import make_phantom
from samkit.prompts import FOREGROUND, Point, write_clicks
from samkit.runtime import Session, open_session
from samkit.runtime.session.updates import MaskUpdate
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from samkit.triton_models.server_files import check_numpy, find_server

METHOD = "m-sam"
SEED = 7
CLICKS = 5


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
def demo(out: Path) -> None:
    """Export, segment, compare with the truth, draw; then serve the export and compare both ways."""
    find_server()  # what the last part needs, said before minutes of work
    check_numpy()
    make_folder(out)
    export = out / METHOD
    console = Console(width=110)
    console.rule("1. sam-export --method m-sam --fp16")
    started = time.perf_counter()
    _run("sam-export", "--method", METHOD, "--fp16", "--force", "--out", str(export))
    exported = time.perf_counter() - started

    scan, lesion = _write_scan(out)
    clicks, overlaps = _simulate_clicks(export, scan, lesion)
    write_clicks(out / "clicks.json", clicks)

    console.rule("2. sam-segment --clicks clicks.json")
    report = _run(
        "sam-segment", "--export", str(export), "-i", str(out / "scan.nii.gz"), "-o", str(out / "mask.nii.gz"),
        "--clicks", str(out / "clicks.json"), "--report", str(out / "run.json"),
    )  # fmt: skip
    mask = read_label(out / "mask.nii.gz").array > 0

    console.rule("3. what came out")
    table = Table("click", "voxel", "label", "Dice")
    for number, (point, overlap) in enumerate(zip(clicks, overlaps, strict=True), start=1):
        table.add_row(str(number), str(tuple(int(v) for v in point.index)), "-+"[point.label], f"{overlap:.3f}")
    console.print(table)
    parity = Table("file", "relative error against PyTorch float32", "Dice", "voxels that differ")
    manifest = Manifest.load(export)
    for name, figures in sorted(manifest.parity.items()):
        row = (f"{figures['relative_error']:.1e}", f"{figures.get('dice', ''):.6}", str(figures.get("voxels", "")))
        parity.add_row(name, *row) if "dice" in figures else parity.add_row(name, row[0], "", "")
    console.print(parity)
    engines = Table("engine", "library", "for", "MB", "built in [s]", "run")
    for name, facts in sorted(manifest.engines.items()):
        library, size = get_library(facts["library"]), f"{facts['bytes'] / 1e6:.1f}"
        version, where = facts[library.version_fact], facts.get("target", facts.get("gpu"))
        run = "and compared" if library.needs_gpu else "never"
        engines.add_row(name, f"{library.title} {version}", where, size, f"{facts['build_seconds']:.1f}", run)
    if engines.rows:
        console.print(engines)
    console.print(f"mask file: Dice {dice(mask, lesion):.3f}, {report['volume_ml']:.2f} mL; export {exported:.0f} s;")
    console.print(f"segmentation, seconds by stage: {json.dumps(report['seconds'])}")
    _draw(out / "demo.png", scan, lesion, mask, clicks)
    _serve(console, out, export, clicks)
    console.print(f"look at {out / 'demo.png'}. Demonstration weights: for phantoms, never for patients.")


def _serve(console: Console, out: Path, export: Path, clicks: list[Point]) -> None:
    """Click on the scan through a server and in-process, and raise ParityError where the masks differ."""
    console.rule("4. sam-serve write; sam-serve start; the same clicks on the server")
    started = time.perf_counter()
    write_repository([export], out / "repository")
    with EmbeddedServer(out / "repository") as server:
        ready = time.perf_counter() - started
        address = f"triton://{server.grpc}/{METHOD}"
        table = Table("click", "changed box", "mL", "in-process [ms]", "server [ms]", "same mask")
        with open_session(export) as local, open_session(address) as served:
            for session in (local, served):
                session.set_image(out / "scan.nii.gz")
            for number, point in enumerate(clicks, start=1):
                (here, here_ms), (there, there_ms) = (_timed_click(session, point) for session in (local, served))
                box = " ".join(f"{side.start}:{side.stop}" for side in there.changed)
                same = np.array_equal(here.mask, there.mask)
                times = (f"{here_ms:.0f}", f"{there_ms:.0f}")
                table.add_row(str(number), box, f"{there.volume_ml:.2f}", *times, "yes" if same else "NO")
                if not same:
                    raise ParityError(f"click {number} gave another mask on the server than in-process; report this")
        console.print(table)
        _run(
            "sam-segment", "--server", address, "-i", str(out / "scan.nii.gz"), "-o", str(out / "mask-served.nii.gz"),
            "--clicks", str(out / "clicks.json"), "--quiet",
        )  # fmt: skip
    if (out / "mask-served.nii.gz").read_bytes() != (out / "mask.nii.gz").read_bytes():
        raise ParityError("sam-segment --server wrote another file than sam-segment --export; report this")
    console.print(f"server ready after {ready:.0f} s; sam-segment --server and --export wrote the same bytes")


def _timed_click(session: Session, point: Point) -> tuple[MaskUpdate, float]:
    """Return what a click did, and how long it took until the whole mask was there [ms]."""
    started = time.perf_counter()
    update = session.click(point.index, positive=point.label == FOREGROUND)
    _ = update.mask
    return update, (time.perf_counter() - started) * 1000


def _run(*command: str) -> dict[str, float]:
    """Run a command of this environment and return the JSON line it prints."""
    found = Path(sys.executable).parent / command[0]
    run = subprocess.run([str(found), *command[1:]], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise ExportError(f"{command[0]} ended with exit code {run.returncode}; its message stands above")
    result: dict[str, float] = json.loads(run.stdout)
    return result


def _write_scan(out: Path) -> tuple[Volume, np.ndarray]:
    """Write scan.nii.gz and label.nii.gz; return the scan and one of its lesions (I, J, K)."""
    phantom = make_phantom(SEED, sequences=("flair",))
    scan = phantom.sequences["flair"]
    sizes = np.bincount(phantom.lesions.ravel())[1:]
    lesion = phantom.lesions == 1 + int(sizes.argmax())
    write_volume(out / "scan.nii.gz", Volume(scan.array.astype(np.float32), scan.affine))
    write_volume(out / "label.nii.gz", Volume(lesion.astype(np.uint8), scan.affine))
    return scan, lesion


def _simulate_clicks(export: Path, scan: Volume, lesion: np.ndarray) -> tuple[list[Point], list[float]]:
    """Return the clicks a careful reader would make, each in the middle of the worst error, and the Dice after it."""
    clicks: list[Point] = []
    overlaps: list[float] = []
    with open_session(export) as session:
        session.set_image(scan)
        while len(clicks) < CLICKS and (point := central_click(session.mask(), lesion)) is not None:
            session.add(point)
            clicks.append(point)
            overlaps.append(dice(session.mask(), lesion))
    return clicks, overlaps


def _draw(path: Path, scan: Volume, lesion: np.ndarray, mask: np.ndarray, clicks: list[Point]) -> None:
    """Draw the three planes through the lesion's middle: truth as a green line, mask as a red one, clicks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    centre = [int(v) for v in np.argwhere(lesion).mean(axis=0)]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), facecolor="black")
    for axis, panel in enumerate(axes):
        kept = [a for a in range(3) if a != axis]
        planes = [np.take(array, centre[axis], axis).T for array in (scan.array, lesion, mask)]
        panel.imshow(planes[0], cmap="gray", origin="lower")
        for plane, colour in ((planes[1], "lime"), (planes[2], "red")):
            if plane.any():
                panel.contour(plane, levels=[0.5], colors=colour, linewidths=1.2)
        for point in clicks:
            if abs(point.index[axis] - centre[axis]) <= 3:
                marker = "+" if point.label else "x"
                panel.plot(point.index[kept[0]], point.index[kept[1]], marker, color="cyan", markersize=9)
        panel.set_title(f"{'xyz'[axis]} = {centre[axis]}", color="white")
        panel.axis("off")
    figure.suptitle("green: truth   red: samkit's mask   cyan: clicks (phantom, demonstration weights)", color="white")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Run the command."""
    run_command(demo, "demo", extras=("bench", "export", "cpu", "serve"))


if __name__ == "__main__":
    main()
