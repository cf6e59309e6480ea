"""`sam-segment`: one scan or picture, prompts, one mask. Progress on stderr, one line of JSON on stdout."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

import samkit
from samkit.command import run_command
from samkit.errors import InputRefused, PromptError
from samkit.geometry import Triple
from samkit.imageio.nifti import MASK_SUFFIXES, check_output, replacing, write_logits, write_mask
from samkit.manifest import Export
from samkit.methods.method import Method, SliceMethod
from samkit.planes import PLANES
from samkit.prompts import (
    FOREGROUND,
    Point,
    Prompt,
    SlicePoint,
    parse_box,
    parse_point,
    parse_structure,
    read_prompts,
)
from samkit.runtime.client.remote_session import DECIDE_TIMEOUT, DEFAULT_TIMEOUT, RemoteSession, open_remote_session
from samkit.runtime.opening import open_session
from samkit.runtime.session.interactive import to_voxel
from samkit.runtime.session.volume_session import BACKENDS, DEVICES, default_device
from samkit.segment.inputs import Given, find_inputs, read_inputs, source_files
from samkit.segment.outputs import PICTURE_SUFFIX, check_name, table_path, write_picture, write_table
from samkit.segment.report import provenance
from samkit.segment.segmenting import AnySession, Say, segment_given
from samkit.sequences import parse_pattern

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


def _parse_limits(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not LOW,HIGH, such as -160,240") from None
    if not -float("inf") < low < high < float("inf"):
        raise click.BadParameter(f"'{value}' must be two numbers, the lower one first")
    return low, high


def _check_suffix(*suffixes: str) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    def check(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and not value.name.endswith(suffixes):
            raise click.BadParameter(f"'{value.name}' must end in {' or '.join(suffixes)}")
        return value

    return check


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(samkit.__version__, prog_name="sam-segment")
@click.option(
    "--export",
    "export",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that sam-export wrote.",
)
@click.option(
    "--server",
    metavar="URL",
    help="Instead of --export: what a server has under a name, triton://HOST:PORT/NAME (gRPC) or "
    "triton+http://HOST:PORT/NAME. The scan travels there; the mask is the same, byte for byte.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Of --server: how long one answer may take [s]. Default: {DEFAULT_TIMEOUT:g}, and {DECIDE_TIMEOUT:g} for an "
    "automatic method's pass over a volume and for --propagate, each of which is one answer.",
)
@click.option(
    "-i",
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]FILE",
    help="The scan: NIfTI or .mgz, one 3D volume; a PNG or JPEG for 2D methods. Methods of several sequences take each "
    "as -i t1c=FILE -i t2w=FILE, or a folder whose file names say which is which.",
)
@click.option(
    "--sequence",
    "sequences",
    multiple=True,
    metavar="NAME=PATTERN",
    help="Which file of a folder holds a sequence, such as t1c='*_contrast.nii.gz', where its name does not say so.",
)
@click.option(
    "-o",
    "--output",
    "mask_path",
    required=True,
    type=_FILE,
    callback=_check_suffix(*MASK_SUFFIXES, PICTURE_SUFFIX),
    help="The mask to write: uint8, the scan's geometry, .nii or .nii.gz; .png for a picture. Structures get the "
    "numbers of a table that is written beside it, .tsv.",
)
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="I,J,K,+|-",
    help="A click: continuous voxel index of the file's own array (0 is the first voxel's centre), + for the "
    "object, - for background; x,y,+ on a picture. Repeat it; in 3D each one is a refinement step. They come after "
    "those of --clicks.",
)
@click.option(
    "--box",
    "boxes",
    multiple=True,
    metavar="I0,J0,K0,I1,J1,K1",
    help="A box around the object in one slice (2D methods): two corners that share the index across the plane; "
    "x0,y0,x1,y1 on a picture. Repeat it.",
)
@click.option(
    "--structure",
    "structures",
    multiple=True,
    metavar="NAME=I,J,K,+|-",
    help="A click, or a box, for one of the structures that the method tells apart. Repeat it.",
)
@click.option(
    "--clicks",
    type=_FILE,
    help='Prompts as JSON: [{"point": [i, j, k], "label": 1}, {"box": [i0, j0, k0, i1, j1, k1]}, ...], in order; '
    'each may have a "structure".',
)
@click.option("--world", is_flag=True, help="All points and boxes are RAS+ millimetres instead of voxel indices.")
@click.option("--plane", type=click.Choice(PLANES), help="Slices of 2D methods; default: the method's own.")
@click.option(
    "--intensities",
    callback=_parse_limits,
    metavar="LOW,HIGH",
    help="What becomes black and white for 2D methods, such as -160,240 for soft tissue in a CT; default: the 0.5 and "
    "99.5 percentile of what is not background.",
)
@click.option(
    "--propagate",
    is_flag=True,
    help="Let the mask of a prompted slice lead on to its neighbours, until it vanishes. It takes the place of what an "
    "automatic method found there.",
)
@click.option("--device", type=click.Choice(DEVICES), help="Default: cuda for TensorRT's backends, cpu for the others.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="onnxruntime",
    show_default=True,
    help="tensorrt runs engines that sam-export built for this GPU; torch runs the original in float32 and needs the "
    "checkpoint that the export was made from.",
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
    help="Voxel size [mm] of a 3D network's grid along the patient's axes, instead of the one it was trained at.",
)
@click.option(
    "--save-logits",
    "logits_path",
    type=_FILE,
    callback=_check_suffix(*MASK_SUFFIXES),
    help="Also write logits, float32; of scans only.",
)
@click.option("--report", "report_path", type=_FILE, help="Also write a JSON of inputs, versions and hashes.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def segment(
    context: click.Context,
    export: Path | None,
    server: str | None,
    timeout: float | None,
    inputs: tuple[str, ...],
    sequences: tuple[str, ...],
    mask_path: Path,
    points: tuple[str, ...],
    boxes: tuple[str, ...],
    structures: tuple[str, ...],
    clicks: Path | None,
    world: bool,
    plane: str | None,
    intensities: tuple[float, float] | None,
    propagate: bool,
    device: str | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    spacing: Triple | None,
    logits_path: Path | None,
    report_path: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Segment a scan or a picture from clicks and boxes, or without any, and write the mask.

    Methods that need no prompt segment every slice by themselves; prompts then decide on their own slices. Exit codes:
    0 done, 1 a stage failed, 2 usage (also: no prompt where one is needed), 3 input refused. Not a medical device.
    """
    say: Say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    start = time.perf_counter()
    _check_place(context, export, server)
    if backend == "torch" and precision == "fp16":
        raise click.UsageError("the torch backend runs float32; leave --precision out")
    seen = {"spacing": spacing, "plane": plane, "intensities": intensities}
    with ExitStack() as opened:
        if export is None:
            place = _on_server(opened, str(server), timeout, seen)
        else:
            device = device or default_device(backend)
            ran = {"backend": backend, "device": device, "precision": precision, "threads": threads}
            place = _in_folder(opened, export, ran, seen)
        found = time.perf_counter()
        method = place.method
        asked = read_prompts(clicks) if clicks else []
        asked += [parse_point(text) for text in points] + [parse_box(text) for text in boxes]
        asked += [parse_structure(text) for text in structures]
        _check_prompts(asked, method, propagate)
        _check_options(method, {"--plane": plane, "--intensities": intensities, "--propagate": propagate}, spacing)
        files = find_inputs(inputs, method, place.config, dict(parse_pattern(text) for text in sequences))
        names = method.structures(place.config) if isinstance(method, SliceMethod) else ()
        table = table_path(mask_path) if names else None
        outputs = [path for path in (mask_path, table, logits_path, report_path) if path is not None]
        if len({path.resolve() for path in outputs}) < len(outputs):
            raise click.UsageError("-o, its table, --save-logits and --report name the same file")
        sources = [source for path in files.values() for source in source_files(path)]
        for path in outputs:
            check_output(path, [*sources, *([clicks] if clicks else []), *place.files])

        given = read_inputs(files, method)
        check_name(mask_path, given)
        if given.picture is not None:
            _check_picture(
                {
                    "--world": world,
                    "--plane": plane,
                    "--intensities": intensities,
                    "--propagate": propagate,
                    "--save-logits": logits_path,
                }
            )
        begun = time.perf_counter()
        seconds = {"load": begun - found, "open": found - start}
        say(_described(given))
        used = [to_voxel(prompt, given.scan.volume.affine) for prompt in asked] if world else asked

        session = place.start()
        seconds["open"] += time.perf_counter() - begun
        say(f"{method.name} in {session.precision} {place.said}")
        warnings = [*given.warnings, *session.warnings]
        for warning in warnings:
            say(f"warning: {warning}")
        done = segment_given(session, given, used, propagate, say)
        for stage, spent in done.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        for warning in done.warnings:
            say(f"warning: {warning}")
        begun = time.perf_counter()
        if logits_path is not None and not isinstance(session, RemoteSession):
            write_logits(logits_path, session.logits(), given.scan)
        _write(session.labels(), given, mask_path, table, names)
        seconds["write"] = time.perf_counter() - begun
        seconds["total"] = time.perf_counter() - start

        result = {
            "mask": str(mask_path),
            "volume_ml": done.volume_ml,
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
            "method": method.name,
            "precision": session.precision,
            **place.figures,
            "clicks": len(used),
            **done.figures,
            "demonstration_weights": session.manifest.plan.is_demonstration,
            "warnings": warnings + done.warnings,
            "notice": NOTICE,
        }
        if report_path is not None:
            report = {**result, **provenance(session, given, used, mask_path)}
            with replacing(report_path) as file:
                file.write((json.dumps(report, indent=1) + "\n").encode())
    click.echo(json.dumps(result))


