"""Guards that samkit calls TensorRT 10.16 and 11.4 as their APIs are, without either being installed."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pytest

import samkit

FOLDER = Path(__file__).parent
PACKAGE = Path(samkit.__file__).parent
LIBRARY = PACKAGE / "runtime" / "tensorrt_library.py"
VERSIONS = ("10.16", "11.4")
WALK = runpy.run_path(str(FOLDER / "walk.py"))


def api(version):
    return json.loads((FOLDER / f"api-{version}.json").read_text())


def problems(source, version="11.4"):
    return WALK["problems_in"](source, api(version))


def with_change(old, new):
    """Return the library's source with one change."""
    source = LIBRARY.read_text()
    assert source.count(old) == 1, old
    return source.replace(old, new)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_use_is_in_the_list(version):
    assert [(path.name, p) for path in PACKAGE.rglob("*.py") for p in problems(path.read_text(), version)] == []


def test_the_walk_reaches_every_object():
    used = WALK["uses_in"](LIBRARY.read_text(), api("11.4"))
    assert {
        "__version__",
        "Builder.build_serialized_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "IBuilderConfig.builder_optimization_level",
        "ITimingCache.serialize",
        "IOptimizationProfile.set_shape",
        "EngineInspector.get_engine_information",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_dtype",
        "IExecutionContext.execute_async_v3",
    } <= set(used)


def test_removed_precision_flag_is_found():
    source = with_change("trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16")
    assert any("BuilderFlag has no member FP16" in line for line in problems(source, "11.4"))
    assert problems(source, "10.16") == []  # it was there


def test_explicit_batch_is_found():
    source = with_change("CreationFlag.STRONGLY_TYPED", "CreationFlag.EXPLICIT_BATCH")
    assert any("has no member EXPLICIT_BATCH" in line for line in problems(source, "11.4"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("parser.parse_from_file(", "parser.parse_file(", "OnnxParser has no parse_file"),
        ("trt.OnnxParser(", "trt.ONNXParser(", "tensorrt has no ONNXParser"),
        ("context.execute_async_v3(stream)", "context.execute_async_v2(stream)", "IExecutionContext has no execute_as"),
        ("context.execute_async_v3(stream)", "context.execute_async_v3()", "execute_async_v3 takes"),
        ("config.set_timing_cache(cache, False)", "config.set_timing_cache(cache)", "set_timing_cache takes"),
        ("set_timing_cache(cache, False)", "set_timing_cache(cache, mismatch=False)", "set_timing_cache takes"),
        ("engine.num_io_tensors", "engine.num_bindings", "ICudaEngine has no num_bindings"),
        (
            "config.builder_optimization_level =",
            "config.optimization_level =",
            "IBuilderConfig has no optimization_lev",
        ),
        ("config.profiling_verbosity =", "config.num_optimization_profiles =", "can't be set"),
        ("error.node_name()", "error.node_title()", "ParserError has no node_title"),
        ("kept.serialize()", "kept.to_bytes()", "ITimingCache has no to_bytes"),
        ("def log(self, severity: Any, msg: str)", "def log(self, level: Any, msg: str)", "has no method log"),
        ("trt.ILogger.__init__(self)", "trt.ILogger.__init__(self, 2)", "ILogger.__init__ takes"),
        ("trt.LayerInformationFormat.JSON", "trt.LayerInformationFormat.YAML", "has no member YAML"),
        ("runtime.deserialize_cuda_engine(plan)\n    if", "runtime.deserialise(plan)\n    if", "has no deserialise"),
        ("-> tensorrt.ILogger:", "-> tensorrt.Looger:", "no Looger"),
    ],
)
def test_misspelt_and_misused_names_are_found(version, old, new, sentence):
    found = problems(with_change(old, new), version)
    assert any(sentence in line for line in found), found


def test_what_a_call_returns_is_followed():
    source = "trt = import_tensorrt()\nx = trt.Builder(1).create_network().builder\ny = trt.Builder(1).create_netwok()"
    assert problems(source) == ["line 3: Builder has no create_netwok"]


@pytest.mark.parametrize("call", ["use(trt)", "use(trt.Builder(1))", "self.use(x=trt)", "use(1, trt.Builder(1))"])
def test_nothing_escapes_into_a_function_without_annotations(call):
    source = f"trt = import_tensorrt()\ndef use(x, y: tensorrt.Runtime): ...\n{call}"
    assert any("whose argument is not annotated" in line for line in problems(source))
    noted = "trt = import_tensorrt()\ndef use(x: tensorrt.Builder): x.rest()\nuse(trt.Builder(1))"
    assert problems(noted) == ["line 2: Builder has no rest"]


def test_arguments_that_can_not_be_counted_are_found():
    assert "can't be checked" in problems("trt = import_tensorrt()\ntrt.Builder(*loggers)")[0]


@pytest.mark.parametrize(("module", "file"), [("tensorrt", LIBRARY.name), ("pycuda", "pycuda_device.py")])
def test_one_file_imports_it(module, file):
    """An import is `import X`, `from X import`, or a call that is given the name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
                "import_module",
                "__import__",
            ):
                names = [str(getattr(argument, "value", "")) for argument in node.args]
            if any(name.split(".")[0] == module for name in names):
                found.add(path.name)
    assert found == {file}


@pytest.mark.parametrize("version", VERSIONS)
def test_list_is_what_the_listing_gives(version, shared):
    listing = json.loads((shared / "tensorrt" / f"python-api-{version}.json").read_text())
    assert runpy.run_path(str(FOLDER / "compact_api.py"))["compact"](listing) == api(version)
