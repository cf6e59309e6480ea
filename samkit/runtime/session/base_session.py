"""BaseSession: what every session is, whatever its method: open runners, a history with undo, and an end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from samkit.errors import InputRefused, ManifestError, PromptError
from samkit.manifest import Manifest
from samkit.runtime.backends.runner import Closing, Runner
from samkit.runtime.session.interactive import Interactive
from samkit.runtime.session.updates import MaskUpdate

StateT = TypeVar("StateT")
StepT = TypeVar("StepT")

_ROUND_OFF = 1e-3
"""Voxels that a click may lie outside the volume: world coordinates come with round-off."""


class BaseSession(Interactive, Closing, Generic[StateT, StepT]):
    """A method's runners and the history of steps; states are never changed in place, so undo is exact."""

    def __init__(self, runners: Mapping[str, Runner], precision: str, manifest: Manifest | None) -> None:
        """Take over `runners`, one per graph, of the export that `manifest` describes, if it is one."""
        self.precision = precision
        self._manifest = manifest
        self._warnings: tuple[str, ...] = ()
        self._runners = dict(runners)
        self._done: list[tuple[StateT, StepT]] = []
        self._undone: list[tuple[StateT, StepT]] = []
        self._before: StateT | None = None

    # --- History ---

    def _add(self, state: StateT, step: StepT) -> StepT:
        """Make `state` the present one."""
        self._before = self.now
        self._done.append((state, step))
        self._undone.clear()
        return step

    def undo(self) -> MaskUpdate:
        """Take the last step back; the mask is bit for bit what it was before it."""
        if not self._done:
            raise PromptError("there is no click to undo; add one first")
        self._before = self.now
        self._undone.append(self._done.pop())
        return self.last_update()

    def redo(self) -> MaskUpdate:
        """Take the last undo back."""
        if not self._undone:
            raise PromptError("there is no undone click; redo works right after undo")
        self._before = self.now
        self._done.append(self._undone.pop())
        return self.last_update()

    def reset(self) -> MaskUpdate:
        """Forget all prompts; the volume and its embeddings stay."""
        self._before = self.now
        self._done.clear()
        self._undone.clear()
        return self.last_update()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Leave the history exactly as it was, undone steps included, if what is done inside fails."""
        done, undone, before = list(self._done), list(self._undone), self._before
        try:
            yield
        except BaseException:
            self._done, self._undone, self._before = done, undone, before
            raise

    @property
    def now(self) -> StateT | None:
        """Return the present state; None before the first step."""
        return self._done[-1][0] if self._done else None

    def update_since(self, before: StateT | None) -> MaskUpdate:
        """Return the present mask and what differs from the mask of the state `before`."""
        raise NotImplementedError

    def last_update(self) -> MaskUpdate:
        """Return the present mask and what the last call changed; raises PromptError where no volume is set."""
        return self.update_since(self._before)

    @property
    def steps(self) -> tuple[StepT, ...]:
        """Return what the steps did, in order."""
        return tuple(step for _, step in self._done)

    # --- Life ---

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
            warnings.append("DEMONSTRATION WEIGHTS, trained on phantoms to show the tool at work: never for patients")
        if any(weights.kind == "random" for weights in (plan.weights, *plan.others.values())):
            warnings.append("RANDOM WEIGHTS, for timing and tests: the mask means nothing")
        return tuple(warnings)

    def warn(self, *sentences: str) -> None:
        """Add to the warnings: the backend's, which no manifest knows."""
        self._warnings += sentences

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what really runs it."""
        return {name: runner.providers for name, runner in self._runners.items()}

    def close(self) -> None:
        """Let go of runners and history."""
        for runner in self._runners.values():
            runner.close()
        self._forget()

    def _forget(self) -> None:
        """Drop all steps, and what is known of the image."""
        self._affine = None
        self._done.clear()
        self._undone.clear()
        self._before = None


def check_inside(what: str, index: Sequence[float], shape: Sequence[int]) -> None:
    """Raise InputRefused unless `index`, where `what` is, lies in a volume (I, J, K) or a picture (W, H)."""
    if all(-0.5 - _ROUND_OFF <= v <= n - 0.5 + _ROUND_OFF for v, n in zip(index, shape, strict=True)):
        return
    kind, unit = ("volume", "voxels") if len(shape) == 3 else ("picture", "pixels")
    where = ", ".join(f"{v:g}" for v in index)
    raise InputRefused(
        "click-outside",
        f"{what} ({where}) lies outside the {kind} of {' x '.join(str(n) for n in shape)} {unit}",
        "give indices of the file's own array, counted from 0, or world millimetres with --world"
        if kind == "volume"
        else "give pixels as column, row, counted from 0 at the upper left",
    )
