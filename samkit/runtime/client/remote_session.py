"""RemoteSession: a session on a server, in the same words as one on an export folder.

    with open_session("triton://localhost:8001/m-sam") as session:
        session.set_image("scan.nii.gz")
        update = session.click((60, 70, 30))
        session.undo()

The scan travels once. Every call that changes the session has a turn, so one that was sent again because the connection
broke happens once. Where a call got no answer at all, nobody knows whether it happened, or will; the next call asks,
and takes over what did. Needs numpy, nibabel and tritonclient.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import samkit
from samkit.errors import (
    InputRefused,
    PromptError,
    SamkitError,
    ServerUnreachable,
    ServingError,
    TensorMismatchError,
    WrongTurn,
)
from samkit.geometry import Index, Triple, Volume
from samkit.prompts import Box, Prompt, SliceBox, prompt_json
from samkit.runtime.client.triton_transport import Address, ConnectionLost, Transport, connect
from samkit.runtime.protocol import wire
from samkit.runtime.session.base import Session, Volumes, taken
from samkit.runtime.session.registration import check_co_registered
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate, Part, Region, changed_part

if TYPE_CHECKING:
    from samkit.manifest import ExportPlan
    from samkit.methods.method import Method

DEFAULT_TIMEOUT = 120.0
"""How long one call may take [s], unless the user says."""
LONG_TIMEOUT = 3600.0
"""How long segmenting, or propagating through, all slices of a scan may take [s], unless the user says."""
FIRST_CONTACT = 5.0
"""How long a server that never answered is tried [s]: then the address is wrong, or nobody started it."""
FAREWELL = 5.0
"""How long closing may take [s]; a session that nobody closed ends by itself."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits before a lost connection is tried again [s]; the last one repeats."""
_LONG = frozenset({"decide", "propagate"})
"""What works on all slices of a scan, in one call."""
_SAME = "install the same version of samkit on both sides"


