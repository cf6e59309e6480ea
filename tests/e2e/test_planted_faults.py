"""Guards `sam-bench accuracy` as a gate: each fault that a conversion may have ends it with exit code 1 and one line
that names graph, backend, case, click and measure; the same export without the fault passes the same call.
"""

import json
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samkit.benchmarks import cli
from samkit.export.typed_graph import PRODUCTS, TypedGraph
from samkit.manifest import Manifest, describe_files, graph_file
from samkit.phantoms import make_phantom
from support.serving import need_server

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture
def slice_export(export_of):
    """What `sam-export --method sam-med2d --size tiny` writes."""
    return export_of("sam-med2d", size="tiny", precision="fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with one small scan and its label."""
    folder = tmp_path_factory.mktemp("data")
    phantom = make_phantom(17, (40, 44, 40), 3.0, sequences=("flair",))
    for kind, array in (("images", phantom.sequences["flair"].array), ("labels", phantom.lesion(1).astype(np.uint8))):
        (folder / kind).mkdir()
        nib.save(nib.Nifti1Image(array, phantom.sequences["flair"].affine), folder / kind / "scan.nii.gz")
    return folder


@pytest.fixture
def accuracy(in_process, data, tmp_path):
    """Return a function that measures an export and gives the exit code, what the command says, and the rows."""

    def run(export, backend="onnxruntime"):
        out = tmp_path / "accuracy.json"
        code, _, err = in_process(
            cli.main, "sam-bench", "accuracy", "--export", export, "--data", data, "--backends", backend,
            "--cases", 1, "--clicks", 2, "--policy", "centre", "--threads", 1, "--json", out,
        )  # fmt: skip
        said = [line for line in err.splitlines() if line.startswith("sam-bench: ")]
        return code, said, json.loads(out.read_text())["rows"] if out.exists() else None

    return run


@pytest.fixture
def with_fault(tmp_path):
    """Return a function that copies an export with one graph changed, and a manifest that agrees with it."""

    def plant(export, graph, change, precision="fp32"):
        folder = tmp_path / "planted"
        shutil.copytree(export, folder)
        path = folder / graph_file(graph, precision)
        model = onnx.load(path)
        change(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        manifest = Manifest.load(folder)
        files = [artifact.file for artifact in manifest.artifacts]
        replace(manifest, artifacts=tuple(describe_files(folder, files))).save(folder)
        return folder

    return plant


def after_input(model, name, *nodes):
    """Put `nodes` between an input and all that reads it; the last one makes NAME_planted."""
    for node in model.graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = f"{name}_planted"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant(model, name, values):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def scale_last_layer(model):
    """Make the last hypernetwork layer, weight and bias, 1.01 times what it is."""
    layers = [node for node in model.graph.node if any("output_hypernetworks" in name for name in node.input)]
    names = {name for node in layers[-2:] for name in node.input if "output_hypernetworks" in name}
    found = [tensor for tensor in model.graph.initializer if tensor.name in names]
    assert [node.op_type for node in layers[-2:]] == ["MatMul", "Add"]
    assert len(found) == 2
    for tensor in found:
        values = numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_axes(model):
    order = list(range(len(model.graph.input[0].type.tensor_type.shape.dim)))
    order[2], order[3] = 3, 2
    after_input(model, "image", helper.make_node("Transpose", ["image"], ["image_planted"], "swap", perm=order))


def change_intensities(model):
    """Preprocess with another mean and another deviation."""
    constant(model, "other_mean", np.float32(0.05))
    constant(model, "other_deviation", np.float32(0.98))
    after_input(
        model, "image",
        helper.make_node("Sub", ["image", "other_mean"], ["image_centred"], "centre"),
        helper.make_node("Div", ["image_centred", "other_deviation"], ["image_planted"], "scale"),
    )  # fmt: skip


def pad_with_a_point(model):
    """Add a point labelled -1 where the network adds its own already."""
    for name, value in (("zero", [0]), ("one", [1])):
        constant(model, name, np.array(value, np.int64))
    for name, label in (("point_coords", 0.0), ("point_labels", -1.0)):
        constant(model, f"{name}_nothing", np.float32(0))
        constant(model, f"{name}_label", np.float32(label))
        after_input(
            model, name,
            helper.make_node("Slice", [name, "zero", "one", "one"], [f"{name}_first"], f"{name}_slice"),
            helper.make_node("Mul", [f"{name}_first", f"{name}_nothing"], [f"{name}_blank"], f"{name}_mul"),
            helper.make_node("Add", [f"{name}_blank", f"{name}_label"], [f"{name}_padding"], f"{name}_add"),
            helper.make_node("Concat", [name, f"{name}_padding"], [f"{name}_planted"], f"{name}_concat", axis=1),
        )  # fmt: skip


def overflow(model):
    """Raise a float16 product beyond float16's range."""
    graph = TypedGraph(model)
    halves = [n for n in graph.nodes if n.op_type in PRODUCTS and graph.dtypes[n.output[0]] == TensorProto.FLOAT16]
    product = halves[len(halves) // 2]
    (made,) = product.output
    product.output[0] = "product"
    constant(model, "large", np.float16(60000))
    where = list(model.graph.node).index(product) + 1
    model.graph.node.insert(where, helper.make_node("Add", ["product", "large"], ["raised"], "large_enough"))
    model.graph.node.insert(where + 1, helper.make_node("Add", ["raised", "large"], [made], "too_large"))


def exaggerate(model, name, counted, axis):
    """Scale an input by 1.01 for each row, or point, that `counted` has beyond the first."""
    for constant_name, value in (("axis", np.int64(axis)), ("alone", np.int64(1)), ("percent", np.float32(0.01)),
                                 ("whole", np.float32(1))):  # fmt: skip
        constant(model, constant_name, value)
    after_input(
        model, name,
        helper.make_node("Shape", [counted], ["sizes"], "sizes_of"),
        helper.make_node("Gather", ["sizes", "axis"], ["count"], "count_of"),
        helper.make_node("Sub", ["count", "alone"], ["beyond"], "beyond_of"),
        helper.make_node("Cast", ["beyond"], ["beyond_real"], "beyond_as", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["beyond_real", "percent"], ["growth"], "growth_of"),
        helper.make_node("Add", ["growth", "whole"], ["factor"], "factor_of"),
        helper.make_node("Mul", [name, "factor"], [f"{name}_planted"], "exaggerate"),
    )  # fmt: skip


def spoil_weight(model):
    """Make one number of the first hypernetwork layer nan."""
    node = next(n for n in model.graph.node if any("output_hypernetworks" in name for name in n.input))
    tensor = next(t for t in model.graph.initializer if t.name in node.input)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    node.name = "spoilt"


FAULTS = {
    "scaled last layer": ("mask_decoder", scale_last_layer, "low_res_masks has a relative error of 1.0e-02"),
    "swapped axes": ("image_encoder", swap_axes, "image_embeddings has a relative error of"),
    "mean and deviation": ("image_encoder", change_intensities, "image_embeddings has a relative error of"),
    "padded point": ("mask_decoder", pad_with_a_point, "low_res_masks has a relative error of"),
    "nan": (
        "mask_decoder",
        spoil_weight,
        "low_res_masks has a relative error of nan .*; the first node that is not finite is spoilt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_method_of_volumes_is_named(fault, tiny_export, with_fault, accuracy):
    graph, change, measure = FAULTS[fault]
    code, said, rows = accuracy(with_fault(tiny_export, graph, change))
    assert (code, len(said)) == (1, 1)
    assert re.fullmatch(
        rf"sam-bench: m-sam, {graph} on onnxruntime \(fp32, cpu\), case 1, click 1 \(centre\): {measure}.*", said[0]
    )
    (row,) = (row for row in rows if row["backend"] == "onnxruntime" and "figures" in row)
    assert said[0] == f"sam-bench: {row['failures'][0]}; export again, and report it if it stays"


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_a_method_of_slices_is_named(fault, slice_export, with_fault, accuracy):
    graph, change, measure = FAULTS[fault]
    graph = graph.replace("decoder", "decoder_no_mask")
    code, said, _ = accuracy(with_fault(slice_export, graph, change))
    assert (code, len(said)) == (1, 1)
    where = r"\(fp32, cpu\), case 1, click 1 \(centre\)"
    assert re.fullmatch(rf"sam-bench: sam-med2d, {graph} on onnxruntime {where}: {measure}.*", said[0])


def test_graph_that_no_click_runs_is_compared_too(slice_export, with_fault, accuracy):
    code, said, _ = accuracy(with_fault(slice_export, "mask_decoder", scale_last_layer))
    assert (code, len(said)) == (1, 1)
    assert said[0].startswith(
        "sam-bench: sam-med2d, mask_decoder on onnxruntime (fp32, cpu), case 1, click 1 (centre): low_res"
    )


def test_decoder_of_slices_is_compared_with_a_mask_prompt_too(slice_export, with_fault, accuracy):
    def change(model):
        constant(model, "factor", np.float32(1.01))
        scaled = helper.make_node("Mul", ["mask_input", "factor"], ["mask_input_planted"], "more")
        after_input(model, "mask_input", scaled)

    code, said, _ = accuracy(with_fault(slice_export, "mask_decoder", change))
    assert code == 1
    assert said[0].startswith(
        "sam-bench: sam-med2d, mask_decoder on onnxruntime (fp32, cpu), case 1, click 1 (centre): "
    )


def test_fault_of_two_points_is_named_with_the_second_click(slice_export, with_fault, accuracy):
    planted = with_fault(
        slice_export, "mask_decoder_no_mask", lambda model: exaggerate(model, "image_embeddings", "point_labels", 1)
    )
    code, said, _ = accuracy(planted)
    assert (code, len(said)) == (1, 1)
    assert ", mask_decoder_no_mask on onnxruntime (fp32, cpu), case 1, click 2 (centre): low_res_masks has" in said[0]


def test_fault_of_batches_is_found_though_no_click_makes_one(tiny_export, with_fault, accuracy):
    code, said, rows = accuracy(
        with_fault(tiny_export, "image_encoder", lambda model: exaggerate(model, "image", "image", 0))
    )
    assert (code, len(said)) == (1, 1)
    assert "image_encoder on onnxruntime (fp32, cpu), case 1, click 1 (centre): image_embeddings has" in said[0]
    assert "against PyTorch's for two rows at once, needed" in said[0]
    assert min(row["parity_dice"] for row in rows if "figures" in row) > 0.9999


def test_fault_on_a_server_is_named_with_its_graph_though_no_mask_moves(tiny_export, with_fault, accuracy):
    need_server()
    code, said, _ = accuracy(with_fault(tiny_export, "mask_decoder", scale_last_layer), "triton")
    assert (code, len(said)) == (1, 1)
    assert said[0].startswith(
        "sam-bench: m-sam, mask_decoder on triton (fp32, cpu), case 1, click 1 (centre): low_res_"
    )


def test_overflow_in_float16_is_named_with_its_node(tiny_export, with_fault, accuracy):
    code, said, _ = accuracy(with_fault(tiny_export, "image_encoder", overflow, "fp16"), "onnxruntime-fp16")
    assert (code, len(said)) == (1, 1)
    assert said[0].startswith(
        "sam-bench: m-sam, image_encoder on onnxruntime (fp16, cpu), case 1, click 1 (centre): image_emb"
    )
    assert "; the first node that is not finite is too_large; " in said[0]


@pytest.mark.parametrize("backends", ["onnxruntime,onnxruntime-fp16", "onnxruntime"])
def test_export_as_it_was_made_passes(backends, tiny_export, slice_export, accuracy):
    code, said, rows = accuracy(tiny_export if "fp16" in backends else slice_export, backends)
    assert (code, said) == (0, [])
    measured = [row for row in rows if "figures" in row]
    assert len(measured) == 1 + len(backends.split(","))
    # Masks that are empty, or have nothing outside, would agree whatever happened
    assert all(0 < row["figures"]["specificity"]["mean"]["value"] < 1 for row in measured)


def test_last_layer_that_is_scaled_keeps_the_masks_where_they_are(tiny_export, with_fault, accuracy):
    """Why the graphs' outputs are compared, and not masks alone."""
    _, _, rows = accuracy(with_fault(tiny_export, "mask_decoder", scale_last_layer))
    (row,) = (row for row in rows if row["backend"] == "onnxruntime" and "figures" in row)
    assert row["cases"][0]["clicks"][0]["parity"]["dice"] > 0.9999


def test_changed_file_is_refused_before_anything_is_measured(tiny_export, with_fault, accuracy):
    planted = with_fault(tiny_export, "mask_decoder", scale_last_layer)
    with (planted / "image_encoder.onnx").open("ab") as file:
        file.write(b"more")
    code, said, rows = accuracy(planted)
    assert (code, rows) == (3, None)
    assert said[0].endswith("image_encoder.onnx changed since it was exported; restore it or export again")


def test_backend_that_was_asked_for_and_is_not_there_fails(slice_export, accuracy):
    code, said, rows = accuracy(slice_export, "onnxruntime-fp16")
    assert (code, len(said)) == (1, 1)
    assert "onnxruntime (fp16) was asked for and not run: the export has no float16 files" in said[0]
    assert [row["precision"] for row in rows if "figures" in row] == ["fp32"]
