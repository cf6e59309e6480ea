"""Whether any input makes a reader fail in a way that is not ours, or keep memory: seeded mutations of good inputs.

python -m tools.mutations                                  every reader, 10 000 mutations each
python -m tools.mutations request manifest --count 1000000
python -m tools.mutations checkpoint --first 4711 --count 1    that one again, and its bytes under --keep

A reader may return, or raise a SamkitError; anything else is a fault. The mutation of a number is always the same, so a
fault is told by reader and number. A new reader is one line of `TARGETS`.
"""

from __future__ import annotations

import io
import json
import logging
import random
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from samkit.command import run_command
from samkit.errors import SamkitError

MOST_KEPT = 64 * 2**20
"""Bytes by which a reader's memory may grow from one half of its mutations to the other."""
MOST_TAKEN = 200 * 2**20
"""Bytes that any one input may take above what the process had."""
_LONGEST = 2**20
"""Bytes of a mutated input."""


@dataclass(frozen=True)
class Target:
    """A reader and the good inputs that mutations begin with."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    """Takes an input, and a folder to put it in."""
    is_json: bool = False


@dataclass(frozen=True)
class Outcome:
    """What mutations of one reader came to."""

    read: int
    refused: int
    faults: tuple[tuple[int, str], ...]
    """Number of a mutation, and what it raised."""
    kept: int
    """Bytes that the second half left."""
    taken: int
    """Bytes of the peak above the start."""
    slowest: tuple[float, int]
    """Seconds of the slowest mutation, and its number."""

    @property
    def is_good(self) -> bool:
        """Return whether nothing but our own errors came, and memory stayed."""
        return not self.faults and self.kept < MOST_KEPT and self.taken < MOST_TAKEN


def run(target: Target, count: int, *, first: int = 0, keep: Path | None = None) -> Outcome:
    """Read `count` mutations, from number `first`; the bytes of faults, and of a lone one, go to the folder `keep`."""
    read, refused, faults, slowest, middle = 0, 0, [], (0.0, first), 0
    logging.getLogger("samkit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        seeds = target.seeds()
        for seed in seeds:  # these are good, and what they import is no growth
            target.read(seed, folder)
        before = _peak()
        for number in range(first, first + count):
            if number == first + count // 2:
                middle = _now()
            data = mutated(target, seeds, number)
            started = time.perf_counter()
            try:
                target.read(data, folder)
                read += 1
            except SamkitError:
                refused += 1
            except Exception as error:
                faults.append((number, f"{error!r:.300}"))
                _keep(data, target, number, keep)
            slowest = max(slowest, (time.perf_counter() - started, number))
        if count == 1:
            _keep(data, target, first, keep)
    return Outcome(read, refused, tuple(faults), max(0, _now() - middle), _peak() - before, slowest)


def _keep(data: bytes, target: Target, number: int, keep: Path | None) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{target.name}.{number}").write_bytes(data)


def _now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- Mutations ---


def mutated(target: Target, seeds: Sequence[bytes], number: int) -> bytes:
    """Return the mutation of that number."""
    chance = random.Random(f"{target.name} {number}")  # noqa: S311  # no secret
    data = chance.choice(seeds)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if target.is_json and chance.random() < 0.7:
            data = _of_json(data, chance)
        else:
            data = _of_bytes(data, chance.choice(seeds), chance)
    return data[:_LONGEST]


def _of_bytes(data: bytes, other: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 2, 4, 8, 64, 512)))
    part = data[at:end]
    match chance.randrange(8):
        case 0:
            new = bytes([part[0] ^ (1 << chance.randrange(8))]) + part[1:] if part else b""
        case 1:
            new = b""
        case 2:
            new = part * chance.choice((2, 3, 50))
        case 3:
            new = chance.randbytes(len(part) or 1)
        case 4:
            new = chance.choice(_NUMBERS)[: chance.choice((1, 2, 4, 8))]
            end = min(len(data), at + len(new))
        case 5:
            start = chance.randrange(len(other) + 1)
            new = other[start : start + chance.choice((4, 32, 256))]
        case 6:
            return data[:at]
        case _:
            new = chance.choice(_WORDS) + part
    return data[:at] + new + data[end:]


_NUMBERS = [
    value.to_bytes(8, order)
    for value in (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
    for order in ("little", "big")
]  # fmt: skip
_WORDS = (b"[", b"{", b'"', b"-", b"1e999", b"NaN", b"null", b"\\u0000", b"\xff", b"\0", b"[" * 500, b"9" * 5000, b"..")
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, 2**31, 2**53, 2**64, 10**300, -(10**6), 1e308, float("nan"), float("inf"), "",
    "1_5", "-", "../x", "\0", "\ud800", "x" * 5000, [], {}, [[]], [0, 0, 0], [None], {"number": "inf"}, {"": ""},
)  # fmt: skip


def _of_json(data: bytes, chance: random.Random) -> bytes:
    """Return JSON with one value put in the place of another, taken out, or moved; as it is where that can't be."""
    try:
        return _with_one_changed(json.loads(data), chance)
    except (ValueError, RecursionError):
        return data


