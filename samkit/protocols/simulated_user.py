"""The simulated reader: what is segmented in a case, what is prompted click by click, and where it is judged.

Three policies. `trained` prompts as the method learnt to be prompted: in volumes one uniform voxel of the error, on
slices the first prompt of the recipe (a box or a point for each component) and then, where the recipe has error
rounds, one uniform pixel of the error with the mask before as mask prompt. `centre` is deterministic: the middle of the
largest error, again and again. `automatic` gives no prompt. A method of slices is prompted, and judged, on one slice of
a volume: the one with most of the target. All chance is seeded by case and click: every backend meets the same reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.clicks import central_click, deepest_error, next_click
from samkit.errors import InputRefused
from samkit.methods import Method, SliceMethod
from samkit.methods.method import SliceRecipe
from samkit.planes import PlaneView
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, Prompt, SliceBox, SlicePoint
from samkit.protocols.case import Case
from samkit.training.slice_prompts import components, error_points, jittered_box, random_point, shifted_box

if TYPE_CHECKING:
    from samkit.runtime.session.base import Session

TRAINED, CENTRE, AUTOMATIC = "trained", "centre", "automatic"
POLICIES = (TRAINED, CENTRE, AUTOMATIC)
SEED = 2024


def policies_of(method: Method, size: str | None) -> tuple[str, ...]:
    """Return the policies that make sense for a method's network of that size."""
    recipe = _recipe_of(method, size)
    learnt = not isinstance(method, SliceMethod) or (recipe is not None and "none" not in recipe.prompts)
    is_prompted = bool(method.prompts)
    fits = {TRAINED: is_prompted and learnt, CENTRE: is_prompted, AUTOMATIC: method.is_automatic}
    return tuple(policy for policy in POLICIES if fits[policy])


def _recipe_of(method: Method, size: str | None) -> SliceRecipe | None:
    """Return how networks of that size are trained, of a method of slices; where nobody knows, as the paper does."""
    recipes = [recipe for recipe in method.recipes.values() if isinstance(recipe, SliceRecipe)]
    return next((recipe for recipe in recipes if recipe.size == size), recipes[0] if recipes else None)


@dataclass(frozen=True)
class Prompting:
    """What a reader gives a session at once."""

    prompts: tuple[Prompt, ...]
    """Empty: the method segments by itself."""
    refine: bool = False
    """Whether the mask before goes in, too."""


