"""Requests of a session: one frozen record for each `op`, written by a client and read by a server.

    {"op": "click", "turn": 1, "point": [60, 70, 30], "label": 1}    is    Click(turn=1, point=(60, 70, 30), label=1)

All but `describe` and `open` come with the session's token, a tensor of its own. What changes a session has a turn,
counted from 1: the same request with the same turn, sent again after a lost connection, gets the same answer and
happens once. Places are voxel indices of the scan's own array, counted from 0 at the centre of the first voxel, or
pixels of a picture; with `world` RAS+ millimetres. docs/reference/server.md has all of them in tables, made from this
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeAlias, TypeVar

from samkit.errors import PromptError, ServingError
from samkit.geometry import Triple
from samkit.prompts import Prompt, prompts_from_json
from samkit.runtime.protocol import readers
from samkit.runtime.protocol.answers import Changed, ExportDescription, Nothing, Opened, ServerAnswer
from samkit.runtime.protocol.record import Key, Record
from samkit.runtime.protocol.version import PROTOCOL
from samkit.version import __version__

AnswerT = TypeVar("AnswerT", bound=ServerAnswer)

Turn: TypeAlias = Annotated[int | None, Key("number", "of this change: the last one's and 1", readers.read_turn)]
"""None is none, and refused with the turn that is next."""
World: TypeAlias = Annotated[bool, Key("boolean", "whether places are RAS+ millimetres", readers.read_flag)]
Structure: TypeAlias = Annotated[
    str, Key("text", "which structure is meant, where the method has some", readers.read_text)
]
Prompts: TypeAlias = Annotated[
    tuple[Prompt, ...],
    Key(
        "list",
        'as in the file of `--clicks`: `{"point": [i, j, k], "label": 1}`, `{"box": [i0, j0, k0, i1, j1, k1]}`, each '
        'with `"structure"` where the method has some',
        readers.read_prompts,
        readers.write_prompts,
    ),
]
Spoken: TypeAlias = Annotated[
    int | None, Key("number", "of the protocol that the client speaks; another one is refused", readers.read_count)
]
Nonce: TypeAlias = Annotated[
    str | None,
    Key(
        f"text of {readers.SHORTEST_NONCE} to {readers.LONGEST} letters",
        "of `open`, drawn at random for each scan; `close` with it, and without a token, ends what got no answer",
        readers.read_nonce,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Request(Record, Generic[AnswerT]):
    """What a client asks. A subclass says in its docstring what it does, and docs/reference/server.md repeats it."""

    op: ClassVar[str] = ""
    answer: ClassVar[type[ServerAnswer]]
    """What a server answers with."""
    besides: ClassVar[tuple[str, ...]] = ("op",)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `read_request` reads."""
        return {"op": self.op, **super().to_json()}

    def read_answer(self, data: object, server: str) -> AnswerT:
        """Return the answer of `server` to this request; raises ServingError for one that is not as it must be."""
        answer: Any = self.answer.from_server(data, server)
        found: AnswerT = answer
        return found


# --- What is served ---


@dataclass(frozen=True, kw_only=True)
class Describe(Request[ExportDescription]):
    """Says what is served."""

    op = called = "describe"
    answer = ExportDescription

    protocol: Spoken = None


# --- A scan ---


@dataclass(frozen=True, kw_only=True)
class ScanOptions(Record):
    """How a scan is to be looked at; each is by default the method's own."""

    sequences: Annotated[
        tuple[str, ...],
        Key(
            "list of texts",
            "names of the volume tensor's first axis; needed where there is more than one",
            readers.read_sequences,
        ),
    ] = ()
    plane: Annotated[
        str | None, Key("text", "along which slices are taken; of methods of slices", readers.read_plane)
    ] = None
    intensities: Annotated[
        tuple[float, float] | None,
        Key("`[black, white]`", "what becomes black and white; of methods of slices", readers.read_intensities),
    ] = None
    spacing: Annotated[
        Triple | None,
        Key("`[mm, mm, mm]`", "voxel size of the network's grid; of methods of volumes", readers.read_spacing),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Open(ScanOptions, Request[Opened]):
    """Begins a session on the scan that comes with it; with the same `nonce` and scan again it is the same session."""

    op = called = "open"
    answer = Opened

    picture: Annotated[
        bool, Key("boolean", "whether the volume tensor is a picture, (channel, H, W, 1)", readers.read_flag)
    ] = False
    nonce: Nonce = None
    replaces: Annotated[
        str | None,
        Key(
            "text",
            "token of a session that ends once the new one is open, and counts for no limit meanwhile",
            readers.read_short_text,
        ),
    ] = None
    heartbeat: Annotated[
        bool,
        Key(
            "boolean",
            "whether the client will say `alive` as often as the answer says; the session stays as long as it does",
            readers.read_flag,
        ),
    ] = False
    protocol: Spoken = None

    @property
    def options(self) -> ScanOptions:
        """Return how the scan is to be looked at."""
        return ScanOptions(
            sequences=self.sequences, plane=self.plane, intensities=self.intensities, spacing=self.spacing
        )


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ScanOptions):
    """What the ensemble is told besides scan and prompts. It takes no pictures."""

    called = "the ensemble"

    world: World = False
    propagate: Annotated[
        bool,
        Key("boolean", "whether masks of prompted slices lead on; of methods of slices", readers.read_flag),
    ] = False


