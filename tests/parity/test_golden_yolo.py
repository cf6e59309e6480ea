"""Guards equality with the official detector: its outputs, as loaded and folded, against golden ones."""

import numpy as np
import pytest
import torch

from samkit.checkpoints import read_state
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import COCO_ANCHORS, yolo_config, yolo_state

pytestmark = pytest.mark.slow


def build(state):
    network = Yolo(yolo_config({n: tuple(t.shape) for n, t in state.items()}, state["model.24.anchors"]))
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize(("size", "side"), [("s", 320), ("l", 256)])
def test_network_gives_the_official_outputs(shared, recipe, size, side):
    filled = recipe.state_dict(shared / "keys" / f"yolov5{size}_nc1.json", "open")
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in filled.items()}
    anchors = torch.tensor(COCO_ANCHORS, dtype=torch.float32).view(3, 3, 2)
    state["model.24.anchors"] = anchors / torch.tensor([8.0, 16, 32])[:, None, None]  # these keep their value
    network = build(state)
    noise = recipe.noise(f"open/yolov5{size}/input", (1, 3, side, side))
    golden = np.load(shared / "golden" / f"yolov5{size}.npz")["output"]
    for prepare, limit in ((lambda: None, 1e-5), (network.freeze, 1e-6)):
        prepare()
        with torch.no_grad():
            ours = network.detect(torch.sigmoid(torch.from_numpy(noise))).numpy()
        for column in range(6):  # scores are small beside pixels: each column by itself
            drift = np.linalg.norm(ours[..., column] - golden[..., column]) / np.linalg.norm(golden[..., column])
            assert drift < limit


def test_released_file_is_read(shared):
    state = yolo_state(read_state(shared / "data" / "yolov5" / "yolov5n.pt"))
    assert len(state) == 349
    network = build(state)
    assert (network.config.width, network.config.depth, network.config.classes) == (16, 1, 80)
    np.testing.assert_allclose(network.config.anchors, COCO_ANCHORS)
    assert all(tensor.dtype != torch.float16 for tensor in state.values())
