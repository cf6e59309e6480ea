"""RemoteSession: a session on a server, in the same words as one on an export folder.

    with open_session("triton://localhost:8001/m-sam") as session:
        session.set_image("scan.nii.gz")
        update = session.click((60, 70, 30))
        session.undo()

The scan travels once. Every call that changes the session has a turn, so one that was sent again because the connection
broke happens once. Where a call got no answer at all, nobody knows whether it happened; the next call asks, and takes
over what did. Needs numpy, nibabel and tritonclient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

import samkit
from samkit.errors import InputRefused, PromptError, SamkitError, ServerUnreachable, ServingError, TensorMismatchError
from samkit.geometry import Index, Triple, Volume
from samkit.prompts import Box, Point, Prompt, SliceBox, SlicePoint, prompt_json
from samkit.runtime import wire
from samkit.runtime.interactive import Interactive
from samkit.runtime.registration import check_co_registered
from samkit.runtime.runner import Closing
from samkit.runtime.steps import SliceStep, Step
from samkit.runtime.triton_transport import Address, ConnectionLost, Transport, connect
from samkit.runtime.updates import MaskUpdate, Part, Region

if TYPE_CHECKING:
    from samkit.manifest import ExportPlan
    from samkit.methods.method import Method

DEFAULT_TIMEOUT = 120.0
"""How long one call may take [s]."""
FIRST_CONTACT = 5.0
"""How long a server that never answered is tried [s]: then the address is wrong, or nobody started it."""
FAREWELL = 5.0
"""How long closing may take [s]; a session that nobody closed ends by itself."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits before a lost connection is tried again [s]; the last one repeats."""
_SAME = "install the same version of samkit on both sides"

AnyStep: TypeAlias = Any
"""A Step of a method of volumes, a SliceStep of one of slices."""


