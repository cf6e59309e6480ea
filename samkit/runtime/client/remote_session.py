"""RemoteSession: a session on a server, in the same words as one on an export folder.

    with open_session("triton://localhost:8001/m-sam") as session:
        session.set_image("scan.nii.gz")
        update = session.click((60, 70, 30))
        session.undo()

The scan travels once. Every call that changes the session has a turn, so one that was sent again because the connection
broke happens once. Where a call got no answer at all, nobody knows whether it happened, or will; the next call asks,
and takes over what did. Where the server forgot the session, because it was started again or nobody used it, the next
call opens the scan again and sends all prompts in order. Needs numpy, nibabel and tritonclient.
"""

from __future__ import annotations

import logging
import secrets
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from samkit.errors import (
    InputRefused,
    OptionError,
    PromptError,
    SamkitError,
    ServerTimeout,
    ServerUnreachable,
    ServingError,
    Stopped,
)
from samkit.geometry import Index, Triple, Volume, as_numbers
from samkit.imageio.study import Study
from samkit.intensities import Limits, find_limits
from samkit.prompts import Prompt
from samkit.runtime.client.exchange import Exchange
from samkit.runtime.client.heartbeat import Heartbeat
from samkit.runtime.client.recovery import Cure, cure_for
from samkit.runtime.client.remote_mask import RemoteMask
from samkit.runtime.client.triton_transport import Address, ConnectionLost, Transport, connect
from samkit.runtime.client.turns import Turns
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.answers import ExportDescription, ServerAnswer
from samkit.runtime.protocol.requests import (
    Check,
    Close,
    Describe,
    Open,
    Propagate,
    Redo,
    Request,
    Reset,
    SegmentAutomatically,
    SessionChange,
    Undo,
    request_of,
)
from samkit.runtime.protocol.version import PROTOCOL
from samkit.runtime.session.base import Session, Volumes, taken
from samkit.runtime.session.places import check_flag, check_prompts
from samkit.runtime.session.registration import check_co_registered
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate
from samkit.runtime.session.view import View
from samkit.version import __version__

if TYPE_CHECKING:
    from samkit.methods.method import Method

AnswerT = TypeVar("AnswerT", bound=ServerAnswer)
DoneT = TypeVar("DoneT")

