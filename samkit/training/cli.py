"""`sam-train`: train a method on a folder of scans and labels. torch is imported only when a training starts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import click

from samkit.command import run_command
from samkit.errors import MissingDependencyError
from samkit.methods import get_method


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--method", "method_name", required=True, help="Which method, e.g. m-sam.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of cases.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; empty or new.")
@click.option(
    "--preset", type=click.Choice(["paper", "small", "tiny"]), default="small", show_default=True, help="The recipe."
)
@click.option("--init", type=click.Path(path_type=Path), help="Checkpoint file or run folder to start from.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out after its last whole epoch.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="GPUs, or CPU processes.")
@click.option("--set", "settings", multiple=True, metavar="K=V", help="Change a field of the recipe or the network.")
@click.option("--label", type=click.IntRange(1), help="Foreground is this label value; else every value above 0.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), help="Stop after so many minutes of training.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; else PyTorch's own choice.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def command(
    method_name: str, data: Path, out: Path, preset: str, init: Path | None, resume: bool, devices: int,
    settings: tuple[str, ...], label: int | None, time_limit: float | None, threads: int | None, quiet: bool,
) -> None:  # fmt: skip
    """Train a method with simulated clicks.

    DATA holds images/ and labels/ (or masks/) with equal file names, one folder per case, or a decathlon-style
    dataset.json. One case in five is held back; the best checkpoint by its Dice at five clicks is RUN/best.safetensors.

    Foreground is every label above 0. With --label N it is N alone, and with --set target=each every value is a target
    of its own, one of them per sample. Other settings: epochs, batch, learning_rate, spacing, patch, stages, seed,
    refinement, ...; an unknown one lists them all.
    """

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    method = get_method(method_name)
    if preset not in method.recipes:
        raise click.UsageError(f"{method.name} has no preset {preset}; it has {', '.join(method.recipes)}")
    if method.recipes[preset].needs_init and init is None:
        raise click.UsageError(
            f"preset {preset} of {method.name} fine-tunes a pretrained network and none was given; "
            "name it with --init (for m-sam a SAM-Med3D checkpoint), or train --preset small from scratch"
        )

    from samkit.training.plan import plan_training

    plan_training(method, preset, settings, label=label)  # wrong settings are told before anything is loaded

    _check_dependencies()

    import torch

    from samkit.training.cases import check_cases, find_cases
    from samkit.training.fit import RunOptions, train
    from samkit.training.run_folder import check_run_folder
    from samkit.training.start import load_start

    if threads is not None:
        torch.set_num_threads(threads)
    check_run_folder(out, resume)
    options = RunOptions(out, resume, devices, time_limit, quiet)
    start = load_start(init, method) if init is not None else None
    plan = plan_training(method, preset, settings, label=label, start=start.info if start else None)
    cases = find_cases(data)
    checked = check_cases(cases, label, plan.recipe.target)
    for sentence in checked.skipped:
        click.echo(sentence, err=True)
    say(f"{len(cases)} cases seen, {len(checked.skipped)} skipped")
    facts = train(
        plan, checked, options, data_name=data.resolve().name, start=start,
        start_name=init.name if init is not None else "", say=say,
    )  # fmt: skip
    click.echo(json.dumps({"run": str(out), "best": facts["best"], "seconds": facts["seconds"]}))


def _check_dependencies() -> None:
    for package in ("torch", "lightning", "monai", "tensorboard"):
        if find_spec(package) is None:
            raise MissingDependencyError(
                f"training needs {package}, which is not installed; pip install 'samkit[train]'"
            )


def main() -> None:
    """Run `sam-train`."""
    run_command(command, "sam-train")


if __name__ == "__main__":
    main()
