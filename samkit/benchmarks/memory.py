"""Peak resident memory of one run of a graph above its loaded session, in a process of its own.

    python -m samkit.benchmarks.memory image_encoder.onnx image.npy --method sam-med3d --threads 2

Prints gigabytes (10^9 bytes). Linux only: it reads /proc.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from samkit.command import run_command
from samkit.methods import get_method
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner

_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("graph", type=_PATH)
@click.argument("image", type=_PATH)
@click.option("--method", "method_name", default="sam-med3d", show_default=True)
@click.option("--threads", default=2, show_default=True)
def memory(graph: Path, image: Path, method_name: str, threads: int) -> None:
    """Run an image encoder twice on an image saved as .npy, and print the peak it added."""
    method = get_method(method_name)
    inputs = {"image": np.load(image)}
    with OnnxRuntimeRunner(graph, method.graphs(method.sizes["full"])[0], threads=threads) as runner:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        loaded = _kilobytes("VmRSS")
        for _ in range(2):
            runner.run(inputs)
        click.echo(f"{(_kilobytes('VmHWM') - loaded) * 1024 / 1e9:.3f}")


def _kilobytes(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def main() -> None:
    """Run the command."""
    run_command(memory, "memory")


if __name__ == "__main__":
    main()
