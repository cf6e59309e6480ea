"""Sessions on one export: the PyTorch originals, which are the baseline, and a candidate for each backend.

The graphs of all are observed. On a CPU some precisions are judged by graphs that round and overflow as a device does
(`find_emulator`), which the backend would hide. A session on a server runs its graphs where nobody sees the calls; but
each graph is a model of its own there, too (`ServedRunner`), which can be asked what PyTorch was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from samkit.benchmarks.accuracy.outcome import GraphCall, Outcome
from samkit.benchmarks.accuracy.outputs import ObservedRunner, OutputCheck, Recording
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.measure.originals import original_network, original_runners
from samkit.benchmarks.record.rows import DETECTOR, Absent, Identity
from samkit.errors import MissingDependencyError, OptionError, PromptError, SamkitError, ServingError
from samkit.files import working_folder
from samkit.manifest import Export
from samkit.methods import GraphSpec
from samkit.precisions import BASE
from samkit.protocols.simulated_user import policies_of
from samkit.runtime.backends import bench_backends, find_emulator, get_backend, is_emulated, open_runners
from samkit.runtime.backends.backend import Variant, missing_files
from samkit.runtime.backends.runner import Runner, SubstituteRunner, add_substitutes
from samkit.runtime.client.remote_session import open_remote_session
from samkit.runtime.client.served_runner import ServedRunner
from samkit.runtime.client.triton_transport import Address
from samkit.runtime.opening import make_session
from samkit.runtime.session.base import Session
from samkit.triton_models.server import serve_export

TRITON = "triton"
BACKENDS: Mapping[str, Variant] = {**bench_backends(), TRITON: Variant(TRITON, BASE.name, "cpu")}
"""What a name on the command line stands for. The first is what the others are compared with, on the device that was
asked for, and always runs."""
BASELINE = next(iter(BACKENDS))


def choose_backends(named: Sequence[str], device: str) -> tuple[str, ...]:
    """Return the names of what runs, the baseline first: what is `named`, else each backend on its own device, and on
    `device` if it can. Raises OptionError for an unknown one.
    """
    if unknown := [name for name in named if name not in BACKENDS]:
        raise OptionError(f"the backend '{unknown[0]}' is not known; give {', '.join(BACKENDS)}")
    own = {name: get_backend(one.backend).devices[0] for name, one in BACKENDS.items() if name != TRITON}
    fitting = [name for name, one in BACKENDS.items() if name == TRITON or one.device in (device, own[name])]
    return tuple(dict.fromkeys((BASELINE, *(named or fitting))))


@dataclass(frozen=True)
class Compared:
    """An export that is compared, and all that follows from it, and from what was asked, for every backend."""

    export: Export
    settings: AccuracySettings
    graphs: Mapping[str, GraphSpec]
    """By name, those that it has files of."""
    policies: tuple[str, ...]
    """Those of its method that were asked for."""
    recording: Recording = field(default_factory=Recording)
    """What PyTorch's graphs were given and gave."""

    @classmethod
    def of(cls, export: Export, settings: AccuracySettings) -> Compared:
        """Return an export as it is compared; raises PromptError where its method knows none of the policies."""
        known = policies_of(export.method, export.plan.size)
        policies = tuple(name for name in known if name in settings.policies)
        if not policies:
            raise PromptError(
                f"{export.method.name} knows the policies {', '.join(known)} and not {', '.join(settings.policies)}; "
                "name one of them"
            )
        return cls(export, settings, {graph.name: graph for graph in export.specs}, policies)

    @property
    def baseline(self) -> Variant:
        """Return what all others are compared with."""
        return replace(BACKENDS[BASELINE], device=self.settings.device)

    def identity(self, variant: Variant, **part: str) -> Identity:
        """Return the identity of a row; `part` is the graph, or the stage and the policy."""
        place = (variant.backend, variant.precision, variant.device)
        return Identity.of(self.export.plan, self.export.digest, *place, emulated=is_emulated(variant), **part)

    def absent(self, variant: Variant, why: str | SamkitError, *, is_failure: bool) -> Absent:
        """Return the row of what has no figures; an error is told with options as the command line has them."""
        reason = why if isinstance(why, str) else why.sentence(lambda option: f"--{option}")
        return Absent("accuracy", self.identity(variant, stage="masks"), reason, is_failure)

    def outcomes(self, variant: Variant) -> dict[str, Outcome]:
        """Return nothing noted yet, by policy, and of the detector."""
        found = {name: self.identity(variant, stage="masks", policy=name) for name in self.policies}
        found[DETECTOR] = self.identity(variant, graph=DETECTOR)
        return {name: Outcome(identity) for name, identity in found.items()}


