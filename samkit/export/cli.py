"""The command `sam-export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from samkit.command import run_command, show_progress
from samkit.engine_libraries import LIBRARIES, RTX, TENSORRT, EngineLibrary, get_library
from samkit.errors import MissingDependencyError
from samkit.export.plan import OPSET, plan_export
from samkit.extras import how_to_install_demo
from samkit.manifest import ExportPlan, Manifest
from samkit.methods import get_method, list_methods
from samkit.precisions import BASE, PRECISIONS
from samkit.version import __version__


def _precision_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flag of each precision that is made of an export's first files."""
    for precision in reversed(PRECISIONS):
        if precision.writer is not None:
            command = click.option(f"--{precision.name}", is_flag=True, help=precision.summary)(command)
    return command


@click.command(epilog="Exit codes: 0 done, 1 a stage or parity failed, 2 usage, 3 input refused. Not a medical device.")
@click.option("--method", "method_name", metavar="NAME", help="Which method; --list names them.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights file, or a run's folder. Default: demo.")
@click.option(
    "--weights", default="", metavar="NAME", help="Which weights of several in the file: ema, model or a name."
)
@click.option("--base", type=click.Path(path_type=Path), help="SAM's weights, for a lora-sam file from SAMed's script.")
@click.option("--detector", type=click.Path(path_type=Path), help="medsam-yolo: the detector's weights. Default: demo.")
@click.option("--out", type=click.Path(path_type=Path), help="Export folder. Default: exports/METHOD.")
@click.option("--size", type=click.Choice(["full", "small", "tiny"]), help="Which network, without a checkpoint.")
@click.option("--refinement", type=click.Choice(["anchored", "recurrent"]), help="Override what the weights say.")
@_precision_flags
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Folder of scans to measure float16 on, too; 8 at most."
)
@click.option("--keep-list", type=click.Path(path_type=Path), help="Manifest or JSON: what stays in float32.")
@click.option("--no-fold", is_flag=True, help="Export upstream's own formulation: the baseline of speed and equality.")
@click.option("--opset", type=int, default=OPSET, show_default=True)
@click.option("--force", is_flag=True, help="Replace another export in the folder, or make the same one again.")
@click.option("--dry-run", is_flag=True, help="Print the plan as JSON and stop; needs no torch.")
@click.option("--verify", type=click.Path(path_type=Path), metavar="DIR", help="Check an export and repeat its parity.")
@click.option(
    "--build-engines",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Build the engines of an export; needs no torch. After an export this is done by itself.",
)
@click.option(
    "--engines",
    "engines_of",
    type=click.Choice(["auto", *(library.name for library in LIBRARIES), "none"]),
    default="auto",
    show_default=True,
    help="Which library's engines: TensorRT's, on the GPU they will run on; those of TensorRT for RTX, built on any "
    "machine; auto: of every library that is installed.",
)
@click.option("--require-tensorrt", is_flag=True, help="Fail where TensorRT can build no engine, instead of saying so.")
@click.option("--rtx-target", type=click.Choice(RTX.targets), default=RTX.targets[0], show_default=True,
              help="GPUs that TensorRT for RTX builds for; portable: Ampere and later.")  # fmt: skip
@click.option("--rtx-platform", type=click.Choice(RTX.platforms), default=RTX.platforms[0], show_default=True,
              help="System that TensorRT for RTX builds for.")  # fmt: skip
@click.option("--engine-workspace", type=click.IntRange(min=1), default=4096, show_default=True, metavar="MIB",
              help="Most memory of the GPU that a layer of an engine may work in.")  # fmt: skip
@click.option("--engine-level", type=click.IntRange(0, 5), default=3, show_default=True,
              help="How long the library looks for fast engines (its builder_optimization_level).")  # fmt: skip
