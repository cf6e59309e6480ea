"""Answers of a server: frozen records, written by it and read by a client.

The labels that an answer speaks of come beside it, in the tensor `changed`. docs/reference/server.md has the records in
tables, made from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from samkit.errors import PromptError, ServingError
from samkit.geometry import Triple
from samkit.runtime.protocol import readers
from samkit.runtime.protocol.record import Key, Record
from samkit.runtime.protocol.version import PROTOCOL
from samkit.runtime.session.steps import Step
from samkit.version import __version__

if TYPE_CHECKING:
    from samkit.manifest import ExportPlan

SAME = "install the same version of samkit on both sides"
"""What to do where two ends do not understand each other."""


@dataclass(frozen=True, kw_only=True)
class ServerAnswer(Record):
    """What a server answers. A subclass says in its docstring what it is, and docs/reference/server.md repeats it."""

    called: ClassVar[str] = "the answer"

    @classmethod
    def from_server(cls, data: object, server: str) -> Self:
        """Return what the answer of `server` says; raises ServingError for one that is not wholly as it must be."""
        try:
            return cls.from_json(data)
        except PromptError as error:
            raise ServingError(
                f"{server} does not answer as samkit {__version__} reads it ({error}); {SAME}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Nothing(ServerAnswer):
    """No more than that it is done."""


# --- What is served ---


@dataclass(frozen=True, kw_only=True)
class ServedLimits(Record):
    """What a client has to know before it sends a scan."""

    called: ClassVar[str] = "limits"

    max_voxels: Annotated[int, Key("number", "of the largest scan, all sequences together", readers.read_count)]


def _read_limits(value: object, name: str) -> ServedLimits:
    return ServedLimits.from_json(value)


@dataclass(frozen=True, kw_only=True)
class ExportDescription(ServerAnswer):
    """The export that is served under a name."""

    protocol: Annotated[int, Key("number", "of the protocol that the server speaks", readers.read_count)]
    samkit: Annotated[str, Key("text", "version that serves", readers.read_text)]
    method: Annotated[str, Key("text", "the method's name", readers.read_text)]
    kind: Annotated[str, Key("`volume` or `slices`", "what the method works on", readers.read_text)]
    precision: Annotated[str, Key("text", "that the graphs run in", readers.read_text)]
    digest: Annotated[str, Key("text", "`Manifest.digest` of the export", readers.read_text)]
    plan_json: Annotated[
        Mapping[str, Any], Key("object", "the export's plan, without paths", readers.read_object, name="plan")
    ]
    structures: Annotated[tuple[str, ...], Key("list of texts", "what the method tells apart", readers.read_names)]
    sequences: Annotated[
        tuple[str, ...],
        Key("list of texts", "volumes that it takes; none where it is one grey one", readers.read_names),
    ]
    is_automatic: Annotated[bool, Key("boolean", "whether it finds something without a prompt", readers.read_flag)]
    plane: Annotated[
        str | None, Key("text or null", "along which slices are taken by default", readers.read_optional_text)
    ]
    warnings: Annotated[
        tuple[str, ...],
        Key("list of texts", "what a user must be told before anything is segmented", readers.read_names),
    ]
    providers: Annotated[
        Mapping[str, tuple[str, ...]], Key("object of lists", "what runs each graph", readers.read_providers)
    ]
    limits: Annotated[
        ServedLimits,
        Key(
            "object",
            "`max_voxels`: of the largest scan taken, all sequences together",
            _read_limits,
            ServedLimits.to_json,
        ),
    ]

    @classmethod
    def from_server(cls, data: object, server: str) -> Self:
        """Return what the answer of `server` says; raises ServingError for one of another protocol, or of none."""
        spoken = data.get("protocol") if isinstance(data, dict) else None
        if isinstance(spoken, bool) or spoken != PROTOCOL:
            version = data.get("samkit") if isinstance(data, dict) else None
            theirs = f"samkit {version:.40}" if isinstance(version, str) else "an unknown version of samkit"
            speaks = "no numbered protocol" if spoken is None else f"protocol {spoken!r:.20}"
            raise ServingError(
                f"{server} runs {theirs} and speaks {speaks}, and samkit {__version__} here speaks protocol "
                f"{PROTOCOL}; {SAME}"
            )
        return super().from_server(data, server)

    @cached_property
    def plan(self) -> ExportPlan:
        """Return the plan of the export; it names no paths."""
        from samkit.manifest import ExportPlan  # reads the method's record, which clicking needs nothing of

        return ExportPlan.from_dict(dict(self.plan_json))


# --- A session ---


@dataclass(frozen=True, kw_only=True)
class Opened(ServerAnswer):
    """A session that has begun."""

    token: Annotated[str, Key("text", "finds the session; whoever has it has the session", readers.read_text)]
    turn: Annotated[int, Key("number", "of the last change; 0 before the first", readers.read_count)]
    shape: Annotated[tuple[int, ...], Key("`[I, J, K]`, of a picture `[H, W]`", "of the mask", readers.read_counts)]
    plane: Annotated[str | None, Key("text or null", "along which slices are taken", readers.read_optional_text)]
    spacing: Annotated[
        Triple | None,
        Key("`[mm, mm, mm]` or null", "voxel size of the network's grid", readers.read_spacing),
    ]
    alive_seconds: Annotated[
        float | None,
        Key(
            "number or null",
            "how often the client has to say `alive`; null where it announced no heartbeat",
            readers.read_optional_measure,
        ),
    ] = None


_OF_A_STEP: Mapping[str, Callable[[object, str], Any]] = {
    "number": readers.read_count,
    "voxels": readers.read_count,
    "volume_ml": readers.read_optional_measure,
    "seconds": readers.read_seconds,
    "crops": readers.read_optional_count,
    "followed": readers.read_optional_count,
    "limit_reached": readers.read_flag,
    "slices": readers.read_counts,
    "boxes": readers.read_count,
    "iou": readers.read_measures,
}
"""How each field of a step is read."""


def _read_step(value: object, name: str) -> Step | None:
    """Return a step; None is none."""
    if value is None:
        return None
    data = readers.read_object(value, name)
    if set(data) != set(_OF_A_STEP):
        raise PromptError(f"{name} has {', '.join(sorted(data)):.100}, needed are {', '.join(_OF_A_STEP)}; send those")
    return Step(**{key: read(data[key], f"{name}.{key}") for key, read in _OF_A_STEP.items()})


def _write_step(step: Step | None) -> dict[str, Any] | None:
    return None if step is None else asdict(step)


@dataclass(frozen=True, kw_only=True)
class Changed(ServerAnswer):
    """The mask after a change, or, to `state`, all of it."""

    turn: Annotated[int, Key("number", "of the last change; 0 before the first", readers.read_count)]
    step: Annotated[
        Step | None,
        Key(
            "object or null",
            "what the step did, with seconds by stage",
            _read_step,
            _write_step,
        ),
    ]
    region: Annotated[
        tuple[tuple[int, ...], ...],
        Key("three `[first, beyond]`", "the box whose labels are in `changed`", readers.rows_of(2)),
    ]
    volume_ml: Annotated[
        float | None,
        Key("number or null", "volume of the mask [mL]; null for a picture", readers.read_optional_measure),
    ]
    iou: Annotated[
        tuple[float, ...],
        Key("list of numbers", "predicted, where the method trained that head", readers.read_measures),
    ]
    prompted: Annotated[
        tuple[int, ...], Key("list of numbers", "slices with prompts; of methods of slices", readers.read_counts)
    ]
    origins: Annotated[
        tuple[tuple[int, int, int], ...],
        Key("list of `[i, j, k]`", "first grid voxel of every crop; of methods of volumes", readers.rows_of(3)),
    ]


# --- The ensemble ---


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What the ensemble says of the mask that it made."""

    called: ClassVar[str] = "the report"

    method: Annotated[str, Key("text", "the method's name", readers.read_text)]
    precision: Annotated[str, Key("text", "that the graphs ran in", readers.read_text)]
    manifest_sha256: Annotated[str, Key("text", "`Manifest.digest` of the export", readers.read_text)]
    voxels: Annotated[int, Key("number", "of the mask", readers.read_count)]
    volume_ml: Annotated[float, Key("number", "volume of the mask [mL]", readers.read_measure)]
    iou: Annotated[
        tuple[float, ...],
        Key("list of numbers", "predicted, where the method trained that head", readers.read_measures),
    ]
    warnings: Annotated[
        tuple[str, ...], Key("list of texts", "what a user must be told of the mask", readers.read_names)
    ]
    seconds: Annotated[Mapping[str, float], Key("object of numbers", "by step", readers.read_seconds)]
    crops: Annotated[int | None, Key("number", "in use; of methods of volumes", readers.read_optional_count)] = None
    limit_reached: Annotated[
        bool | None,
        Key("boolean", "whether the object goes on beyond them; of methods of volumes", readers.read_flag),
    ] = None
    boxes: Annotated[
        int | None, Key("number", "that the detector found; of methods of slices", readers.read_optional_count)
    ] = None
    slices: Annotated[
        tuple[int, ...] | None,
        Key("list of numbers", "with a mask, across the plane; of methods of slices", readers.read_counts),
    ] = None
