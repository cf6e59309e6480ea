"""Sessions on one export by each backend, every graph of them watched, beside the PyTorch originals.

Names of backends on the command line are those of BACKENDS. On a CPU float16 is judged by graphs that round and
overflow as a GPU does (`export.emulation`): ONNX Runtime computes them in float32 there, and would hide an overflow.

A session on a server runs its graphs there, where nobody sees the calls; but each graph is a model of its own there,
too (`ServedRunner`), which can be asked what PyTorch was asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.accuracy.gate import CallJudge, CallTape, RecordedRunner
from samkit.benchmarks.measure.originals import original_network, original_runners
from samkit.errors import MissingDependencyError, SamkitError, ServingError
from samkit.manifest import Export, Manifest
from samkit.methods import GraphSpec
from samkit.precisions import BASE
from samkit.runtime import backends, open_session
from samkit.runtime.backends import Variant, bench_backends, find_emulator, get_backend, open_runners
from samkit.runtime.backends.backend import missing_files
from samkit.runtime.backends.runner import HostRunner, Runner, SubstituteRunner, add_substitutes, check_inputs
from samkit.runtime.client import tritonclient_library
from samkit.runtime.client.triton_transport import HTTP, Address
from samkit.runtime.opening import make_session
from samkit.tensors import Tensor, on_host
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from samkit.triton_models.server_files import check_numpy, find_server

TORCH, TRITON = "torch", "triton"
STEM = "adapter_stem"


BACKENDS: Mapping[str, Variant] = {**bench_backends(), TRITON: Variant(TRITON, BASE.name, "cpu")}
"""`torch` is what the others are compared with, on the device that was asked for, and always runs."""


def default_backends(device: str) -> tuple[str, ...]:
    """Return what runs when nobody asks for anything; what is not there gets a row that says so."""
    at_home = {backend.name: backend.devices[0] for backend in backends.BACKENDS} | {TRITON: "cpu"}
    return tuple(name for name, one in BACKENDS.items() if device == "cuda" or one.device == at_home[one.backend])


@dataclass
class Reference:
    """The PyTorch originals: a session, and a tape of what its graphs were given and gave."""

    session: Any
    tape: CallTape
    runners: Mapping[str, Runner]
    """Without anybody watching."""
    kind: Variant
    name: str = TORCH


@dataclass
class Contender:
    """A session that is compared."""

    name: str
    """As on the command line."""
    kind: Variant
    session: Any
    judge: CallJudge
    runners: Mapping[str, Runner]
    """By graph, without anybody watching."""

    @property
    def is_served(self) -> bool:
        """Return whether the session is on a server."""
        return self.kind.backend == TRITON


class ServedRunner(HostRunner):
    """A graph of an export, run by the server that serves it."""

    providers = (TRITON,)

    def __init__(self, address: Address, graph: GraphSpec) -> None:
        """Run `graph` of what is served at `address`."""
        self.graph = graph
        self._library = tritonclient_library.http() if address.scheme == HTTP else tritonclient_library.grpc()
        self._client = self._library.InferenceServerClient(address.server)
        self._model = f"{address.name}_{graph.name}"

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError for inputs that don't fit, ServingError otherwise."""
        check_inputs(self.graph, inputs)
        arrays = {name: np.ascontiguousarray(on_host(tensor)) for name, tensor in inputs.items()}
        try:
            answer = self._client.infer(self._model, tritonclient_library.as_inputs(self._library, arrays))
        except self._library.InferenceServerException as error:
            raise ServingError(f"the server did not run {self._model} ({error}); see its log") from error
        return {spec.name: answer.as_numpy(spec.name) for spec in self.graph.outputs}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


@dataclass(frozen=True)
class Absent:
    """A backend that could not be compared, and why."""

    name: str
    kind: Variant
    reason: str
    is_failure: bool
    """Whether it is there and failed."""


