"""A backend is one record; what may be asked of it, and what benchmarks call it, follow from the record."""

import pytest

from samkit.errors import OptionError
from samkit.runtime.backends import (
    BACKENDS,
    DEFAULT,
    Variant,
    bench_backends,
    device_names,
    find_backend,
    find_emulator,
    is_emulated,
)


def test_backends_stand_in_the_order_of_the_help():
    assert [one.name for one in BACKENDS] == [
        "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-eager", "torch",
    ]  # fmt: skip
    assert DEFAULT.name == "onnxruntime"
    assert device_names() == ("cpu", "cuda")


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: one.name)
def test_a_backend_runs_on_its_own_device_when_nobody_asks(backend):
    assert find_backend(backend.name, None, None) == (backend, backend.devices[0])
    assert set(backend.extras) <= set(backend.devices)


def test_unknown_backend_and_device_are_refused_with_those_there_are():
    with pytest.raises(OptionError, match="backend 'openvino' is not known; backends are onnxruntime, onnxruntime-t"):
        find_backend("openvino", None, None)
    with pytest.raises(OptionError, match="device 'tpu' is not known; devices are cpu, cuda"):
        find_backend("torch", "tpu", None)


def test_a_device_or_a_precision_that_a_backend_has_not_is_refused():
    with pytest.raises(OptionError, match="TensorRT runs on a CUDA device and not on cpu; leave device out") as refused:
        find_backend("tensorrt", "cpu", None)
    assert refused.value.options == ("device",)
    with pytest.raises(OptionError, match="the torch backend runs float32, not fp16; leave precision out"):
        find_backend("torch", None, "fp16")


def test_benchmarks_name_device_and_precision_where_they_are_not_the_usual_ones():
    assert bench_backends() == {
        "torch": Variant("torch", "fp32", "cpu"),
        "onnxruntime": Variant("onnxruntime", "fp32", "cpu"),
        "onnxruntime-fp16": Variant("onnxruntime", "fp16", "cpu"),
        "onnxruntime-cuda": Variant("onnxruntime", "fp32", "cuda"),
        "onnxruntime-cuda-fp16": Variant("onnxruntime", "fp16", "cuda"),
        "tensorrt": Variant("tensorrt", "fp32", "cuda"),
        "tensorrt-fp16": Variant("tensorrt", "fp16", "cuda"),
        "tensorrt-rtx": Variant("tensorrt-rtx", "fp32", "cuda"),
        "tensorrt-rtx-fp16": Variant("tensorrt-rtx", "fp16", "cuda"),
    }


def test_float16_on_a_cpu_alone_is_judged_by_emulation():
    emulated = {name for name, variant in bench_backends().items() if is_emulated(variant)}
    assert emulated == {"onnxruntime-fp16"}
    assert find_emulator(Variant("onnxruntime", "fp16", "cuda")) is None
    pytest.importorskip("onnx")
    from samkit.export.emulation import EmulatedRunner

    assert find_emulator(Variant("onnxruntime", "fp16", "cpu")) is EmulatedRunner
