"""The simulated reader: what is segmented in a scan, what is said about it click by click, and where it is judged.

Three policies. `trained` prompts as the method learnt to be prompted: in volumes one uniform voxel of the error, on
slices the first prompt of the recipe (a box or a point for each component) and then, where the recipe has error
rounds, one uniform pixel of the error with the mask before as mask prompt. `centre` is deterministic: the middle of the
largest error, again and again, on slices with the mask before, too. `automatic` gives no prompt.

All chance comes from generators seeded by the case and the click, so every backend meets the same reader. A method of
slices is prompted, and judged, on one slice of a volume: the one with most of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.clicks import central_click, deepest_error, next_click
from samkit.errors import InputRefused
from samkit.methods import Method, SliceMethod
from samkit.methods.method import SliceRecipe
from samkit.planes import PlaneView
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, Prompt, SliceBox, SlicePoint
from samkit.training.slice_prompts import components, error_points, jittered_box, random_point, shifted_box

if TYPE_CHECKING:
    from samkit.benchmarks.cases.case import Case

TRAINED, CENTRE, AUTOMATIC = "trained", "centre", "automatic"
POLICIES = (TRAINED, CENTRE, AUTOMATIC)
SEED = 2024
"""What the reader's chance begins with."""


@dataclass(frozen=True)
class Plane:
    """One slice of a volume."""

    view: PlaneView
    number: int
    """As the view counts them."""

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the slice (H, W) of an array of the volume."""
        return np.ascontiguousarray(self.view.slices(array)[self.number])

    def voxel(self, x: float, y: float) -> tuple[float, float, float]:
        """Return the voxel index of a pixel: the inverse of `PlaneView.to_slices`."""
        index = [0.0, 0.0, 0.0]
        for axis, is_flipped, place in zip(self.view.axes, self.view.flipped, (self.number, y, x), strict=True):
            index[axis] = self.view.file_shape[axis] - 1 - place if is_flipped else float(place)
        return index[0], index[1], index[2]


@dataclass(frozen=True)
class Task:
    """One case by one policy: what is to be found, and where it is judged."""

    number: int
    """Of the case; what chance is seeded with."""
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
    """How a method of slices was trained."""
    plane: Plane | None = None
    """The slice that is prompted and judged; None for all of a volume or a picture."""

    @property
    def target(self) -> np.ndarray:
        """Return the truth that a reader clicks on."""
        return self.targets[self.structure]

    def region(self, array: np.ndarray) -> np.ndarray:
        """Return of an array of the case what is judged."""
        return array if self.plane is None else self.plane.of(array)

    def mask(self, labels: np.ndarray, name: str) -> np.ndarray:
        """Return the mask of one of `labels` in a region's label map."""
        found: np.ndarray = labels == self.labels[name] if name else labels > 0
        return found

    def called(self, name: str, case: str) -> str:
        """Return what reports call one thing that is judged in a case."""
        return f"{case}, {name}" if name else case


@dataclass(frozen=True)
class Question:
    """What a reader says at once."""

    prompts: tuple[Prompt, ...]
    """Empty: the method decides by itself."""
    refine: bool = False
    """Whether the mask before goes in, too."""


def policies_of(method: Method, recipe: SliceRecipe | None) -> tuple[str, ...]:
    """Return the policies that make sense for a method."""
    if not isinstance(method, SliceMethod):
        return (TRAINED, CENTRE)
    is_prompted = recipe is not None and "none" not in recipe.prompts
    found = (TRAINED, CENTRE) if is_prompted else (CENTRE,)
    return (*(found if method.prompts else ()), *((AUTOMATIC,) if method.is_automatic else ()))


def recipe_of(method: Method, size: str | None) -> SliceRecipe | None:
    """Return how networks of that size are trained, of a method of slices; where nobody knows, as the paper does."""
    recipes = [recipe for recipe in method.recipes.values() if isinstance(recipe, SliceRecipe)]
    return next((recipe for recipe in recipes if recipe.size == size), recipes[0] if recipes else None)


