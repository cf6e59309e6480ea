"""Parity of a `SliceMethod`: its own answers to every kind of prompt it takes, on slices of phantoms.

The method's record runs as in a session, once on the PyTorch originals and once on the exported graphs, whose every
output is compared with the one recorded at the same place; so errors may build up as they would in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from samkit.errors import ParityError
from samkit.export.absent_points import absent_error
from samkit.export.calibration import CalibrationScan
from samkit.export.parity import AbsentFinding, Finding, MaskFinding, RewriteFinding, RunFinding
from samkit.geometry import Volume
from samkit.intensities import scale_intensities
from samkit.manifest import ExportPlan
from samkit.methods import SliceMethod
from samkit.methods._slices import NO_MASK
from samkit.methods.method import Answer
from samkit.phantoms import SEQUENCES, make_phantom
from samkit.placement import Placement
from samkit.planes import PlaneView, Window
from samkit.prompts import BACKGROUND, FOREGROUND, SliceBox, SlicePoint, SlicePrompts
from samkit.runtime.backends.runner import Runner, SubstituteRunner
from samkit.tensors import Tensor

_PLAIN = "mask_decoder"
_SHAPE = (72, 80, 72)
"""Voxels of the phantom, along its axes."""
_SPACING_MM = 2.5

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
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
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
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
    runners: Mapping[str, Runner],
    method: SliceMethod,
    plan: ExportPlan,
    phantoms: int,
    subjects: Sequence[CalibrationScan] = (),
) -> list[Reference]:
    """Return what `runners`, the PyTorch originals, answer on so many `phantoms` and then on `subjects`."""
    cases = [_phantom_slice(method, plan, seed) for seed in range(phantoms)]
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
        references.append(Reference(image, prompts, tuple(runs), labels))
    return references


def new_figures(
    runners: Mapping[str, Runner], references: Sequence[Reference], plan: ExportPlan
) -> dict[str, dict[str, Any]]:
    """Return the figures of each graph before anything was found."""
    figures: dict[str, dict[str, Any]] = {
        graph.name: {"relative_error": 0.0, "cases": len(references)} for graph in plan.specs
    }
    for name in _decoders(runners):
        figures[name] |= {"dice": 1.0, "hd95": 0.0, "voxels": 0, "prompts": len(references[0].prompts)}
    return figures


def findings(
    runners: Mapping[str, Runner],
    alone: Mapping[str, Runner],
    references: Sequence[Reference],
    method: SliceMethod,
    plan: ExportPlan,
) -> Iterator[Finding]:
    """Yield what `runners` answer, beside what is expected.

    Every decoder answers all prompts: first as in a session, then `mask_decoder` by the runners of upstream's
    formulation `alone`, which clients may use for everything.
    """
    decoders = _decoders(runners)
    for case, reference in enumerate(references):
        run = _Runs(runners, reference.runs, f"case {case}")
        if method.propose is not None:
            method.propose(run, reference.image, plan.config)
            yield from run.news()
        embeddings, placement = _encode(run, reference.image, method, plan)
        yield from run.news()
        steps = reference.runs[len(run.outputs) :]
        sooner: list[Outputs] = []
        for name in decoders:
            run = _Runs(runners if name == NO_MASK else alone, steps, f"case {case}")
            for number, answer in enumerate(_answers(run, embeddings, placement, reference.prompts, method, plan)):
                yield from run.news()
                yield MaskFinding(name, f"case {case}, prompt {number + 1}", answer.labels, reference.labels[number])
            for (graph, _), without, blank in zip(steps, sooner, run.outputs, strict=True) if sooner else ():
                if graph == NO_MASK:
                    yield RewriteFinding(graph, f"case {case}", without, blank)
            sooner = run.outputs
    for name in decoders if method.prompts else ():
        yield AbsentFinding(name, _absent_error(runners[name], references[0], plan))


def _decoders(runners: Mapping[str, Runner]) -> list[str]:
    """Return the decoders, in the order in which they answer; those of fast forms may be run by another."""
    return [name for name in (NO_MASK, _PLAIN) if name in runners]


class _Runs:
    """Runs graphs as a record asks for them, keeps what comes out, and pairs it with what is expected there."""

    def __init__(self, runners: Mapping[str, Runner], expected: Sequence[tuple[str, Outputs]], where: str) -> None:
        """Pair with the outputs of `expected`, in order; a finding has the name of the graph that really ran."""
        self._runners, self._expected, self._where = runners, expected, where
        self.outputs: list[Outputs] = []
        self._news: list[RunFinding] = []

    def __call__(self, graph: str, feed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        runner = self._runners[graph]
        outputs = runner.run(feed)
        ran = runner.other if isinstance(runner, SubstituteRunner) else runner
        self._news.append(RunFinding(ran.graph.name, self._where, outputs, self._expected[len(self.outputs)][1]))
        self.outputs.append(outputs)
        return outputs

    def news(self) -> list[RunFinding]:
        """Return the runs since the last call of this."""
        news, self._news = self._news, []
        return news


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


def _subject_slice(method: SliceMethod, plan: ExportPlan, subject: CalibrationScan) -> tuple[np.ndarray, np.ndarray]:
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
    view = PlaneView.chosen((i, j, k), volumes[0].affine, None, method.plane)
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
    return view.slices(scale_intensities(volume.array, "the scan")[0])[number]


def _absent_error(decoder: Runner, reference: Reference, plan: ExportPlan) -> float:
    graphs = {graph.name: graph for graph in plan.specs}
    embeddings = next(outputs for name, outputs in reference.runs if name == "image_encoder")["image_embeddings"]
    feed = {"image_embeddings": embeddings}
    shapes = {tensor.name: tensor.shape for tensor in decoder.graph.inputs}
    feed |= {name: np.zeros(shapes[name], np.float32) for name in ("mask_input", "has_mask_input") if name in shapes}
    side = graphs["image_encoder"].inputs[0].shape[-1]
    coords = np.array([[0.4 * side, 0.5 * side], [0.7 * side, 0.3 * side]], np.float32)
    return absent_error(decoder, feed, coords, np.array([1.0, 0.0]))


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
