"""Make the demonstration weights again: `python -m samkit.training.demo_weights --out samkit/weights`.

Phantoms are written to a temporary folder, sam-med3d's `small` network trains on them from random weights, every
lesion a target of its own, and m-sam starts from it, as the paper's starts from SAM-Med3D. The best checkpoints are
stored as float16, marked as demonstrations.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from samkit.command import run_command

CASES, SEED, SIZE, LONG_SHARE = 100, 1, 96, 0.15
EPOCHS = {"sam-med3d": 160, "m-sam": 50}
"""In order: the second starts from the first. Counted in epochs, not minutes, so that any machine makes the same."""
SETTINGS = (
    "target=each",
    # A patch of 48 mm: lesions with their surroundings, several in view, and large ones that the patch cuts.
    "spacing=0.75",
    "validate_every=10",
    "stage_growth=0.8",
)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the weights.")
@click.option("--method", "methods", multiple=True, default=tuple(EPOCHS), show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Other counts round otherwise.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for phantoms and runs; else temporary.")
def command(out: Path, methods: tuple[str, ...], threads: int, keep: Path | None) -> None:
    """Train the demonstration weights on phantoms."""
    with tempfile.TemporaryDirectory() as temporary:
        work = keep or Path(temporary)
        for method in methods:
            _make(method, work, out, threads)


def _make(name: str, work: Path, out: Path, threads: int) -> None:
    import torch

    from samkit.checkpoints import load_network, save_checkpoint
    from samkit.methods import get_method
    from samkit.phantoms import write_phantoms
    from samkit.training.fit import RunOptions, train
    from samkit.training.plan import plan_training
    from samkit.training.start import load_start
    from samkit.training.tasks import find_task

    torch.set_num_threads(threads)
    data = work / "phantoms"
    if not data.is_dir():
        click.echo(f"{CASES} phantoms ...", err=True)
        write_phantoms(str(data), CASES, SEED, SIZE, LONG_SHARE)
    method = get_method(name)
    start = load_start(out / f"{method.base}.safetensors", method) if method.base else None
    settings = (*SETTINGS, f"epochs={EPOCHS[name]}")
    plan = plan_training(method, "small", settings, start=start.info if start else None)
    options = RunOptions(work / name, quiet=True, demonstration=True)
    facts = train(
        plan, find_task(data, plan), options, data_name="phantoms", start=start,
        say=lambda text: click.echo(text, err=True),
    )  # fmt: skip
    best = load_network(work / name, method)
    save_checkpoint(out / f"{name}.safetensors", best.network, best.info, half=True)
    click.echo(f"{name}: {facts['best']}", err=True)


def main() -> None:
    """Run the command."""
    run_command(command, "demo_weights")


if __name__ == "__main__":
    main()
