"""The float16 gate at full size: every method is exported with `--fp16`, and what came out of it is one JSON row.

    python -m tools.fp16 [--method NAME ...] [--recipe recipe.py]

Weights come from a recipe: a Python file whose `parameter(name, shape, dtype, tag)` gives the value of any parameter
and whose `state_dict(listing, tag)` fills a listing of an official file's names. Listings lie in the folder `keys`
beside the recipe's own folder, or where `--keys` says; a method without one gets its parameters under our own names.
Without a recipe the weights are seeded random ones. Exit code 1 when a method fails; its row says why.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from samkit.benchmarks.measure.machine import processor
from samkit.checkpoints import CheckpointInfo, save_checkpoint
from samkit.command import run_command, show_progress
from samkit.errors import SamkitError
from samkit.export.export import run_export
from samkit.export.plan import plan_export
from samkit.manifest import Manifest
from samkit.methods import Method, get_method, list_methods
from samkit.precisions.fp16 import PRECISION as FP16

TAG = "open"
"""Which of a recipe's weights: the golden outputs were made with these."""
LORA = re.compile(r"linear_[ab]_|w_[ab]_")
LORA_SCALE = 0.3
"""Low-rank matrices of the recipe's size would drown the weights that they update."""


@dataclass(frozen=True)
class Files:
    """The official files of a method, as listings of their names."""

    checkpoint: str
    others: Mapping[str, str]
    """By the names in the method's record: companions, and parts of the network."""
    wrapper: str | None = None
    """Under which name the official script saves the weights; None saves them plainly."""


OFFICIAL = {
    "sam": Files("sam_vit_b.json", {}),
    "medsam": Files("medsam_vit_b.json", {}),
    "sam-med2d": Files("sammed2d_vit_b_adapter_256.json", {}, "model"),
    "lora-sam": Files("lora_sam_lora_vit_b_512_nc12_r16.json", {"base": "sam_vit_b.json"}),
    "medsam-yolo": Files("medsam_vit_b.json", {"detector": "yolov5l_nc1.json"}),
    "sam-med3d": Files("sam_med3d_vit_b_ori.json", {}, "model_state_dict"),
    "m-sam": Files("m_sam_combined_lora_r16.json", {}, "model_state_dict"),
}
"""Nobody released files of the other methods."""


