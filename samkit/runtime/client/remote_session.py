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
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from samkit.errors import InputRefused, OptionError, PromptError, SamkitError
from samkit.geometry import Index, Triple, Volume, as_numbers
from samkit.imageio.study import Study
from samkit.intensities import Limits, find_limits
from samkit.prompts import Prompt
from samkit.runtime.client.exchange import Exchange
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

DEFAULT_TIMEOUT = 120.0
"""How long one call may take [s], unless the user says."""
LONG_TIMEOUT = 3600.0
"""How long segmenting, or propagating through, all slices of a scan may take [s], unless the user says."""
FIRST_CONTACT = 5.0
"""How long a server that never answered is tried [s]: then the address is wrong, or nobody started it."""
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
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `transport` and ask what is served.

        `timeout` [s] is for one call, with all its attempts: by default DEFAULT_TIMEOUT, and LONG_TIMEOUT for
        `segment_automatically` and `propagate`. `plane`, `intensities` and `spacing` go to the server with every scan,
        which refuses those that its method does not have. `sleep` and `clock` are for tests.
        """
        if timeout is not None and not _is_duration(timeout):
            raise OptionError(
                f"{{timeout}} is {timeout!r:.80}, needed is the time for one call, above 0 [s]; e.g. {{timeout 120}}",
                options=("timeout", "timeout 120"),
            )
        view = View.of(spacing, plane, intensities)
        self.target = str(address)
        self.timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        """For one call [s]."""
        self._long_timeout = LONG_TIMEOUT if timeout is None else timeout
        self._exchange = Exchange(transport, address.server, sleep=sleep, clock=clock)
        self._asked = Open(plane=view.plane, intensities=view.intensities, spacing=view.spacing, protocol=PROTOCOL)
        """What every scan is opened with."""
        self._set: _Set | None = None
        self._scaled: tuple[Study | None, tuple[Limits, ...]] = (None, ())
        """A study, and what its volumes are scaled by."""
        self._described, _ = self._exchange.ask(
            Describe(protocol=PROTOCOL), None, {}, timeout=self.timeout, patience=min(self.timeout, FIRST_CONTACT),
            from_now=True,
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
        before is still there then. After a ServerTimeout nobody knows which of the two is: set one again.
        """
        if isinstance(image, np.ndarray):
            self._take_picture(image)
        else:
            self._take_volumes(image)

    def _take_volumes(self, volumes: Volumes) -> None:
        named = self._in_order(volumes)
        check_co_registered(named)
        first = next(iter(named.values()))
        shape = first.array.shape
        wire.check_size((len(named), *shape), self._described.limits.max_voxels)  # before a copy of all of it is made
        name, tensor = wire.pack_volumes([volume.array for volume in named.values()])
        tensors = {name: tensor, wire.AFFINE: np.asarray(first.affine, np.float64)}
        self._open(replace(self._asked, sequences=tuple(named)), tensors, RemoteMask(shape, empty=0.0))

    def _take_picture(self, picture: np.ndarray) -> None:
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
        self._open(replace(self._asked, picture=True), {name: np.ascontiguousarray(tensor)}, mask)

    def _in_order(self, named: Mapping[str, Volume]) -> dict[str, Volume]:
        """Return volumes in the method's order; the server refuses what does not belong there."""
        known = [name for name in self.sequences if name in named]
        return {name: named[name] for name in (*known, *(name for name in named if name not in known))}

    def _open(self, request: Open, tensors: Mapping[str, np.ndarray], mask: RemoteMask) -> None:
        """Open a session on what `tensors` hold, whose mask is `mask`.

        The server ends the session before when it accepted this one, and answers a nonce that it knows with the same
        session, so that one that was sent again because the connection broke leaves none behind.
        """
        replaces = None if self._set is None else self._set.token
        request = replace(request, nonce=secrets.token_hex(16), replaces=replaces)
        opened, _ = self._exchange.ask(request, None, tensors, timeout=self.timeout, patience=self.timeout)
        turns = Turns(self._ask, mask, opened.turn)
        self._set = _Set(opened.token, turns, mask, opened.plane, opened.spacing)

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
            self._ask(Check(prompts=tuple(prompts)))

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
        opened = self._opened()
        opened.turns.settle()
        return opened.mask.update

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
        self.is_closed, left, self._set, self._study = True, self._set, None, None
        self._scaled = (None, ())
        try:
            if left is not None:
                with suppress(SamkitError, ConnectionLost):  # gone already, or it ends by itself: nobody will use it
                    self._exchange.attempt(Close(), left.token, {}, min(self.timeout, FAREWELL))
        finally:
            self._exchange.close()

    # --- Requests ---

    def _change(self, asked: SessionChange) -> MaskUpdate:
        """Do what changes the session, once, and return the mask after it."""
        opened = self._opened()
        opened.turns.change(asked)
        return opened.mask.update

    def _ask(self, request: Request[AnswerT]) -> tuple[AnswerT, np.ndarray]:
        """Return the answer to a request of the session that is open, and the labels that come with it."""
        is_long = isinstance(request, (SegmentAutomatically, Propagate))
        return self._exchange.ask(
            request,
            self._opened().token,
            {},
            timeout=self._long_timeout if is_long else self.timeout,
            patience=self.timeout,
        )

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