_LOG = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 120.0
"""How long one call may take [s], unless the user says."""
LONG_TIMEOUT = 3600.0
"""How long segmenting, or propagating through, all slices of a scan may take [s], unless the user says."""
FIRST_CONTACT = 5.0
"""How long a server that never answered is tried [s]: then the address is wrong, or nobody started it."""
MOST_RESTORES = 5
"""How often one call opens the scan again: a server may die while it is at it, and a gateway change nodes for ever."""
FAREWELL = 5.0
"""How long closing may take [s]; a session that nobody closed ends by itself."""


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
        restore: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `transport` and ask what is served.

        `timeout` [s] is for one call, with all its attempts: by default DEFAULT_TIMEOUT, and LONG_TIMEOUT for
        `segment_automatically` and `propagate`. `plane`, `intensities` and `spacing` go to the server with every scan,
        which refuses those that its method does not have. Unless `restore`, a server that is being started again, or
        forgot the session, is an error at once. `sleep` and `clock` are for tests.
        """
        if timeout is not None and not _is_duration(timeout):
            raise OptionError(
                f"{{timeout}} is {timeout!r:.80}, needed is the time for one call, above 0 [s]; e.g. {{timeout 120}}",
                options=("timeout", "timeout 120"),
            )
        check_flag("restore", restore)
        view = View.of(spacing, plane, intensities)
        self.target = str(address)
        self.timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        """For one call [s]."""
        self._long_timeout = LONG_TIMEOUT if timeout is None else timeout
        self._restores = restore
        self._clock = clock
        self._exchange = Exchange(transport, address.server, waits=restore, sleep=sleep, clock=clock)
        self._asked = Open(
            plane=view.plane, intensities=view.intensities, spacing=view.spacing, heartbeat=True, protocol=PROTOCOL
        )
        """What every scan is opened with."""
        self._set: _Set | None = None
        self._hearts: list[Heartbeat] = []
        """Of the session that acts go to."""
        weakref.finalize(self, _stop, self._hearts)  # one that nobody holds any more has no reader
        self._is_restored = False
        """Whether the next update has to say that scan and prompts were sent again."""
        self._scaled: tuple[Study | None, tuple[Limits, ...]] = (None, ())
        """A study, and what its volumes are scaled by."""
        self._described, _ = self._exchange.ask(
            Describe(protocol=PROTOCOL), None, {}, until=clock() + self.timeout,
            patience=min(self.timeout, FIRST_CONTACT), from_now=True,
        )  # fmt: skip
        self.precision = self._described.precision
        self.structures = self._described.structures
        self.sequences = self._described.sequences
        self.is_automatic = self._described.is_automatic
        self.is_sliced = self._described.kind == "slices"
        self.server_samkit = self._described.samkit

    # --- The scan ---

    def _take(self, image: Volumes | np.ndarray) -> None:
        """Send volumes or a picture; what was before is forgotten, there too.

        Raises what a session on an export folder raises, AtCapacity where the server holds as many as it may; the scan
        before is still there then. So it is after a ServerTimeout, where the server is told to let go of the new one.
        """
        self._put(self._open(image, self._clock() + self.timeout))

    def _open(self, image: Volumes | np.ndarray, until: float) -> _Set:
        """Return a new session on volumes or a picture."""
        return self._open_picture(image, until) if isinstance(image, np.ndarray) else self._open_volumes(image, until)

    def _open_volumes(self, volumes: Volumes, until: float) -> _Set:
        named = self._in_order(volumes)
        check_co_registered(named)
        first = next(iter(named.values()))
        shape = first.array.shape
        wire.check_size((len(named), *shape), self._described.limits.max_voxels)  # before a copy of all of it is made
        name, tensor = wire.pack_volumes([volume.array for volume in named.values()])
        tensors = {name: tensor, wire.AFFINE: np.asarray(first.affine, np.float64)}
        request = replace(self._asked, sequences=tuple(named))
        return self._send_scan(request, tensors, RemoteMask(shape, empty=0.0), volumes, until)

    def _open_picture(self, picture: np.ndarray, until: float) -> _Set:
        if not self.is_sliced:
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
        wire.check_size(tensor.shape, self._described.limits.max_voxels)
        name, _ = next((name, dtype) for name, dtype in wire.VOLUMES.items() if dtype == "float32")
        mask = RemoteMask(image.shape[:2], empty=None)
        request = replace(self._asked, picture=True)
        return self._send_scan(request, {name: np.ascontiguousarray(tensor)}, mask, picture, until)

    def _in_order(self, named: Mapping[str, Volume]) -> dict[str, Volume]:
        """Return volumes in the method's order; the server refuses what does not belong there."""
        known = [name for name in self.sequences if name in named]
        return {name: named[name] for name in (*known, *(name for name in named if name not in known))}

    def _send_scan(
        self,
        request: Open,
        tensors: Mapping[str, np.ndarray],
        mask: RemoteMask,
        image: Volumes | np.ndarray,
        until: float,
    ) -> _Set:
        """Return a session on what `tensors` hold of `image`, whose mask is `mask`.

        The server ends the session before when it accepted this one, and answers a nonce that it knows with the same
        session, so that one that was sent again because the connection broke leaves none behind. Nor does one that got
        no answer in time: by its nonce it is taken back.
        """
        nonce, replaces = secrets.token_hex(16), None if self._set is None else self._set.token
        request = replace(request, nonce=nonce, replaces=replaces)
        try:
            opened, _ = self._exchange.ask(request, None, tensors, until=until, patience=self.timeout)
        except (ServerTimeout, ServerUnreachable, KeyboardInterrupt, Stopped):
            self._let_go(Close(nonce=nonce), None)
            raise
        turns = Turns(partial(self._ask, opened.token), mask, opened.turn)
        return _Set(opened.token, turns, mask, opened.plane, opened.spacing, image, opened.alive_seconds)

    def _put(self, new: _Set | None) -> None:
        """Make `new` the session that acts go to, and let its heart beat alone."""
        _stop(self._hearts)
        self._set, self._is_restored = new, False
        if new is not None and new.alive_seconds is not None:
            self._hearts.append(Heartbeat(self._exchange, new.token, new.alive_seconds))

    def _limits(self, volumes: Volumes) -> tuple[Limits, ...]:
        """Return what the server scales by: it does the same with the same voxels, and does not tell."""
        if not self.is_sliced:
            return ()
        if self._scaled[0] is not self._study:  # percentiles of a large scan take a second
            named, asked = self._in_order(volumes), self._asked.intensities
            limits = tuple(find_limits(volume.array, name or "the volume", asked) for name, volume in named.items())
            self._scaled = (self._study, limits)
        return self._scaled[1]

    # --- Prompts ---

    def check(self, *prompts: Prompt) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""
        self._opened()
        check_prompts(prompts)
        if prompts:
            until, request = self._clock() + self.timeout, Check(prompts=tuple(prompts))
            self._kept(lambda opened, until: self._ask(opened.token, request, until), until)

    def by_step(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """Return prompts as the server works on them: clicks in a volume one by one, those on slices together."""
        check_prompts(prompts)
        if self.is_sliced:
            return [tuple(prompts)] if prompts else []
        return [(prompt,) for prompt in prompts]

    def add(self, *prompts: Prompt, refine: bool = False) -> MaskUpdate:
        """Apply prompts: those of slices as one step, clicks in a volume in order.

        Nothing changes where any of them is refused. Of several clicks the last one's step is known here, and the
        update tells of them together. Raises PromptError for `refine`, which no server does.
        """
        check_flag("refine", refine)
        if refine:
            raise PromptError(
                "refine is asked for, and a server does not do it; leave it out, or open the export folder instead"
            )
        if not prompts:
            raise PromptError(f"no prompt was given; give {taken(self.method)}")
        check_prompts(prompts)
        return self._change(request_of(prompts))

    def _segment_automatically(self, report: Callable[[int, int], object] | None) -> MaskUpdate:
        """Do it in one call to the server, within LONG_TIMEOUT unless the session was opened with a timeout.

        `report` is called once, with all slices done.
        """
        update = self._change(SegmentAutomatically())
        if report is not None and update.step is not None and update.step.slices:
            report(len(update.step.slices), len(update.step.slices))
        return update

    def propagate(self) -> MaskUpdate:
        """Let the mask of every prompted slice lead on to its neighbours: one call, too, and as long."""
        return self._change(Propagate())

    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""
        return self._change(Undo())

    def redo(self) -> MaskUpdate:
        """Take the last undo back."""
        return self._change(Redo())

    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""
        return self._change(Reset())

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
        until = self._clock() + self.timeout
        self._kept(lambda opened, until: opened.turns.settle(until), until)
        return self._update()

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return what the steps did, in order, as far as answers told.

        Missing are steps of other programs that use this session, and of clicks added at once all but the last. The
        `number` of a step counts them, too.
        """
        return () if self._set is None else self._set.mask.steps

    @property
    def prompted(self) -> tuple[int, ...]:
        """Return the slices with prompts, as indices of the volume's array across the plane."""
        return self._opened().mask.prompted

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use."""
        return self._opened().mask.origins

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
    def plane(self) -> str | None:
        """Return along which slices are taken; None for a method of volumes."""
        return (self._asked.plane or self._described.plane) if self._set is None else self._set.plane

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
        if told.samkit == __version__:
            return told.warnings
        return (
            *told.warnings,
            f"the server runs samkit {told.samkit}, and this is {__version__}: masks may differ",
        )

    # --- Life ---

    def close(self) -> None:
        """End the session on the server and let go of the connection; does nothing the second time."""
        if self.is_closed:
            return
        self.is_closed, left, self._study = True, self._set, None
        self._scaled = (None, ())
        self._put(None)
        try:
            if left is not None:
                self._let_go(Close(), left.token)
        finally:
            self._exchange.close()

    def _let_go(self, request: Close, token: str | None) -> None:
        """End what nobody will use, in one attempt: it is gone already, or ends by itself, where that fails."""
        with suppress(SamkitError, ConnectionLost):
            self._exchange.attempt(request, token, {}, min(self.timeout, FAREWELL))

    # --- Requests ---

    def _change(self, asked: SessionChange) -> MaskUpdate:
        """Do what changes the session, once, and return the mask after it."""
        until = self._clock() + self._time_for(asked)
        self._kept(lambda opened, until: opened.turns.change(asked, until), until)
        return self._update()

    def _update(self) -> MaskUpdate:
        """Return the mask as it is, and say once that scan and prompts were sent again."""
        update, is_restored = self._opened().mask.update, self._is_restored
        self._is_restored = False
        return update.as_restored() if is_restored else update

    def _ask(self, token: str, request: Request[AnswerT], until: float) -> tuple[AnswerT, np.ndarray]:
        """Return the answer to a request of a session, and the labels that come with it."""
        patience = self.timeout if self._restores else min(self.timeout, FIRST_CONTACT)
        return self._exchange.ask(request, token, {}, until=until, patience=patience)

    def _time_for(self, *asked: SessionChange) -> float:
        """Return how long changes may take in one call [s]."""
        is_long = any(isinstance(request, (SegmentAutomatically, Propagate)) for request in asked)
        return self._long_timeout if is_long else self.timeout

    # --- A session that is gone ---

    def _kept(self, act: Callable[[_Set, float], DoneT], until: float) -> DoneT:
        """Return what `act` does, until a time of the clock, with the session on the server.

        It is restored first where it is gone. What got no answer there counts as not done: what it did is gone, too.
        """
        left = MOST_RESTORES if self._restores else 0
        while True:
            try:
                return act(self._opened(), until)
            except ServingError as gone:
                if cure_for(gone) is not Cure.ANEW or not left:
                    raise
                left -= 1
                try:
                    until = self._restore(gone, until)
                except ServingError as again:
                    if cure_for(again) is not Cure.ANEW:
                        raise

    def _restore(self, gone: ServingError, until: float) -> float:
        """Open the scan again and take all steps again, in order, and return until when the call may take now: more
        than before only where steps of many slices are among them. Raises `gone` where another program took some.
        """
        lost = self._opened()
        acts = lost.mask.acts
        if acts is None:
            raise gone
        if (needed := self._time_for(*acts)) > self.timeout:
            until = max(until, self._clock() + needed)
        request = Describe(protocol=PROTOCOL)
        described, _ = self._exchange.ask(request, None, {}, until=until, patience=self.timeout)
        for what in ("digest", "precision", "samkit"):
            if (now := getattr(described, what)) != (before := getattr(self._described, what)):
                raise ServingError(
                    f"{self.target} serves another {what} than when this session was opened ({now:.20}, not "
                    f"{before:.20}), so masks may differ; open a new session"
                )
        new = self._open(lost.image, until)
        try:
            for act in acts:
                new.turns.change(act, until)
        except BaseException:
            self._let_go(Close(), new.token)
            raise
        if not np.array_equal(new.mask.update.labels, lost.mask.update.labels):
            _LOG.warning("%s: the mask after the same prompts is not the same voxel by voxel; look at it", self.target)
        self._put(new)
        self._is_restored = True
        return until

    def _opened(self) -> _Set:
        return self._present(self._set)

    def _check_open(self) -> None:
        """Raise ServingError after `close`."""
        self._exchange.check_open()


@dataclass(frozen=True)
class _Set:
    """A session on the server."""

    token: str = field(repr=False)
    """Whoever has it has the session."""
    turns: Turns
    mask: RemoteMask
    plane: str | None
    spacing: Triple | None
    image: Volumes | np.ndarray = field(repr=False)
    """What was sent, as it was given, to be sent again."""
    alive_seconds: float | None
    """How often the server has to hear of this end; None where it need not."""


def _stop(hearts: list[Heartbeat]) -> None:
    while hearts:
        hearts.pop().stop()


def _is_duration(seconds: object) -> bool:
    numbers = as_numbers([seconds], 1)
    return numbers is not None and numbers[0] > 0


def open_remote_session(
    url: str,
    *,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
    timeout: float | None = None,
    restore: bool = True,
) -> RemoteSession:
    """Return a session on what is served at `url`.

    Raises PromptError for what is no address, ServerUnreachable where nothing answers, ServingError where nothing is
    served under that name.
    """
    address = Address.parse(url)
    transport = connect(address)
    try:
        return RemoteSession(
            transport,
            address,
            spacing=spacing,
            plane=plane,
            intensities=intensities,
            timeout=timeout,
            restore=restore,
        )
    except BaseException:
        transport.close()
        raise