@dataclass(frozen=True)
class SimulatedUser:
    """A reader with one case before them, by one policy: what is to be found, and where it is judged."""

    case: Case
    policy: str
    structure: str
    """The structure that prompts speak of; empty where the method tells none apart, or is not prompted."""
    labels: Mapping[str, int]
    """What is judged, by name: the value of its label in a session's answer."""
    targets: Mapping[str, np.ndarray]
    """The truth of those that have one, bool, on the region that is judged."""
    spacing_mm: tuple[float, ...]
    """Edge of a voxel or pixel of that region, along its axes."""
    recipe: SliceRecipe | None
    number: int
    """Of the case; what chance is seeded with."""
    view: PlaneView | None = None
    """Which way a volume is sliced, of which one slice is prompted and judged; None for all of a volume or picture."""
    place: int = 0
    """Of that slice, as the view counts them."""

    @classmethod
    def of(
        cls, case: Case, policy: str, method: Method, config: Any, size: str | None, number: int = 0
    ) -> SimulatedUser:
        """Return who works on a case by one policy; raises InputRefused where there is nothing to prompt."""
        labels = {name: value for value, name in enumerate(method.structures(config), start=1)} or {"": 1}
        recipe = _recipe_of(method, size)
        user = cls(case, policy, "", labels, case.targets, case.spacing_mm, recipe, number)
        if policy == AUTOMATIC or not isinstance(method, SliceMethod):
            return user
        # Of many structures the largest alone is clicked on: each one would cost as much as all of an automatic pass
        structure = max(case.targets, key=lambda name: int(case.targets[name].sum()))
        target = case.targets[structure]
        if not target.any():
            raise InputRefused("no-target", f"{case.name} has nothing to prompt", "leave it out, or name another label")
        if case.picture is None:
            view = case.view(case.plane or method.plane)
            place = int(view.slices(target).sum(axis=(1, 2)).argmax())
            user = replace(user, view=view, place=place, spacing_mm=view.pixel_mm)
        judged = {structure: user.region(target)}
        return replace(user, structure=structure, labels={structure: labels[structure]}, targets=judged)

    @property
    def target(self) -> np.ndarray:
        """Return the truth that a reader clicks on."""
        return self.targets[self.structure]

    def region(self, array: np.ndarray) -> np.ndarray:
        """Return of an array of the case what is judged."""
        return array if self.view is None else np.ascontiguousarray(self.view.slices(array)[self.place])

    def masks(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the mask of each of `labels` in a region's label map."""
        return {name: labels == value if name else labels > 0 for name, value in self.labels.items()}

    def called(self, name: str) -> str:
        """Return what reports call one thing that is judged."""
        return f"{self.case.name}, {name}" if name else self.case.name

    def most_clicks(self, clicks: int) -> int:
        """Return how many of `clicks` a reader makes at most: one where prompting again was never learnt."""
        is_refined = self.recipe is None or self.recipe.error_rounds > 0
        return clicks if self.policy == CENTRE or (self.policy == TRAINED and is_refined) else 1

    def click_on(self, session: Session, clicks: int) -> Iterator[tuple[int, Prompting, np.ndarray]]:
        """Click on a session's own errors: yield the click, from 1, what was prompted, and the region's label map."""
        labels = np.zeros(next(iter(self.targets.values())).shape, np.uint8)
        for click in range(1, self.most_clicks(clicks) + 1):
            if (prompting := self.prompt(click, labels)) is None:
                return
            labels = self.apply(prompting, session)
            yield click, prompting, labels

    def prompt(self, click: int, labels: np.ndarray) -> Prompting | None:
        """Return what is prompted at a click, from 1, on seeing the region's label map so far; None if all is right."""
        if self.policy == AUTOMATIC:
            return Prompting(())
        target, rng = self.target, np.random.default_rng((SEED, self.number, click))
        found = self.masks(labels)[self.structure]
        if target.ndim == 3:
            point = central_click(found, target) if self.policy == CENTRE else next_click(found, target, rng)
            return None if point is None else Prompting((point,))
        if self.policy == TRAINED and click == 1:
            return Prompting(tuple(self._in_case(prompt) for prompt in self._first_prompts(rng)))
        if (place := deepest_error(found, target)) is None:
            return None
        y, x = place
        if self.policy == TRAINED:
            places, _ = error_points(found, target, rng, 1)
            x, y = (int(at) for at in places[0])
        point_there = SlicePoint(float(x), float(y), FOREGROUND if target[y, x] else BACKGROUND, self.structure)
        return Prompting((self._in_case(point_there),), refine=self.policy == TRAINED)

    def _first_prompts(self, rng: np.random.Generator) -> Iterator[SlicePoint | SliceBox]:
        """Yield the recipe's prompt for each component of the target, one of its kinds drawn for all."""
        recipe = self.recipe or SliceRecipe(size="full", epochs=0, batch=1)
        kind = recipe.prompts[int(rng.integers(len(recipe.prompts)))]
        for part in components(self.target) or [self.target]:
            if kind == "point":
                places, _ = random_point(part, rng)
                x, y = map(float, places[0])
                yield SlicePoint(x, y, FOREGROUND, self.structure)
            else:
                box = jittered_box(part, rng, recipe.box_jitter) if kind == "box" else shifted_box(part, rng)
                x0, y0, x1, y1 = map(float, np.clip(box, 0, np.subtract(part.shape, 1)[[1, 0, 1, 0]]))
                yield SliceBox(x0, y0, x1, y1, self.structure)

    def _in_case(self, prompt: SlicePoint | SliceBox) -> Prompt:
        """Return a prompt on the region as a session on the case takes it."""
        if self.view is None:
            return prompt
        to_voxel = partial(self.view.to_voxel, self.place)
        if isinstance(prompt, SlicePoint):
            return Point(to_voxel(prompt.x, prompt.y), prompt.label, prompt.structure)
        return Box(to_voxel(prompt.x0, prompt.y0), to_voxel(prompt.x1, prompt.y1), prompt.structure)

    def apply(self, prompting: Prompting, session: Session) -> np.ndarray:
        """Let a session answer, and return the label map (uint8) of what is judged."""
        try:
            if prompting.prompts:
                session.add(*prompting.prompts, refine=prompting.refine)
            else:
                session.segment_automatically()
        except InputRefused as error:
            # A point beside all boxes is one more object, which the masks before do not have. That follows from the
            # prompts alone, so every backend takes this way at the same click.
            if error.code != "mask-prompt":
                raise
            session.add(*prompting.prompts)
        return self.region(session.labels())
