"""Networks that cost nothing behind real methods of both kinds, and Triton's Python backend without a Triton.

Every answer depends on the scan, on every prompt, and on the answer before, so that what is mixed up shows.
"""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import ndimage

from samkit.geometry import Volume
from samkit.manifest import Export, ExportPlan, Manifest, Weights
from samkit.methods import get_method
from samkit.methods.method import Answer, GraphSpec
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.placement import Placement
from samkit.prompts import FOREGROUND
from samkit.runtime.backends.runner import HostRunner, check_inputs
from samkit.runtime.protocol.requests import ScanOptions, read_request
from samkit.tensors import Axis, TensorSpec
from samkit.triton_models.limits import Limits
from samkit.triton_models.served import Served

PATCH = 32
CONFIG = Sam3DConfig(patch=PATCH, spacing=(1, 1, 1), channels=72, width=24, depth=1, heads=2, window=2, adapter="code")
VOLUMES = get_method("m-sam")
SHAPE = (40, 36, 44)


class Encoder(HostRunner):
    """Keeps the crop, averaged over each logit's cell, as its embedding. `before` is called with every image."""

    graph = VOLUMES.graphs(CONFIG)[0]
    providers = ("stand-in",)

    def __init__(self):
        self.calls = 0
        self.before = lambda image: None

    def run(self, inputs):
        check_inputs(self.graph, inputs)
        self.calls += 1
        self.before(inputs["image"])
        embeddings = np.zeros((1, 72, 2, 2, 2), np.float32)
        embeddings.reshape(-1)[:512] = inputs["image"].reshape(8, 4, 8, 4, 8, 4).mean(axis=(1, 3, 5)).reshape(-1)
        return {"image_embeddings": embeddings}


def grown(bright, inputs):
    """The mask of cells (8, 8, 8) after a click: what is bright and connected to it joins, or what lies beyond goes."""
    cell = tuple(np.floor((inputs["point_coords"][0, 0] + 0.5) / 4).astype(int).clip(0, 7))
    mask = inputs["mask_input"][0, 0] > 0
    if inputs["point_labels"][0, 0] == FOREGROUND:
        labels, _ = ndimage.label(bright)
        return mask | ((labels == labels[cell]) & bright)
    return mask & (np.indices((8, 8, 8))[0] < cell[0])


class Decoder(HostRunner):
    """Foreground: bright cells connected to the point, and what the mask prompt says. Background: takes off."""

    graph = VOLUMES.graphs(CONFIG)[1]
    providers = ("stand-in",)

    def run(self, inputs):
        check_inputs(self.graph, inputs)
        cells = inputs["image_embeddings"].reshape(-1)[:512].reshape(8, 8, 8)
        logits = np.where(grown(cells > 0, inputs), 5.0, -5.0) + cells / 8 + inputs["mask_input"][0, 0] / 64
        return {
            "low_res_masks": logits.astype(np.float32)[None, None],
            "iou_predictions": np.zeros((1, 1), np.float32),
            "updated_embeddings": inputs["image_embeddings"],
        }


class SliceEncoder(HostRunner):
    """Passes its images on. `before` is called with every batch."""

    providers = ("stand-in",)

    def __init__(self, side=64, most=4):
        axes = (Axis("batch", 1, 1, most), Axis.fixed("channel", 1), Axis.fixed("row", side), Axis.fixed("col", side))
        self.graph = GraphSpec("image_encoder", (TensorSpec("image", "float32", axes),), (), {})
        self.calls = 0
        self.before = lambda images: None

    def run(self, inputs):
        self.calls += 1
        self.before(inputs["image"])
        return {"image_embeddings": inputs["image"]}


def _preprocess(image, config):
    placement = Placement(image.shape[:2], 64, image.shape[:2])
    return placement.place(image.transpose(2, 0, 1)), placement


def _answer(run, embeddings, placement, prompts, config):
    """What is bright: inside boxes, connected to foreground points and not to background ones; all without a prompt."""
    height, width = placement.shape
    image = embeddings[0, 0, :height, :width]
    bright = image > 100
    parts, _ = ndimage.label(bright)
    mask = bright if not prompts else np.zeros_like(bright)
    for box in prompts.boxes:
        rows, columns = np.indices(bright.shape)
        mask = mask | (bright & (box.x0 <= columns) & (columns <= box.x1) & (box.y0 <= rows) & (rows <= box.y1))
    for point in prompts.points:
        part = parts[int(np.clip(point.y + 0.5, 0, height - 1)), int(np.clip(point.x + 0.5, 0, width - 1))]
        here = (parts == part) & (part > 0)
        mask = mask | here if point.label == FOREGROUND else mask & ~here
    scores = np.where(mask, 1 + image / 255, -1).astype(np.float32)
    return Answer(mask.astype(np.uint8), scores, iou=(float(mask.mean()),))


SLICES = replace(get_method("sam"), preprocess=_preprocess, answer=_answer)
AUTOMATIC = replace(SLICES, is_automatic=True)
METHODS = {"volume": VOLUMES, "slices": SLICES, "automatic": AUTOMATIC}


