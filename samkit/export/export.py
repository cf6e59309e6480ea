"""One export from plan to manifest, and the verification of a finished one.

Everything is made in a hidden folder beside the target and moved at the end, manifest last: a stage that fails
leaves the target as it was.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.errors import ExportError, ManifestError, MissingDependencyError, ParityError
from samkit.export import click_parity, slice_parity
from samkit.export.parity import CASES, load_arrays, relative_error, save_arrays
from samkit.export.parity import FILE_NAME as PARITY_FILE
from samkit.export.plan import complete_plan
from samkit.export.subjects import Subject, find_subjects, read_subjects
from samkit.manifest import FILE_NAME as MANIFEST_FILE
from samkit.manifest import ExportPlan, Manifest, describe_files, file_sha256, graph_file
from samkit.methods import Method, SliceMethod, get_method
from samkit.networks.config import NetworkConfig
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Runner, add_substitutes
from samkit.weights import demo_checkpoint

if TYPE_CHECKING:
    from samkit.checkpoints import LoadedNetwork
    from samkit.export.precision import Kept
    from samkit.networks.network import Network

_log = logging.getLogger(__name__)

RANDOM_SEED = 0
MERGE_RELATIVE = 1e-5
"""How much merging LoRA may move the embedding: it is exact but for rounding (1e-6 was measured)."""


def run_export(plan: ExportPlan, out: Path, *, force: bool = False) -> Manifest:
    """Carry out `plan` into the folder `out` and return its manifest.

    An export of the same plan whose files are unchanged is kept. Raises ExportError for another export in `out`
    without `force`, and for every stage that fails; the folder is then as it was.
    """
    _check_dependencies()
    _check_folder(out)
    method = get_method(plan.method)
    loaded = _load(plan, method)
    plan = complete_plan(plan, loaded.info, loaded.borrowed)
    if (kept := _same_export(plan, out, force)) is not None:
        _log.info("%s already holds this export, unchanged; nothing to do unless forced", out)
        return kept
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            manifest = _make(plan, method, loaded, Path(folder))
            _move(Path(folder), out, manifest)
    except OSError as error:
        raise ExportError(
            f"the export can't be written to {out} ({error.strerror}); choose another {{out}}", options=("out",)
        ) from error
    return manifest


def verify_export(folder: Path) -> dict[str, Any]:
    """Check schema and hashes of an export, repeat its parity on the stored inputs, and return the figures."""
    manifest = Manifest.load(folder)
    manifest.verify(folder)
    _log.info("%d files have the SHA-256 they were exported with", len(manifest.artifacts))
    method = get_method(manifest.plan.method)
    references = _load_references(method, folder / PARITY_FILE)
    figures: dict[str, Any] = {}
    for precision in manifest.plan.precisions:
        figures |= _check_files(manifest.plan, method, folder, references, precision)
    return figures


def repeat_parity(
    plan: ExportPlan, folder: Path, runners: Mapping[str, Runner], precision: str
) -> dict[str, dict[str, Any]]:
    """Return the figures of any runners of an export against its stored references; raises ParityError."""
    method = get_method(plan.method)
    return _checking(plan, method, _load_references(method, folder / PARITY_FILE))(runners, precision)


def _check_folder(out: Path) -> None:
    """Raise ExportError where `out` is no folder, or one that holds anything but an export of ours."""
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file, and an export is a folder; choose another {{out}}", options=("out",))
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise ExportError(
            f"{out} holds files that no export of samkit's wrote, and nothing of yours is replaced; "
            "choose an empty or a new folder with {out}",
            options=("out",),
        )


def _check_dependencies() -> None:
    for package in ("torch", "onnx", "onnxscript"):
        try:
            version(package)
        except ImportError:
            raise MissingDependencyError(
                f"exporting needs {package}, which is not installed; pip install 'samkit[export,cpu]'"
            ) from None


def _load(plan: ExportPlan, method: Method) -> LoadedNetwork:
    """Return the network with the plan's weights."""
    from samkit.checkpoints import CheckpointInfo, LoadedNetwork, load_network

    if plan.weights.kind != "random":
        path = demo_checkpoint(method.name) if plan.weights.path is None else Path(plan.weights.path)
        others = {name: Path(weights.path) for name, weights in plan.others.items() if weights.path is not None}
        for file, weights in ((path, plan.weights), *((others[name], plan.others[name]) for name in others)):
            if file_sha256(file) != weights.sha256:
                raise ExportError(f"{file} changed between planning and loading; run sam-export again")
        return load_network(path, method, others)
    if plan.config is None or plan.size is None:
        raise ExportError("a plan with random weights names no network; pass {size}", options=("size",))
    network = random_network(method, plan.config)
    refinement = plan.refinement or method.refinements[0]
    return LoadedNetwork(network, CheckpointInfo(method.name, plan.size, plan.config, refinement), "")


