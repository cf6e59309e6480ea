"""Parity of a `SliceMethod`: its own answers to every kind of prompt it takes, on slices of phantoms.

The method's record runs as in a session, once on the PyTorch originals and once on the exported graphs, whose every
output is compared with the one recorded at the same place; so errors may build up as they would in use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from samkit.errors import ParityError
from samkit.export.parity import CASES, check_absent_points, compare_masks, compare_outputs, output_error
from samkit.export.subjects import Subject
from samkit.geometry import Volume
from samkit.manifest import ExportPlan
from samkit.methods import GraphSpec, SliceMethod
from samkit.methods._slices import NO_MASK
from samkit.methods.method import Answer
from samkit.phantoms import SEQUENCES, make_phantom
from samkit.placement import Placement
from samkit.planes import PlaneView, Window, scale_intensities
from samkit.precisions import BASE
from samkit.prompts import BACKGROUND, FOREGROUND, SliceBox, SlicePoint, SlicePrompts
from samkit.runtime.backends.runner import Runner, SubstituteRunner, add_substitutes
from samkit.tensors import Tensor

_SHAPE = (72, 80, 72)
"""Voxels of the phantom, along its axes."""
_SPACING_MM = 2.5

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SliceReference:
    """One slice of a phantom, what was asked of it, and what PyTorch float32 answered."""

    image: np.ndarray
    """(H, W, C) intensities, 0..255."""
    prompts: tuple[SlicePrompts, ...]
    """Asked one after the other; one with a mask prompt holds an empty `low_res` and gets the answer's before it."""
    runs: tuple[tuple[str, Outputs], ...]
    """The graph's name and its outputs, for every graph that ran, in order."""
    labels: np.ndarray
    """(prompts, H, W) uint8: the answers."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what parity.npz holds of this case."""
        arrays = {"image": self.image, "labels": self.labels, "prompts": np.array(json.dumps(_plain(self.prompts)))}
        for number, (graph, outputs) in enumerate(self.runs):
            arrays |= {f"{number}.{graph}.{name}": value for name, value in outputs.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SliceReference:
        """Return the case that `to_arrays` wrote; KeyError where something is missing."""
        runs: dict[int, tuple[str, dict[str, np.ndarray]]] = {}
        for key, value in arrays.items():
            if key.count(".") == 2:
                number, graph, name = key.split(".")
                runs.setdefault(int(number), (graph, {}))[1][name] = value
        prompts = tuple(_prompts(entry) for entry in json.loads(str(arrays["prompts"])))
        return cls(arrays["image"], prompts, tuple(runs[number] for number in sorted(runs)), arrays["labels"])

    def network_input(self, method: SliceMethod, config: Any) -> np.ndarray:
        """Return what the image encoder is given, (1, C, S, S)."""
        return method.preprocess(self.image, config)[0][None]


def make_references(
    runners: Mapping[str, Runner], method: SliceMethod, plan: ExportPlan, subjects: Sequence[Subject] = ()
) -> list[SliceReference]:
    """Return what `runners`, the PyTorch originals, answer on phantoms and then on `subjects`."""
    cases = [_phantom_slice(method, plan, seed) for seed in range(CASES)]
    cases += [_subject_slice(method, plan, subject) for subject in subjects]
    side = next(graph for graph in plan.specs if graph.name == "image_encoder").inputs[0].shape[-1]
    cases = [_on_networks_grid(image, target, side) for image, target in cases]
    references = []
    for image, target in cases:
        runs: list[tuple[str, Outputs]] = []

        def run(graph: str, feed: Mapping[str, Tensor], runs: list[tuple[str, Outputs]] = runs) -> dict[str, Any]:
            outputs = runners[graph].run(feed)
            runs.append((graph, outputs))
            return outputs

        if method.propose is not None:
            method.propose(run, image, plan.config)
        embeddings, placement = _encode(run, image, method, plan)
        prompts = tuple(_questions(method, plan, target))
        answers = list(_answers(run, embeddings, placement, prompts, method, plan))
        labels = np.stack([answer.labels for answer in answers])
        references.append(SliceReference(image, prompts, tuple(runs), labels))
    return references


def check_parity(
    runners: Mapping[str, Runner],
    references: list[SliceReference],
    method: SliceMethod,
    plan: ExportPlan,
    precision: str,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each graph; raises ParityError naming the first output that moved too far."""
    graphs = {graph.name: graph for graph in plan.specs}
    figures: dict[str, dict[str, Any]] = {name: {"relative_error": 0.0, "cases": len(references)} for name in graphs}
    decoders = _decoders(runners, method, plan)
    for name in decoders:
        figures[name] |= {"dice": 1.0, "hd95": 0.0, "voxels": 0, "prompts": len(references[0].prompts)}
    for case, reference in enumerate(references):

        def compare(graph: str, outputs: Outputs, expected: Outputs, where: str = f"case {case}") -> None:
            compare_outputs(outputs, expected, graphs[graph], precision, where, figures[graph])

        run = _ComparedRuns(runners, reference.runs, compare)
        if method.propose is not None:
            method.propose(run, reference.image, plan.config)
        embeddings, placement = _encode(run, reference.image, method, plan)
        steps = reference.runs[len(run.outputs) :]
        sooner: list[Outputs] = []
        for name, used in decoders.items():
            run = _ComparedRuns(used, steps, compare)
            for number, answer in enumerate(_answers(run, embeddings, placement, reference.prompts, method, plan)):
                where = f"{name} ({precision}), case {case}, prompt {number + 1}"
                tolerance = graphs[name].tolerance[precision]
                compare_masks(answer.labels, reference.labels[number], tolerance, where, figures[name])
            for (graph, _), without, blank in zip(steps, sooner, run.outputs, strict=True) if sooner else ():
                if graph == NO_MASK:
                    _compare_decoders(without, blank, graphs[graph], precision, f"case {case}", figures[graph])
            sooner = run.outputs
    for name in decoders if method.prompts else ():
        figures[name]["absent_points"] = _check_absent_points(runners[name], references[0], plan, precision)
    return figures


def _decoders(runners: Mapping[str, Runner], method: SliceMethod, plan: ExportPlan) -> dict[str, dict[str, Runner]]:
    """Return with which runners every decoder answers all prompts: first as a session does, then `mask_decoder` alone,
    which clients may use for everything.
    """
    alone = {name: runner for name, runner in runners.items() if name != NO_MASK}
    add_substitutes(alone, method.graphs(plan.config))
    return ({NO_MASK: dict(runners)} if NO_MASK in runners else {}) | {"mask_decoder": alone}


class _ComparedRuns:
    """Runs graphs as a record asks for them; compares what comes out with what is expected there, and keeps it."""

    def __init__(
        self,
        runners: Mapping[str, Runner],
        expected: Sequence[tuple[str, Outputs]],
        compare: Callable[[str, Outputs, Outputs], None],
    ) -> None:
        """Compare with the outputs of `expected`, in order; `compare` gets the name of the graph that really ran."""
        self._runners, self._expected, self._compare = runners, expected, compare
        self.outputs: list[Outputs] = []

    def __call__(self, graph: str, feed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        runner = self._runners[graph]
        outputs = runner.run(feed)
        ran = runner.other if isinstance(runner, SubstituteRunner) else runner
        self._compare(ran.graph.name, outputs, self._expected[len(self.outputs)][1])
        self.outputs.append(outputs)
        return outputs


def _compare_decoders(
    without: Outputs, blank: Outputs, graph: GraphSpec, precision: str, where: str, figures: dict[str, Any]
) -> None:
    """Add to `figures` how far the decoder without masks is from the one given none; ParityError beyond tolerance."""
    for name, expected in blank.items():
        error = output_error(name, without[name], expected)
        figures["no_mask"] = max(figures.get("no_mask", 0.0), error)
        # `not <=`, because nan must fail
        if not error <= graph.tolerance[precision].relative:
            raise ParityError(
                f"{graph.name} ({precision}), {name}, {where}: relative difference {error:.1e} from mask_decoder "
                f"without a mask, at most {graph.tolerance[precision].relative:.0e} is allowed; "
                f"export in {BASE.name}, or report this checkpoint"
            )


def _encode(run: Any, image: np.ndarray, method: SliceMethod, plan: ExportPlan) -> tuple[np.ndarray, Placement]:
    tensor, placement = method.preprocess(image, plan.config)
    return run("image_encoder", {"image": tensor[None]})["image_embeddings"], placement


def _answers(
    run: Any,
    embeddings: np.ndarray,
    placement: Placement,
    questions: tuple[SlicePrompts, ...],
    method: SliceMethod,
    plan: ExportPlan,
) -> Iterator[Answer]:
    """Yield the answers in turn; a question with a mask prompt gets the logits of the answer before it."""
    before: np.ndarray | None = None
    for question in questions:
        asked = question if question.low_res is None else replace(question, low_res=before)
        answer = method.answer(run, embeddings, placement, asked, plan.config)
        before = answer.low_res
        yield answer


def _questions(method: SliceMethod, plan: ExportPlan, target: np.ndarray) -> Iterator[SlicePrompts]:
    """Yield one of each kind of prompt that the method takes, on the target (H, W)."""
    if not method.prompts:
        yield SlicePrompts()
        return
    rows, columns = np.nonzero(target)
    structure = next(iter(method.structures(plan.config)), "")
    box = SliceBox(columns.min(), rows.min(), columns.max(), rows.max(), structure)
    middle = len(rows) // 2
    inside = SlicePoint(float(columns[middle]), float(rows[middle]), FOREGROUND, structure)
    beside = SlicePoint(float(columns.max() + 3), float(rows.min()), BACKGROUND, structure)
    if method.is_automatic and method.propose is None:
        yield SlicePrompts()
    if "box" in method.prompts:
        yield SlicePrompts(boxes=(box,))
        yield SlicePrompts(boxes=(box,), low_res=np.empty(0))
        other = replace(box, x0=box.x0 - 4.5, y1=box.y1 + 7.25)
        yield SlicePrompts(boxes=(box, other))
    if "point" in method.prompts:
        yield SlicePrompts(points=(inside,))
        yield SlicePrompts(points=(inside, beside))
        yield SlicePrompts(points=(inside, beside), low_res=np.empty(0))
    if {"box", "point"} <= method.prompts:
        yield SlicePrompts(points=(inside, beside), boxes=(box,))


def _phantom_slice(method: SliceMethod, plan: ExportPlan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the slice with most of a lesion, (H, W, C) 0..255, and the lesion there (H, W)."""
    sequences = SEQUENCES[: max(1, len(method.sequences(plan.config)))]
    phantom = make_phantom(seed, _SHAPE, _SPACING_MM, sequences=sequences)
    return _fullest_slice([phantom.sequences[name] for name in sequences], phantom.lesions == 1, method)


def _subject_slice(method: SliceMethod, plan: ExportPlan, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture as it is, or of a scan the slice with most of its target."""
    if subject.picture is not None:
        return subject.picture, subject.target
    names = method.sequences(plan.config) or tuple(subject.volumes)
    image, target = _fullest_slice([subject.volumes[name] for name in names], subject.target, method)
    wanted = method.window(plan.config)
    if wanted is None:
        return image, target
    window = Window.around(image.any(axis=2)[None], wanted)
    return window.cut(image), window.cut(target)


def _fullest_slice(volumes: Sequence[Volume], target: np.ndarray, method: SliceMethod) -> tuple[np.ndarray, np.ndarray]:
    i, j, k = target.shape
    view = PlaneView.of((i, j, k), volumes[0].affine, method.plane)
    targets = view.slices(target)
    number = int(targets.sum(axis=(1, 2)).argmax())
    if not targets[number].any():
        raise ParityError("there is nothing to prompt in a case of the parity check; leave that scan out")
    image = np.stack([_scaled_slice(volume, view, number) for volume in volumes], axis=2)
    return image, np.ascontiguousarray(targets[number])


def _on_networks_grid(image: np.ndarray, target: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return slice and target enlarged to the network's input, so that masks are compared pixel by pixel of it."""
    factor = side / max(target.shape)
    if factor <= 1:
        return image, target
    return ndimage.zoom(image, (factor, factor, 1), order=1), ndimage.zoom(target, factor, order=0)


def _scaled_slice(volume: Volume, view: PlaneView, number: int) -> np.ndarray:
    return view.slices(scale_intensities(volume.array, "the scan"))[number]


def _check_absent_points(decoder: Runner, reference: SliceReference, plan: ExportPlan, precision: str) -> float:
    graphs = {graph.name: graph for graph in plan.specs}
    embeddings = next(outputs for name, outputs in reference.runs if name == "image_encoder")["image_embeddings"]
    feed = {"image_embeddings": embeddings}
    shapes = {tensor.name: tensor.shape for tensor in decoder.graph.inputs}
    feed |= {name: np.zeros(shapes[name], np.float32) for name in ("mask_input", "has_mask_input") if name in shapes}
    side = graphs["image_encoder"].inputs[0].shape[-1]
    coords = np.array([[0.4 * side, 0.5 * side], [0.7 * side, 0.3 * side]], np.float32)
    return check_absent_points(decoder, feed, coords, np.array([1.0, 0.0]), precision)


def _plain(prompts: tuple[SlicePrompts, ...]) -> list[dict[str, Any]]:
    return [
        {
            "points": [[p.x, p.y, p.label, p.structure] for p in asked.points],
            "boxes": [[float(b.x0), float(b.y0), float(b.x1), float(b.y1), b.structure] for b in asked.boxes],
            "mask": asked.low_res is not None,
        }
        for asked in prompts
    ]


def _prompts(entry: dict[str, Any]) -> SlicePrompts:
    points = tuple(SlicePoint(*values) for values in entry["points"])
    boxes = tuple(SliceBox(*values) for values in entry["boxes"])
    return SlicePrompts(points, boxes, np.empty(0) if entry["mask"] else None)