@dataclass(frozen=True)
class Opened:
    """An export, opened on one backend, and what is noted of it; the baseline is the PyTorch originals."""

    variant: Variant
    session: Session
    runners: Mapping[str, Runner]
    """By graph, without anybody observing."""
    outcomes: Mapping[str, Outcome]
    """By policy, and of the detector."""


@dataclass(frozen=True)
class Candidate(Opened):
    """What is compared with the baseline."""

    check: OutputCheck


def open_all(compared: Compared, held: ExitStack) -> tuple[Opened, list[Candidate], list[Absent]]:
    """Return the originals, and what is compared with them, which `held` closes; and a row for each backend that could
    not be opened, or that nobody asked for and tables have a column for. Raises as `original_network` does.
    """
    asked = compared.settings.backends
    baseline = _open_baseline(compared, held)
    others = [_open_candidate(name, compared, held) for name in asked if name != BASELINE]
    left_out = [one for name, one in BACKENDS.items() if name not in asked and one.device == "cuda"]
    absent = [one for one in others if isinstance(one, Absent)]
    absent += [compared.absent(variant, "not among --backends", is_failure=False) for variant in left_out]
    return baseline, [one for one in others if isinstance(one, Candidate)], absent


def _open_baseline(compared: Compared, held: ExitStack) -> Opened:
    export, recording, device = compared.export, compared.recording, compared.settings.device
    network = original_network(export.plan, device=device, threads=compared.settings.threads)
    from samkit.runtime.backends.torch_runner import TorchRunner  # it imports PyTorch, which is here by now

    runners = original_runners(network, export.plan, device)
    session = make_session(export, _observed(runners, recording.take, export), BASE.name)
    held.callback(session.close)
    for graph in export.specs:
        if graph.is_rewrite and graph.works_for is None:
            runners[graph.name] = TorchRunner(network, graph, device)
            recording.unprompted.append(runners[graph.name])
    return Opened(compared.baseline, session, runners, compared.outcomes(compared.baseline))


def _open_candidate(name: str, compared: Compared, held: ExitStack) -> Candidate | Absent:
    export, variant, settings, graphs = compared.export, BACKENDS[name], compared.settings, compared.graphs
    check = OutputCheck(compared.recording, graphs, variant.precision, sees_session=name != TRITON)
    session: Session
    runners: dict[str, Runner]
    is_missing = False
    try:
        if name == TRITON:
            url, session = _serve(export, settings.server, held)
            address = Address.parse(url)
            runners = {key: held.enter_context(ServedRunner(address, graph)) for key, graph in graphs.items()}
        else:
            is_missing = get_backend(variant.backend).missing(export, variant.precision) is not None
            if (why := missing_files(export, variant.precision)) is not None:
                return compared.absent(variant, why, is_failure=False)
            if (emulator := find_emulator(variant)) is None:
                runners = open_runners(export, variant, settings.threads)[0]
            else:
                work = held.enter_context(working_folder())
                runners = {
                    key: emulator(export.path(key, variant.precision), graph, work, threads=settings.threads)
                    for key, graph in graphs.items()
                }
            session = make_session(export, _observed(runners, check.take, export), variant.precision)
            held.callback(session.close)
    except SamkitError as error:
        is_missing = is_missing or isinstance(error, MissingDependencyError)
        return compared.absent(variant, error, is_failure=not is_missing)
    return Candidate(variant, session, runners, compared.outcomes(variant), check)


def _serve(export: Export, server: str | None, held: ExitStack) -> tuple[str, Session]:
    """Return an address and a session there: of `server`, or of one that is started for this export."""
    if server is None:
        started = held.enter_context(serve_export(export.folder))
        server = f"triton://{started.grpc}/{export.plan.method}"
    session = held.enter_context(open_remote_session(server))
    if session.manifest.digest != export.digest:
        raise ServingError(
            f"{server} serves another export of {session.method.name} (manifest {session.manifest.digest[:12]}) "
            f"than the one that is measured ({export.digest[:12]}); serve this one, or leave {{server}} out",
            options=("server",),
        )
    return server, session


def _observed(runners: Mapping[str, Runner], observe: Callable[[GraphCall], None], export: Export) -> dict[str, Runner]:
    """Return runners that show each call; one that stands in for another shows the one that really runs."""
    real: dict[str, Runner] = {
        name: ObservedRunner(runner, observe)
        for name, runner in runners.items()
        if not isinstance(runner, SubstituteRunner)
    }
    add_substitutes(real, export.graphs)
    return real