def random_network(method: Method, config: NetworkConfig) -> Network:
    """Return a seeded network whose zero-initialised tensors hold noise: zeros would hide their errors."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(RANDOM_SEED)
        network = method.build(config).eval()
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer) * 0.1)
    return network


def _same_export(plan: ExportPlan, out: Path, force: bool) -> Manifest | None:
    """Return the manifest of an unchanged export of the same plan in `out`; None where there is nothing to keep."""
    if force or not (out / MANIFEST_FILE).exists():
        return None
    try:
        there = Manifest.load(out)
        there.verify(out, engines=False)
    except ManifestError as error:
        raise ExportError(f"{error}. To replace what is in {out}, pass {{force}}", options=("force",)) from error
    if there.plan != plan or there.environment.get("samkit") != _environment()["samkit"]:
        raise ExportError(
            f"{out} holds another export (method {there.plan.method}, {there.plan.precision}, weights "
            f"{there.plan.weights.kind}); choose another {{out}}, or pass {{force}} to replace it",
            options=("out", "force"),
        )
    return there


def _make(plan: ExportPlan, method: Method, loaded: LoadedNetwork, folder: Path) -> Manifest:
    """Write every file of `plan` into `folder` and return the manifest, also saved there."""
    if plan.config is None or plan.refinement is None:
        raise ExportError("the plan is not complete; complete_plan fills in what the checkpoint says")
    from samkit.export.float16 import write_float16
    from samkit.export.graphs import write_graph
    from samkit.export.tensorrt_operators import check_files

    network, specs = loaded.network, plan.specs
    _log.info("reference: PyTorch float32, upstream's formulation, on phantoms")
    references = _make_references(network, method, plan, _subjects(plan, method))
    # Scans of patients don't travel with an export: what is stored for --verify are the phantoms.
    save_arrays(folder / PARITY_FILE, [reference.to_arrays() for reference in references[:CASES]])
    merge = None
    network.set_folded(plan.folded)
    if plan.folded:  # upstream's formulation keeps LoRA beside the weights
        merge = _merge_lora(network, references, method) if getattr(plan.config, "lora_rank", 0) else None
        network.freeze()
    for spec in specs:
        _log.info("%s: torch.onnx", graph_file(spec.name, "fp32"))
        write_graph(network, spec, folder / graph_file(spec.name, "fp32"), opset=plan.opset, folded=plan.folded)
    check_files(sorted(folder.glob("*.onnx")))
    parity = _check_files(plan, method, folder, references, "fp32")
    notes = {}
    if plan.precision == "fp16":
        notes = write_float16(folder, specs, _checking(plan, method, references), _keep_list(plan))
        check_files(sorted(folder.glob("*.fp16.onnx")))
        parity |= _check_files(plan, method, folder, references, "fp16")
    names = sorted(path.name for path in folder.iterdir())
    manifest = Manifest(
        plan=plan,
        artifacts=describe_files(folder, names),
        parity=parity,
        lora_merge=merge,
        precision_notes=notes,
        environment=_environment(),
        provenance=loaded.info.provenance,
    )
    manifest.save(folder)
    _log.info("manifest.json")
    return manifest


def _checking(plan: ExportPlan, method: Method, references: list[Any]) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return the parity procedure of this export, for any runners and precision."""

    def check(runners: Mapping[str, Runner], precision: str) -> dict[str, dict[str, Any]]:
        checked: dict[str, dict[str, Any]] = _procedure(method).check_parity(
            runners, references, method, plan, precision
        )
        return checked

    return check


def _subjects(plan: ExportPlan, method: Method) -> list[Subject]:
    """Return the scans to calibrate on besides phantoms; none where no folder was given."""
    if plan.calibration is None or plan.calibration.path is None:
        return []
    paths, found = find_subjects(Path(plan.calibration.path), method, plan.config)
    _log.info("calibration: %d of %d subjects of the folder, besides %d phantoms", len(paths), found, CASES)
    return read_subjects(paths, method, plan.config)


