"""One JSON per run of `sam-bench`: what ran, on what, with every raw sample. Tables and plots are made of it alone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samkit.benchmarks.record.rows import Row, read_row, to_dict
from samkit.errors import InputRefused, SamkitError
from samkit.files import make_folder, write_whole
from samkit.json_files import read_json, take_version
from samkit.json_records import from_json, read_value, to_json
from samkit.manifest import Manifest
from samkit.version import __version__

SCHEMA_VERSION = 1
Facts = Mapping[str, Any]
_OF_EXPORTS: Facts = {"method": str, "size": str, "weights": str, "demonstration": bool, "manifest": str}
_OF_MACHINE: Facts = {
    "processor": str, "cores": int, "threads": int, "device": str, "gpus": tuple[Facts, ...], "memory_gb": float,
    "system": str, "clock_mhz": Facts, "load": Facts, "gemm_gflops": float, "copy_gb_per_s": float, "settled": bool,
    "unsettled": tuple[str, ...],
}  # fmt: skip
"""Of what a run says of its exports and its machine, the types of what is shown; any of it may be missing."""


@dataclass(frozen=True)
class Run:
    """What one command measured; the JSON has the keys of the fields."""

    kind: str
    command: tuple[str, ...]
    started: str
    """UTC, ISO 8601."""
    seconds: float
    exports: tuple[Facts, ...]
    """What `describe_export` says of each."""
    machine: Facts
    """What `Machine.describe` says."""
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    samkit: str = __version__
    commit: str | None = None
    """Of the checkout that ran, with "+changes" where it was not clean; None outside one."""
    notes: tuple[str, ...] = ()
    """What a reader of any table made of this must be told."""
    schema_version: int = SCHEMA_VERSION

    @property
    def command_line(self) -> str:
        """Return the command as a shell takes it."""
        return shlex.join(self.command)

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods of its rows, each once."""
        return tuple(dict.fromkeys(row.identity.method for row in self.rows))

    @property
    def disturbance(self) -> str | None:
        """Return what took the processor from what was timed; None where nothing did, or where nothing was timed."""
        if self.kind == "accuracy" or self.machine.get("settled") is not False:
            return None
        return "; ".join(self.machine.get("unsettled") or ["no reason given"])

    @property
    def data(self) -> str:
        """Return what a run of accuracy was measured on: the last part of its --data, or phantoms."""
        for word, following in zip(self.command, (*self.command[1:], ""), strict=True):
            name, _, value = word.partition("=")
            if name == "--data":
                return Path(value or following).name or "the working folder"
        return "phantoms"

    def save(self, path: Path) -> None:
        """Write the file in one move; a folder that is missing is made."""
        data = {**to_json(replace(self, rows=())), "rows": [to_dict(row) for row in self.rows]}
        make_folder(path.parent)
        write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Measured:
    """What a command hands to `sam-bench`, which writes the run to `out`, shows it, says the sentences, and ends."""

    run: Run
    out: Path
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """The last one is the command's error."""


def load_run(path: Path) -> Run:
    """Return the run that `path` holds; raises InputRefused where it is none, or of a newer samkit."""
    try:
        schema, data = take_version(read_json(path))
        if schema <= SCHEMA_VERSION:
            rows = tuple(read_row(row) for row in data.get("rows", ()))
            run = replace(from_json(Run, {**data, "rows": []}, "the run", schema_version=schema), rows=rows)
            _check_facts(run)
            return run
    except (ValueError, TypeError, AttributeError, SamkitError) as error:
        raise InputRefused(
            "no-run", f"{path} holds no run of sam-bench ({error})", "give a file that sam-bench wrote with --json"
        ) from error
    found = f"{path.name} has schema {schema} and this samkit reads up to {SCHEMA_VERSION}"
    raise InputRefused("newer-run", found, "upgrade samkit, or measure again")


def _check_facts(run: Run) -> None:
    """Raise SamkitError where what is shown of exports or machine has another type."""
    for known, facts, called in (
        *((_OF_EXPORTS, export, "an export") for export in run.exports),
        (_OF_MACHINE, run.machine, "the machine"),
    ):
        for name, kind in known.items():
            if facts.get(name) is not None:
                read_value(kind, facts[name], f"{name} of {called}")
    if not all(export.get("method") for export in run.exports):
        raise SamkitError("an export has no method")


def describe_export(manifest: Manifest) -> dict[str, Any]:
    """Return what a run says of an export: no path, because a folder may be called after a patient."""
    plan = manifest.plan
    return {
        "method": plan.method,
        "size": plan.size,
        "weights": plan.weights.kind,
        "demonstration": plan.is_demonstration,
        "refinement": plan.refinement,
        "precision": plan.precision,
        "folded": plan.folded,
        "manifest": manifest.digest,
        "bytes": sum(artifact.bytes for artifact in manifest.artifacts),
        "made_with": dict(manifest.environment),
    }