# --- What changes a session ---


@dataclass(frozen=True, kw_only=True)
class SessionChange(Request[Changed]):
    """What changes a session."""

    answer = Changed

    turn: Turn = None


@dataclass(frozen=True, kw_only=True)
class Click(SessionChange):
    """One point."""

    op = called = "click"

    point: Annotated[tuple[float, ...], Key("`[i, j, k]`, of a picture `[x, y]`", "where it is", readers.read_place)]
    label: Annotated[int, Key("`1` or `0`", "on the object, or on background", readers.read_label)]
    structure: Structure = ""
    world: World = False

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Return the point."""
        return _as_prompts({"point": list(self.point), "label": self.label, "structure": self.structure})


@dataclass(frozen=True, kw_only=True)
class BoxCorners(SessionChange):
    """One box, flat in a slice."""

    op = called = "box"

    box: Annotated[
        tuple[float, ...],
        Key("`[i0, j0, k0, i1, j1, k1]`, of a picture `[x0, y0, x1, y1]`", "two corners", readers.read_corners),
    ]
    structure: Structure = ""
    world: World = False

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Return the box."""
        return _as_prompts({"box": list(self.box), "structure": self.structure})


@dataclass(frozen=True, kw_only=True)
class Add(SessionChange):
    """Several prompts at once: one step for slices, clicks in order for volumes; all or none."""

    op = called = "add"

    prompts: Prompts
    world: World = False


@dataclass(frozen=True, kw_only=True)
class SegmentAutomatically(SessionChange):
    """The method decides on every slice that has no prompt."""

    op = called = "segment_automatically"


@dataclass(frozen=True, kw_only=True)
class Propagate(SessionChange):
    """Masks of prompted slices lead on to their neighbours."""

    op = called = "propagate"


@dataclass(frozen=True, kw_only=True)
class Undo(SessionChange):
    """Takes the last step back, exactly."""

    op = called = "undo"


@dataclass(frozen=True, kw_only=True)
class Redo(SessionChange):
    """Takes the last undo back."""

    op = called = "redo"


@dataclass(frozen=True, kw_only=True)
class Reset(SessionChange):
    """Forgets all prompts; scan and embeddings stay."""

    op = called = "reset"


Adding: TypeAlias = Click | BoxCorners | Add
"""What brings prompts."""


# --- What changes nothing ---


@dataclass(frozen=True, kw_only=True)
class Check(Request[Nothing]):
    """Raises what those prompts would, changes nothing."""

    op = called = "check"
    answer = Nothing

    prompts: Prompts
    world: World = False


@dataclass(frozen=True, kw_only=True)
class AskState(Request[Changed]):
    """The whole mask: for a client that missed an answer."""

    op = called = "state"
    answer = Changed


@dataclass(frozen=True, kw_only=True)
class Alive(Request[Nothing]):
    """Says that the client lives, and waits for no other request of the session."""

    op = called = "alive"
    answer = Nothing


@dataclass(frozen=True, kw_only=True)
class Close(Request[Nothing]):
    """Ends the session, or takes back an `open`, by its nonce, that may still be worked on."""

    op = called = "close"
    answer = Nothing

    nonce: Nonce = None


REQUESTS: dict[str, type[Request[Any]]] = {
    request.op: request
    for request in (
        Describe, Open, Click, BoxCorners, Add, SegmentAutomatically, Propagate, Undo, Redo, Reset, Check, AskState,
        Alive, Close,
    )
}  # fmt: skip
"""All there are, by `op`."""


def read_request(data: object) -> Request[Any]:
    """Return the request that a JSON object holds.

    Raises PromptError for one that is not wholly as it must be, ServingError for one of another protocol.
    """
    if not isinstance(data, dict) or not isinstance(op := data.get("op"), str):
        raise PromptError(f'the request is {data!r:.100}, needed is a JSON object with an op; e.g. {{"op": "open"}}')
    if op not in REQUESTS:
        raise PromptError(f"the request's op is '{op:.40}', known are {', '.join(sorted(REQUESTS))}; send one of those")
    spoken = data.get("protocol")  # before all else: what the rest means depends on it
    if isinstance(spoken, int) and spoken != PROTOCOL and "protocol" in REQUESTS[op].keys():  # noqa: SIM118
        raise ServingError(
            f"this client speaks protocol {spoken}, and the server's samkit {__version__} speaks {PROTOCOL}; "
            "install the same version of samkit on both sides"
        )
    return REQUESTS[op].from_json(data)


def request_of(prompts: Sequence[Prompt], turn: int | None = None) -> Adding:
    """Return the request that brings `prompts`: a point or a box has one of its own, several come together."""
    if len(prompts) != 1:
        return Add(turn=turn, prompts=tuple(prompts))
    (data,) = readers.write_prompts(tuple(prompts))
    kind: type[Click | BoxCorners] = Click if "point" in data else BoxCorners
    return kind.from_json({"turn": turn, **data})


def _as_prompts(entry: dict[str, Any]) -> tuple[Prompt, ...]:
    return tuple(prompts_from_json([entry], "the request"))
