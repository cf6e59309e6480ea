"""`sam-segment`: one scan or picture, prompts, one mask. Progress on stderr, one line of JSON on stdout."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import click
from click.core import ParameterSource

from samkit.command import THREADS, run_command, show_progress
from samkit.geometry import Triple
from samkit.imageio.gate import MAX_BYTES, options_offered
from samkit.imageio.reading import is_picture, named
from samkit.imageio.study import read_study
from samkit.imageio.writing import MASK_SUFFIXES, PICTURE_SUFFIX
from samkit.methods.method import SliceMethod
from samkit.planes import PLANES
from samkit.precisions import BASE, PRECISIONS
from samkit.prompts import parse_box, parse_number, parse_point, parse_structure, read_prompts
from samkit.runtime.backends import BACKENDS, DEFAULT, device_names
from samkit.runtime.client.remote_session import DEFAULT_TIMEOUT, LONG_TIMEOUT
from samkit.runtime.session.view import View
from samkit.runtime.session.world import check_sides, to_voxel
from samkit.segment.checks import check_method, check_picture, check_place, check_prompts
from samkit.segment.inputs import find_inputs
from samkit.segment.outputs import Outputs
from samkit.segment.place import in_folder, on_server
from samkit.segment.report import case_of, first_sha256, provenance, without_names, write_report
from samkit.segment.segmenting import segment_study, tell
from samkit.sequences import parse_pattern
from samkit.version import __version__

_LOG = logging.getLogger("samkit.segment.cli")  # by its name, which `python -m` would take away

NOTICE = "not a medical device"

_FILE = click.Path(dir_okay=False, path_type=Path)


_DEVICES = ", ".join(
    f"{device} for {' and '.join(backend.name for backend in BACKENDS if backend.devices[0] == device)}"
    for device in device_names()
)
_PRECISIONS = "; ".join(
    [
        BASE.name,
        *(
            f"{one.name} on {' and '.join(sorted(one.preferred_on))} where backend and export have it"
            for one in PRECISIONS
            if one.preferred_on
        ),
    ]
)


def _parse_spacing(context: click.Context, parameter: click.Parameter, value: str | None) -> Triple | None:
    if value is None:
        return None
    try:
        a, b, c = (parse_number(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not x,y,z in mm, such as 1.5,1.5,1.5") from None
    if not all(0 < v < float("inf") for v in (a, b, c)):
        raise click.BadParameter(f"'{value}' must be three positive numbers in mm")
    return a, b, c


def _parse_limits(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (parse_number(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not LOW,HIGH, such as -160,240") from None
    if not -float("inf") < low < high < float("inf"):
        raise click.BadParameter(f"'{value}' must be two numbers, the lower one first")
    return low, high


def _check_suffix(*suffixes: str) -> Callable[[click.Context, click.Parameter, Path | None], Path | None]:
    def check(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and not value.name.lower().endswith(suffixes):
            raise click.BadParameter(f"'{value.name}' must end in {' or '.join(suffixes)}")
        return value

    return check


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sam-segment")
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
    help=f"Of --server: how long one answer may take [s]. Default: {DEFAULT_TIMEOUT:g}, and {LONG_TIMEOUT:g} for an "
    "automatic method's pass over a volume and for --propagate, each of which is one answer.",
)
@click.option(
    "-i",
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]FILE",
    help=f"The scan: {named(pictures=False)}, one 3D volume. 2D methods also take one slice, or a picture, "
    f"{named(pictures=True)}. Methods of several sequences take each as -i t1c=FILE -i t2w=FILE, or a folder whose "
    "file names say which is which.",
)
@click.option(
    "--sequence",
    "sequences",
    multiple=True,
    metavar="NAME=PATTERN",
    help="Which file of a folder holds a sequence, such as t1c='*_contrast.nii.gz', where its name does not say so.",
)
@click.option(
    "--volume",
    type=click.IntRange(min=0),
    metavar="N",
    help="Which volume of a 4D file, 0 the first; without it such a file is refused.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most that a scan's voxels may take as its file stores them, unpacked; judged before they are read. "
    f"Default: {MAX_BYTES}.",
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
@click.option(
    "--assume-ras",
    is_flag=True,
    help="Of a scan that does not say where its voxels lie: its axes do run as the warning says, so that millimetres, "
    "and structures of one side, may be believed. Without it they are refused there.",
)
@click.option(
    "--plane",
    type=click.Choice(PLANES),
    help="Slices of 2D methods; default: the method's own, and of a scan of one slice the plane it lies in.",
)
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
@click.option("--device", type=click.Choice(device_names()), help=f"Default: {_DEVICES}.")
@click.option(
    "--backend",
    type=click.Choice([backend.name for backend in BACKENDS]),
    default=DEFAULT.name,
    show_default=True,
    help="; ".join(f"{backend.name} {backend.summary}" for backend in BACKENDS) + ".",
)
@click.option(
    "--precision",
    type=click.Choice([precision.name for precision in PRECISIONS]),
    help=f"Default: {_PRECISIONS}.",
)
@click.option("--threads", type=THREADS, help="Threads of one operator on the CPU; default all cores.")
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
@click.option(
    "--overlay",
    "overlay_path",
    type=_FILE,
    callback=_check_suffix(PICTURE_SUFFIX),
    help="Also write a picture, .png: the slice that shows most of the mask, with the mask on it.",
)
@click.option("--report", "report_path", type=_FILE, help="Also write a JSON of inputs, versions and hashes.")
@click.option(
    "--show-names",
    is_flag=True,
    help="Name files in the JSON line and in --report, which else call the case by the first digits of its SHA-256.",
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def segment(
    context: click.Context,
    export: Path | None,
    server: str | None,
    timeout: float | None,
    inputs: tuple[str, ...],
    sequences: tuple[str, ...],
    volume: int | None,
    max_bytes: int | None,
    mask_path: Path,
    points: tuple[str, ...],
    boxes: tuple[str, ...],
    structures: tuple[str, ...],
    clicks: Path | None,
    world: bool,
    assume_ras: bool,
    plane: str | None,
    intensities: tuple[float, float] | None,
    propagate: bool,
    device: str | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    spacing: Triple | None,
    logits_path: Path | None,
    overlay_path: Path | None,
    report_path: Path | None,
    show_names: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Segment a scan or a picture from clicks and boxes, or without any, and write the mask.

    Methods that need no prompt segment every slice by themselves; prompts then decide on their own slices. Exit codes:
    0 done, 1 a stage failed, 2 usage (also: no prompt where one is needed), 3 input refused. Not a medical device.
    """
    show_progress(quiet)
    start = time.perf_counter()
    check_place([name for name in context.params if _is_given(context, name)])
    view = View(spacing, plane, intensities)
    with ExitStack() as opened:
        place = (
            on_server(str(server), view, opened, timeout=timeout)
            if export is None
            else in_folder(export, view, opened, backend=backend, device=device, precision=precision, threads=threads)
        )
        found = time.perf_counter()
        files = find_inputs(inputs, place.method, place.config, dict(parse_pattern(text) for text in sequences))
        picture = any(is_picture(path) for path in files.values())
        prompts = read_prompts(clicks) if clicks else []
        prompts += [parse_point(text, picture=picture) for text in points]
        prompts += [parse_box(text, picture=picture) for text in boxes]
        prompts += [parse_structure(text, picture=picture) for text in structures]
        of_slices = {"plane": plane, "intensities": intensities, "propagate": propagate}
        check_prompts(prompts, place.method, propagate=propagate, picture=picture)
        check_method(place.method, {"spacing": spacing}, of_slices)
        outputs = Outputs.named(mask_path, logits_path, overlay_path, report_path, place.structures)

        with options_offered():
            study = read_study(
                files,
                volume=volume,
                max_bytes=max_bytes or MAX_BYTES,
                assume_ras=assume_ras,
                one_slice=isinstance(place.method, SliceMethod),
            )
        if study.picture is not None:
            of_scans = {"world": world, "assume_ras": assume_ras, "max_bytes": max_bytes}
            check_picture({**of_scans, **of_slices, "logits_path": logits_path})
        outputs.check(study, (*([clicks] if clicks else []), *place.files))
        check_sides(study, place.structures, world=world)
        if world:
            scan = study.scan.volume
            prompts = [to_voxel(prompt, scan.affine, scan.array.shape) for prompt in prompts]
        read = time.perf_counter()
        _LOG.info("%s", study)

        session = place.open()
        ready = time.perf_counter()
        _LOG.info("%s in %s %s", place.method.name, session.precision, place.said)
        tell(session.warnings)
        done = segment_study(session, study, prompts, propagate=propagate)
        segmented = time.perf_counter()
        outputs.write(session, study)
        end = time.perf_counter()

        seconds = {"load": read - found, "open": found - start + ready - read, **done.seconds}
        sha256 = first_sha256(study)
        case = case_of(sha256)
        told = [*session.warnings, *done.warnings]
        result = {
            "case": case,
            **({"mask": str(mask_path)} if show_names else {}),
            "volume_ml": done.volume_ml,
            "seconds": _rounded({**seconds, "write": end - segmented, "total": end - start}),
            "method": place.method.name,
            "precision": session.precision,
            **place.figures,
            "clicks": len(prompts),
            **done.figures,
            "demonstration_weights": session.manifest.plan.is_demonstration,
            "warnings": told if show_names else [without_names(sentence, study, case) for sentence in told],
            "notice": NOTICE,
        }
        if report_path is not None:
            added = provenance(session, study, sha256, prompts, mask_path, show_names=show_names)
            write_report(report_path, {**result, **added})
    click.echo(json.dumps(result))


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(spent, 4) for stage, spent in seconds.items()}


def main() -> None:
    """Run the command."""
    run_command(segment, "sam-segment", extras=("cpu",))


if __name__ == "__main__":
    main()
