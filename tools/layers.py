"""What NVIDIA's parser makes of exported graphs: layers by type, and those that compute in whole numbers.

    python -m tools.layers EXPORT_OR_ONNX ... [--build] [--list] [--json FILE]

Shapes that a graph computes while it runs, because its axes are dynamic, become layers of whole numbers; each costs a
launch or a stop between two kernels. A constant, a shape that is read and a cast are counted apart: the parser adds
some to any dynamic graph. TensorRT for RTX parses without a GPU. `--build` builds each engine, too, for the shapes of
its export, and says how long that took and how large it is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console
from rich.table import Table

from samkit.command import run_command
from samkit.engine_libraries import RTX
from samkit.errors import ExportError, OptionError
from samkit.export.engines import MIB, EngineSettings, engine_profile
from samkit.manifest import Export
from samkit.methods import GraphSpec
from samkit.runtime.backends.tensorrt_library import build_engine, new_parser

UNCOUNTED = ("CONSTANT", "SHAPE", "CAST")
"""Layers of whole numbers that are no work: what is known, what is read, what changes type."""
WHOLE = ("INT32", "INT64", "BOOL")
MOST_WHOLE = {"image_encoder": 20, "detector": 120}
"""The most layers of whole numbers, without UNCOUNTED, that a graph of an export may have, at any size."""
MOST_WHOLE_OF_OTHERS = 60


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network."""

    name: str
    """The ONNX node it was made of, or a name of the parser's own."""
    type: str
    """As the library calls it: `MATRIX_MULTIPLY`."""
    dtype: str
    """Of its first output: `HALF`."""

    @property
    def is_counted(self) -> bool:
        """Return whether it computes in whole numbers."""
        return self.dtype in WHOLE and self.type not in UNCOUNTED


def read_layers(path: Path) -> list[Layer]:
    """Return the layers of an ONNX file as TensorRT for RTX parses it; raises ExportError where it does not."""
    _builder, network, parser = new_parser(RTX)
    if not parser.parse_from_file(str(path)):
        raise ExportError(f"{RTX.title} can't parse {path.name}: {parser.get_error(0).desc()}")
    return layers_of(network)


def layers_of(network: Any) -> list[Layer]:
    """Return the layers of a parsed network."""
    layers = map(network.get_layer, range(network.num_layers))
    return [Layer(one.name, one.type.name, one.get_output(0).dtype.name) for one in layers]


def too_many_whole(graph: str, layers: list[Layer]) -> str | None:
    """Return what is wrong with the layers of the graph called `graph`; None where few compute in whole numbers."""
    counted, most = sum(layer.is_counted for layer in layers), MOST_WHOLE.get(graph, MOST_WHOLE_OF_OTHERS)
    return f"{graph} has {counted} layers of whole numbers, at most {most} are meant" if counted > most else None


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--build", is_flag=True, help="Build each engine of an export, too: seconds and size.")
@click.option("--list", "listed", is_flag=True, help="Print each layer of whole numbers with its ONNX operator.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows with all counts.")
def layers(paths: tuple[Path, ...], build: bool, listed: bool, out: Path | None) -> None:
    """Print one row for each graph."""
    rows = []
    for path, spec in _graphs(paths):
        found = read_layers(path)
        row: dict[str, Any] = {"graph": f"{path.parent.name}/{path.name}", "layers": len(found)}
        row["whole"] = sum(layer.is_counted for layer in found)
        row["types"] = dict(Counter(f"{layer.type} {layer.dtype}" for layer in found).most_common())
        if build:
            row |= _built(path, spec)
        if listed:
            _print_counted(path, found)
        rows.append(row)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    _print(rows)


def _graphs(paths: tuple[Path, ...]) -> Iterator[tuple[Path, GraphSpec | None]]:
    """Give each ONNX file, with its spec where it lies in an export."""
    for path in paths:
        if path.is_file():
            yield path, None
            continue
        export = Export.open(path)
        for spec in export.specs:
            for precision in export.plan.precisions:
                yield export.path(spec.name, precision), spec


def _built(path: Path, spec: GraphSpec | None) -> dict[str, Any]:
    if spec is None:
        raise OptionError(f"{path} lies in no export, so its shapes are not known; give the export's folder")
    profile = {
        name: (tuple(low), tuple(usual), tuple(high)) for name, (low, usual, high) in engine_profile(spec).items()
    }
    settings = EngineSettings()
    begun = time.perf_counter()
    built = build_engine(
        path,
        profile,
        library=RTX,
        workspace_bytes=settings.workspace_bytes,
        optimization_level=settings.optimization_level,
        target=settings.target,
        platform=settings.platform,
    )
    return {"build_seconds": round(time.perf_counter() - begun, 2), "engine_mib": round(len(built.engine) / MIB, 1)}


def _print_counted(path: Path, found: list[Layer]) -> None:
    """Print the layers of whole numbers; those that the parser added to a node bear its name and a suffix."""
    operators = {node.name: node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    for layer in found:
        if layer.is_counted:
            origin = next((name for name in operators if name and layer.name.startswith(name)), "")
            click.echo(f"{path.name}: {layer.type} {layer.dtype} {layer.name} ({operators.get(origin, 'the parser')})")


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("graph", "layers", "whole numbers", "of them", "build [s]", "engine [MiB]")
    for row in rows:
        kinds: Counter[str] = Counter()
        for key, count in row["types"].items():
            kind, dtype = key.rsplit(" ", 1)
            if Layer("", kind, dtype).is_counted:
                kinds[kind] += count
        cells = (row["graph"], row["layers"], row["whole"], ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
        table.add_row(*map(str, (*cells, row.get("build_seconds", ""), row.get("engine_mib", ""))))
    Console(width=160).print(table)


def main() -> None:
    """Run the command."""
    run_command(layers, "layers")


if __name__ == "__main__":
    main()
