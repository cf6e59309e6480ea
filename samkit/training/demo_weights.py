"""Make the demonstration weights again: `python -m samkit.training.demo_weights --out weights/samkit_demo_weights`.

Phantoms are written to a temporary folder, and each method's `small` network trains on them from random weights; m-sam
starts from sam-med3d's, as the paper's does. A part of a network has a training of its own and joins it in one file.
The best checkpoints are stored as float16, marked as demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samkit.command import THREADS, run_command, show_progress
from samkit.files import working_folder

if TYPE_CHECKING:
    from samkit.methods.method import Method


@dataclass(frozen=True)
class Demo:
    """How one method's weights are made. Counted in epochs, not minutes, so that any machine makes the same."""

    data: str
    """One of demo_data.DATA."""
    settings: tuple[str, ...]
    start: str = ""
    """The method whose demonstration weights it starts from."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings of the parts that train alone."""


# Every lesion is a target of its own, in a patch of 48 mm: lesions with their surroundings, several in view, and large
# ones that the patch cuts.
_CLICKS = ("target=each", "spacing=0.75", "validate_every=10", "stage_growth=0.8")
_SLICES = ("samples_per_epoch=160", "validate_every=5")

DEMOS: Mapping[str, Demo] = {
    "sam-med3d": Demo("long-lesions", (*_CLICKS, "epochs=160")),
    "m-sam": Demo("long-lesions", (*_CLICKS, "epochs=50"), start="sam-med3d"),
    "sam": Demo("lesions", (*_SLICES, "epochs=40")),
    "medsam": Demo("lesions", (*_SLICES, "epochs=20")),
    "sam-med2d": Demo("lesions", (*_SLICES, "epochs=40")),
    "lmsfe-sam": Demo("lesions", (*_SLICES, "epochs=30")),
    "lora-sam": Demo("structures", (*_SLICES, "epochs=40")),
    "brainseg-dmif": Demo("sequences", (*_SLICES, "epochs=25")),
    "medsam-yolo": Demo(
        "sequences",
        (*_SLICES, "epochs=20"),
        parts={"detector": ("samples_per_epoch=256", "validate_every=10", "epochs=80")},
    ),
}
"""In order: one may start from another."""


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the weights.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(DEMOS)), help="These alone; else all.")
@click.option("--threads", default=1, show_default=True, type=THREADS, help="Other counts round otherwise.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for phantoms and runs; else temporary.")
def command(out: Path, methods: tuple[str, ...], threads: int, keep: Path | None) -> None:
    """Train the demonstration weights on phantoms."""
    show_progress(quiet=False)
    import torch

    torch.set_num_threads(threads)
    with working_folder() as temporary:
        for name in methods or DEMOS:
            _make(name, keep or temporary, out)


def _make(name: str, work: Path, out: Path) -> None:
    """Train one method and its parts in `work`, and write its weights to `out`."""
    from samkit.checkpoints import BEST, read_info, read_part, read_weights, save_checkpoint
    from samkit.methods import get_method
    from samkit.parameters import fill_network

    method, demo = get_method(name), DEMOS[name]
    data = _phantoms(demo.data, work)
    start = out / f"{demo.start}.safetensors" if demo.start else None
    _train(method, "", demo.settings, data, work / name, start)
    info, state, _ = read_weights(work / name, method)
    for part in method.parts:
        run = work / f"{name}-{part.name}"
        _train(method, part.name, demo.parts[part.name], data, run, None)
        described, parameters = read_part(run, method, part)
        state |= {f"{part.prefix}{key}": tensor for key, tensor in parameters.items()}
        own = read_info(run / BEST)
        if own is not None:
            info = replace(
                info,
                config=replace(info.config, **{part.name: described}),
                metrics={**info.metrics, **own.metrics},
                provenance={**info.provenance, part.name: own.provenance},
            )
    network = method.build(info.config)
    fill_network(network, state, name, name)
    save_checkpoint(out / f"{name}.safetensors", network, info, half=True)
    click.echo(f"{name}: {info.metrics}", err=True)


def _phantoms(name: str, work: Path) -> Path:
    """Return the folder of these phantoms, written where it is not there yet."""
    from samkit.training.demo_data import DATA

    data = work / name
    if not data.is_dir():
        click.echo(f"phantoms ({name}) ...", err=True)
        DATA[name](data)
    return data


def _train(method: Method, part: str, settings: tuple[str, ...], data: Path, run: Path, start: Path | None) -> None:
    from samkit.training.fit import RunOptions, train
    from samkit.training.plan import plan_training
    from samkit.training.start import load_start
    from samkit.training.tasks import find_task

    loaded = load_start(start, method) if start is not None else None
    plan = plan_training(method, "small", settings, part=part, start=loaded.info if loaded else None)
    train(
        plan, find_task(data, plan), RunOptions(run, quiet=True, demonstration=True), data_name="phantoms",
        start=loaded,
    )  # fmt: skip


def main() -> None:
    """Run the command."""
    run_command(command, "demo_weights")


if __name__ == "__main__":
    main()