def served(kind, *, digest="digest", **limits):
    """What is served: `volume`, `slices`, or `automatic`, which is slices without need of a prompt."""
    method = METHODS[kind]
    config = CONFIG if kind == "volume" else method.sizes["tiny"]
    plan = ExportPlan(
        method=method.name,
        weights=Weights("random", None, None),
        size="tiny",
        config=config,
        refinement="anchored" if kind == "volume" else "none",
        precision="fp32",
        folded=True,
        opset=20,
        graphs=("image_encoder", "mask_decoder"),
    )
    manifest = Manifest(plan, (), {}, None)
    export = Export(Path("nowhere"), manifest, method, config)
    return Served(method.name.replace("-", "_"), "fp32", digest, export, Limits(**limits))


def runners(kind):
    return {"image_encoder": Encoder(), "mask_decoder": Decoder()} if kind == "volume" else {
        "image_encoder": SliceEncoder()
    }  # fmt: skip


def scan(seed=0, shape=SHAPE):
    """Dim tissue with three bright blocks; another seed has them elsewhere."""
    random = np.random.default_rng(seed)
    array = (10 + np.indices(shape).sum(axis=0) % 5).astype(np.int16)
    for _ in range(3):
        first = [int(random.integers(2, side - 14)) for side in shape]
        array[tuple(slice(a, a + int(random.integers(6, 13))) for a in first)] = int(random.integers(180, 240))
    return array


def bright_voxel(array, number=0):
    """The index of a voxel inside something bright; each number is another one."""
    places = np.argwhere(ndimage.binary_erosion(array > 100, iterations=2))
    return [int(side) for side in places[(len(places) // 7) * number % len(places)]]


def oblique(shape=SHAPE):
    """An affine turned about two axes, with three voxel sizes."""
    a, b = 0.3, -0.2
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([1.3, 0.8, 1.1])
    affine[:3, 3] = (-31.5, 12.25, 7)
    return affine


FLIPPED = np.array([[0, -1.2, 0, 20], [-0.9, 0, 0, 30], [0, 0, 1, -5], [0, 0, 0, 1.0]])
"""Two axes swapped, both flipped."""


def alone(kind, array, affine=None, **options):
    """A session by itself on the scan."""
    session = served(kind).session(runners(kind), ScanOptions(**options))
    session.set_image(Volume(array, np.eye(4) if affine is None else affine), automatic=False)
    return session


def ask(host, request, token, tensors):
    """What Triton's model of sessions does: read a request, have it answered, write the answer as JSON."""
    answer, changed = host.answer(read_request(request), token, tensors)
    return json.loads(json.dumps(answer.to_json())), changed


# --- Triton's Python backend ---


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class Sender:
    """Takes the one response to a request."""

    def __init__(self):
        self.response, self.flags, self.sent = None, None, threading.Event()

    def send(self, response, flags):
        assert not self.sent.is_set(), "answered twice"
        self.response, self.flags = response, flags
        self.sent.set()


class Request:
    def __init__(self, **tensors):
        self.tensors = {name: Tensor(name, array) for name, array in tensors.items()}
        self.sender = Sender()
        self.gave_up = False

    def is_cancelled(self):
        return self.gave_up

    def get_response_sender(self):
        return self.sender


class TritonError:
    def __init__(self, message):
        self._message = message

    def message(self):
        return self._message


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.tensors = {tensor.name(): tensor for tensor in output_tensors}
        self._error = error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error

    def array(self, name):
        assert self._error is None, self._error.message()
        return self.tensors[name].as_numpy()


class MetricFamily:
    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name, description, kind):
        self.name, self.kind, self.values = name, kind, {}

    def Metric(self, labels):  # noqa: N802 - Triton's name
        return Metric(self, tuple(sorted(labels.items())))


class Metric:
    def __init__(self, family, labels):
        self.family, self.labels = family, labels
        family.values[labels] = 0.0

    def set(self, value):
        assert self.family.kind == MetricFamily.GAUGE
        self.family.values[self.labels] = value

    def increment(self, value):
        assert self.family.kind == MetricFamily.COUNTER
        assert value > 0, "a counter only grows"
        self.family.values[self.labels] += value


def fake_backend(models=None):
    """The module that Triton gives its Python models. `models` holds what BLS finds: functions of arrays by name.

    Its `lines` are what was logged, its `families` the metrics, its `calls` the models that were asked.
    """
    utils = ModuleType("triton_python_backend_utils")
    utils.lines, utils.families, utils.calls = [], [], []

    class InferenceRequest:
        def __init__(self, model_name, requested_output_names, inputs, preferred_memory):
            self.model, self.outputs, self.inputs = model_name, requested_output_names, inputs

        def exec(self):
            utils.calls.append(self.model)
            try:
                found = models[self.model]({tensor.name(): tensor.as_numpy() for tensor in self.inputs})
            except Exception as error:
                return Response(error=TritonError(str(error)))
            return Response([Tensor(name, found[name]) for name in self.outputs])

    class Logger:
        @staticmethod
        def log_info(text):
            utils.lines.append(text)

        @staticmethod
        def log_error(text):
            utils.lines.append(text)

    def family(**words):
        utils.families.append(MetricFamily(**words))
        return utils.families[-1]

    family.COUNTER, family.GAUGE = MetricFamily.COUNTER, MetricFamily.GAUGE
    utils.Tensor, utils.TritonError, utils.InferenceResponse = Tensor, TritonError, Response
    utils.InferenceRequest, utils.Logger, utils.MetricFamily = InferenceRequest, Logger, family
    utils.PreferredMemory = lambda kind, device: (kind, device)
    utils.TRITONSERVER_MEMORY_CPU, utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 0, 1
    utils.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    utils.get_output_tensor_by_name = lambda response, name: response.tensors.get(name)
    return utils