# --- Where it is done ---


@dataclass(frozen=True)
class _Place:
    """An export, in its folder or on a server: what is known before a session is needed, and how to get one."""

    method: Method
    config: Any
    start: Callable[[], AnySession]
    figures: dict[str, str | None]
    """What the JSON line says of it."""
    said: str
    files: tuple[Path, ...] = ()
    """Files of the export, which nothing may be written over."""


def _in_folder(opened: ExitStack, export: Path, ran: dict[str, Any], seen: dict[str, Any]) -> _Place:
    there = Export.open(export, verify=False)

    def start() -> AnySession:
        session = open_session(export, **ran, **seen)
        opened.callback(session.close)
        return session

    return _Place(
        there.method,
        there.config,
        start,
        {"backend": ran["backend"], "device": ran["device"]},
        f"on {ran['backend']}, {ran['device']}",
        tuple(export.iterdir()),
    )


def _on_server(opened: ExitStack, url: str, timeout: float | None, seen: dict[str, Any]) -> _Place:
    session = opened.enter_context(open_remote_session(url, timeout=timeout, **seen))  # a folder is refused
    figures = {"backend": "triton", "device": None, "server": url}
    return _Place(session.method, session.config, lambda: session, figures, f"at {url}")


def _check_place(context: click.Context, export: Path | None, server: str | None) -> None:
    """Raise click.UsageError unless one place is given, with options that mean something there."""

    def given(*names: str) -> list[str]:
        sources = {name: context.get_parameter_source(name.removeprefix("--").replace("-", "_")) for name in names}
        return [name for name, source in sources.items() if source is ParameterSource.COMMANDLINE]

    if (export is None) == (server is None):
        what = "neither --export nor --server is" if export is None else "--export and --server are both"
        raise click.UsageError(f"{what} given, and one place does the work; give one of them")
    if server is None:
        if given("--timeout"):
            raise click.UsageError("--timeout is for a server's answers, and --export asks none; leave it out")
        return
    if decided := given("--backend", "--device", "--precision", "--threads"):
        raise click.UsageError(f"{decided[0]} is the server's to decide, for all who use it; leave it out")
    if context.params["logits_path"] is not None:
        raise click.UsageError("--save-logits needs --export, a server sends masks and no logits; leave it out")


