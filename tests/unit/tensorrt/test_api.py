"""Guards that samkit calls TensorRT 10.16 and 11.4 and TensorRT for RTX 1.7 as their APIs are: mypy checks the file
that does it against stubs made of lists of them, whether or not a library is installed. cuda-bindings is asked itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
from mypy import api as mypy

import samkit
from support.api_stubs import stub_of
from support.compact_api import compact

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mypy of tensorrt")]

FOLDER = Path(__file__).parent
PACKAGE = Path(samkit.__file__).parent
LIBRARY = PACKAGE / "runtime" / "backends" / "tensorrt_library.py"
VERSIONS = ("10.16", "11.4", "rtx-1.7")


def listed(version):
    return json.loads((FOLDER / f"api-{version}.json").read_text())


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Return a function that gives mypy's errors in a source, with modules of TensorRT as a version has them."""
    folder = tmp_path_factory.mktemp("mypy")
    config = folder / "mypy.ini"
    config.write_text(
        "[mypy]\nstrict = True\npython_version = 3.11\nignore_missing_imports = True\nwarn_unused_ignores = False\n"
        "follow_imports = silent\ndisallow_any_generics = False\n[mypy-tensorrt,tensorrt_rtx]\nignore_errors = True\n"
    )

    def check(source, version):
        stubs = folder / "stubs"
        stubs.mkdir(exist_ok=True)
        (stubs / "tensorrt.pyi").write_text(stub_of(listed(version)))
        (stubs / "tensorrt_rtx.pyi").write_text(stub_of(listed("rtx-1.7")))
        file = folder / "checked.py"
        file.write_text(source)
        before = os.environ.get("MYPYPATH")
        os.environ["MYPYPATH"] = f"{stubs}{os.pathsep}{PACKAGE.parent}"
        try:
            said, failed, _ = mypy.run(["--config-file", str(config), "--cache-dir", str(folder / "cache"), str(file)])
        finally:
            os.environ.pop("MYPYPATH")
            if before is not None:
                os.environ["MYPYPATH"] = before
        assert not failed, failed
        return [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line]

    return check


def typed():
    """Return the library's source with the modules where they are asked for at run time: mypy knows no other."""
    found = re.sub(r"\btrt = import_tensorrt\(.*\)", "import tensorrt as trt", LIBRARY.read_text())
    found = re.sub(r"\brtx(: Any)? = import_tensorrt\(RTX\)", "import tensorrt_rtx as rtx", found)
    assert found.count("import tensorrt as") >= 4
    assert found.count("import tensorrt_rtx as") >= 3
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_use_is_in_the_list(version, problems):
    assert problems(typed(), version) == []


WRONG = [
    ("parser.parse_from_file(", "parser.parse_file(", '"OnnxParser" has no attribute "parse_file"'),
    ("trt.MemoryPoolType.", "trt.MemoryPool.", 'Module has no attribute "MemoryPool"'),
    ("trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16", '"type[BuilderFlag]" has no attribute "FP16"'),
    ("context.execute_async_v3(stream)", "context.execute_async_v3()", 'Missing positional argument "stream_handle"'),
    ("engine.num_io_tensors", "engine.num_bindings", '"ICudaEngine" has no attribute "num_bindings"'),
    ("config.builder_optimization_level =", "config.optimization_level =", 'no attribute "optimization_level"'),
    ("error.node_name()", "error.node_title()", 'has no attribute "node_title"'),
    ("kept.serialize()", "kept.to_bytes()", '"ITimingCache" has no attribute "to_bytes"'),
    ("def log(self, severity: Any, msg: str)", "def log(self, severity: Any)", "incompatible with supertype"),
    ("trt.LayerInformationFormat.JSON", "trt.LayerInformationFormat.YAML", 'has no attribute "YAML"'),
    ("CreationFlag.STRONGLY_TYPED", "CreationFlag.EXPLICIT_BATCHES", 'has no attribute "EXPLICIT_BATCHES"'),
    ("shapes.set_shape(name, ", "shapes.set_shape(", 'Missing positional argument "max"'),
    ("config.profiling_verbosity =", "config.num_optimization_profiles =", "is read-only"),
    ("asked.get_engine_validity(", "asked.engine_validity(", '"Runtime" has no attribute "engine_validity"'),
    ("strategies.LAZY\n", "strategies.LATER\n", 'has no attribute "LATER"'),
    ("cache.deserialize(", "cache.load(", '"IRuntimeCache" has no attribute "load"'),
    ("config.set_runtime_cache(cache)", "config.set_runtime_cache(cache, 1)", 'Too many arguments for "set_runtime_'),
    ("kinds.OLD_CUDA_DRIVER", "kinds.OLD_DRIVER", 'has no attribute "OLD_DRIVER"'),
]


def test_misspelt_misused_and_removed_names_are_found(problems):
    source = typed()
    for old, new, _ in WRONG:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    found = problems(source, "11.4")
    assert [said for *_, said in WRONG if not any(said in line for line in found)] == []


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("tensorrt", LIBRARY.name),
        ("tensorrt_rtx", LIBRARY.name),
        ("pycuda", "pycuda_device.py"),
        ("cuda", "cuda_bindings_device.py"),
    ],
)
def test_one_file_imports_it(module, file):
    """An import is `import X`, or `from X import`; libraries of several names are imported by the one that is there."""
    found = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == module for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == module)
    }
    assert found == {file}


@pytest.mark.parametrize("version", VERSIONS)
def test_list_is_what_the_listing_gives(version, shared):
    listing = json.loads((shared / "tensorrt" / f"python-api-{version}.json").read_text())
    assert compact(listing) == listed(version)


def test_every_use_of_cuda_bindings_is_in_the_package():
    """Names and numbers of arguments, which the package has in its docstrings; it loads without a driver."""
    driver = pytest.importorskip("cuda.bindings.driver")
    tree = ast.parse((PACKAGE / "runtime" / "backends" / "cuda_bindings_device.py").read_text())
    calls = {
        node.func.attr: len(node.args)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("cu")
    }
    assert len(calls) > 15
    for name, count in calls.items():
        signature = getattr(driver, name).__doc__.splitlines()[0]
        assert count == (0 if signature.endswith("()") else signature.count(",") + 1), signature
    assert driver.CUDA_VERSION >= 12090
    assert driver.CUresult.CUDA_SUCCESS == 0
    names = re.findall(r"CU_DEVICE_ATTRIBUTE_\w+", ast.unparse(tree))
    assert [hasattr(driver.CUdevice_attribute, name) for name in names] == [True, True]
