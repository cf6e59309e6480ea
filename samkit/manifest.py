"""ExportPlan, Manifest and Export: what an export will do, what it did, and its folder at work.

The plan is complete before any work starts and `--dry-run` prints it; what only the checkpoint can tell reads
"from checkpoint" until it is opened. The manifest is the plan, the files with their SHA-256, the parity figures
and the environment. It is written last and in one move, so a folder with a manifest is a finished export. `Export` is
such a folder, opened once: whoever works with one is handed the record and reads nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samkit.errors import ManifestError, SamkitError
from samkit.files import write_whole
from samkit.json_files import read_json, take_version
from samkit.json_records import from_json, read_value
from samkit.methods import GraphSpec, Method, get_method, list_methods
from samkit.networks.config import NetworkConfig
from samkit.precisions import BASE, PRECISIONS, get_precision

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
FROM_CHECKPOINT = "from checkpoint"


@dataclass(frozen=True)
class Weights:
    """Where a network's numbers come from."""

    kind: str
    """`checkpoint`, `demonstration` (shipped, trained on phantoms) or `random` (seeded, for timing only)."""
    path: str | None
    """The weights file, absolute: a run's folder is resolved to its best one. None for the other kinds."""
    sha256: str | None
    """Of the weights file; None for random ones."""
    demonstration: bool = False
    """Trained on phantoms to show the tool at work: the shipped weights, and files whose JSON says so."""
    entry: str = ""
    """Which of several sets in the file, as `--weights` said it; empty, and not in the JSON, where nothing was said."""