# --- What is asked for ---


def _check_prompts(prompts: Sequence[Prompt], method: Method, propagate: bool) -> None:
    if isinstance(method, SliceMethod) and method.is_automatic:
        if propagate and not prompts:
            raise PromptError(
                f"{method.name} was given no prompt that could lead on to other slices; leave --propagate out"
            )
        return
    if not prompts:
        raise PromptError("no click was given, at least one on the object is needed; e.g. --point 60,70,30,+")
    if all(isinstance(prompt, (Point, SlicePoint)) and prompt.label != FOREGROUND for prompt in prompts):
        raise InputRefused(
            "no-foreground",
            f"none of the {len(prompts)} click(s) is on the object",
            "add a foreground click, e.g. --point 60,70,30,+",
        )


def _check_options(method: Method, of_slices: dict[str, object], spacing: Triple | None) -> None:
    if isinstance(method, SliceMethod):
        if spacing is not None:
            raise click.UsageError(f"{method.name} works on slices as they are; leave --spacing out")
        return
    for option, value in of_slices.items():
        if value:
            raise click.UsageError(f"{option} is for 2D methods, and {method.name} works on volumes; leave it out")


def _check_picture(of_scans: dict[str, object]) -> None:
    for option, value in of_scans.items():
        if value:
            raise click.UsageError(f"{option} is for scans, and a picture is given; leave it out")


def _described(given: Given) -> str:
    if given.picture is not None:
        (path,) = given.files.values()
        height, width = given.picture.shape[:2]
        return f"{path.name}: {width} x {height} pixels"
    names = ", ".join(f"{name} {scan.path.name}".strip() for name, scan in given.scans.items())
    volume = given.scan.volume
    return f"{names}: {_by(volume.array.shape)} voxels of {_by(volume.spacing)} mm"


# --- What comes out ---


def _write(labels: np.ndarray, given: Given, mask_path: Path, table: Path | None, names: Sequence[str]) -> None:
    """Write the mask, or the label map and its table, which tells of the structures `names`."""
    if given.picture is not None:
        write_picture(mask_path, labels, is_mask=table is None)
    else:
        write_mask(mask_path, labels, given.scan)
    if table is not None:
        write_table(table, labels, names, None if given.picture is not None else given.scan.volume.voxel_ml)


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def main() -> None:
    """Run the command."""
    run_command(segment, "sam-segment")


if __name__ == "__main__":
    main()
