"""Guards that samkit calls TensorRT 10.16 and 11.4 as their APIs are, without either being installed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import samkit
from support.api_walk import problems_in, uses_in
from support.compact_api import compact

FOLDER = Path(__file__).parent
PACKAGE = Path(samkit.__file__).parent
LIBRARY = PACKAGE / "runtime" / "backends" / "tensorrt_library.py"
VERSIONS = ("10.16", "11.4")


def api(version):
    return json.loads((FOLDER / f"api-{version}.json").read_text())


def problems(source, version="11.4"):
    return problems_in(source, api(version))


def with_change(old, new):
    """Return the library's source with one change."""
    source = LIBRARY.read_text()
    assert source.count(old) == 1, old
    return source.replace(old, new)


def files_that_have_it():
    """Return the files that import the module or ask for it: a `ModuleType` of any other file is of another library.

    That none is handed over besides is a finding of the walk itself, in the file that does it.
    """
    asks = re.compile(r"\bimport_tensorrt\b|^\s*(import|from) tensorrt\b", re.MULTILINE)
    return [path for path in PACKAGE.rglob("*.py") if asks.search(path.read_text())]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_use_is_in_the_list(version):
    files = files_that_have_it()
    assert LIBRARY in files
    assert [(path.name, p) for path in files for p in problems(path.read_text(), version)] == []


def test_the_walk_reaches_every_object():
    used = uses_in(LIBRARY.read_text(), api("11.4"))
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