class RemoteSession(Session):
    """One export on a server. Holds a session there, the labels that it told of, and the history of steps."""

    def __init__(
        self,
        transport: Transport,
        address: Address,
        *,
        plane: str | None = None,
        intensities: tuple[float, float] | None = None,
        spacing: Triple | None = None,
        timeout: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `transport` and ask what is served.

        `timeout` [s] is for one call, with all its attempts: by default DEFAULT_TIMEOUT, and LONG_TIMEOUT for
        `segment_automatically` and `propagate`. `plane`, `intensities` and `spacing` go to the server with every scan,
        which refuses those that its method does not have. `sleep` and `clock` are for tests.
        """
        if timeout is not None and not timeout > 0:
            raise PromptError(f"the time for one call is {timeout} s, it must be above 0; e.g. timeout=120")
        self.address = address
        self.timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        """For one call [s]."""
        self._long_timeout = LONG_TIMEOUT if timeout is None else timeout
        self._transport = transport
        self._sleep, self._clock = sleep, clock
        self._plane = plane
        self._asked = {"plane": plane, "intensities": intensities, "spacing": spacing}
        self._is_closed = False
        self._set: _Set | None = None
        self._forget()
        answer, _ = self._call({"op": "describe"}, tries_for=min(self.timeout, FIRST_CONTACT))
        self._described = ExportDescription.from_answer(answer, address.server)
        self.precision = self._described.precision
        self.structures = self._described.structures
        self.sequences = self._described.sequences
        self.is_automatic = self._described.is_automatic
        self.server_samkit = self._described.samkit

    # --- The scan ---

    def _take(self, image: Volumes | np.ndarray) -> None:
        """Send volumes or a picture; what was before is forgotten, there too.

        Raises what a session on an export folder raises, AtCapacity where the server holds as many as it may; the scan
        before is still there then. After a ServerTimeout nobody knows which of the two is: set one again.
        """
        if isinstance(image, np.ndarray):
            self._take_picture(image)
        else:
            self._take_volumes(image)
            self._affine = next(iter(image.values())).affine

    def _take_volumes(self, volumes: Volumes) -> None:
        named = self._in_order(volumes)
        check_co_registered(named)
        first = next(iter(named.values()))
        shape = first.array.shape
        wire.check_size((len(named), *shape), self._described.max_voxels)  # before a copy of all of it is made
        name, tensor = wire.pack_volumes([volume.array for volume in named.values()])
        tensors = {name: tensor, wire.AFFINE: np.asarray(first.affine, np.float64)}
        self._open({"sequences": list(named)}, tensors, shape, 0.0)

    def _take_picture(self, picture: np.ndarray) -> None:
        if not self._is_sliced:
            self._refuse_picture()
        image = np.asarray(picture, np.float32)
        image = image[..., None] if image.ndim == 2 else image
        if image.ndim != 3 or min(image.shape) < 1:
            raise InputRefused(
                "channels",
                f"the picture is {' x '.join(str(n) for n in picture.shape)}, needed are rows, columns and channels",
                "give a picture of that kind",
            )
        tensor = np.moveaxis(image, -1, 0)[..., None]
        wire.check_size(tensor.shape, self._described.max_voxels)
        name, _ = next((name, dtype) for name, dtype in wire.VOLUMES.items() if dtype == "float32")
        self._open({"picture": True}, {name: np.ascontiguousarray(tensor)}, image.shape[:2], None)

    def _in_order(self, named: Mapping[str, Volume]) -> dict[str, Volume]:
        """Return volumes in the method's order; the server refuses what does not belong there."""
        known = [name for name in self.sequences if name in named]
        return {name: named[name] for name in (*known, *(name for name in named if name not in known))}

    def _open(
        self, request: dict[str, Any], tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], empty: float | None
    ) -> None:
        """Open a session on what `tensors` hold; `empty` is the volume of an empty mask [mL].

        The server ends the session before when it accepted this one, and answers a nonce that it knows with the same
        session, so that one that was sent again because the connection broke leaves none behind.
        """
        asked = {name: value for name, value in self._asked.items() if value is not None}
        request = {"op": "open", "nonce": secrets.token_hex(16), **request, **asked}
        if self._set is not None:
            request["replaces"] = self._set.token
        answer, _ = self._call(request, tensors)
        spacing = answer["spacing"]
        nothing: Part = ((slice(0, 0),) * len(shape), np.zeros((0,) * len(shape), np.uint8))
        labels = _Labels(np.zeros(shape, np.uint8))
        self._forget()
        self._set = _Set(
            token=answer["token"],
            turn=int(answer["turn"]),
            labels=labels,
            update=MaskUpdate(labels.array, lambda: nothing, volume_ml=empty),
            plane=answer["plane"],
            spacing=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )

    def _forget(self) -> None:
        self._affine = None
        self._done: list[Step | None] = []
        """Steps; None for one that no answer told of."""
        self._undone: list[Step | None] = []
        self._doubted: list[dict[str, Any]] = []
        """Requests without an answer. All have the turn after the last one that is known: at most one can happen."""

    # --- Prompts ---

    def check(self, *prompts: Prompt) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""
        self._opened()
        if prompts:
            self._call({"op": "check", "prompts": [_as_json(prompt) for prompt in prompts]})

    def by_step(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """Return prompts as the server works on them: clicks in a volume one by one, those on slices together."""
        if self._is_sliced:
            return [tuple(prompts)] if prompts else []
        return [(prompt,) for prompt in prompts]

    def add(self, *prompts: Prompt, refine: bool = False) -> MaskUpdate:
        """Apply prompts: those of slices as one step, clicks in a volume in order.

        Nothing changes where any of them is refused. Of several clicks the last one's step is known here, and the
        update tells of them together. Raises PromptError for `refine`, which no server does.
        """
        if refine:
            raise PromptError(
                "refine is asked for, and a server does not do it; leave it out, or open the export folder instead"
            )
        if not prompts:
            raise PromptError(f"no prompt was given; give {taken(self.method)}")
        if len(prompts) > 1:
            return self._change("prompts", prompts=[_as_json(prompt) for prompt in prompts])
        return self._change("box" if isinstance(prompts[0], (Box, SliceBox)) else "click", **_as_json(prompts[0]))

    def _segment_automatically(self, report: Callable[[int, int], object] | None) -> MaskUpdate:
        """Do it in one call to the server, within LONG_TIMEOUT unless the session was opened with a timeout.

        `report` is called once, with all slices done.
        """
        update = self._change("decide")
        if report is not None and update.step is not None and update.step.slices:
            report(len(update.step.slices), len(update.step.slices))
        return update

    def propagate(self) -> MaskUpdate:
        """Let the mask of every prompted slice lead on to its neighbours: one call, too, and as long."""
        return self._change("propagate")

    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""
        return self._change("undo")

    def redo(self) -> MaskUpdate:
        """Take the last undo back."""
        return self._change("redo")

    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""
        return self._change("reset")

    # --- Results ---

    def labels(self) -> np.ndarray:
        """Return structure numbers, uint8, on the volume's own array or the picture; 1 where nothing is told apart."""
        return self.last_update().labels.copy()

    def logits(self) -> np.ndarray:
        """Raise PromptError: masks travel, logits do not."""
        raise PromptError("a server sends masks and no logits; open the export folder instead")

    def last_update(self) -> MaskUpdate:
        """Return the present mask and what the last call changed; its labels can't be written to.

        After a call that got no answer it asks the server.
        """
        self._opened()
        self._settle()
        return self._opened().update

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return what the steps did, in order, as far as answers told.

        Missing are steps of other programs that use this session, and of clicks added at once all but the last. The
        `number` of a step counts them, too.
        """
        return tuple(step for step in self._done if step is not None)

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
    def method(self) -> Method:
        """Return the method's record."""
        from samkit.methods import get_method  # clicking needs nothing of it

        return get_method(self._described.method)

    @property
    def config(self) -> Any:
        """Return the network's configuration."""
        return self._described.plan.config

    @property
    def manifest(self) -> ExportDescription:
        """Return plan and digest, as an export folder's manifest has them; no files, so nothing to verify."""
        return self._described

    @property
    def _is_sliced(self) -> bool:
        return self._described.kind == "slices"

    @property
    def plane(self) -> str | None:
        """Return along which slices are taken; None for a method of volumes."""
        return (self._plane or self._described.plane) if self._set is None else self._set.plane

    @property
    def spacing(self) -> Triple | None:
        """Return the voxel size [mm] of the network's grid; None for a method of slices, and before a scan is set."""
        return None if self._set is None else self._set.spacing

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what runs it, as far as the server tells."""
        return dict(self._described.providers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a user must be told about weights and server, before anything is segmented."""
        told = self._described
        if told.samkit == samkit.__version__:
            return told.warnings
        return (
            *told.warnings,
            f"the server runs samkit {told.samkit}, and this is {samkit.__version__}: masks may differ",
        )

    # --- Life ---

    def close(self) -> None:
        """End the session on the server and let go of the connection; does nothing the second time."""
        if self._is_closed:
            return
        left, self._set = self._set, None
        self._forget()
        try:
            if left is not None:
                with suppress(SamkitError, ConnectionLost):  # gone already, or it ends by itself: nobody will use it
                    self._attempt({"op": "close"}, {}, left.token, min(self.timeout, FAREWELL))
        finally:
            self._is_closed = True
            self._transport.close()

    # --- Requests ---

    def _change(self, op: str, **what: Any) -> MaskUpdate:
        """Do what changes the session, and return the mask after it; calls that got no answer are looked into first.

        Had one of them happened and is this the same again, it is taken for another try, and happens no second time.
        """
        self._opened()
        asked = {"op": op, **what}
        try:
            self._once(asked, self._settle())
        except WrongTurn:  # refused, so this one did not happen
            happened = self._settle(is_behind=True)
            if happened is None:  # whatever has the turn is no call from here, and a user should know
                raise
            self._once(asked, happened)
        return self._opened().update

    def _once(self, asked: dict[str, Any], happened: dict[str, Any] | None) -> None:
        """Do what is asked, unless it is the request that turned out to have happened."""
        if happened is None or {**asked, "turn": happened["turn"]} != happened:
            self._send({**asked, "turn": self._opened().turn + 1})

    def _settle(self, *, is_behind: bool = False) -> dict[str, Any] | None:
        """Find out about calls that got no answer, and return the request of the one that happened.

        While none did, each may wait on the server still, and all stay in doubt. Where something else happened, or
        `is_behind` and nothing is in doubt, the session's state is taken over from the server and None returned.
        """
        if not self._doubted and not is_behind:
            return None
        state, changed = self._call({"op": "state"})
        turn = self._opened().turn
        if int(state["turn"]) <= turn:
            return None
        for request in tuple(self._doubted) if int(state["turn"]) == turn + 1 else ():
            with suppress(WrongTurn):
                self._send(request)  # the server answers the one that has the turn once more, and does nothing
                return request
        self._take_state(state, changed)
        return None

    def _send(self, request: dict[str, Any]) -> None:
        """Send what changes the session; it is in doubt until its answer is here."""
        if request not in self._doubted:
            self._doubted.append(request)
        try:
            answer, changed = self._call(request, timeout=self._long_timeout if request["op"] in _LONG else None)
        except SamkitError as error:
            # Of what is neither, nobody knows whether it happened, or the next call will hear the same
            if isinstance(error, WrongTurn) or not isinstance(error, (ServingError, TensorMismatchError)):
                self._doubted.remove(request)
            raise
        self._take_over(request["op"], answer, changed)
        self._doubted.clear()  # their turn is taken

    def _take_over(self, op: str, answer: dict[str, Any], changed: np.ndarray) -> None:
        """Make what an answer tells the present state."""
        before = self._opened().labels
        part = _as_part(answer["region"], changed, before.shape)
        labels = _Labels(before, part)
        step = None if answer["step"] is None else _as_step(answer["step"])
        self._show(answer, labels, lambda: part, step)
        if op == "undo":
            self._undone.append(self._done.pop() if self._done else None)
        elif op == "redo":
            self._done.append(self._undone.pop() if self._undone else None)
        else:
            self._undone.clear()
            if op == "reset" or step is None:
                self._done.clear()
            else:
                self._done += [None] * (step.number - 1 - len(self._done))
                self._done.append(step)

    def _take_state(self, state: dict[str, Any], changed: np.ndarray) -> None:
        """Make the server's state the present one: its history is not the one that is known here."""
        before = self._opened().labels
        part = _as_part(state["region"], changed, before.shape)
        labels = _Labels(np.zeros(before.shape, np.uint8), part)
        whole: Region = tuple(slice(0, side) for side in before.shape)
        self._show(
            state,
            labels,
            lambda: changed_part([(whole, before.array())], [(whole, labels.array())], len(whole)),
            None,
        )
        self._done.clear()
        self._undone.clear()
        self._doubted.clear()

    def _show(self, answer: dict[str, Any], labels: _Labels, change: Callable[[], Part], step: Step | None) -> None:
        """Make `labels`, and all else that any answer tells, the present state."""
        self._set = replace(
            self._opened(),
            turn=int(answer["turn"]),
            labels=labels,
            update=MaskUpdate(labels.array, change, volume_ml=answer["volume_ml"], iou=tuple(answer["iou"]), step=step),
            prompted=tuple(int(index) for index in answer["prompted"]),
            origins=tuple((int(i), int(j), int(k)) for i, j, k in answer["origins"]),
        )

    def _call(
        self,
        request: dict[str, Any],
        tensors: Mapping[str, np.ndarray] | None = None,
        *,
        timeout: float | None = None,
        tries_for: float | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return JSON and labels of an answer, within `timeout` [s], by default that of the session.

        A lost connection is tried again until `tries_for` [s] from now, by default for the session's time after the
        first loss.
        """
        token = None if self._set is None or request["op"] == "open" else self._set.token
        left = self.timeout if timeout is None else timeout
        ends = self._clock() + left
        tries_until = None if tries_for is None else self._clock() + tries_for
        tries = 0
        while True:
            try:
                return self._attempt(request, tensors or {}, token, left)
            except ConnectionLost as lost:
                now = self._clock()
                if tries_until is None:
                    tries_until = min(ends, now + self.timeout)
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                left = ends - now - pause
                if now + pause >= tries_until:
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
            raise PromptError("no image is set; call set_image first")
        return self._set


@dataclass(frozen=True)
class _Set:
    """A session on the server, as its last answer told."""

    token: str = field(repr=False)
    """Whoever has it has the session."""
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


def _as_step(data: dict[str, Any]) -> Step:
    """Return a step as JSON has it."""
    return Step(**{**data, "slices": tuple(data["slices"]), "iou": tuple(data["iou"])})


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
    timeout: float | None = None,
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
