"""Guards that a YOLOv5 state dict tells its size, classes and anchors, and that other networks' are refused."""

import json

import numpy as np
import pytest
import torch

from samkit.errors import CheckpointError
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import COCO_ANCHORS, YoloConfig, yolo_config, yolo_state

ANCHORS = np.array(COCO_ANCHORS, np.float64).reshape(3, 3, 2) / [[[8]], [[16]], [[32]]]


def shapes_of(config):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Yolo(config).state_dict().items()}


@pytest.mark.parametrize(
    "config",
    [
        YoloConfig(width=16, depth=1, classes=80),
        YoloConfig(width=48, depth=2, classes=3),
        YoloConfig(width=80, depth=4),
        YoloConfig(width=8, depth=1, image=320, anchors=((9, 7), (20, 30), (90, 80))),
    ],
    ids=["n", "m", "x", "tiny"],
)
def test_config_comes_back_from_shapes(config):
    anchors = np.array(config.anchors).reshape(3, -1, 2) / np.array(config.strides)[:, None, None]
    assert yolo_config(shapes_of(config), torch.from_numpy(anchors), config.image) == config


@pytest.mark.parametrize(
    ("file", "width", "depth", "classes"), [("s_nc1", 32, 1, 1), ("s_nc80", 32, 1, 80), ("l_nc80", 64, 3, 80)]
)
def test_official_names_and_shapes_are_ours(shared, file, width, depth, classes):
    keys = json.loads((shared / "keys" / f"yolov5{file}.json").read_text())["keys"]
    official = {name: tuple(shape) for name, (shape, _) in keys.items()}
    config = yolo_config(official, ANCHORS)
    assert config == YoloConfig(width=width, depth=depth, classes=classes)
    assert shapes_of(config) == official


TINY = YoloConfig(width=8, depth=1, classes=2)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("model.0.conv.weight", None, r"model\.0\.conv\.weight is missing"),
        ("model.0.conv.weight", (8, 3, 3, 3), r"needed \(width, 3, 6, 6\)"),  # YOLOv8
        ("model.24.m.1.weight", None, "needed three kernels"),
        ("model.24.m.1.weight", (24, 64, 1, 1), "its heads are"),
        ("model.6.m.3.cv1.conv.weight", (32, 32, 1, 1), "bottlenecks"),
        ("model.24.proto.cv1.conv.weight", (256, 32, 3, 3), r"also holds model\.24\.proto"),  # yolov5s-seg
        ("model.33.m.0.weight", (21, 32, 1, 1), r"also holds model\.33"),  # yolov5s6
    ],
)
def test_other_networks_are_refused(name, shape, found):
    shapes = shapes_of(TINY) | {name: shape}
    with pytest.raises(CheckpointError, match=found):
        yolo_config({n: s for n, s in shapes.items() if s is not None}, ANCHORS)


@pytest.mark.parametrize("anchors", [None, ANCHORS[:2], ANCHORS.ravel(), ANCHORS[:, :0]])
def test_unusable_anchors_are_refused(anchors):
    with pytest.raises(CheckpointError, match=r"model\.24\.anchors"):
        yolo_config(shapes_of(TINY), anchors)


@pytest.mark.parametrize("prefix", ["model.", "model.model.", "module.model.", "model.model.model.", "module."])
def test_wrappers_leave_the_names(prefix):
    assert yolo_state({f"{prefix}0.conv.weight": 1, f"{prefix}24.m.0.bias": 2}) == {
        "model.0.conv.weight": 1,
        "model.24.m.0.bias": 2,
    }


def test_json_gives_the_config_back():
    config = YoloConfig(anchors=((1.5, 2.0), (3.0, 4.0), (5.0, 6.0)))
    assert YoloConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "wrong",
    [{"width": 7}, {"depth": 0}, {"image": 100}, {"image": 1312}, {"strides": (8, 16)}, {"anchors": ((1, 2), (3, 4))}],
)
def test_impossible_config_is_refused(wrong):
    with pytest.raises(CheckpointError, match="can't be built"):
        YoloConfig(**wrong)
