"""An export of a 2D method that segments what is bright, inside the boxes it is given: no training, no torch."""

from __future__ import annotations

import numpy as np

from samkit.manifest import ExportPlan, Manifest, Weights, describe_files
from samkit.methods import get_method

SCALES = {"sam": (1, 0.5, 2, 0.25), "medsam": (1, 0.5, 2, 0.25), "lora-sam": (-20, 20, *(0,) * 11)}
"""What each mask token makes of the logits: lora-sam's first is the background, its second the first structure."""
LEVELS = {"sam": (128 - 123.675) / 58.395, "medsam": 0.5, "lora-sam": 0.5}
"""Half bright, as the methods scale intensities."""


def write_export(folder, name):
    """Write an export of a method whose mask is where a slice is brighter than 128, inside the box where there is one.

    It has the method's graph names, tensors and axes; 128 pixels, logits of 32 x 32. The third token has the best IoU.
    """
    config = get_method(name).sizes["tiny"]
    _write_graphs(folder, config, SCALES[name], LEVELS[name])
    plan = ExportPlan(
        method=name,
        weights=Weights("random", None, None),
        size="tiny",
        config=config,
        refinement="none",
        precision="fp32",
        folded=True,
        opset=20,
        graphs=("image_encoder", "mask_decoder", "mask_decoder_no_mask"),
    )
    files = [f"{graph}.onnx" for graph in plan.graphs]
    Manifest(plan, describe_files(folder, files), {}, None).save(folder)
    return folder


def _write_graphs(folder, config, scales, level):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, grid, channels, image = config.logits, config.grid, config.channels, config.image
    node = helper.make_node

    def tensor(name, *shape, rows="batch"):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, *shape])

    def save(name, nodes, inputs, outputs, **constants):
        held = [numpy_helper.from_array(np.asarray(values), key) for key, values in constants.items()]
        model = helper.make_model(
            helper.make_graph(nodes, name, inputs, outputs, held),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=9,
        )
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{name}.onnx")

    # The embedding holds the picture's red averaged over 4 x 4 pixels: 16 of them in the channels of each token.
    save(
        "image_encoder",
        [
            node("Slice", ["image", "zero", "one", "channel_axis"], ["red"]),
            node("AveragePool", ["red"], ["low"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Reshape", ["low", "split"], ["cells"]),
            node("Transpose", ["cells"], ["tokens"], perm=[0, 3, 5, 1, 2, 4]),
            node("Reshape", ["tokens", "joined"], ["image_embeddings"]),
        ],
        [tensor("image", 3, image, image)],
        [tensor("image_embeddings", channels, grid, grid)],
        zero=np.array([0]),
        one=np.array([1]),
        channel_axis=np.array([1]),
        split=np.array([-1, 1, grid, 4, grid, 4]),
        joined=np.array([-1, channels, grid, grid]),
    )
    # `depth` is how far a cell lies inside the box, in pixels; cells of a row without a box are all deep inside.
    centres = (np.arange(side, dtype=np.float32) + 0.5) * (image / side) - 0.5
    y, x = np.meshgrid(centres, centres, indexing="ij")
    nodes = [
        node("Reshape", ["image_embeddings", "apart"], ["cells"]),
        node("Transpose", ["cells"], ["low"], perm=[0, 3, 1, 4, 2]),
        node("Reshape", ["low", "picture"], ["brightness"]),
        node("Sub", ["brightness", "level"], ["above"]),
    ]
    for corner, label in (("first", "two"), ("last", "three")):
        nodes += [
            node("Equal", ["point_labels", label], [f"{corner}_is"]),
            node("Cast", [f"{corner}_is"], [f"{corner}_weight"], to=TensorProto.FLOAT),
            node("Unsqueeze", [f"{corner}_weight", "last_axis"], [f"{corner}_column"]),
            node("Mul", ["point_coords", f"{corner}_column"], [f"{corner}_all"]),
            node("ReduceSum", [f"{corner}_all", "points_axis"], [f"{corner}_xy"], keepdims=0),
            node("Reshape", [f"{corner}_xy", "as_planes"], [corner]),
        ]
    nodes += [
        node("ReduceSum", ["first_weight", "points_axis"], ["boxes"], keepdims=0),
        node("Reshape", ["boxes", "as_one"], ["has_box"]),
        node("Greater", ["has_box", "half"], ["is_box"]),
        node("Sub", ["places", "first"], ["past_first"]),
        node("Sub", ["last", "places"], ["before_last"]),
        node("Min", ["past_first", "before_last"], ["inside_xy"]),
        node("ReduceMin", ["inside_xy", "points_axis"], ["inside"], keepdims=1),
        node("Add", ["inside", "margin"], ["depth"]),
        node("Where", ["is_box", "depth", "deep"], ["allowed"]),
        node("Min", ["above", "allowed"], ["logits"]),
    ]
    # the mask prompt shows, but decides nothing
    with_mask = [
        node("Mul", ["mask_input", "has_mask_input"], ["used"]),
        node("Mul", ["used", "tiny"], ["little"]),
        node("Add", ["logits", "little"], ["one_mask"]),
    ]
    last = [
        node("Mul", ["one_mask", "scales"], ["low_res_masks"]),
        node("Reshape", ["boxes", "as_column"], ["boxes_column"]),
        node("Mul", ["boxes_column", "nothing"], ["zeros"]),
        node("Add", ["zeros", "ious"], ["iou_predictions"]),
    ]
    points = [tensor("point_coords", "points", 2), tensor("point_labels", "points")]
    masks = [tensor("mask_input", 1, side, side), tensor("has_mask_input", 1, 1, 1)]
    outputs = [tensor("low_res_masks", len(scales), side, side), tensor("iou_predictions", len(scales))]
    constants = {
        "apart": np.array([-1, 4, 4, grid, grid]),
        "picture": np.array([-1, 1, side, side]),
        "level": np.float32(level),
        "two": np.float32(2),
        "three": np.float32(3),
        "last_axis": np.array([2]),
        "points_axis": np.array([1]),
        "as_planes": np.array([-1, 2, 1, 1]),
        "as_one": np.array([-1, 1, 1, 1]),
        "as_column": np.array([-1, 1]),
        "half": np.float32(0.5),
        "places": np.stack([x, y])[None],
        "margin": np.float32(2),
        "deep": np.float32(99),
        "tiny": np.float32(1e-3),
        "scales": np.array(scales, np.float32).reshape(1, -1, 1, 1),
        "nothing": np.float32(0),
        "ious": np.array([[0.6, 0.1, 0.9, *(0.2,) * (len(scales) - 3)]], np.float32),
    }
    for name, images, middle, more in (
        ("mask_decoder", "images", with_mask, masks),
        ("mask_decoder_no_mask", 1, [node("Identity", ["logits"], ["one_mask"])], []),
    ):
        embeddings = tensor("image_embeddings", channels, grid, grid, rows=images)
        save(name, [*nodes, *middle, *last], [embeddings, *points, *more], outputs, **constants)