def _keep_list(plan: ExportPlan) -> dict[str, list[Kept]] | None:
    """Return the given nodes that stay in float32, by graph; None where they are to be measured."""
    from samkit.export.precision import read_keep_list

    if plan.keep_list is None or plan.keep_list.path is None:
        return None
    try:
        data = json.loads(Path(plan.keep_list.path).read_text())
    except ValueError as error:
        raise ExportError(f"the keep-list is no JSON ({error}); give the manifest.json of a float16 export") from error
    return read_keep_list(data, {graph: graph_file(graph, "fp16") for graph in plan.graphs})


def _make_references(network: Network, method: Method, plan: ExportPlan, subjects: list[Subject]) -> list[Any]:
    """Return what the network answers in PyTorch float32, upstream's formulation."""
    from samkit.runtime.backends.torch_runner import TorchRunner

    network.set_folded(False)
    runners: dict[str, Runner] = {graph.name: TorchRunner(network, graph) for graph in plan.specs}
    add_substitutes(runners, method.graphs(plan.config))
    try:
        return list(_procedure(method).make_references(runners, method, plan, subjects))
    finally:
        network.set_folded(True)


def _load_references(method: Method, path: Path) -> list[Any]:
    """Return the references of an export; raises ManifestError when the file holds none of this method."""
    kind = slice_parity.SliceReference if isinstance(method, SliceMethod) else click_parity.ClickReference
    try:
        return [kind.from_arrays(arrays) for arrays in load_arrays(path)]
    except (KeyError, ValueError, TypeError) as error:
        raise ManifestError(f"{path} does not hold parity references ({error!r}); export again") from error


def _procedure(method: Method) -> Any:
    """Return the module that knows how a method of this kind is put to the test."""
    return slice_parity if isinstance(method, SliceMethod) else click_parity


def _merge_lora(network: Network, references: list[Any], method: Method) -> dict[str, float]:
    """Merge LoRA in place and return how far that moved the embeddings."""
    import torch

    def embeddings() -> list[Any]:
        images = (torch.from_numpy(r.network_input(method, network.config)) for r in references)
        with torch.inference_mode():
            return [network.run_graph("image_encoder", image)[0].numpy() for image in images]

    before = embeddings()
    network.merge_lora()
    errors = [relative_error(a, b) for a, b in zip(embeddings(), before, strict=True)]
    worst = float(np.max(errors))  # `np.max` and `not <=`, because nan must fail
    if not worst <= MERGE_RELATIVE:
        raise ParityError(
            f"merging LoRA moved the image embedding by {worst:.1e} relative, at most {MERGE_RELATIVE:.0e} is allowed; "
            "are the LoRA weights of this checkpoint finite and of usual size?"
        )
    return {"relative_error": worst}


def _check_files(
    plan: ExportPlan, method: Method, folder: Path, references: list[Any], precision: str
) -> dict[str, Any]:
    """Compare the ONNX files of one precision with the references on ONNX Runtime's CPU provider."""
    if plan.config is None or plan.refinement is None:
        raise ManifestError(f"the plan in {folder} is not complete; export again")
    specs = plan.specs
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        runners: Mapping[str, Runner] = {
            spec.name: stack.enter_context(OnnxRuntimeRunner(folder / graph_file(spec.name, precision), spec))
            for spec in specs
        }
        checked = _checking(plan, method, references)(runners, precision)
    for name, values in checked.items():
        file = graph_file(name, precision)
        figures[file] = values
        _log.info("%s: %s", file, ", ".join(f"{k} {v:.3g}" for k, v in values.items()))
    return figures


def _move(source: Path, out: Path, manifest: Manifest) -> None:
    """Move the finished files into `out`: the old manifest goes first, the new one comes last.

    Of what is there, only files that the old manifest lists are removed.
    """
    out.mkdir(exist_ok=True)
    if (out / MANIFEST_FILE).is_file():
        try:
            stale = [artifact.file for artifact in Manifest.load(out).artifacts]
        except ManifestError:
            stale = []
        (out / MANIFEST_FILE).unlink()
        for name in stale:
            (out / Path(name).name).unlink(missing_ok=True)
    for name in [*(artifact.file for artifact in manifest.artifacts), MANIFEST_FILE]:
        shutil.move(source / name, out / name)


def _environment() -> dict[str, str]:
    packages = ("samkit", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
