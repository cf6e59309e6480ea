"""`sam-segment`: one scan, clicks, one mask. Progress on stderr, one line of JSON on stdout."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

import samkit
from samkit.command import run_command
from samkit.errors import InputRefused, PromptError
from samkit.geometry import Triple, world_to_voxel
from samkit.manifest import Weights, file_sha256
from samkit.prompts import FOREGROUND, Point, parse_point, read_clicks
from samkit.runtime.images import (
    MASK_SUFFIXES,
    Scan,
    check_output,
    read_scan,
    replacing,
    scan_files,
    write_logits,
    write_mask,
)
from samkit.runtime.session import BACKENDS, DEVICES, Session, open_session

NOTICE = "not a medical device"

_FILE = click.Path(dir_okay=False, path_type=Path)


def _parse_spacing(context: click.Context, parameter: click.Parameter, value: str | None) -> Triple | None:
    if value is None:
        return None
    try:
        a, b, c = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not x,y,z in mm, such as 1.5,1.5,1.5") from None
    if not all(0 < v < float("inf") for v in (a, b, c)):
        raise click.BadParameter(f"'{value}' must be three positive numbers in mm")
    return a, b, c


def _check_nifti_name(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.name.endswith(MASK_SUFFIXES):
        raise click.BadParameter(f"'{value.name}' must end in {' or '.join(MASK_SUFFIXES)}")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(samkit.__version__, prog_name="sam-segment")
@click.option(
    "--export",
    "export",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that sam-export wrote.",
)
@click.option("-i", "--input", "scan_path", required=True, type=_FILE, help="The scan: NIfTI, one 3D volume.")
@click.option(
    "-o",
    "--output",
    "mask_path",
    required=True,
    type=_FILE,
    callback=_check_nifti_name,
    help="The mask to write: uint8, the scan's geometry, .nii or .nii.gz.",
)
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="I,J,K,+|-",
    help="A click: continuous voxel index of the file's own array (0 is the first voxel's centre), + for the "
    "object, - for background. Repeat it; each one is a refinement step. They come after those of --clicks.",
)
@click.option("--clicks", type=_FILE, help='Clicks as JSON: [{"point": [i, j, k], "label": 1}, ...], in order.')
@click.option("--world", is_flag=True, help="All points are RAS+ millimetres instead of voxel indices.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="onnxruntime",
    show_default=True,
    help="torch runs the original in float32 and needs the checkpoint that the export was made from.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    help="Default: fp32 on the CPU, fp16 on CUDA where the export has it.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator on the CPU; default all cores.")
@click.option(
    "--spacing",
    callback=_parse_spacing,
    metavar="X,Y,Z",
    help="Voxel size [mm] of the network's grid along the patient's axes, instead of the one it was trained at.",
)
@click.option(
    "--save-logits", "logits_path", type=_FILE, callback=_check_nifti_name, help="Also write logits, float32."
)
@click.option("--report", "report_path", type=_FILE, help="Also write a JSON of inputs, versions and hashes.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def segment(
    export: Path,
    scan_path: Path,
    mask_path: Path,
    points: tuple[str, ...],
    clicks: Path | None,
    world: bool,
    device: str,
    backend: str,
    precision: str | None,
    threads: int | None,
    spacing: Triple | None,
    logits_path: Path | None,
    report_path: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Segment one object of a scan from clicks, and write its mask.

    Exit codes: 0 done, 1 a stage failed, 2 usage (also: no click), 3 input refused. Not a medical device.
    """
    say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    start = time.perf_counter()
    if backend == "torch" and precision == "fp16":
        raise click.UsageError("the torch backend runs float32; leave --precision out")
    asked = (read_clicks(clicks) if clicks else []) + [parse_point(text) for text in points]
    _check_points(asked)
    outputs = [path for path in (mask_path, logits_path, report_path) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise click.UsageError("-o, --save-logits and --report name the same file")
    inputs = [*scan_files(scan_path), *([clicks] if clicks else []), *export.iterdir()]
    for path in outputs:
        check_output(path, inputs)

    seconds: dict[str, float] = {}
    scan = read_scan(scan_path)
    seconds["load"] = time.perf_counter() - start
    say(f"{scan_path.name}: {_by(scan.volume.array.shape)} voxels of {_by(scan.volume.spacing)} mm")
    used = [_to_voxel(point, scan) for point in asked] if world else asked

    begun = time.perf_counter()
    with open_session(
        export, backend=backend, device=device, precision=precision, threads=threads, spacing=spacing
    ) as session:
        seconds["open"] = time.perf_counter() - begun
        manifest = session.manifest
        say(f"{manifest.plan.method} in {session.precision} on {backend}, {device}")
        warnings = [*scan.warnings, *_weights_warnings(manifest.plan.weights)]
        for warning in warnings:
            say(f"warning: {warning}")
        session.set_volume(scan.volume)
        for point in used:  # all of them before the first minute is spent
            session.check_point(point)
        for number, point in enumerate(used, 1):
            step = session.add_point(point)
            say(
                f"click {number} of {len(used)}: {step.volume_ml:.2f} mL, {step.crops} crop(s), "
                f"{step.seconds['total']:.2f} s"
            )
            for stage, spent in step.seconds.items():
                if stage != "total":
                    seconds[stage] = seconds.get(stage, 0.0) + spent
        last = session.steps[-1]
        late = _result_warnings(last.volume_ml, last.limit_reached)
        for warning in late:
            say(f"warning: {warning}")
        begun = time.perf_counter()
        if logits_path is not None:
            write_logits(logits_path, session.logits(), scan)
        write_mask(mask_path, session.mask(), scan)
        seconds["write"] = time.perf_counter() - begun
        seconds["total"] = time.perf_counter() - start

        result = {
            "mask": str(mask_path),
            "volume_ml": last.volume_ml,
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
            "method": manifest.plan.method,
            "precision": session.precision,
            "backend": backend,
            "device": device,
            "clicks": len(used),
            "crops": last.crops,
            "demonstration_weights": manifest.plan.weights.demonstration,
            "warnings": warnings + late,
            "notice": NOTICE,
        }
        if report_path is not None:
            report = {**result, **_provenance(session, scan, used, mask_path)}
            with replacing(report_path) as file:
                file.write((json.dumps(report, indent=1) + "\n").encode())
    click.echo(json.dumps(result))


def _check_points(points: list[Point]) -> None:
    if not points:
        raise PromptError("no click was given, at least one on the object is needed; e.g. --point 60,70,30,+")
    if not any(point.label == FOREGROUND for point in points):
        raise InputRefused(
            "no-foreground",
            f"none of the {len(points)} click(s) is on the object",
            "add a foreground click, e.g. --point 60,70,30,+",
        )


def _to_voxel(point: Point, scan: Scan) -> Point:
    i, j, k = world_to_voxel(scan.volume.affine, np.array([point.index]))[0]
    return replace(point, index=(float(i), float(j), float(k)))


def _weights_warnings(weights: Weights) -> list[str]:
    warnings = []
    if weights.demonstration:
        warnings.append("DEMONSTRATION WEIGHTS, trained on phantoms to show the tool at work: never for patients")
    if weights.kind == "random":
        warnings.append("RANDOM WEIGHTS, for timing and tests: the mask means nothing")
    return warnings


def _result_warnings(volume_ml: float, limit_reached: bool) -> list[str]:
    warnings = []
    if volume_ml == 0:
        warnings.append("the mask is empty")
    if limit_reached:
        warnings.append("the object goes on beyond the crops that one click may add; click on its end to follow it")
    return warnings


def _provenance(session: Session, scan: Scan, points: list[Point], mask_path: Path) -> dict[str, Any]:
    """Return what a report adds. File names only: folders may name a patient."""
    weights = session.manifest.plan.weights
    return {
        "mask": mask_path.name,
        "samkit": samkit.__version__,
        "manifest_sha256": session.manifest.digest,
        "weights": {"kind": weights.kind, "sha256": weights.sha256},
        "refinement": session.refinement,
        "spacing_mm": list(session.spacing),
        "input": scan.path.name,
        "input_sha256": file_sha256(scan.path),
        "output_sha256": file_sha256(mask_path),
        "points_voxel": [{"point": list(point.index), "label": point.label} for point in points],
        "crop_origins": [list(origin) for origin in session.origins],
        "providers": {graph: list(names) for graph, names in session.providers.items()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "scipy", "nibabel", "onnxruntime", "onnxruntime-gpu", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def main() -> None:
    """Run the command."""
    run_command(segment, "sam-segment")


if __name__ == "__main__":
    main()