def make_task(number: int, case: Case, policy: str, method: Method, config: Any, size: str | None) -> Task:
    """Return what one policy does with a case; raises InputRefused where there is nothing to prompt."""
    recipe = recipe_of(method, size)
    structures = method.structures(config) if isinstance(method, SliceMethod) else ()
    labels = {name: value for value, name in enumerate(structures, start=1)} or {"": 1}
    targets = dict(case.targets)
    if policy == AUTOMATIC or not isinstance(method, SliceMethod):
        spacing = tuple(float(edge) for edge in case.spacing_mm)
        return Task(number, case, policy, "", labels, targets, spacing, recipe)
    # Of many structures the largest alone is clicked on: each one would cost as much as all of an automatic pass
    structure = max(targets, key=lambda name: int(targets[name].sum()))
    target = targets[structure]
    if not target.any():
        raise InputRefused("no-target", f"{case.name} has nothing to prompt", "leave it out, or name another label")
    label = {structure: labels[structure]}
    if case.picture is not None:
        spacing = tuple(float(edge) for edge in case.spacing_mm)
        return Task(number, case, policy, structure, label, {structure: target}, spacing, recipe)
    i, j, k = target.shape
    view = PlaneView.of((i, j, k), next(iter(case.volumes.values())).affine, method.plane)
    plane = Plane(view, int(view.slices(target).sum(axis=(1, 2)).argmax()))
    return Task(number, case, policy, structure, label, {structure: plane.of(target)}, view.pixel_mm, recipe, plane)


def questions_at_most(task: Task, clicks: int) -> int:
    """Return how many times a reader speaks: once where prompting again was never learnt."""
    if task.policy == AUTOMATIC:
        return 1
    is_refined = task.recipe is None or task.recipe.error_rounds > 0
    return clicks if task.policy == CENTRE or is_refined else 1


def ask(task: Task, click: int, prediction: np.ndarray) -> Question | None:
    """Return what a reader says at a click (1 and on) on seeing the mask of the target's structure so far.

    None where nothing is left to say.
    """
    if task.policy == AUTOMATIC:
        return Question(())
    target, rng = task.target, np.random.default_rng((SEED, task.number, click))
    if target.ndim == 3:
        point = central_click(prediction, target) if task.policy == CENTRE else next_click(prediction, target, rng)
        return None if point is None else Question((point,))
    if task.policy == TRAINED and click == 1:
        return Question(tuple(_first_prompts(task, rng)))
    place = deepest_error(prediction, target)
    if place is None:
        return None
    y, x = place
    if task.policy == TRAINED:
        places, _ = error_points(prediction, target, rng, 1)
        x, y = (int(at) for at in places[0])
    label = FOREGROUND if target[y, x] else BACKGROUND
    return Question(
        (_in_scan(task, SlicePoint(float(x), float(y), label, task.structure)),), refine=task.policy == TRAINED
    )


def _first_prompts(task: Task, rng: np.random.Generator) -> Iterator[Prompt]:
    """Yield the recipe's prompt for each component of the target, one of its kinds drawn for all."""
    recipe = task.recipe or SliceRecipe(size="full", epochs=0, batch=1)
    kind = recipe.prompts[int(rng.integers(len(recipe.prompts)))]
    for part in components(task.target) or [task.target]:
        if kind == "point":
            places, _ = random_point(part, rng)
            x, y = (float(at) for at in places[0])
            yield _in_scan(task, SlicePoint(x, y, FOREGROUND, task.structure))
            continue
        box = jittered_box(part, rng, recipe.box_jitter) if kind == "box" else shifted_box(part, rng)
        height, width = part.shape
        x0, y0, x1, y1 = (float(at) for at in np.clip(box, 0, (width - 1, height - 1, width - 1, height - 1)))
        yield _in_scan(task, SliceBox(x0, y0, x1, y1, task.structure))


def _in_scan(task: Task, prompt: SlicePoint | SliceBox) -> Prompt:
    """Return a prompt on the slice as a session on the scan takes it."""
    if task.plane is None:
        return prompt
    if isinstance(prompt, SlicePoint):
        return Point(task.plane.voxel(prompt.x, prompt.y), prompt.label, prompt.structure)
    return Box(task.plane.voxel(prompt.x0, prompt.y0), task.plane.voxel(prompt.x1, prompt.y1), prompt.structure)


# --- Sessions ---


def set_scan(session: Any, case: Case) -> None:
    """Give a session the case, whose clicks and embeddings start anew."""
    image = dict(case.volumes) if case.picture is None else case.picture
    session.set_image(image, automatic=False)


def answer(session: Any, task: Task, question: Question) -> np.ndarray:
    """Let a session answer, and return the label map (uint8) of what is judged."""
    if not question.prompts:
        session.segment_automatically()
    elif task.target.ndim == 3:
        for prompt in question.prompts:
            session.add(prompt)
    else:
        _add(session, question)
    return task.region(session.labels())


def _add(session: Any, question: Question) -> None:
    """Add prompts on a slice, with the mask before where that fits them."""
    try:
        session.add(*question.prompts, refine=question.refine)
    except InputRefused as error:
        # A point beside all boxes is one more object, which the masks before do not have. That follows from the
        # prompts alone, so every backend takes this way at the same click.
        if error.code != "mask-prompt":
            raise
        session.add(*question.prompts)
