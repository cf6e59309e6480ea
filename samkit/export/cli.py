"""The command `sam-export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from samkit.command import run_command, show_progress
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
    help="Build the TensorRT engines of an export, on the GPU they will run on; needs no torch. After an export this "
    "is done by itself where TensorRT is installed.",
)
@click.option("--no-engines", is_flag=True, help="Build no TensorRT engines after the export.")
@click.option("--require-tensorrt", is_flag=True, help="Fail where no engine can be built, instead of saying so.")
@click.option("--engine-workspace", type=click.IntRange(min=1), default=4096, show_default=True, metavar="MIB",
              help="Most memory of the GPU that a layer of an engine may work in.")  # fmt: skip
@click.option("--engine-level", type=click.IntRange(0, 5), default=3, show_default=True,
              help="How long TensorRT looks for fast engines (its builder_optimization_level).")  # fmt: skip
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
    no_engines: bool,
    require_tensorrt: bool,
    engine_workspace: int,
    engine_level: int,
    show_list: bool,
    quiet: bool,
    **written: bool,
) -> None:
    """Export a method's network as checked ONNX files with a manifest, and as TensorRT engines where there is a GPU."""
    show_progress(quiet, name="sam-export", timed=True)

    def engines(folder: Path) -> Manifest:
        from samkit.export import engines  # neither torch nor onnx

        settings = engines.EngineSettings(engine_workspace * engines.MIB, engine_level)
        return engines.build_engines(folder, settings=settings, force=force)

    if sum((show_list, verify is not None, build_engines is not None, method_name is not None)) > 1:
        raise click.UsageError("--list, --verify, --build-engines and --method each stand alone; give one")
    asked = [name for name, is_asked in written.items() if is_asked]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} are two exports; give one")
    if no_engines and (require_tensorrt or build_engines is not None):
        raise click.UsageError("--no-engines contradicts --require-tensorrt and --build-engines; leave it out")
    if show_list:
        _print_methods()
    elif verify is not None:
        from samkit.export.verify import verify_export  # numpy and ONNX Runtime only

        click.echo(json.dumps(verify_export(verify)))
    elif build_engines is not None:
        click.echo(json.dumps({"engines": engines(build_engines).engines}))
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
        missing = None if no_engines else _missing_for_engines(require_tensorrt)
        from samkit.export.export import run_export  # torch only when an export is really made

        manifest = run_export(plan, folder, force=force)
        if missing is None and not no_engines:
            manifest = engines(folder)
        elif missing is not None:
            _announce(f"no TensorRT engines were built: {missing}")
        figures = {"digest": manifest.digest, "parity": manifest.parity, "engines": manifest.engines}
        click.echo(json.dumps(figures))


def _missing_for_engines(required: bool) -> str | None:
    """Return in a sentence what engines lack here, None where nothing; MissingDependencyError where `required`."""
    from samkit.export.engines import check_tensorrt

    try:
        check_tensorrt()
    except MissingDependencyError as error:
        if required:
            raise
        return str(error)
    return None


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
