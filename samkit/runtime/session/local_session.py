"""LocalSession: a session whose graphs run in this process, or are run for it: open runners and a history with undo."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np

from samkit.errors import InputRefused, ManifestError, PromptError
from samkit.geometry import by
from samkit.manifest import Manifest
from samkit.methods.method import Method
from samkit.prompts import Prompt
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import ScanEmbeddings, own_embeddings
from samkit.runtime.session.base import Session, Volumes, taken
from samkit.runtime.session.places import check_flag, check_prompts
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate
from samkit.runtime.session.world import is_inside

StateT = TypeVar("StateT")


class LocalSession(Session, Generic[StateT]):
    """A method's runners and the history of steps; states are never changed in place, so undo is exact."""

    def __init__(
        self, method: Method, config: Any, runners: Mapping[str, Runner], precision: str, manifest: Manifest | None
    ) -> None:
        """Take over `runners`, one per graph, of the export that `manifest` describes, if it is one."""
        self.precision = precision
        self.structures = method.structures(config)
        self.sequences = method.sequences(config)
        self.is_automatic = method.is_automatic
        self._method, self._config, self._manifest = method, config, manifest
        self._warnings: tuple[str, ...] = ()
        self._runners = dict(runners)
        self._done: list[tuple[StateT, Step]] = []
        self._undone: list[tuple[StateT, Step]] = []
        self._before: StateT | None = None
        self._last: Step | None = None
        """What the last act did, if it took a step."""

    # --- What it runs ---

    @property
    def method(self) -> Method:
        """Return the method's record."""
        return self._method

    @property
    def config(self) -> Any:
        """Return the network's configuration."""
        return self._config

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the export; raises ManifestError where the session was made without one."""
        if self._manifest is None:
            raise ManifestError("this session was made from runners, and a manifest needs an export; use open_session")
        return self._manifest

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what a user must be told about weights and backend, before anything is segmented."""
        if self._manifest is None:
            return self._warnings
        plan = self._manifest.plan
        warnings = list(self._warnings)
        if plan.is_demonstration:
            warnings.append(
                f"{plan.demonstration}, trained on phantoms to show the tool at work: never for patients"
            )  # fmt: skip
        if any(weights.kind == "random" for weights in (plan.weights, *plan.others.values())):
            warnings.append("RANDOM WEIGHTS, for timing and tests: the mask means nothing")
        return tuple(warnings)

    def warn(self, *sentences: str) -> None:
        """Add to the warnings; whoever opens a session adds the backend's, which no manifest knows."""
        self._warnings += sentences

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what really runs it."""
        return {name: runner.providers for name, runner in self._runners.items()}

    # --- Acts ---

    def take(self, image: Volumes | np.ndarray, embeddings: ScanEmbeddings | None = None) -> None:
        """Take what has passed a gate, as a server does: nobody will ask this session for a file or a picture of it.

        `embeddings` is the scan's place in a store that sessions share; by default the session has one of its own.
        """
        self._take(image, embeddings)
        self._study = None

    def add(self, *prompts: Prompt, refine: bool = False) -> MaskUpdate:
        """Apply prompts, in voxel indices of the volume or pixels of the picture, in the steps that `by_step` says.

        With `refine` the masks of the prompted slices so far go in as mask prompts, too, which needs the same objects
        as before. Off by default: the official predictors leave it to the caller. Nothing changes where any of the
        prompts is refused.
        """
        self.check(*prompts)
        check_flag("refine", refine)
        if not prompts:
            raise PromptError(f"no prompt was given; give {taken(self.method)}")
        before = self._now
        with self.all_or_nothing():
            for together in self.by_step(prompts):
                self._step_on(together, refine=refine)
            self._before = before
        return self.last_update()

    def check(self, *prompts: Prompt) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""
        self._opened()
        check_prompts(prompts)
        self._check_places(prompts)

    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""
        self._opened()
        if not self._done:
            raise PromptError("there is no click to undo; add one first")
        self._before, self._last = self._now, None
        self._undone.append(self._done.pop())
        return self.last_update()

    def redo(self) -> MaskUpdate:
        """Take the last undo back."""
        self._opened()
        if not self._undone:
            raise PromptError("there is nothing to redo: no step was taken back; redo works right after undo")
        self._before, self._last = self._now, None
        self._done.append(self._undone.pop())
        return self.last_update()

    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""
        self._opened()
        self._before, self._last = self._now, None
        self._done.clear()
        self._undone.clear()
        return self.last_update()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Leave the history exactly as it was, undone steps included, if what is done inside fails."""
        kept = list(self._done), list(self._undone), self._before, self._last
        try:
            yield
        except BaseException:
            self._done, self._undone, self._before, self._last = kept
            raise

    # --- Results ---

    def last_update(self) -> MaskUpdate:
        """Return the present mask and what the last act changed; raises PromptError where no image is set."""
        return self._update_since(self._before, self._last)

    def update_from_empty(self) -> MaskUpdate:
        """Return the present mask as if one act had made all of it, for a client who knows none of the steps."""
        return self._update_since(None, None)

    @property
    def kept(self) -> tuple[object, ...]:
        """Return what stays in memory: the scan's arrays, and the states of the history, undone ones included."""
        history = (state for state, _ in (*self._done, *self._undone))
        return (*self._scan_arrays(), *(state for state in (self._before, *history) if state is not None))

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return what the steps did, in order."""
        return tuple(step for _, step in self._done)

    # --- Life ---

    def close(self) -> None:
        """Let go of runners, image and history."""
        for runner in self._runners.values():
            runner.close()
        self.is_closed, self._study = True, None
        self._forget()

    def _forget(self) -> None:
        """Drop all steps."""
        self._done.clear()
        self._undone.clear()
        self._before = self._last = None

    # --- What volumes and slices do their own way ---

    def _take(self, image: Volumes | np.ndarray, embeddings: ScanEmbeddings | None = None) -> None:
        """Take volumes or a picture, and forget what was before; nothing changes where they are refused."""
        place = own_embeddings() if embeddings is None else embeddings
        if isinstance(image, np.ndarray):
            self._take_picture(image, place)
        else:
            self._take_volumes(image, place)

    @abstractmethod
    def _take_volumes(self, volumes: Volumes, embeddings: ScanEmbeddings) -> None:
        """Take one volume for each sequence."""

    @abstractmethod
    def _take_picture(self, picture: np.ndarray, embeddings: ScanEmbeddings) -> None:
        """Take a picture (H, W) or (H, W, C) of intensities 0..255."""

    @abstractmethod
    def _opened(self) -> object:
        """Return what is set; raises as `_present` does."""

    @abstractmethod
    def _scan_arrays(self) -> Sequence[np.ndarray]:
        """Return the voxels that are held."""

    @abstractmethod
    def _check_places(self, prompts: Sequence[Prompt]) -> None:
        """Raise for prompts that the method does not take, or in a wrong place."""

    @abstractmethod
    def _step_on(self, prompts: Sequence[Prompt], *, refine: bool) -> None:
        """Take one step on checked prompts."""

    @abstractmethod
    def _update_since(self, before: StateT | None, step: Step | None) -> MaskUpdate:
        """Return the present mask, what differs from that of the state `before`, and `step` as what the act did."""

    def _keep(self, state: StateT, step: Step) -> None:
        """Make `state` the present one, and `step` what led there."""
        self._before, self._last = self._now, step
        self._done.append((state, step))
        self._undone.clear()

    @property
    def _now(self) -> StateT | None:
        """The present state; None before the first step."""
        return self._done[-1][0] if self._done else None


def check_inside(what: str, index: Sequence[float], shape: Sequence[int]) -> None:
    """Raise InputRefused unless `index`, where `what` is, lies in a volume (I, J, K) or a picture (W, H)."""
    if is_inside(index, shape):
        return
    where = ", ".join(f"{v:g}" for v in index)
    sides = by(shape)
    if len(shape) == 3:
        raise InputRefused(
            "click-outside",
            f"{what} ({where}) lies outside the volume of {sides} voxels",
            "give indices of the scan's own array, counted from 0, or world millimetres with {world}",
            options=("world",),
        )
    raise InputRefused(
        "click-outside",
        f"{what} ({where}) lies outside the picture of {sides} pixels",
        "give pixels as column, row, counted from 0 at the upper left",
    )
