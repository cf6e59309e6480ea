"""Sessions on one export: the PyTorch originals, which are the baseline, and a candidate for each backend.

The graphs of all of them are observed. On a CPU some precisions are judged by graphs that round and overflow as a
device does (`Precision.emulator`): the backend would hide an overflow there. A session on a server runs its graphs
there, where nobody sees the calls; but each graph is a model of its own there, too (`ServedRunner`), which can be asked
what PyTorch was asked.
"""

from __future__ import annotations

import pkgutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from samkit.benchmarks.accuracy.outputs import ObservedRunner, Observer, OutputCheck, Recording
from samkit.benchmarks.measure.originals import original_network, original_runners
from samkit.benchmarks.record.rows import Absent, Identity
from samkit.errors import MissingDependencyError, OptionError, SamkitError, ServingError
from samkit.manifest import Export
from samkit.precisions import BASE, get_precision
from samkit.runtime.backends import bench_backends, get_backend, is_emulated, open_runners
from samkit.runtime.backends.backend import Variant, missing_files
from samkit.runtime.backends.runner import Runner, SubstituteRunner, add_substitutes
from samkit.runtime.client.served_runner import ServedRunner
from samkit.runtime.client.triton_transport import Address
from samkit.runtime.opening import make_session, open_session
from samkit.runtime.session.base import Session
from samkit.triton_models.server import serve_export

TRITON = "triton"
BACKENDS: Mapping[str, Variant] = {**bench_backends(), TRITON: Variant(TRITON, BASE.name, "cpu")}
"""What a name on the command line stands for. The first is what the others are compared with, on the device that was
asked for, and always runs."""
BASELINE = next(iter(BACKENDS))


def default_backends(device: str) -> tuple[str, ...]:
    """Return what runs when nobody asks for anything; what is not there gets a row that says so.

    A backend that has a device of its own runs on another one where that is asked for.
    """
    return tuple(
        name
        for name, variant in BACKENDS.items()
        if name == TRITON or variant.device in (device, get_backend(variant.backend).devices[0])
    )


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of backends, the baseline first; raises OptionError for an unknown one."""
    wanted = dict.fromkeys(names)
    if unknown := [name for name in wanted if name not in BACKENDS]:
        raise OptionError(f"the backend '{unknown[0]}' is not known; give {', '.join(BACKENDS)}")
    return (BASELINE, *(name for name in wanted if name != BASELINE))


def in_row(error: SamkitError) -> str:
    """Return why something did not run, as a row says it: with options as the command line has them."""
    return error.sentence(lambda option: f"--{option}")


def identity_of(export: Export, variant: Variant, **part: str) -> Identity:
    """Return the identity of a row on an export; `part` is the graph, or the stage and the policy."""
    emulated = variant.backend != TRITON and is_emulated(variant)
    place = (variant.backend, variant.precision, variant.device)
    return Identity.of(export.plan, export.digest, *place, emulated=emulated, **part)


@dataclass(frozen=True)
class Opened:
    """An export, opened on one backend."""

    name: str
    """The backend, as on the command line."""
    variant: Variant
    session: Session
    runners: Mapping[str, Runner]
    """By graph, without anybody observing."""


@dataclass(frozen=True)
class Baseline(Opened):
    """The PyTorch originals, with what their graphs were given and gave."""

    recording: Recording


@dataclass(frozen=True)
class Candidate(Opened):
    """What is compared with the baseline."""

    check: OutputCheck

    @property
    def is_served(self) -> bool:
        """Return whether the session is on a server."""
        return self.variant.backend == TRITON


def open_baseline(export: Export, device: str, threads: int | None, held: ExitStack) -> Baseline:
    """Return the originals of an export, which `held` closes; raises as `original_network` does."""
    network = original_network(export.plan, device=device, threads=threads)
    runners = original_runners(network, export.plan, device)
    recording = Recording()
    session = make_session(export, _observed(runners, recording, export), BASE.name)
    held.callback(session.close)
    from samkit.runtime.backends.torch_runner import TorchRunner  # it imports PyTorch, which is here by now

    for graph in export.specs:
        if graph.is_rewrite and graph.works_for is None:
            runners[graph.name] = TorchRunner(network, graph, device)
            recording.unprompted.append(runners[graph.name])
    return Baseline(BASELINE, replace(BACKENDS[BASELINE], device=device), session, runners, recording)


def open_candidate(
    name: str, export: Export, recording: Recording, threads: int | None, server: str | None, held: ExitStack
) -> Candidate | Absent:
    """Return a backend's session on an export, which `held` closes, or why there is none."""
    variant = BACKENDS[name]
    graphs = {graph.name: graph for graph in export.specs}
    runners: dict[str, Runner]
    is_missing = False
    try:
        if variant.backend == TRITON:
            check = OutputCheck(recording, graphs, variant.precision, sees_session=False)
            url, session = _serve(export, server, held)
            address = Address.parse(url)
            runners = {graph: held.enter_context(ServedRunner(address, graphs[graph])) for graph in graphs}
            return Candidate(name, variant, session, runners, check)
        is_missing = get_backend(variant.backend).missing(export, variant.precision) is not None
        if (why := missing_files(export, variant.precision)) is not None:
            return Absent("accuracy", identity_of(export, variant, stage="masks"), why, is_failure=False)
        check = OutputCheck(recording, graphs, variant.precision)
        opened = _emulate(variant, export, threads, held) if is_emulated(variant) else None
        runners = opened or open_runners(export, variant, threads)[0]
        local = make_session(export, _observed(runners, check, export), variant.precision)
        held.callback(local.close)
        return Candidate(name, variant, local, runners, check)
    except SamkitError as error:
        is_missing = is_missing or isinstance(error, MissingDependencyError)
        return Absent("accuracy", identity_of(export, variant, stage="masks"), in_row(error), is_failure=not is_missing)


def _emulate(variant: Variant, export: Export, threads: int | None, held: ExitStack) -> dict[str, Runner]:
    """Return runners that round as a device would that computes in the variant's precision."""
    emulator = pkgutil.resolve_name(str(get_precision(variant.precision).emulator))
    work = Path(held.enter_context(tempfile.TemporaryDirectory()))
    return {
        graph.name: emulator(export.path(graph.name, variant.precision), graph, work, threads=threads)
        for graph in export.specs
    }


def _serve(export: Export, server: str | None, held: ExitStack) -> tuple[str, Session]:
    """Return an address and a session there: of `server`, or of one that is started for this export."""
    if server is None:
        started = held.enter_context(serve_export(export.folder))
        server = f"triton://{started.grpc}/{export.plan.method}"
    session = held.enter_context(open_session(server))
    if session.manifest.digest != export.digest:
        raise ServingError(
            f"{server} serves another export of {session.method.name} (manifest {session.manifest.digest[:12]}) "
            f"than the one that is measured ({export.digest[:12]}); serve this one, or leave {{server}} out",
            options=("server",),
        )
    return server, session


def _observed(runners: Mapping[str, Runner], observer: Observer, export: Export) -> dict[str, Runner]:
    """Return runners that show each call; one that stands in for another shows the one that really runs."""
    real: dict[str, Runner] = {
        name: ObservedRunner(runner, observer)
        for name, runner in runners.items()
        if not isinstance(runner, SubstituteRunner)
    }
    add_substitutes(real, export.graphs)
    return real