@click.command()
@click.option("--method", "names", multiple=True, type=click.Choice(list_methods()), help="One method; else all.")
@click.option("--recipe", "recipe_path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keys", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the listings.")
@click.option("--size", type=click.Choice(["full", "tiny"]), default="full", show_default=True)
def fp16(names: tuple[str, ...], recipe_path: Path | None, keys: Path | None, size: str) -> None:
    """Export methods in float16 and print one row each."""
    show_progress(quiet=False, timed=True)
    recipe = None if recipe_path is None else read_recipe(recipe_path)
    if keys is None and recipe_path is not None:
        keys = recipe_path.resolve().parent.parent / "keys"
    failed = []
    for name in names or list_methods():
        row = gate(get_method(name), size, recipe, keys)
        click.echo(json.dumps(row))
        if "error" in row:
            failed.append(name)
        gc.collect()
    if failed:
        raise SamkitError(f"float16 of {', '.join(failed)} did not pass, the rows above say why; look at these weights")


def read_recipe(path: Path) -> Any:
    """Return the recipe as a module; raises SamkitError where the file is none."""
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None or spec.loader is None:
        raise SamkitError(f"{path} is no Python file, and a recipe is one; give another --recipe")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in ("parameter", "state_dict"):
        if not hasattr(module, function):
            raise SamkitError(f"{path} has no function {function}, which a recipe needs; give another --recipe")
    return module


def gate(method: Method, size: str, recipe: Any, keys: Path | None) -> dict[str, Any]:
    """Return the row of one method: what runs in float16, why the rest does not, and how far the masks moved."""
    row = {"method": method.name, "size": size, "weights": "random" if recipe is None else f"recipe {TAG}"}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = {} if recipe is None else write_weights(method, size, recipe, keys, Path(folder))
            plan = plan_export(
                method.name,
                checkpoint=files.pop("checkpoint", None),
                others=files,
                size=None if recipe is not None else size,
                precision=FP16.name,
            )
            manifest = run_export(plan, Path(folder) / "export")
        except SamkitError as error:
            row["error"] = str(error)
        else:
            row |= summary(manifest)
    return row | {"seconds": round(time.perf_counter() - started), "processor": processor()}


def summary(manifest: Manifest) -> dict[str, Any]:
    """Return the figures of all float16 files of an export together, and of each."""
    notes = manifest.precision_notes
    counted = [sum(note[key] for note in notes.values()) for key in ("products", "products_in_float16")]
    reasons: Counter[str] = Counter()
    for note in notes.values():
        reasons.update(_kind(entry["reason"]) for entry in note["kept_in_float32"])
    return {
        "share_in_float16": round(counted[1] / counted[0], 4),
        "products": counted[0],
        "kept_in_float32": dict(reasons.most_common()),
        **_worst(notes),
        "files": {
            file: {
                "level": note["level"],
                "share_in_float16": round(note["products_in_float16"] / note["products"], 4),
                **_worst({file: note}),
            }
            for file, note in notes.items()
        },
    }


def _kind(reason: str) -> str:
    """Return a reason without the tensor it names and without figures of the gate, so that it can be counted."""
    return re.sub(r"^(weight|input|output) \S+ ", r"\1 ", reason.split(":")[0])


def _worst(notes: Mapping[str, Any]) -> dict[str, float]:
    """Return the worst of each figure of the emulated gate; an encoder has no masks of its own."""
    worst = {}
    for figure, pick in (("dice", np.min), ("hd95", np.max), ("voxels", np.max), ("relative_error", np.max)):
        values = [note["gate"][figure] for note in notes.values() if figure in note["gate"]]
        if values:
            worst[figure] = float(pick(values))
    return worst


# --- Weights ---


def write_weights(method: Method, size: str, recipe: Any, keys: Path | None, folder: Path) -> dict[str, Path]:
    """Write the recipe's weights into `folder`; return `checkpoint` and the files that go with it, by option.

    They are official files where there is a listing of them, at full size, and a checkpoint of ours elsewhere.
    """
    official = OFFICIAL.get(method.name) if size == "full" else None
    if official is None:
        return {"checkpoint": _write_own(method, size, recipe, folder / "own.safetensors")}
    if keys is None:
        raise SamkitError(f"{method.name} needs the listing {official.checkpoint}; give its folder with --keys")
    files = {"checkpoint": _write_official(keys / official.checkpoint, recipe, folder, official.wrapper)}
    for name, listing in official.others.items():
        files[name] = _write_official(keys / listing, recipe, folder)
    return files


def _write_official(listing: Path, recipe: Any, folder: Path, wrapper: str | None = None) -> Path:
    import torch

    from samkit.networks.yolo_config import YoloConfig

    if not listing.is_file():
        raise SamkitError(f"there is no listing {listing}, and the recipe fills one; give another folder with --keys")
    detector = YoloConfig()
    # Sizes of boxes and no weights; in strides, as YOLOv5 saves them.
    anchors = np.reshape(detector.anchors, (3, 3, 2)) / np.reshape(detector.strides, (3, 1, 1))
    state = {
        name: torch.from_numpy(anchors.astype(np.float32) if name.endswith(".anchors") else _scaled(name, value))
        for name, value in recipe.state_dict(listing, TAG).items()
    }
    path = folder / f"{listing.stem}.pth"
    torch.save(state if wrapper is None else {wrapper: state}, path)
    return path


def _write_own(method: Method, size: str, recipe: Any, path: Path) -> Path:
    import torch

    config = method.sizes[size]
    network = method.build(config)
    state = network.state_dict()
    for name, tensor in state.items():
        if not name.endswith(".anchors"):
            value = recipe.parameter(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), TAG)
            state[name] = torch.from_numpy(_scaled(name, value))
    network.load_state_dict(state)
    save_checkpoint(path, network, CheckpointInfo(method.name, size, config, method.refinements[0]))
    return path


def _scaled(name: str, value: np.ndarray) -> np.ndarray:
    return value * np.float32(LORA_SCALE) if LORA.search(name) else value


def main() -> None:
    """Run the command."""
    run_command(fp16, "fp16")


if __name__ == "__main__":
    main()