@dataclass(frozen=True)
class ExportDescription:
    """What a server says about the export that it serves under a name."""

    samkit: str
    """Version that serves it."""
    method: str
    kind: str
    """`volume` or `slices`."""
    precision: str
    digest: str
    """`Manifest.digest` of the export."""
    structures: tuple[str, ...]
    sequences: tuple[str, ...]
    is_automatic: bool
    plane: str | None
    """Of methods of slices, where a scan is not set otherwise."""
    warnings: tuple[str, ...]
    providers: Mapping[str, tuple[str, ...]]
    max_voxels: int
    """Of all sequences of a scan together."""
    plan_json: Mapping[str, Any]

    @classmethod
    def from_answer(cls, data: Mapping[str, Any], server: str) -> Self:
        """Return what an answer to `describe` says; raises ServingError where something is missing."""
        try:
            return cls(
                samkit=str(data["samkit"]),
                method=str(data["method"]),
                kind=str(data["kind"]),
                precision=str(data["precision"]),
                digest=str(data["digest"]),
                structures=tuple(data["structures"]),
                sequences=tuple(data["sequences"]),
                is_automatic=bool(data["is_automatic"]),
                plane=data["plane"],
                warnings=tuple(data["warnings"]),
                providers={graph: tuple(names) for graph, names in data["providers"].items()},
                max_voxels=int(data["limits"]["max_voxels"]),
                plan_json=data["plan"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(
                f"{server} does not describe its export as samkit {samkit.__version__} reads it ({error!r}); {_SAME}"
            ) from error

    @cached_property
    def plan(self) -> ExportPlan:
        """Return the plan of the export; it names no paths."""
        from samkit.manifest import ExportPlan  # reads the method's record, which clicking needs nothing of

        return ExportPlan.from_dict(dict(self.plan_json))


class RemoteSession(Interactive, Closing):
    """One export on a server. Holds a session there, the labels that it told of, and the history of steps."""

    def __init__(
        self,
        transport: Transport,
        address: Address,
        *,
        plane: str | None = None,
        intensities: tuple[float, float] | None = None,
        spacing: Triple | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `transport` and ask what is served; `timeout` [s] is for one call, with all its attempts.

        `plane`, `intensities` and `spacing` go to the server with every scan, which refuses those that its method does
        not have. `sleep` and `clock` are for tests.
        """
        if not timeout > 0:
            raise PromptError(f"the time for one call is {timeout} s, it must be above 0; e.g. timeout=120")
        self.address = address
        self.timeout = timeout
        self._transport = transport
        self._sleep, self._clock = sleep, clock
        self._plane = plane
        self._asked = {"plane": plane, "intensities": intensities, "spacing": spacing}
        self._is_closed = False
        self._set: _Set | None = None
        self._forget()
        answer, _ = self._call({"op": "describe"}, tries_for=min(timeout, FIRST_CONTACT))
        self.manifest = ExportDescription.from_answer(answer, address.server)
        """Plan and digest, as an export folder's manifest has them."""

    # --- The scan ---

    def set_volume(self, volumes: Volume | Mapping[str, Volume]) -> None:
        """Send a new scan, one volume for each of the method's sequences; what was before is forgotten, there too.

        Raises what a session on an export folder raises, AtCapacity where the server holds as many as it may.
        """
        named = self._in_order({"": volumes} if isinstance(volumes, Volume) else volumes)
        if not named:
            raise PromptError("no volume is given; give one, or one for each of the method's sequences")
        check_co_registered(named)
        first = next(iter(named.values()))
        shape = first.array.shape
        wire.check_size((len(named), *shape), self.manifest.max_voxels)  # before a copy of all of it is made
        name, tensor = wire.pack_volumes([volume.array for volume in named.values()])
        tensors = {name: tensor, wire.AFFINE: np.asarray(first.affine, np.float64)}
        self._open({"sequences": list(named)}, tensors, shape, 0.0)

    def set_picture(self, picture: np.ndarray) -> None:
        """Send a picture (H, W) or (H, W, C) of intensities 0..255; what was before is forgotten, there too."""
        if not self.is_sliced:
            super().set_picture(picture)  # refuses it
        image = np.asarray(picture, np.float32)
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or min(image.shape) < 1:
            raise InputRefused(
                "channels",
                f"the picture is {' x '.join(str(n) for n in picture.shape)}, needed are rows, columns and channels",
                "give a picture of that kind",
            )
        tensor = np.moveaxis(image, -1, 0)[..., None]
        wire.check_size(tensor.shape, self.manifest.max_voxels)
        name, _ = next((name, dtype) for name, dtype in wire.VOLUMES.items() if dtype == "float32")
        self._open({"picture": True}, {name: np.ascontiguousarray(tensor)}, image.shape[:2], None)

    def _in_order(self, named: Mapping[str, Volume]) -> dict[str, Volume]:
        """Return volumes in the method's order; the server refuses what does not belong there."""
        known = [name for name in self.manifest.sequences if name in named]
        return {name: named[name] for name in (*known, *(name for name in named if name not in known))}

    def _open(
        self, request: dict[str, Any], tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], empty: float | None
    ) -> None:
        """Open a session on what `tensors` hold; `empty` is the volume of an empty mask [mL]."""
        self._leave()
        asked = {name: value for name, value in self._asked.items() if value is not None}
        answer, _ = self._call({"op": "open", **request, **asked}, tensors)
        spacing = answer["spacing"]
        nothing: Part = ((slice(0, 0),) * len(shape), np.zeros((0,) * len(shape), np.uint8))
        labels = _Labels(np.zeros(shape, np.uint8))
        self._set = _Set(
            token=answer["token"],
            turn=int(answer["turn"]),
            labels=labels,
            update=_update(labels, nothing, empty, ()),
            plane=answer["plane"],
            spacing=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )

    def _leave(self) -> None:
        """End the session on the server, if there is one, and forget all about it."""
        left, self._set = self._set, None
        self._forget()
        if left is not None:
            with suppress(ServingError, ConnectionLost):  # gone already, or it ends by itself: nobody will use it
                self._attempt({"op": "close"}, {}, left.token, min(self.timeout, FAREWELL))

    def _forget(self) -> None:
        self._affine = None
        self._done: list[AnyStep] = []
        self._undone: list[AnyStep] = []
        self._doubted: dict[str, Any] | None = None

    # --- Prompts ---

    def check(self, *prompts: Prompt) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""
        self._opened()
        self._call({"op": "check", "prompts": [_as_json(prompt) for prompt in prompts]})

    def check_point(self, point: Point) -> None:
        """Raise InputRefused unless `point` lies in the volume."""
        self.check(point)

    def add(self, *prompts: Prompt) -> AnyStep:
        """Apply prompts and return what they did: those of slices at once, as one step, clicks in a volume in order."""
        if not prompts:
            raise PromptError("no prompt was given; give a point or a box")
        if len(prompts) > 1 and self.is_sliced:
            return self._change("prompts", prompts=[_as_json(prompt) for prompt in prompts])
        for prompt in prompts:
            step = self._change("box" if isinstance(prompt, (Box, SliceBox)) else "click", **_as_json(prompt))
        return step

    def add_point(self, point: Point | SlicePoint) -> AnyStep:
        """Apply one point; `add` says how."""
        return self.add(point)

    def add_box(self, box: Box | SliceBox) -> AnyStep:
        """Apply one box, flat in a slice; `add` says how."""
        return self.add(box)

    def add_prompt(self, prompt: Prompt) -> None:
        """Apply one point or box; `add` says how."""
        self.add(prompt)

    def segment_all(self, report: Callable[[int, int], object] | None = None) -> AnyStep:
        """Let the method decide by itself on every slice that has no prompt, and return what came out.

        It is one call to the server, so `report` is called once, with all slices done.
        """
        step = self._change("decide")
        if report is not None and step.slices:
            report(len(step.slices), len(step.slices))
        return step

    def propagate(self) -> AnyStep:
        """Let the mask of every prompted slice lead on to its neighbours, and return what that did."""
        return self._change("propagate")

    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""
        self._change("undo")
        return self.last_update()

    def redo(self) -> MaskUpdate:
        """Take the last undo back."""
        self._change("redo")
        return self.last_update()

    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""
        self._change("reset")
        return self.last_update()

    # --- Results ---

    def mask(self) -> np.ndarray:
        """Return the mask, bool, on the volume's own array (I, J, K) or the picture (H, W)."""
        return self.last_update().mask

    def labels(self) -> np.ndarray:
        """Return structure numbers, uint8, on the volume's own array or the picture; 1 where nothing is told apart."""
        return self.last_update().labels.copy()

    def last_update(self) -> MaskUpdate:
        """Return the present mask and what the last call changed; its labels can't be written to."""
        self._opened()
        self._settle()
        return self._opened().update

    @property
    def steps(self) -> tuple[AnyStep, ...]:
        """Return what the steps did, in order."""
        return tuple(self._done)

    @property
    def prompted(self) -> tuple[int, ...]:
        """Return the slices with prompts, as indices of the volume's array across the plane."""
        return self._opened().prompted

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use."""
        return self._opened().origins

    # --- What is served ---

    @property
    def is_sliced(self) -> bool:
        """Whether the method is one of slices."""
        return self.manifest.kind == "slices"

    @property
    def is_automatic(self) -> bool:
        """Whether the method finds something without a prompt, too."""
        return self.manifest.is_automatic

    @property
    def method(self) -> Method:
        """Return the method's record."""
        from samkit.methods import get_method  # clicking needs nothing of it

        return get_method(self.manifest.method)

    @property
    def config(self) -> Any:
        """Return the network's configuration."""
        return self.manifest.plan.config

    @property
    def precision(self) -> str:
        """Return the precision that the graphs run in."""
        return self.manifest.precision

    @property
    def structures(self) -> tuple[str, ...]:
        """Return the names of what the method tells apart."""
        return self.manifest.structures

    @property
    def sequences(self) -> tuple[str, ...]:
        """Return the names of the volumes that the method takes; none where it takes one grey volume."""
        return self.manifest.sequences

    @property
    def plane(self) -> str | None:
        """Return along which slices are taken; None for a method of volumes."""
        return (self._plane or self.manifest.plane) if self._set is None else self._set.plane

    @property
    def spacing(self) -> Triple | None:
        """Return the voxel size [mm] of the network's grid; None for a method of slices, and before a scan is set."""
        return None if self._set is None else self._set.spacing

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what runs it, as far as the server tells."""
        return dict(self.manifest.providers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a user must be told about weights and server, before anything is segmented."""
        if self.manifest.samkit == samkit.__version__:
            return self.manifest.warnings
        other = f"the server runs samkit {self.manifest.samkit}, and this is {samkit.__version__}: masks may differ"
        return (*self.manifest.warnings, other)

    # --- Life ---

    def close(self) -> None:
        """End the session on the server and let go of the connection; does nothing the second time."""
        if not self._is_closed:
            self._leave()
            self._is_closed = True
            self._transport.close()

    # --- Requests ---

    def _change(self, op: str, **what: Any) -> AnyStep:
        """Do what changes the session; a call that got no answer is looked into first.

        Had that one happened and is this the same again, it is taken for another try, and happens no second time.
        """
        self._opened()
        doubted = self._doubted
        was_done = self._settle()
        request = {"op": op, "turn": self._opened().turn + 1, **what}
        if doubted is not None and was_done and {**request, "turn": doubted["turn"]} == doubted:
            return self._done[-1] if self._done else None
        return self._send(request)

    def _settle(self) -> bool:
        """Find out about a call that got no answer, and return whether it happened; its answer is taken over then."""
        doubted = self._doubted
        if doubted is None:
            return False
        state, _ = self._call({"op": "state"})
        if int(state["turn"]) < doubted["turn"]:
            self._doubted = None
            return False
        self._send(doubted)  # the server knows this turn: it answers once more, and does nothing
        return True

    def _send(self, request: dict[str, Any]) -> AnyStep:
        self._doubted = request
        try:
            answer, changed = self._call(request)
        except ServingError:
            raise  # whether it happened is not known, or the next call will hear the same
        except SamkitError:
            self._doubted = None  # refused: nothing changed
            raise
        step = self._take_over(request["op"], answer, changed)
        self._doubted = None
        return step

    def _take_over(self, op: str, answer: dict[str, Any], changed: np.ndarray) -> AnyStep:
        """Make what an answer tells the present state, and return its step."""
        before = self._opened()
        part = _as_part(answer["region"], changed, before.labels.shape)
        labels = _Labels(before.labels, part)
        self._set = replace(
            before,
            turn=int(answer["turn"]),
            labels=labels,
            update=_update(labels, part, answer["volume_ml"], tuple(answer["iou"])),
            prompted=tuple(int(index) for index in answer["prompted"]),
            origins=tuple((int(i), int(j), int(k)) for i, j, k in answer["origins"]),
        )
        step = None if answer["step"] is None else self._as_step(answer["step"])
        if op == "undo":
            self._undone.append(self._done.pop())
        elif op == "redo":
            self._done.append(self._undone.pop())
        else:
            self._undone.clear()
            if op == "reset":
                self._done.clear()
            else:
                self._done.append(step)
        return step

    def _as_step(self, data: dict[str, Any]) -> AnyStep:
        if self.is_sliced:
            return SliceStep(**{**data, "slices": tuple(data["slices"]), "iou": tuple(data["iou"])})
        return Step(**data)

    def _call(
        self,
        request: dict[str, Any],
        tensors: Mapping[str, np.ndarray] | None = None,
        *,
        tries_for: float | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return JSON and labels of an answer. A lost connection is tried again, at most `tries_for` [s] in all."""
        token = None if self._set is None else self._set.token
        left = self.timeout if tries_for is None else tries_for
        ends = self._clock() + left
        tries = 0
        while True:
            try:
                return self._attempt(request, tensors or {}, token, left if tries_for is None else self.timeout)
            except ConnectionLost as lost:
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                left = ends - self._clock() - pause
                if left <= 0:
                    raise ServerUnreachable(
                        f"{lost}, tried {tries} times; check the address, and that sam-serve start runs there"
                    ) from lost
            self._sleep(pause)

    def _attempt(
        self, request: dict[str, Any], tensors: Mapping[str, np.ndarray], token: str | None, timeout: float
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Send a request once."""
        if self._is_closed:
            raise ServingError("this session is closed, and calls need an open one; use open_session again")
        inputs = {wire.REQUEST: wire.encode(request), **tensors}
        if token is not None:
            inputs[wire.TOKEN] = np.array([token.encode()], object)
        outputs = self._transport.call(inputs, timeout)
        if missing := [name for name in (wire.ANSWER, wire.CHANGED) if name not in outputs]:
            raise TensorMismatchError(f"the answer of {self.address.server} has no tensor '{missing[0]}'; {_SAME}")
        return wire.decode(outputs[wire.ANSWER], wire.ANSWER), outputs[wire.CHANGED]

    def _opened(self) -> _Set:
        if self._is_closed:
            raise ServingError("this session is closed, and calls need an open one; use open_session again")
        if self._set is None:
            raise PromptError("no volume is set; call set_volume or set_picture first")
        return self._set


@dataclass(frozen=True)
class _Set:
    """A session on the server, as its last answer told."""

    token: str
    turn: int
    labels: _Labels
    update: MaskUpdate
    plane: str | None
    spacing: Triple | None
    prompted: tuple[int, ...] = ()
    origins: tuple[Index, ...] = ()


class _Labels:
    """Labels after an answer: those before it, and a part that changed. They are made when somebody looks, and once, so
    that a click copies no scan of labels.
    """

    def __init__(self, before: _Labels | np.ndarray, part: Part | None = None) -> None:
        self.shape: tuple[int, ...] = before.shape
        self._before = before
        self._part = part

    def array(self) -> np.ndarray:
        """Return the labels, uint8; the array can't be written to, because later ones are made from it."""
        waiting: list[Part] = []
        labels: _Labels | np.ndarray = self
        while isinstance(labels, _Labels):
            if labels._part is not None:
                waiting.append(labels._part)
            labels = labels._before
        if waiting:
            labels = labels.copy()
            for region, values in reversed(waiting):
                labels[region] = values
        labels.setflags(write=False)
        self._before, self._part = labels, None
        return labels


def _update(labels: _Labels, part: Part, volume_ml: float | None, iou: tuple[float, ...]) -> MaskUpdate:
    return MaskUpdate(labels.array, lambda: part, volume_ml=volume_ml, iou=iou)


def _as_part(bounds: list[list[int]], values: np.ndarray, shape: tuple[int, ...]) -> Part:
    """Return the labels of a box; raises TensorMismatchError unless they fit it, and it the mask.

    On the wire a picture has a third axis of 1.
    """
    sides = [(int(first), int(last)) for first, last in bounds]
    is_inside = len(sides) == 3 and all(
        0 <= first <= last <= size for (first, last), size in zip(sides, (*shape, 1)[:3], strict=True)
    )
    if not is_inside or values.shape != tuple(last - first for first, last in sides):
        raise TensorMismatchError(
            f"the answer tells of labels {values.shape} on the box {bounds} of a mask {shape}; {_SAME}"
        )
    region: Region = tuple(slice(first, last) for first, last in sides[: len(shape)])
    return region, np.asarray(values, np.uint8).reshape([side.stop - side.start for side in region])


def _as_json(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a clicks file has it; its numbers may be numpy's."""
    return {
        key: [float(number) for number in value] if isinstance(value, list) else value
        for key, value in prompt_json(prompt).items()
    }


def open_remote_session(
    url: str,
    *,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> RemoteSession:
    """Return a session on what is served at `url`.

    Raises PromptError for what is no address, ServerUnreachable where nothing answers, ServingError where nothing is
    served under that name.
    """
    address = Address.parse(url)
    transport = connect(address)
    try:
        return RemoteSession(transport, address, spacing=spacing, plane=plane, intensities=intensities, timeout=timeout)
    except BaseException:
        transport.close()
        raise