@click.option("--list", "show_list", is_flag=True, help="Name the methods.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.version_option(__version__, prog_name="sam-export")
def export(
    method_name: str | None,
    checkpoint: Path | None,
    weights: str,
    base: Path | None,
    detector: Path | None,
    out: Path | None,
    size: str | None,
    refinement: str | None,
    calibration: Path | None,
    keep_list: Path | None,
    no_fold: bool,
    opset: int,
    force: bool,
    dry_run: bool,
    verify: Path | None,
    build_engines: Path | None,
    engines_of: str,
    require_tensorrt: bool,
    rtx_target: str,
    rtx_platform: str,
    engine_workspace: int,
    engine_level: int,
    show_list: bool,
    quiet: bool,
    **written: bool,
) -> None:
    """Export a method's network as checked ONNX files with a manifest, and as engines of NVIDIA's libraries."""
    show_progress(quiet, name="sam-export", timed=True)

    def build(folder: Path, libraries: list[EngineLibrary]) -> Manifest:
        from samkit.export import engines  # neither torch nor onnx

        settings = engines.EngineSettings(engine_workspace * engines.MIB, engine_level, rtx_target, rtx_platform)
        for library in libraries:
            engines.build_engines(folder, library, settings=settings, force=force)
        return Manifest.load(folder)

    if sum((show_list, verify is not None, build_engines is not None, method_name is not None)) > 1:
        raise click.UsageError("--list, --verify, --build-engines and --method each stand alone; give one")
    asked = [name for name, is_asked in written.items() if is_asked]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} are two exports; give one")
    if engines_of == "none" and (require_tensorrt or build_engines is not None):
        raise click.UsageError("--engines none contradicts --require-tensorrt and --build-engines; leave it out")
    if engines_of == RTX.name and require_tensorrt:
        raise click.UsageError(f"--engines {RTX.name} contradicts --require-tensorrt; leave one out")
    if show_list:
        _print_methods()
    elif verify is not None:
        from samkit.export.verify import verify_export  # numpy and ONNX Runtime only

        click.echo(json.dumps(verify_export(verify)))
    elif build_engines is not None:
        libraries = _libraries(engines_of, required=True)
        click.echo(json.dumps({"engines": build(build_engines, libraries).engines}))
    elif method_name is None:
        raise click.UsageError(f"no --method; available: {', '.join(list_methods())}")
    else:
        plan = plan_export(
            method_name,
            checkpoint=checkpoint,
            weights=weights,
            others={name: path for name, path in (("base", base), ("detector", detector)) if path is not None},
            size=size,
            refinement=refinement,
            precision=asked[0] if asked else BASE.name,
            folded=not no_fold,
            opset=opset,
            calibration=calibration,
            keep_list=keep_list,
        )
        folder = out or Path("exports") / plan.method
        if dry_run:
            click.echo(json.dumps({**plan.to_dict(), "out": str(folder)}, indent=1))
            if plan.weights.demonstration and plan.weights.sha256 is None:
                _announce(f"the demonstration weights are not installed; {how_to_install_demo()} before the export")
            return
        _announce_weights(plan)
        if require_tensorrt:
            _libraries(TENSORRT.name, required=True)
        libraries = [] if engines_of == "none" else _libraries(engines_of, required=False)
        from samkit.export.export import run_export  # torch only when an export is really made

        manifest = run_export(plan, folder, force=force)
        if libraries:
            manifest = build(folder, libraries)
        figures = {"digest": manifest.digest, "parity": manifest.parity, "engines": manifest.engines}
        click.echo(json.dumps(figures))


def _libraries(name: str, *, required: bool) -> list[EngineLibrary]:
    """Return what builds engines here: the library called `name`, or with "auto" every one that can.

    Raises MissingDependencyError for a library that was named and can't, and where `required` and none can; else says
    why there are none.
    """
    from samkit.export.engines import check_library

    if name != "auto":
        named = get_library(name)
        check_library(named)
        return [named]
    found, missing = [], []
    for library in LIBRARIES:
        try:
            check_library(library)
        except MissingDependencyError as error:
            missing.append(str(error))
        else:
            found.append(library)
    if not found and required:
        raise MissingDependencyError(f"no engines can be built: {missing[0]}")
    if not found:
        _announce(f"no engines were built: {'; '.join(missing)}")
    return found


def _print_methods() -> None:
    for name in list_methods():
        method = get_method(name)
        click.echo(f"{name}\n    {method.summary}\n    paper: {method.paper}")
        click.echo(f"    licence of the official weights: {method.weights_licence}")


def _announce_weights(plan: ExportPlan) -> None:
    """Say loudly, whatever --quiet says, when the weights are not the user's own."""
    sentences = {
        "demonstration": "no --checkpoint: using the DEMONSTRATION weights, trained on phantoms, never for patients",
        "random": f"no --checkpoint: using RANDOM weights (size {plan.size}), for timing and tests only",
    }
    if plan.weights.kind in sentences:
        _announce(sentences[plan.weights.kind])


def _announce(sentence: str) -> None:
    """Say what must be told, whatever --quiet says."""
    click.echo(f"sam-export: {sentence}", err=True)


def main() -> None:
    """Run `sam-export`."""
    run_command(export, "sam-export", extras=("export", "cpu"))


if __name__ == "__main__":
    main()
