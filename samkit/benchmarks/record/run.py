"""One JSON per run of `sam-bench`: what ran, on what, and every raw sample. Tables and pictures are made of it alone.

    {"schema_version": 1, "kind": "latency", "command": ["sam-bench", "latency", ...], "started": "2026-11-22T...",
     "seconds": 212.0, "samkit": "0.5.0", "commit": "c1840e1", "exports": [{"method": ..., "manifest": SHA-256, ...}],
     "machine": {...}, "versions": {...}, "rows": [...], "notes": [...]}

Rows are plain JSON. Each has `kind`, `method`, `graph` or `stage`, `backend`, `device` and `precision`, and what was
measured: `parity_dice` (accuracy: the worst) or `p50_ms`, `p95_ms`, `p99_ms` (latency, load), with the samples beside
them. What could not be measured is a row, too, with `not_run` (nobody could have: no GPU) or `error` (it failed), each
a sentence, in place of the figures.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samkit import __version__
from samkit.benchmarks.record.rows import to_dict
from samkit.errors import InputRefused, SamkitError
from samkit.manifest import Manifest

SCHEMA_VERSION = 1
KINDS = ("accuracy", "latency", "load")
_TIMES = ("p50_ms", "p95_ms", "p99_ms")
FIGURES = {"accuracy": ("parity_dice",), "latency": _TIMES, "load": _TIMES}
"""What a row of each kind has to hold, unless it says why there is nothing to hold."""
WHY_NOT = ("not_run", "error")
IDENTITY = ("kind", "method", "size", "weights", "graph", "stage", "backend", "device", "precision")
"""What tells one row from another, besides the keys that a row names in its own `identity`."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one command measured."""

    kind: str
    """One of KINDS."""
    command: tuple[str, ...]
    """As it was typed."""
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """How long all of it took."""
    exports: tuple[Mapping[str, Any], ...]
    """What `describe_export` says of each export."""
    machine: Mapping[str, Any]
    """What `machine.Machine` says: processor, GPU, clocks, load, threads, limits, whether it was settled."""
    versions: Mapping[str, str]
    """Of Python and of the packages that took part."""
    rows: tuple[Any, ...]
    samkit: str = __version__
    commit: str | None = None
    """Of the checkout that ran, with "+changes" where it was not clean; None outside one."""
    notes: tuple[str, ...] = ()
    """What a reader of any table made of this must be told."""
    schema_version: int = field(default=SCHEMA_VERSION)

    def __post_init__(self) -> None:
        # Rows are plain JSON until all who read them take the records of rows.py
        plain = tuple(row if isinstance(row, dict) else to_dict(row) for row in self.rows)
        object.__setattr__(self, "rows", plain)
        for row in self.rows:
            check_row(row)

    @property
    def command_line(self) -> str:
        """Return the command as a shell takes it."""
        return shlex.join(self.command)

    @property
    def data(self) -> str:
        """Return what a run of accuracy was measured on: the last part of its --data, or phantoms.

        >>> Run("accuracy", ("sam-bench", "accuracy", "--data=scans/knees"), "", 0, (), {}, {}, ()).data
        'knees'
        """
        for word, following in zip(self.command, (*self.command[1:], ""), strict=True):
            name, _, value = word.partition("=")
            if name == "--data":
                return Path(value or following).name or "the working folder"
        return "phantoms"

    def save(self, path: Path) -> None:
        """Write the file in one move; a folder that is missing is made. Numbers that are not finite become words."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(_words(asdict(self)), indent=1, allow_nan=False) + "\n")
        part.replace(path)


def load_run(path: Path) -> Run:
    """Return the run that `path` holds; raises InputRefused where it is none, or of a newer samkit."""
    try:
        data = _numbers(json.loads(path.read_text()))
        version = data["schema_version"]
        if version > SCHEMA_VERSION:
            raise InputRefused(
                "newer-run", f"{path.name} has schema {version} and this samkit reads up to {SCHEMA_VERSION}",
                "upgrade samkit, or measure again",
            )  # fmt: skip
        for name in ("command", "exports", "rows", "notes"):
            data[name] = tuple(data[name])
        return Run(**data)
    except (OSError, ValueError, KeyError, TypeError, SamkitError) as error:
        if isinstance(error, InputRefused):
            raise
        raise InputRefused(
            "no-run", f"{path} holds no run of sam-bench ({error})", "give a file that sam-bench wrote with --json"
        ) from error


def check_row(row: Row) -> None:
    """Raise SamkitError where a row lacks what every table needs."""
    lacking = [key for key in ("kind", "method", "backend", "device", "precision") if key not in row]
    if "graph" not in row and "stage" not in row:
        lacking.append("graph or stage")
    if row.get("kind") not in KINDS:
        lacking.append(f"a kind of {', '.join(KINDS)}")
    elif not any(key in row for key in WHY_NOT):
        lacking += [key for key in FIGURES[row["kind"]] if key not in row]
    if lacking:
        raise SamkitError(f"a row of a run lacks {', '.join(lacking)}: {str(row)[:160]}; this is a bug, report it")


def identity(row: Row) -> tuple[tuple[str, Any], ...]:
    """Return what tells this row from the others of its run, in a fixed order.

    >>> identity({"kind": "load", "method": "sam", "stage": "click", "sessions": 4, "identity": ["sessions"]})
    (('kind', 'load'), ('method', 'sam'), ('stage', 'click'), ('sessions', 4))
    """
    return tuple((key, row[key]) for key in (*IDENTITY, *row.get("identity", ())) if key in row)


def describe_export(folder: Path, manifest: Manifest) -> dict[str, Any]:
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


def now() -> str:
    """Return the time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """Return the commit of the checkout that this file is in; None where samkit was installed."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found[0]}+changes" if found[1] else found[0]


_WORDS: Mapping[str, float] = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _words(value: Any) -> Any:
    """Return JSON in which numbers that JSON does not have are {"number": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    if isinstance(value, Mapping):
        return {key: _words(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_words(entry) for entry in value]
    return value


def _numbers(value: Any) -> Any:
    """Return what `_words` was given."""
    if isinstance(value, dict):
        if list(value) == ["number"] and value["number"] in _WORDS:
            return _WORDS[value["number"]]
        return {key: _numbers(entry) for key, entry in value.items()}
    return [_numbers(entry) for entry in value] if isinstance(value, list) else value
