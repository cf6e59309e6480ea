"""Served: what a Python model of the repository serves, as its own folder and its config say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from samkit.manifest import Export
from samkit.methods.method import GraphSpec, Method, SliceMethod
from samkit.networks.config import NetworkConfig
from samkit.runtime.backends.runner import Runner, add_substitutes
from samkit.runtime.opening import make_session
from samkit.runtime.protocol.answers import ExportDescription, ServedLimits
from samkit.runtime.protocol.requests import ScanOptions
from samkit.runtime.protocol.version import PROTOCOL
from samkit.runtime.session.slice_session import SliceSession
from samkit.runtime.session.volume_session import VolumeSession
from samkit.triton_models.bls_runner import BlsRunner
from samkit.triton_models.limits import Limits
from samkit.version import __version__


@dataclass(frozen=True)
class Served:
    """One export under one name."""

    name: str
    """`m_sam`: what its models' names begin with."""
    precision: str
    digest: str
    """`Manifest.digest` of the export: reports carry it, and caches tell exports apart by it."""
    export: Export
    """As in the model's own folder, which holds the manifest and none of the files."""
    limits: Limits
    engines: frozenset[str] = frozenset()
    """Graphs that run as TensorRT engines, whose axes all begin at one."""
    names: int = 1
    """How many exports the server serves."""

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> Self:
        """Return what the model is that Triton gives `args` of.

        Raises ManifestError for a broken manifest, ServingError for a limit that can't be read.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        entries = json.loads(args["model_config"])["parameters"]
        parameters = {key: entry["string_value"] for key, entry in entries.items()}
        return cls(
            name=parameters["samkit_name"],
            precision=parameters["precision"],
            digest=parameters["manifest"],
            export=Export.open(folder, verify=False),
            limits=Limits.from_parameters(parameters),
            engines=frozenset(parameters["engines"].split()),
            names=max(1, sum(1 for _ in folder.parents[1].glob("*_session"))),
        )

    @property
    def method(self) -> Method:
        """Return the method that is served."""
        return self.export.method

    @property
    def config(self) -> NetworkConfig:
        """Return its network."""
        return self.export.config

    @property
    def is_slices(self) -> bool:
        """Whether the method works slice by slice."""
        return isinstance(self.method, SliceMethod)

    @property
    def graphs(self) -> tuple[GraphSpec, ...]:
        """Return the graphs that the repository has a model for."""
        return self.export.specs

    def runners(self) -> dict[str, Runner]:
        """Return a runner for every graph, each of which asks the graph's own model."""
        runners: dict[str, Runner] = {
            spec.name: BlsRunner(f"{self.name}_{spec.name}", spec, engine=spec.name in self.engines)
            for spec in self.graphs
        }
        add_substitutes(runners, self.export.graphs)
        return runners

    def session(self, runners: Mapping[str, Runner], options: ScanOptions) -> VolumeSession | SliceSession:
        """Return a session on `runners`; raises OptionError for options that the method does not have."""
        return make_session(
            self.export,
            runners,
            self.precision,
            spacing=options.spacing,
            plane=options.plane,
            intensities=options.intensities,
        )

    def describe(self) -> ExportDescription:
        """Return what a client has to know; it knows the name that it asked."""
        session = self.session({}, ScanOptions())
        return ExportDescription(
            protocol=PROTOCOL,
            samkit=__version__,
            method=self.method.name,
            kind="slices" if self.is_slices else "volume",
            precision=self.precision,
            digest=self.digest,
            plan_json=self.export.plan.to_dict(),
            structures=session.structures,
            sequences=session.sequences,
            is_automatic=session.is_automatic,
            plane=session.plane,
            warnings=session.warnings,
            providers={name: runner.providers for name, runner in self.runners().items()},
            limits=ServedLimits(max_voxels=self.limits.max_voxels),
        )