RIGHT = {
    "misspelt": "reset",
    "Bulder": "Builder",
    "FP17": "TF32",
    "WARNNG": "WARNING",
    "lgo": "log",
    "f(1, 2, 3)": "f(1)",
}
"""What is wrong in the following code, and what is right."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "code",
    [
        # bound otherwise than by a plain assignment
        "with trt.Builder(l) as b: b.misspelt()",
        "with open(p) as f, trt.Builder(l) as b: b.misspelt()",
        "a, b = trt.Builder(l), 2\na.misspelt()",
        "a, (b, c) = 1, (2, trt.Builder(l))\nc.misspelt()",
        "a, *b = 1, trt.Builder(l), 2\nb[0].misspelt()",
        "if (b := trt.Builder(l)): b.misspelt()",
        "[b := trt.Builder(l) for x in y]\nb.misspelt()",
        "for x in (trt.Builder(l),): x.misspelt()",
        "for x, y in [(trt.Builder(l), 2)]: x.misspelt()",
        "x = (trt.Builder(l), 2)\nx[0].misspelt()",
        "x = {'b': trt.Builder(l)}\nx['b'].misspelt()",
        "[x.misspelt() for x in [trt.Builder(l)]]",
        "x = [b for b in (trt.Builder(l),)]\nx[0].misspelt()",
        "(trt.Builder(l) if l else None).misspelt()",
        "b = trt.Builder(l)\nif l:\n    b = None\nb.misspelt()",
        "def f():\n    b.misspelt()\nb = trt.Builder(l)",
        "def f():\n    global b\n    b = trt.Builder(l)\ndef g():\n    b.misspelt()",
        "class A:\n    def f(self): self.b.misspelt()\n    def g(self): self.b = trt.Builder(l)",
        "class A:\n    b: tensorrt.Builder\ndef f(a): a.b.misspelt()",
        "f = trt.Builder(l).create_network\nf(1, 2, 3)",
        # inside of other things
        "def f(x=trt.BuilderFlag.FP17): ...",
        "def f(*, x=trt.BuilderFlag.FP17): ...",
        "f = lambda x=trt.BuilderFlag.FP17: x",
        "f = lambda: trt.Builder(l).misspelt()",
        "@trt.Bulder\ndef f(): ...",
        "print(trt.Bulder)",
        "print(f'{trt.Bulder}')",
        "a[trt.Bulder] = 1",
        "trt.ILogger.Severity.WARNNG",
        "class L(trt.ILogger):\n    def log(self, severity, msg): self.lgo(severity, msg)",
        "class L(trt.ILogger):\n    def log(self, severity, msg): super().lgo(severity, msg)",
        "class L(trt.ILogger): ...\nL().lgo(1, 2)",
        # imported
        "import tensorrt as other\nother.BuilderFlag.FP17",
        "import tensorrt\ntensorrt.Bulder",
        "from tensorrt import BuilderFlag\nBuilderFlag.FP17",
        "from tensorrt import Builder as B\nB(l).misspelt()",
        "from tensorrt import Bulder",
        "import_module('tensorrt').Bulder",
        "sys.modules['tensorrt'].Bulder",
        # annotated
        "def f(b: 'tensorrt.Builder'): b.misspelt()",
        "def f(b: 'tensorrt.Builder | None'): b.misspelt()",
        "def f(b: Optional[tensorrt.Builder]): b.misspelt()",
        "def f(b: None | tensorrt.Builder): b.misspelt()",
        "def f(b: 'tensorrt.Bulder'): ...",
        "def _f() -> 'tensorrt.Builder': return trt.Builder(l)\n_f().misspelt()",
        "class A:\n    def _f(self) -> tensorrt.Builder: ...\n    def g(self): self._f().misspelt()",
        "class A:\n    @property\n    def _b(self) -> tensorrt.Builder: ...\n    def g(self): self._b.misspelt()",
        "from tensorrt import Builder\ndef f(b: Builder): b.misspelt()",
    ],
)
def test_ordinary_code_hides_nothing(version, code):
    assert problems(f"trt = import_tensorrt()\n{code}", version) != []
    for wrong, right in RIGHT.items():
        code = code.replace(wrong, right)
    assert problems(f"trt = import_tensorrt()\n{code}", version) == []  # it was that name, and nothing else


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("getattr(trt, 'Bulder')", "module goes to getattr"),
        ("vars(trt)['Bulder']", "module goes to vars"),
        ("setattr(trt.Builder(l), 'misspelt', 1)", "Builder goes to setattr"),
        ("next(iter([trt.Builder(l)])).misspelt()", "items Builder goes to iter"),
        ("trt['Bulder']", "what module holds can't be followed"),
        ("trt.Builder(l)[0]", "what Builder holds can't be followed"),
        ("[trt.Builder(l)].pop().misspelt()", "pop of items Builder can't be followed"),
        ("x = (trt.Builder(l), trt.Runtime(l))", "Builder or Runtime can't be followed"),
        ("x = trt.Builder(l)\nx = trt.Runtime(l)", "x is Builder and Runtime, which can't be followed"),
        ("trt.Builder(l).error_recorder.misspelt()", "misspelt of value Builder.error_recorder can't be followed"),
        ("trt.Builder.num_DLA_cores", "Builder.num_DLA_cores is a property of objects"),
        ("from tensorrt import *", "the import of * from tensorrt can't be followed"),
        ("import tensorrt.plugin", "tensorrt.plugin is not in the list"),
        ("def f(b: list[tensorrt.Builder]): ...", "the annotation list[tensorrt.Builder] can't be followed"),
        ("f(1)(trt.Builder)", "class Builder goes to f(1)"),
        ("def f(): return trt.Builder(l)", "Builder is returned, which no annotation says"),
        ("def f(): return trt.Builder(l), 2", "items Builder is returned, which no annotation says"),
        ("def f(): return trt", "module is returned, which no annotation says"),
        ("def f(): yield trt.Builder(l)", "Builder is returned, which no annotation says"),
        ("f = lambda: trt.Builder(l)", "Builder is returned, which no annotation says"),
        ("def f() -> tensorrt.Builder: ...", "f lets other files have Builder"),
        ("def f(x=trt.Builder): ...", "class Builder goes to x, which is not annotated"),
        ("other.b = trt.Builder(l)", "Builder is put into other.b, which can't be followed"),
        ("others['b'] = trt.Builder(l)", "Builder is put into others['b'], which can't be followed"),
        ("b: Any = trt.Builder(l)", "Builder is annotated Any, which can't be followed"),
        ("others.append(trt.Builder(l))", "Builder goes to others.append"),
        ("x = [*trt.Builder(l)]", "what becomes of Builder here can't be followed"),
        ("x = [trt.Builder(l)] + others", "what becomes of items Builder here can't be followed"),
        ("match trt.Builder(l):\n    case b: b.misspelt()", "what becomes of Builder here can't be followed"),
    ],
)
def test_what_can_not_be_followed_is_found(code, sentence):
    found = problems(f"trt = import_tensorrt()\n{code}")
    assert any(sentence in line for line in found), found


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("    import tensorrt\n\nKNOWN", "    from tensorrt import Bulder\n\nKNOWN", "tensorrt has no Bulder"),
        ("    return tensorrt\n", "    tensorrt.Bulder\n    return tensorrt\n", "tensorrt has no Bulder"),
        ("def _inspect(plan: bytes)", "def _inspect(plan: bytes, x=tensorrt.BuilderFlag.FP16)", "no member FP16"),
        (
            "    builder = trt.Builder(logger)\n",
            "    with trt.Builder(logger) as builder:\n        builder.misspelt()\n",
            "Builder has no misspelt",
        ),
    ],
)
def test_ordinary_code_hides_nothing_in_the_library(old, new, sentence):
    found = problems(with_change(old, new))
    assert any(sentence in line for line in found), found


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
    assert compact(listing) == api(version)
