"""`sam-train`: train a method on a folder of images and labels. torch is imported only when a training starts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import click

from samkit.command import THREADS, run_command, show_progress, typed_words
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.methods import get_method
from samkit.methods.method import Method, SliceMethod, SliceRecipe
from samkit.networks.sam2d_config import ARCHS
from samkit.sequences import parse_pattern
from samkit.training.plan import plan_training, recipes_of
from samkit.version import __version__

_LAYOUTS = ("volumes", "images", "freesurfer", "boxes")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sam-train")
@click.option("--method", "method_name", required=True, help="Which method, e.g. m-sam.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of cases.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; empty or new.")
@click.option(
    "--preset", type=click.Choice(["paper", "small", "tiny"]), default="small", show_default=True, help="The recipe."
)
@click.option("--part", default="", help="Train one part alone, such as the detector of medsam-yolo.")
@click.option("--arch", type=click.Choice(list(ARCHS)), help="SAM's image encoder at full size; vit_b is the preset's.")
@click.option("--init", type=click.Path(path_type=Path), help="Checkpoint file or run folder to start from.")
@click.option("--weights", default="", metavar="NAME", help="Which weights of several in --init: ema, model or a name.")
@click.option("--base", type=click.Path(path_type=Path), help="SAM's own file, where --init is a LoRA file alone.")
@click.option("--format", "layout", type=click.Choice(_LAYOUTS), help="How 2D data is laid out; else it is looked at.")
@click.option("--sequence", "sequences", multiple=True, metavar="NAME=PATTERN", help="Files of a sequence, by a glob.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out after its last whole epoch.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="GPUs, or CPU processes.")
@click.option("--set", "settings", multiple=True, metavar="K=V", help="Change a field of the recipe or the network.")
@click.option("--label", type=click.IntRange(1), help="Foreground is this label value; else every value above 0.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), help="Stop after so many minutes of training.")
@click.option("--threads", type=THREADS, help="CPU threads; else PyTorch's own choice.")
@click.option(
    "--show-names", is_flag=True, help="Name folders in the JSON line and the checkpoint; run.json names them anyway."
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def command(
    method_name: str, data: Path, out: Path, preset: str, part: str, arch: str | None, init: Path | None,
    weights: str, base: Path | None, layout: str | None, sequences: tuple[str, ...], resume: bool, devices: int,
    settings: tuple[str, ...], label: int | None, time_limit: float | None, threads: int | None, show_names: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Train a method, or one part of it.

    DATA of 3D methods holds images/ and labels/ (or masks/) with equal file names, one folder per case, or a
    decathlon-style dataset.json. 2D methods take folders of co-registered sequences, of FreeSurfer's .mgz files, of
    pictures and masks, or of pictures and YOLO's box files. One case in five is held back, unless the folder says
    which; the best checkpoint by its metric there is RUN/best.safetensors.

    Foreground is every label above 0. With --label N it is N alone. Other settings: epochs, batch, learning_rate, seed,
    ... of the recipe, and spacing, sequences, lora_rank, ... of the network; an unknown one lists them all.
    """
    show_progress(quiet)
    method = get_method(method_name)
    recipes = recipes_of(method, part)
    if preset not in recipes:
        raise click.UsageError(f"{method.name} has no preset {preset}; it has {', '.join(recipes)}")
    if recipes[preset].needs_init and init is None:
        raise click.UsageError(
            f"preset {preset} of {method.name} fine-tunes a pretrained network and none was given; "
            f"name it with --init ({_starts(method)}), or train --preset small from scratch"
        )
    if base is not None and (init is None or part or "base" not in method.companions):
        raise click.UsageError(
            f"--base stands beside the --init of a LoRA file, and {method.name}{f' {part}' if part else ''} "
            f"{'has no --init here' if init is None else 'takes none'}; leave it out"
        )
    if weights and init is None:
        raise click.UsageError("--weights says which set of --init is meant, and there is none; leave it out")
    _check_data_options(method, layout, sequences)
    # wrong settings are told before anything is loaded
    planned = plan_training(method, preset, settings, label=label, part=part, arch=arch)
    if devices > 1 and isinstance(planned.recipe, SliceRecipe) and planned.recipe.error_rounds:
        raise click.UsageError(
            "error_rounds take several steps on one batch, which needs one device; leave --devices out"
        )
    by_sequence = dict(parse_pattern(text) for text in sequences)

    _check_dependencies()

    import torch

    from samkit.training.fit import RunOptions, train
    from samkit.training.run_folder import check_run_folder
    from samkit.training.start import load_start
    from samkit.training.tasks import find_task

    if threads is not None:
        torch.set_num_threads(threads)
    check_run_folder(out, resume)
    options = RunOptions(
        out, resume, devices, time_limit, quiet, words=typed_words(show_paths=show_names), show_names=show_names
    )
    start = load_start(init, method, part=part, base=base, weights=weights) if init is not None else None
    plan = plan_training(
        method, preset, settings, label=label, part=part, arch=arch, start=start.info if start else None
    )
    task = find_task(data, plan, layout=layout, patterns=by_sequence)
    facts = train(plan, task, options, data_name=data.resolve().name, start=start)
    told = {
        **({"run": str(out)} if show_names else {}),
        "best": facts["best"],
        "seconds": facts["seconds"],
        "warnings": facts.get("warnings", []),
    }
    click.echo(json.dumps(told))


def _starts(method: Method) -> str:
    return f"a checkpoint of {method.name}{f' or of {method.base}' if method.base else ''}"


def _check_data_options(method: Method, layout: str | None, patterns: tuple[str, ...]) -> None:
    if not isinstance(method, SliceMethod) and (layout or patterns):
        raise click.UsageError(f"--format and --sequence are of 2D methods, and {method.name} is trained on volumes")


def _check_dependencies() -> None:
    for package in ("torch", "lightning", "monai", "tensorboard"):
        if find_spec(package) is None:
            raise MissingDependencyError(f"training needs {package}, which is not installed; {how_to_install('train')}")


def main() -> None:
    """Run `sam-train`."""
    run_command(command, "sam-train", extras=("train",))


if __name__ == "__main__":
    main()