def _with_one_changed(root: Any, chance: random.Random) -> bytes:
    holders = list(_holders(root))
    if not holders:
        return json.dumps(chance.choice(_VALUES)).encode()
    holder = chance.choice(holders)
    key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    match chance.randrange(7):
        case 0 | 1 | 2:
            holder[key] = chance.choice(_VALUES)
        case 3:
            del holder[key]
        case 4:
            source = chance.choice(holders)
            held = chance.choice(list(source.values()) if isinstance(source, dict) else source)
            holder[key] = json.loads(json.dumps(held))
        case 5:
            nest: Any = holder[key]
            for _ in range(chance.choice((1, 5, 150))):
                nest = [nest] if chance.random() < 0.5 else {"a": nest}
            holder[key] = nest
        case _:
            if isinstance(holder, dict):
                holder[chance.choice(("x", "op", "schema_version", str(key) + "_"))] = chance.choice(_VALUES)
            else:
                holder.extend(holder[: 100 - len(holder)])
    return json.dumps(root).encode()


def _holders(root: Any) -> Iterator[Any]:
    """Return every list and object in JSON that holds something."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list)) and node:
            yield node
            waiting += node.values() if isinstance(node, dict) else node


# --- Good inputs ---


def json_seeds(*values: object) -> Callable[[], Sequence[bytes]]:
    """Return values as JSON."""
    return lambda: [json.dumps(value).encode() for value in values]


def file_seeds(write: Callable[[Path], None], *names: str) -> Callable[[], Sequence[bytes]]:
    """Return the bytes of the files that `write` makes of those names."""

    @cache
    def made() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                write(Path(folder) / name)
            return [(Path(folder) / name).read_bytes() for name in names]

    return made


def in_file(read: Callable[[Path], object], name: str) -> Callable[[bytes, Path], object]:
    """Return a reader of bytes that puts them in a file of that name and has it read."""

    def read_bytes(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return read_bytes


def _requests() -> Sequence[bytes]:
    from samkit.runtime.protocol.version import PROTOCOL

    point, box = {"point": [60, 70, 30], "label": 1}, {"box": [40, 52, 30, 88, 97, 30]}
    prompts = [point, {**box, "structure": "caudate_left"}]
    return json_seeds(
        {"op": "describe", "protocol": PROTOCOL},
        {"op": "open", "sequences": ["t1c", "t2w"], "plane": "axial", "intensities": [-160, 240],
         "spacing": [1, 1, 2.5], "picture": False, "nonce": "a" * 32, "replaces": "b" * 32, "protocol": PROTOCOL},
        {"op": "click", "turn": 1, **point, "structure": "x", "world": True},
        {"op": "box", "turn": 2, **box, "world": False},
        {"op": "add", "turn": 3, "prompts": prompts},
        {"op": "check", "prompts": prompts},
        *({"op": op, "turn": 4} for op in ("segment_automatically", "propagate", "undo", "redo", "reset")),
        {"op": "state"},
        {"op": "close"},
    )()  # fmt: skip


def _read_request(data: bytes, folder: Path) -> object:
    import numpy as np

    from samkit.runtime.protocol import wire
    from samkit.runtime.protocol.requests import read_request

    request = read_request(wire.decode(np.array([data], object), wire.REQUEST))
    return getattr(request, "prompts", None), request.to_json()


_STEP = {
    "number": 1, "voxels": 10, "volume_ml": 1.5, "seconds": {"encoder": 0.5}, "crops": 1, "followed": 0,
    "limit_reached": False, "slices": [3], "boxes": 0, "iou": [0.9],
}  # fmt: skip
_CHANGED = {
    "turn": 1, "step": _STEP, "region": [[0, 4], [0, 4], [0, 4]], "volume_ml": 1.5, "iou": [0.9], "prompted": [3],
    "origins": [[-3, 0, 0]],
}  # fmt: skip


def _answers() -> Sequence[bytes]:
    from samkit.runtime.protocol.version import PROTOCOL

    plan = _plan("m-sam").to_dict()
    described = {
        "protocol": PROTOCOL, "samkit": "0.1.0", "method": "m-sam", "kind": "volume", "precision": "fp32",
        "digest": "ab", "plan": plan, "structures": [], "sequences": [], "is_automatic": False, "plane": None,
        "warnings": ["x"], "providers": {"image_encoder": ["CPUExecutionProvider"]}, "limits": {"max_voxels": 10**6},
    }  # fmt: skip
    return json_seeds(_CHANGED, described)()


def _read_answer(data: bytes, folder: Path) -> object:
    import numpy as np

    from samkit.runtime.protocol import wire
    from samkit.runtime.protocol.failure import read_error
    from samkit.runtime.protocol.requests import REQUESTS

    read_error(f"in ensemble: samkit-error {data.decode(errors='replace')}")
    answer = wire.decode(np.array([data], object), wire.ANSWER)
    op = "click" if isinstance(answer, dict) and "turn" in answer else "describe"
    found = REQUESTS[op].answer.from_server(answer, "here")
    return getattr(found, "plan", None)


def _plan(method: str, **changes: Any) -> Any:
    from samkit.manifest import ExportPlan, Weights
    from samkit.methods import get_method

    found = get_method(method)
    config = found.sizes["tiny"]
    graphs = tuple(graph.name for graph in found.graphs(config) if graph.is_in(found.refinements[0], folded=True))
    weights = Weights("checkpoint", "/data/best.safetensors", "ab" * 32)
    return ExportPlan(
        method, weights, "tiny", config, found.refinements[0], "fp32", folded=True, opset=20, graphs=graphs, **changes
    )


def _manifests() -> Sequence[bytes]:
    from samkit.manifest import Artifact, GivenFile, Manifest, Weights

    seeds = []
    for plan in (
        _plan("m-sam", calibration=GivenFile("cd" * 32)),
        _plan("medsam-yolo", others={"detector": Weights("demonstration", None, None, demonstration=True)}),
    ):
        artifacts = tuple(Artifact(file, "ab" * 32, 10) for file in (*plan.files, "parity.npz", "a.plan"))
        engines = {"a.plan": {"files": ["a.plan"], "graph": "image_encoder", "sha256": "ab" * 32}}
        manifest = Manifest(
            plan, artifacts, {"image_encoder.onnx": {"dice": 1.0}}, {"q": 1e-7}, {"a": [1]}, engines, {"torch": "2"}
        )
        seeds.append(json.dumps(manifest.to_dict()).encode())
    return seeds


def _read_manifest(path: Path) -> object:
    from samkit.manifest import Export

    export = Export.open(path.parent, verify=False)
    return export.specs, export.digest, export.manifest.engine_files


def _clicks() -> Sequence[bytes]:
    return json_seeds(
        [{"point": [60, 70.5, 30], "label": 1}, {"box": [40, 52, 30, 88, 97, 30], "structure": "lesion"}],
        [{"point": [60, 70], "label": 0}, {"box": [40, 52, 88, 97]}],
    )()


def _read_clicks(path: Path) -> object:
    from samkit.prompts import read_prompts

    return read_prompts(path)


def _read_words(data: bytes, folder: Path) -> object:
    from samkit.prompts import parse_box, parse_point, parse_structure

    text, failed = data.decode(errors="replace"), None
    for parse in (parse_point, parse_box, parse_structure):
        try:
            return parse(text)
        except SamkitError as error:
            failed = error
    raise failed or SamkitError(text)


def _facts() -> Sequence[bytes]:
    from samkit.checkpoints import CheckpointInfo
    from samkit.methods import get_method

    config: Any = get_method("medsam-yolo").sizes["tiny"]
    infos = (
        CheckpointInfo("medsam-yolo", "tiny", config, "none", {"a": 1}, {"dice": 0.5}),
        CheckpointInfo("medsam-yolo", "tiny", config.detector, "none", part="detector", weights_sha256="ab"),
    )
    return [json.dumps(info.to_dict()).encode() for info in infos]


def _read_facts(path: Path) -> object:
    from samkit.checkpoints import read_info

    return read_info(path.with_suffix(".safetensors"))


def _repositories() -> Sequence[bytes]:
    from samkit.triton_models.record import Repository, ServedExport

    served = ServedExport("sam", "fp32", "ab", {"sam": "python"}, {"sam/1/model.py": "ab"}, {"sam": {"gpu": "x"}})
    return [json.dumps(Repository("1", {"sam": served}).to_dict()).encode()]


def _read_repository(path: Path) -> object:
    from samkit.triton_models.record import Repository

    return Repository.load(path.parent).models


def _read_run(path: Path) -> object:
    from samkit.benchmarks.record.run import load_run

    return load_run(path)


def _write_run(path: Path) -> None:
    from samkit.benchmarks.record.run import Run

    facts = {"processor": "x", "cores": 2, "load": {"before": [0.1], "after": [0.2]}, "settled": True}
    exports = ({"method": "m-sam", "weights": "random", "manifest": "ab" * 32},)
    Run("latency", ("sam-bench", "latency"), "2026-01-01T00:00:00Z", 1.0, exports, facts, {"numpy": "2"}, ()).save(path)


def _content() -> Any:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    return {"model": state, "ema": network.half(), "optimizer": optimizer.state_dict(), "epoch": 3}


def _write_checkpoint(path: Path) -> None:
    import torch

    old = path.name.startswith("old")
    torch.save(_content(), path, _use_new_zipfile_serialization=not old, pickle_protocol=4 if "4" in path.name else 2)


def _read_checkpoint(path: Path) -> object:
    import torch

    from samkit.checkpoints import read_state

    return {name: torch.isfinite(tensor).all() for name, tensor in read_state(path).items()}


def _pickles() -> Sequence[bytes]:
    archives = [zipfile.ZipFile(io.BytesIO(data)) for data in _archives()]
    return [file.read(name) for file in archives for name in file.namelist() if name.endswith("/data.pkl")]


_archives = file_seeds(_write_checkpoint, "new.pt", "new4.pt")


def _read_pickle(data: bytes, folder: Path) -> object:
    """Read a pickle in an archive whose records and checksums are good."""
    path = folder / "c.pt"
    with zipfile.ZipFile(io.BytesIO(_archives()[0])) as good, zipfile.ZipFile(path, "w") as file:
        for record in good.infolist():
            is_pickle = record.filename.endswith("data.pkl")
            file.writestr(record.filename, data if is_pickle else good.read(record))
    return _read_checkpoint(path)


def _write_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(3, 2), "b": torch.ones(2, dtype=torch.bfloat16)}, path)


_tensors = file_seeds(_write_safetensors, "a.safetensors")


def _write_scan(path: Path) -> None:
    import nibabel as nib
    import numpy as np

    array = np.random.default_rng(0).integers(0, 500, (9, 8, 1 if "thin" in path.name else 7)).astype(np.int16)
    if path.name.endswith((".nrrd", ".mha")):
        import SimpleITK as sitk  # noqa: N813 -- as everybody calls it

        sitk.WriteImage(sitk.GetImageFromArray(array.transpose()), str(path))
        return
    image = nib.MGHImage if path.name.endswith((".mgz", ".mgh")) else nib.Nifti1Image
    nib.save(image(array, np.diag([1, 1, 2, 1.0])), path)


def _read_scan(path: Path) -> object:
    from samkit.imageio.reading import read_scan
    from samkit.imageio.writing import write_mask

    scan = read_scan(path, one_slice=True)
    write_mask(path.with_name("mask.nii"), scan.volume.array > 0, scan)
    return scan


def _read_picture(path: Path) -> object:
    from samkit.imageio.reading import read_picture

    return read_picture(path)


def _write_picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels[:, :, 0] if "grey" in path.name else pixels).save(path)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("request", _requests, _read_request, is_json=True),
        Target("answer", _answers, _read_answer, is_json=True),
        Target("clicks", _clicks, in_file(_read_clicks, "clicks.json"), is_json=True),
        Target("words", lambda: [b"60,70.5,30,+", b"40,52,30,88,97,30", b"caudate_left=1,2,-"], _read_words),
        Target("manifest", _manifests, in_file(_read_manifest, "manifest.json"), is_json=True),
        Target("facts", _facts, in_file(_read_facts, "c.json"), is_json=True),
        Target("repository", _repositories, in_file(_read_repository, "samkit.json"), is_json=True),
        Target("run", file_seeds(_write_run, "run.json"), in_file(_read_run, "run.json"), is_json=True),
        Target("checkpoint", file_seeds(_write_checkpoint, "new.pt", "old.pt"), in_file(_read_checkpoint, "c.pt")),
        Target("pickle", _pickles, _read_pickle),
        Target("safetensors", _tensors, in_file(_read_checkpoint, "a.safetensors")),
        Target("nifti", file_seeds(_write_scan, "a.nii", "thin.nii"), in_file(_read_scan, "a.nii")),
        Target("nifti-gz", file_seeds(_write_scan, "a.nii.gz"), in_file(_read_scan, "a.nii.gz")),
        Target("mgh", file_seeds(_write_scan, "a.mgh"), in_file(_read_scan, "a.mgh")),
        Target("nrrd", file_seeds(_write_scan, "a.nrrd"), in_file(_read_scan, "a.nrrd")),
        Target("metaimage", file_seeds(_write_scan, "a.mha"), in_file(_read_scan, "a.mha")),
        Target("picture", file_seeds(_write_picture, "a.png", "grey.png", "a.jpg"), in_file(_read_picture, "a.png")),
    )
}  # fmt: skip


# --- The command ---


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(TARGETS)))
@click.option("--count", type=click.IntRange(1), default=10_000, show_default=True, help="Mutations of each reader.")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="Number of the first one.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the bytes of faults, or of a lone mutation.")
def mutations(names: tuple[str, ...], count: int, first: int, keep: Path | None) -> None:
    """Mutate good inputs of readers; fails where anything but a SamkitError comes, or memory grows."""
    bad = []
    for name in names or TARGETS:
        started = time.perf_counter()
        outcome = run(TARGETS[name], count, first=first, keep=keep)
        click.echo(
            f"{name:12} {outcome.read:8} read {outcome.refused:8} refused {len(outcome.faults):4} faults "
            f"{outcome.kept / 2**20:6.1f} MB kept {outcome.taken / 2**20:6.1f} MB peak "
            f"{1000 * outcome.slowest[0]:7.1f} ms slowest ({outcome.slowest[1]}) {time.perf_counter() - started:6.0f} s"
        )
        for number, error in outcome.faults[:5]:
            click.echo(f"    {name} {number}: {error}")
        bad += [] if outcome.is_good else [name]
    if bad:
        raise SamkitError(
            f"readers that did not hold: {', '.join(bad)}; repeat a mutation with --first NUMBER --count 1"
        )


def main() -> None:
    """Run the command."""
    run_command(mutations, "mutations")


if __name__ == "__main__":
    main()