@dataclass(frozen=True)
class GivenFile:
    """A file or folder besides weights that an export was told to use. Manifests know it by its content alone: the
    path of a folder of scans may name a patient.
    """

    sha256: str
    """Of the file, or over the hashes of all files in the folder."""
    path: str | None = field(default=None, compare=False)
    """Where it lies while the export is made; None in a plan that was read from a manifest."""


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export will do."""

    method: str
    weights: Weights
    size: str | None
    """full, small or tiny; None until the checkpoint is opened."""
    config: NetworkConfig | None
    """The network; None until the checkpoint is opened."""
    refinement: str | None
    """`anchored`, `recurrent`, or `none` for methods without a loop; None until the checkpoint is opened."""
    precision: str
    """`fp32`, or another one, which writes both."""
    folded: bool
    """Whether graphs are the exact fast form; False is upstream's own formulation (`--no-fold`)."""
    opset: int
    graphs: tuple[str, ...]
    others: Mapping[str, Weights] = field(default_factory=dict)
    """Companion files and parts of the network that come from elsewhere than `weights`, by their option's name."""
    calibration: GivenFile | None = None
    """Folder of scans that float16 is measured and gated on, besides phantoms."""
    keep_list: GivenFile | None = None
    """File with the nodes that stay in float32, in place of the measured ones."""

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """Return the graphs of this export; raises ManifestError until the checkpoint is opened."""
        if self.config is None:
            raise ManifestError(f"this plan of {self.method} does not describe its network yet; open the checkpoint")
        return tuple(spec for spec in get_method(self.method).graphs(self.config) if spec.name in self.graphs)

    @property
    def is_demonstration(self) -> bool:
        """Return whether any of the weights were trained on phantoms."""
        return any(weights.demonstration for weights in (self.weights, *self.others.values()))

    @property
    def demonstration(self) -> str:
        """Return the demonstration weights of this plan as a warning calls them; empty where there are none.

        A part of the network may come from elsewhere than the rest, one's own training.
        """
        parts = [part.name for part in get_method(self.method).parts if part.name in self.others]
        demo = [name for name in parts if self.others[name].demonstration]
        own = [name for name in parts if name not in demo]
        if self.weights.demonstration:
            return "DEMONSTRATION WEIGHTS" + (f" BUT FOR THE {' AND '.join(own)}".upper() if own else "")
        return f"DEMONSTRATION WEIGHTS IN THE {' AND '.join(demo)}".upper() if demo else ""

    @property
    def precisions(self) -> tuple[str, ...]:
        """Return every precision that is written."""
        return tuple(dict.fromkeys((BASE.name, self.precision)))

    @property
    def files(self) -> list[str]:
        """Return the names of the ONNX files that are written."""
        return [graph_file(graph, precision) for graph in self.graphs for precision in self.precisions]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, files and tensors included; what is not known yet reads "from checkpoint"."""
        data = asdict(self)
        data["config"] = self.config and self.config.to_dict()
        for weights in (data["weights"], *data["others"].values()):
            if not weights["entry"]:
                del weights["entry"]
        for name in ("calibration", "keep_list"):
            given: GivenFile | None = data.pop(name) and getattr(self, name)
            if given is not None:
                data[name] = {"sha256": given.sha256}
        data["files"] = sorted(self.files)
        data["tensors"] = self.config and [spec.to_dict() for spec in self.specs]
        return {key: FROM_CHECKPOINT if value is None else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: object) -> ExportPlan:
        """Return the plan that `to_dict` wrote; raises ManifestError for one that is not wholly as it must be."""
        if not isinstance(data, dict):
            raise ManifestError(f"a plan is {str(data)[:40]!r}, needed is a JSON object; export again")
        known = {
            key: None if value == FROM_CHECKPOINT else value
            for key, value in data.items()
            if key not in ("config", "files", "tensors")  # the last two follow from the rest
        }
        try:
            method = get_method(read_value(str, known.get("method"), "method of the plan"))
            network = data.get("config")
            config = None if network in (None, FROM_CHECKPOINT) else type(method.sizes["full"]).from_dict(network)
            plan = from_json(cls, known, "the plan", config=config)
        except SamkitError as error:
            raise ManifestError(f"{error.text}; export again", options=error.options) from error
        if problems := plan._problems(method):
            raise ManifestError(f"the plan can't be of an export: {'; '.join(problems)}; export again")
        return plan

    def _problems(self, method: Method) -> list[str]:
        """Return what no export of `method` says, one clause each."""
        kinds, sizes = ("checkpoint", "demonstration", "random"), (None, *method.sizes)
        names = [precision.name for precision in PRECISIONS]
        exist = None if self.config is None else [graph.name for graph in method.graphs(self.config)]
        wrong_kinds = {one.kind for one in (self.weights, *self.others.values())} - set(kinds)
        return [
            text
            for wrong, text in (
                (wrong_kinds, f"weights are {sorted(wrong_kinds)!s:.60}, none of {', '.join(kinds)}"),
                (self.size not in sizes, f"size {self.size!r:.40} is none of {', '.join(method.sizes)}"),
                (
                    self.refinement not in (None, *method.refinements),
                    f"refinement {self.refinement!r:.40} is none of {', '.join(method.refinements)}",
                ),
                (self.precision not in names, f"precision {self.precision!r:.40} is none of {', '.join(names)}"),
                (self.opset < 1, f"opset {self.opset} is below 1"),
                (not self.graphs, "it has no graphs"),
                (len(set(self.graphs)) < len(self.graphs), "a graph stands twice"),
                (
                    exist is not None and not set(self.graphs) <= set(exist),
                    f"graphs are {list(self.graphs)!s:.100}, and {method.name} has {', '.join(exist or ())}",
                ),
            )
            if wrong
        ]


def graph_file(graph: str, precision: str) -> str:
    """Return the file name of one graph.

    >>> graph_file("mask_decoder", "fp16")
    'mask_decoder.fp16.onnx'
    """
    return get_precision(precision).graph_file(graph)


@dataclass(frozen=True)
class Artifact:
    """One file of an export."""

    file: str
    """Name inside the export folder."""
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A finished export."""

    plan: ExportPlan
    artifacts: tuple[Artifact, ...]
    parity: dict[str, Any]
    """Per file: the worst relative error, Dice and voxel difference against PyTorch float32."""
    lora_merge: dict[str, float] | None
    """Largest relative difference that merging LoRA made to the embedding; None without LoRA."""
    precision_notes: dict[str, Any] = field(default_factory=dict)
    """Per FP16 file: how many nodes run in float16, which stayed in float32 and why."""
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per TensorRT engine file: the graph it was built from, versions, GPU, profile and build time."""
    environment: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint says about its training."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.__dict__,
            "plan": self.plan.to_dict(),
            "artifacts": [asdict(a) for a in self.artifacts],
        }

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Return the manifest of an export folder; raises ManifestError when it is missing, broken or too new."""
        path = folder / FILE_NAME
        if not path.is_file():
            found = f"{folder} holds no {FILE_NAME}, so it is no finished export"
            found = found if folder.exists() else f"there is no folder {folder}"
            raise ManifestError(f"{found}; {_how_to_export(folder)}")
        try:
            version, data = take_version(read_json(path))
        except ValueError as error:
            raise ManifestError(f"{path} is not a samkit manifest ({error}); export again") from error
        if version > SCHEMA_VERSION:
            raise ManifestError(
                f"{path} has schema {version}, this samkit reads up to {SCHEMA_VERSION}; upgrade samkit or export again"
            )
        try:
            plan = ExportPlan.from_dict(data.pop("plan", None))
            manifest = from_json(cls, data, "it", plan=plan)
        except SamkitError as error:
            raise ManifestError(
                f"{path} is not a samkit manifest ({error.text.removesuffix('; export again')}); export again",
                options=error.options,
            ) from error
        if problems := manifest._problems():
            raise ManifestError(f"{path} is not a samkit manifest ({'; '.join(problems)}); export again")
        return manifest

    def _problems(self) -> list[str]:
        """Return what no manifest says, one clause each."""
        files = [artifact.file for artifact in self.artifacts]
        built = [entry.get("files") for entry in self.engines.values()]
        strange = [names for names in built if not isinstance(names, list) or not {*map(str, names)} <= {*files}]
        outside = [file for file in files if not file or Path(file).name != file]
        return [
            text
            for wrong, text in (
                (len(set(files)) < len(files), "a file stands twice"),
                (strange, f"the files of engines are {strange!s:.100}, needed are names that it lists"),
                (outside, f"{outside!s:.100} lie not in the folder"),
                (min((artifact.bytes for artifact in self.artifacts), default=0) < 0, "a file has less than no bytes"),
            )
            if wrong
        ]

    def save(self, folder: Path) -> None:
        """Write the manifest in one move."""
        write_whole(folder / FILE_NAME, json.dumps(self.to_dict(), indent=1) + "\n")

    @property
    def engine_files(self) -> frozenset[str]:
        """Return the names of all files that belong to TensorRT engines, which `sam-export --build-engines` makes."""
        return frozenset(file for entry in self.engines.values() for file in entry["files"])

    def verify(self, folder: Path, *, engines: bool = True) -> None:
        """Raise ManifestError unless every file is there with the SHA-256 it was exported with.

        Without `engines` their files may be missing or changed: nothing but engines needs them.
        """
        built = self.engine_files
        for artifact in self.artifacts:
            if artifact.file in built and not engines:
                continue
            path = folder / artifact.file
            again = f"build it again: sam-export --build-engines {folder}" if artifact.file in built else "export again"
            if not path.is_file():
                raise ManifestError(f"{path} is missing though the manifest lists it; {again}")
            if file_sha256(path) != artifact.sha256:
                raise ManifestError(f"{path} changed since it was exported; restore it or {again}")

    def path(self, folder: Path, graph: str, precision: str) -> Path:
        """Return the file of one graph; raises ManifestError naming the precisions there are."""
        name = graph_file(graph, precision)
        if name not in {artifact.file for artifact in self.artifacts}:
            files = {artifact.file for artifact in self.artifacts}
            there = [one.name for one in PRECISIONS if graph_file(graph, one.name) in files]
            raise ManifestError(
                f"{folder} has no {graph} in {precision}, it has {', '.join(there) or 'no such graph'}; "
                f"export again with sam-export --{precision}"
                if precision != BASE.name
                else f"{folder} has no graph '{graph}'; export again"
            )
        return folder / name

    @property
    def digest(self) -> str:
        """Return the SHA-256 of plan and files: benchmarks and reports carry it."""
        content = {"plan": self.plan.to_dict(), "artifacts": [asdict(a) for a in self.artifacts]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Export:
    """A finished export, opened: where it lies, what its manifest says, and the method and network that it is of."""

    folder: Path
    manifest: Manifest
    method: Method
    config: NetworkConfig

    def __repr__(self) -> str:
        """Return what was exported, and the folder's name."""
        plan = self.plan
        precisions = " and ".join(plan.precisions)
        return f"<Export: {plan.method} in {precisions}, {plan.weights.kind} weights, in {self.folder.name}>"

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True, engines: bool = False) -> Export:
        """Return the export in `folder`; raises ManifestError where that is none, or leaves its network open.

        Its files are compared with the manifest unless `verify` is False; those of engines only with `engines`, because
        their runners compare the very bytes that they load, and nothing else needs them.
        """
        folder = Path(folder)
        export = cls.of(folder, Manifest.load(folder))
        if verify:
            export.verify(engines=engines)
        return export

    def verify(self, *, engines: bool = False) -> None:
        """Raise ManifestError unless the files, those of engines only on demand, are the ones that were exported."""
        self.manifest.verify(self.folder, engines=engines)

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Export:
        """Return the export in `folder` that `manifest` describes; raises ManifestError as `open` does."""
        plan = manifest.plan
        if plan.config is None or plan.refinement is None:
            raise ManifestError(f"the manifest of {folder.name} does not describe its network; export again")
        method = get_method(plan.method)
        needed = [graph.name for graph in method.graphs(plan.config) if graph.is_in(None, folded=False)]
        if missing := [name for name in needed if name not in plan.graphs]:
            raise ManifestError(
                f"the export {folder.name} has no graph {missing[0]}, which {plan.method} needs; export again"
            )
        listed = {artifact.file for artifact in manifest.artifacts}
        if missing := [name for name in plan.files if name not in listed]:
            raise ManifestError(
                f"the manifest of {folder.name} does not list {missing[0]}, a file of its plan; export again"
            )
        return cls(folder, manifest, method, plan.config)

    @property
    def plan(self) -> ExportPlan:
        """Return what was exported."""
        return self.manifest.plan

    @property
    def digest(self) -> str:
        """Return the SHA-256 of plan and files: benchmarks and reports carry it."""
        return self.manifest.digest

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """Return the graphs that it has files of."""
        return self.manifest.plan.specs

    @property
    def graphs(self) -> tuple[GraphSpec, ...]:
        """Return all graphs of the network, those included that this export has no file of."""
        return self.method.graphs(self.config)

    def path(self, graph: str, precision: str) -> Path:
        """Return the file of one graph; raises ManifestError naming the precisions there are."""
        return self.manifest.path(self.folder, graph, precision)


def _how_to_export(path: Path) -> str:
    """Return the command that makes an export of what is there: a training run, a checkpoint, or nothing yet."""
    if path.is_file():
        if (path.parent / FILE_NAME).is_file():
            return f"it is a file of an export, whose folder {path.parent} is what you want"
        from samkit.imageio.reading import is_picture, is_scan  # of those who open an export, few need it

        if is_scan(path) or is_picture(path):
            return "by its name it is an image; open the folder that sam-export wrote, and give the image to set_image"
        return f"it is a file; export it with sam-export --method M --checkpoint {path}"
    try:
        plan = read_json(path / "run.json")["plan"]
        method, option = plan["method"], plan.get("part") or "checkpoint"
    except (ValueError, KeyError, TypeError, AttributeError):
        method = path.name if path.name in list_methods() else "M"
        return f"check the path, or make an export with sam-export --method {method} --out {path}"
    return f"it is the folder of a training run; export it with sam-export --method {method} --{option} {path}"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, names: list[str]) -> tuple[Artifact, ...]:
    """Return the artifacts called `names` in `folder`."""
    return tuple(Artifact(n, file_sha256(folder / n), (folder / n).stat().st_size) for n in sorted(names))