def open_reference(folder: Path, manifest: Manifest, device: str, threads: int | None, held: ExitStack) -> Reference:
    """Return the originals of an export, which `held` closes; raises as `original_network` does."""
    plan = manifest.plan
    export = Export.of(folder, manifest)
    network = original_network(plan, device=device, threads=threads)
    runners = original_runners(network, plan, device)
    stem = None
    if STEM in plan.graphs:
        from samkit.runtime.backends.torch_runner import TorchRunner

        stem = TorchRunner(network, next(spec for spec in plan.specs if spec.name == STEM), device)
    tape = CallTape(stem)
    watched = _watched(runners, tape, export.graphs)
    if stem is not None:
        runners[STEM] = stem
    session = make_session(export, watched, BASE.name)
    held.callback(session.close)
    return Reference(session, tape, runners, Variant(TORCH, BASE.name, device))


def open_contender(
    name: str,
    folder: Path,
    manifest: Manifest,
    tape: CallTape,
    threads: int | None,
    server: str | None,
    held: ExitStack,
) -> Contender | Absent:
    """Return a backend's session on an export, which `held` closes, or why there is none."""  # fmt: skip
    kind = BACKENDS[name]
    specs = {spec.name: spec for spec in manifest.plan.specs}
    runners: dict[str, Runner]
    try:
        if kind.backend == TRITON:
            url, session = _open_served(folder, manifest, server, held)
            runners = {n: held.enter_context(ServedRunner(Address.parse(url), spec)) for n, spec in specs.items()}
            judge = CallJudge(tape, specs, kind.precision, is_watching=False)
            return Contender(name, kind, session, judge, runners)
        export = Export.of(folder, manifest)
        if (missing := missing_files(export, kind.precision)) is not None:
            return Absent(name, kind, missing, False)
        runners = _open_runners(kind, export, threads, held)
        judge = CallJudge(tape, specs, kind.precision)
        watched = _watched(runners, judge, export.graphs)
        session = make_session(export, watched, kind.precision)
        held.callback(session.close)
        return Contender(name, kind, session, judge, runners)
    except SamkitError as error:
        is_missing = isinstance(error, MissingDependencyError) or (
            kind.backend != TRITON and get_backend(kind.backend).missing(Export.of(folder, manifest), kind.precision)
        )
        return Absent(name, kind, str(error), not is_missing)


def _open_runners(kind: Variant, export: Export, threads: int | None, held: ExitStack) -> dict[str, Runner]:
    emulator = find_emulator(kind)
    if emulator is None:
        return open_runners(export, kind, threads)[0]
    work = Path(held.enter_context(tempfile.TemporaryDirectory()))
    return {s.name: emulator(export.path(s.name, kind.precision), s, work, threads=threads) for s in export.specs}


def _open_served(folder: Path, manifest: Manifest, server: str | None, held: ExitStack) -> tuple[str, Any]:
    """Return an address and a session there: of `server`, or of one that is started for this export."""
    if server is None:
        find_server()
        check_numpy()
        work = Path(held.enter_context(tempfile.TemporaryDirectory()))
        write_repository([folder], work / "repository", engines=False)  # the server is started on the CPU
        started = held.enter_context(EmbeddedServer(work / "repository"))
        server = f"triton://{started.grpc}/{manifest.plan.method}"
    session: Any = held.enter_context(open_session(server))
    if session.manifest.digest != manifest.digest:
        raise ServingError(
            f"{server} serves another export of {session.manifest.method} (manifest {session.manifest.digest[:12]}) "
            f"than the one that is measured ({manifest.digest[:12]}); serve this one, or leave --server out"
        )
    return server, session


def _watched(
    runners: Mapping[str, Runner], judge: CallJudge | CallTape, graphs: Sequence[GraphSpec]
) -> dict[str, Runner]:
    """Return runners that show each call to `judge`; one that stands in for another shows the one that really runs."""
    real: dict[str, Runner] = {
        name: RecordedRunner(runner, judge)
        for name, runner in runners.items()
        if not isinstance(runner, SubstituteRunner)
    }
    add_substitutes(real, graphs)
    return real


def check_names(names: Iterable[str], fail: Callable[[str], Exception]) -> tuple[str, ...]:
    """Return the names of backends, `torch` first; raises what `fail` makes of a sentence for an unknown one."""
    wanted = dict.fromkeys(names)
    if unknown := [name for name in wanted if name not in BACKENDS]:
        raise fail(f"the backend '{unknown[0]}' is not known; give {', '.join(BACKENDS)}")
    return ("torch", *(name for name in wanted if name != "torch"))
