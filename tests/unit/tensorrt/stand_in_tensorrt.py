"""A stand-in for `tensorrt` or `tensorrt_rtx`, built from an API list: it has the list's names and arguments alone.

Its engines are ONNX files that ONNX Runtime runs on the CPU, in memory of the stand-in that drives CUDA, when the
stream is waited for; kernels of TensorRT for RTX are the shapes that were run. What it can be told to get wrong stands
in the environment variable STAND_IN_FAULT: `parse`, `build`, `shape`, `profile`, `cache`, `crash`, `killed`, `load`,
`memory`, `shapes`, `run`, `slow`, and `invalid` with the number of the diagnostics behind it.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
MARK = b"stand-in engine "
DIAGNOSTICS = (
    "VERSION_MISMATCH UNSUPPORTED_CC OLD_CUDA_DRIVER OLD_CUDA_RUNTIME INSUFFICIENT_GPU_MEMORY MALFORMED_ENGINE "
    "CUDA_ERROR"
)
"""In the library's own order: they are bits."""
HEADER = 64


def fault():
    """Return what is to go wrong."""
    return os.environ.get("STAND_IN_FAULT", "")


class Refused(AssertionError):
    """The code under test did what the real module would not take."""


def make(version, pycuda=None, spec=None):
    """Return the module of `version`, such as "11.4" or "rtx-1.7"; `pycuda` returns the stand-in whose memory engines
    work in.
    """
    is_rtx = version.startswith("rtx-")
    api = json.loads((FOLDER / f"api-{version}.json").read_text())
    module = types.ModuleType("tensorrt_rtx" if is_rtx else "tensorrt")
    module.__spec__ = spec
    module.__version__ = f"{version.removeprefix('rtx-')}.0.106"
    made = {}
    for name, entry in api.items():
        if "enum" in entry:
            made[name] = enum.IntEnum(name, entry["enum"].split(), start=0)
    if is_rtx:
        made["EngineInvalidityDiagnostics"] = enum.IntFlag("EngineInvalidityDiagnostics", DIAGNOSTICS)
        assert {*DIAGNOSTICS.split()} == {*api["EngineInvalidityDiagnostics"]["enum"].split()}
    made["ILogger.Severity"] = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
    behaviours = {key: value for key, value in vars(Behaviours(made, module, pycuda, is_rtx)).items() if "." in key}
    for name, entry in api.items():
        if "members" in entry:
            made[name] = make_class(name, api, behaviours, made)
    unknown = set(behaviours) - {f"{name}.{m}" for name in api for m in members(name, api)}
    if unknown - {"Logger.log"}:
        raise Refused(f"{version} has no {sorted(unknown)}")
    for name in api:
        if name in made:
            setattr(module, name, made[name])
    return module


def members(name, api):
    """Return the members of a class and its bases."""
    found = {}
    for base in api.get(name, {}).get("bases", []):
        found |= members(base, api)
    return found | api.get(name, {}).get("members", {})


def make_class(name, api, behaviours, made):
    """Return a class with the members of the list; those without a behaviour say so when they are called."""
    listed = members(name, api)
    content = {"_listed": listed, "_name": name}

    def set_attribute(self, attribute, value):
        if attribute.startswith("_"):
            object.__setattr__(self, attribute, value)
        elif listed.get(attribute) != "set":
            raise AttributeError(f"{name} has no {attribute} that can be set")
        else:
            self.__dict__[f"_{attribute}"] = value

    content["__setattr__"] = set_attribute
    for member, facts in listed.items():
        behaviour = next((behaviours[f"{n}.{member}"] for n in (name, *api[name]["bases"])
                          if f"{n}.{member}" in behaviours), None)  # fmt: skip
        if isinstance(facts, dict):
            if name == "ILogger" and member in made["ILogger.Severity"].__members__:
                content[member] = made["ILogger.Severity"][member]
        elif isinstance(facts, str):
            content[member] = make_property(member, behaviour)
        else:
            content[member] = make_method(name, member, facts, behaviour)
    return type(name, (), content)


def make_property(member, behaviour):
    def get(self):
        return behaviour(self) if behaviour else self.__dict__.get(f"_{member}")

    return property(get)


def make_method(name, member, signatures, behaviour):
    def method(self, *args, **kwargs):
        if member == "__init__" and not signatures and not kwargs.pop("_by_stand_in", False):
            raise TypeError(f"{name} can't be made")
        for signature in signatures:
            names = signature.split("->")[0].split()
            rest = names[len(args) :]
            if len(args) <= len(names) and {n for n in rest if not n.endswith("?")} <= set(kwargs) <= {
                n.rstrip("?") for n in rest
            }:
                break
        else:
            if signatures:
                raise TypeError(f"{name}.{member} takes {signatures}, not {args} {kwargs}")
        if behaviour is None and member != "__init__":
            raise NotImplementedError(f"the stand-in does not know what {name}.{member} does")
        return behaviour(self, *args, **kwargs) if behaviour else None

    method.__name__ = member
    return method


class Behaviours:
    """What the methods do, by the name `Class.method`; each name is checked against the list."""

    def __init__(self, made, module, pycuda, is_rtx):
        def new(kind, **fields):
            thing = object.__new__(made[kind])
            for field, value in fields.items():
                object.__setattr__(thing, f"_{field}", value)
            return thing

        def error(logger, text):
            logger.log(made["ILogger.Severity"].ERROR, text)

        def as_int(value):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{value!r} is no integer")
            return int(value)

        def builder(self, logger):
            self._logger = logger
            logger.log(made["ILogger.Severity"].INFO, "the stand-in builds")
            logger.log(made["ILogger.Severity"].VERBOSE, "nobody wants to read this")

        def create_network(self, flags=0):
            if flags != 1 << int(made["NetworkDefinitionCreationFlag"].STRONGLY_TYPED):
                raise Refused(f"the network's flags are {flags}, not strongly typed alone")
            return new("INetworkDefinition", onnx=None)

        def create_config(self):
            return new("IBuilderConfig", pools={}, cleared=[], profiles=[], cache=None)

        def create_profile(self):
            return new("IOptimizationProfile", shapes={})

        def build(self, network, config, kernel_text=None):
            if fault() == "crash":
                sys.exit(7)
            if fault() == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if config._cleared != [made["BuilderFlag"].TF32] or not config._profiles:
                raise Refused("TF32 is on, or there is no profile")
            if made["MemoryPoolType"].WORKSPACE not in config._pools or config.builder_optimization_level is None:
                raise Refused("no workspace limit, or no optimisation level")
            if fault() == "build":
                error(self._logger, "Could not find any implementation\n  for node /blocks.0/MatMul")
                return None
            facts = {"version": module.__version__, "profile": config._profiles[0]._shapes}
            content = MARK + json.dumps(facts).encode() + b"\n" + network._onnx
            return HostMemory(content)

        def parser(self, network, logger):
            self._network, self._errors = network, []

        def parse_from_file(self, model):
            if not isinstance(model, str):
                raise TypeError("a path is a str")
            if fault() == "parse":
                self._errors = [
                    ("/decoder/NonZero", "NonZero", 12, "data-dependent shapes"),
                    ("/a", "Mod", 3, "no Mod"),
                ]
                return False
            self._network._onnx = Path(model).read_bytes()
            return True

        def parser_error(self, index):
            name, operator, node, text = self._errors[index]
            return new("ParserError", parts={"desc": text, "node": node, "node_name": name, "node_operator": operator})

        def set_pool(self, pool, pool_size):
            self._pools[made["MemoryPoolType"](pool)] = as_int(pool_size)

        def clear_flag(self, flag):
            self._cleared.append(made["BuilderFlag"](flag))

        def create_cache(self, serialized_timing_cache):
            return new("ITimingCache", content=bytes(serialized_timing_cache))

        def set_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return ignore_mismatch or fault() != "cache"

        def serialize_cache(self):
            return HostMemory(self._content + b"timed;")

        def add_profile(self, profile):
            self._profiles.append(profile)
            return -1 if fault() == "profile" else len(self._profiles) - 1

        def set_shape(self, name, *shapes):
            if fault() == "shape":
                raise ValueError("inconsistent dimensions")
            low, usual, high = (tuple(as_int(n) for n in shape) for shape in shapes)
            if not len(low) == len(usual) == len(high) or not all(
                1 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True)
            ):
                raise ValueError(f"the profile of {name} is not ordered: {low} {usual} {high}")
            self._shapes[name] = [low, usual, high]

        def runtime(self, logger):
            self._logger = logger

        def deserialize(self, serialized_engine):
            head, _, onnx = bytes(serialized_engine).partition(b"\n")
            if fault() == "load" or not head.startswith(MARK):
                error(self._logger, "Serialization assertion failed: wrong tag")
                return None
            facts = json.loads(head.removeprefix(MARK))
            if facts["version"] != module.__version__:
                error(self._logger, "the engine was built by another version")
                return None
            import onnxruntime

            session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
            return new("ICudaEngine", session=session, profile=facts["profile"], logger=self._logger)

        def tensors(engine):
            return [*engine._session.get_inputs(), *engine._session.get_outputs()]

        def tensor(engine, name):
            return next(node for node in tensors(engine) if node.name == name)

        def dtype(self, name):
            return {"tensor(float)": made["DataType"].FLOAT, "tensor(float16)": made["DataType"].HALF}[
                tensor(self, name).type
            ]

        def mode(self, name):
            inputs = {node.name for node in self._session.get_inputs()}
            return made["TensorIOMode"].INPUT if name in inputs else made["TensorIOMode"].OUTPUT

        def create_context(self, strategy=None, runtime_config=None):
            config = runtime_config or strategy
            if is_rtx != (config is not None):
                raise Refused("TensorRT for RTX is told how to compile, and TensorRT has nothing to")
            if fault() == "memory":
                error(self._logger, "CUDA out of memory")
                return None
            return new("IExecutionContext", engine=self, shapes={}, addresses={}, sizes={}, config=config, graph=None)

        def header_size(self):
            return HEADER

        def validity(self, buffer):
            if len(buffer) != HEADER:
                raise Refused(f"the header has {HEADER} bytes, not {len(buffer)}")
            if fault().startswith("invalid"):
                return made["EngineValidity"].INVALID, int(fault().removeprefix("invalid"))
            if not bytes(buffer).startswith(MARK):
                return made["EngineValidity"].INVALID, int(made["EngineInvalidityDiagnostics"].MALFORMED_ENGINE)
            return made["EngineValidity"].SUBOPTIMAL if fault() == "slow" else made["EngineValidity"].VALID, 0

        def create_runtime_config(self):
            module.configs.append(new("IRuntimeConfig", cache=None))
            return module.configs[-1]

        def set_runtime_cache(self, cache=None):
            self._cache = cache
            return True

        def deserialize_cache(self, blob):
            if not pycuda().state.mine():
                raise Refused("no CUDA context is current")
            if fault() == "cache" or not bytes(blob).startswith(b"kernels "):
                return False
            self._shapes = {*bytes(blob).decode().split("|")[1:]}
            return True

        def serialize_kernels(self):
            return HostMemory("|".join(["kernels ", *sorted(self._shapes)]).encode())

        def captured(self):
            """A graph that was captured holds the addresses of its capture, whatever they are set to later."""
            if self._config._cuda_graph_strategy != made["CudaGraphStrategy"].WHOLE_GRAPH_CAPTURE:
                return self._addresses
            key = tuple(sorted(self._shapes.items()))
            if self._graph is None or self._graph[0] != key:
                self._graph = (key, dict(self._addresses))
            return self._graph[1]

        def create_inspector(self):
            return new("EngineInspector", engine=self)

        def information(self, wanted):
            if wanted != made["LayerInformationFormat"].JSON:
                raise Refused("JSON is what is kept")
            return json.dumps({"Layers": ["a", "b"], "I/O Tensors": [node.name for node in tensors(self._engine)]})

        def set_input_shape(self, name, shape):
            low, _, high = self._engine._profile[name]
            fits = len(low) == len(shape) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if fits:
                self._shapes[name] = tuple(as_int(n) for n in shape)
            else:
                error(self._engine._logger, f"{tuple(shape)} is outside of the profile {low} to {high}")
            return fits

        def set_address(self, name, memory):
            self._addresses[name] = as_int(memory)
            return True

        def infer_shapes(self):
            return [n.name for n in self._engine._session.get_inputs() if n.name not in self._shapes]

        def read_inputs(self, addresses=None):
            feed = {}
            for name, shape in self._shapes.items():
                feed[name] = np.zeros(shape, np.float32)
                if addresses is not None:
                    check_memory(addresses[name], feed[name].nbytes)
                    ctypes.memmove(feed[name].ctypes.data, addresses[name], feed[name].nbytes)
            return feed

        def check_memory(address, count):
            driver = pycuda()
            if driver.state.memory.get(address, -1) < count:
                raise Refused(f"{count} bytes are not allocated at {address:#x}")
            if not driver.state.mine():
                raise Refused("no CUDA context is current")

        def get_shape(self, name):
            if fault() == "shapes":
                return (-1, 2)
            key = tuple(sorted(self._shapes.items()))
            if key not in self._sizes:
                names = [node.name for node in self._engine._session.get_outputs()]
                outputs = self._engine._session.run(names, read_inputs(self))
                self._sizes[key] = {n: output.shape for n, output in zip(names, outputs, strict=True)}
            return self._sizes[key][name]

        def execute(self, stream_handle):
            if fault() == "run":
                error(self._engine._logger, "Cask convolution execution")
                return False
            stream = pycuda().state.streams[stream_handle]
            addresses = captured(self) if is_rtx else self._addresses
            if is_rtx:
                self._config._cache._shapes.add(str(sorted(self._shapes.items())))

            def work():
                outputs = [node.name for node in self._engine._session.get_outputs()]
                values = self._engine._session.run(outputs, read_inputs(self, addresses))
                for name, value in zip(outputs, values, strict=True):
                    value = np.ascontiguousarray(value)
                    check_memory(addresses[name], value.nbytes)
                    ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)

            stream._queue.append(work)
            return True

        self.__dict__ |= {
            "Builder.__init__": builder, "Builder.create_network": create_network,
            "Builder.create_builder_config": create_config, "Builder.create_optimization_profile": create_profile,
            "Builder.build_serialized_network": build,
            "OnnxParser.__init__": parser, "OnnxParser.parse_from_file": parse_from_file,
            "OnnxParser.num_errors": lambda self: len(self._errors), "OnnxParser.get_error": parser_error,
            **{f"ParserError.{part}": lambda self, part=part: self._parts[part]
               for part in ("desc", "node", "node_name", "node_operator")},
            "IBuilderConfig.set_memory_pool_limit": set_pool, "IBuilderConfig.clear_flag": clear_flag,
            "IBuilderConfig.create_timing_cache": create_cache, "IBuilderConfig.set_timing_cache": set_cache,
            "IBuilderConfig.get_timing_cache": lambda self: self._cache,
            "IBuilderConfig.add_optimization_profile": add_profile,
            "ITimingCache.serialize": serialize_cache, "IOptimizationProfile.set_shape": set_shape,
            "Runtime.__init__": runtime, "Runtime.deserialize_cuda_engine": deserialize,
            "ICudaEngine.num_io_tensors": lambda self: len(tensors(self)),
            "ICudaEngine.get_tensor_name": lambda self, index: tensors(self)[index].name,
            "ICudaEngine.get_tensor_dtype": dtype, "ICudaEngine.get_tensor_mode": mode,
            "ICudaEngine.create_execution_context": create_context,
            "ICudaEngine.create_engine_inspector": create_inspector,
            "EngineInspector.get_engine_information": information,
            "IExecutionContext.set_input_shape": set_input_shape,
            "IExecutionContext.set_tensor_address": set_address,
            "IExecutionContext.infer_shapes": infer_shapes, "IExecutionContext.get_tensor_shape": get_shape,
            "IExecutionContext.execute_async_v3": execute,
        }  # fmt: skip
        if is_rtx:
            module.configs = []
            self.__dict__ |= {
                "Runtime.engine_header_size": header_size, "Runtime.get_engine_validity": validity,
                "ICudaEngine.create_runtime_config": create_runtime_config,
                "IRuntimeConfig.create_runtime_cache": lambda self: new("IRuntimeCache", shapes=set()),
                "IRuntimeConfig.set_runtime_cache": set_runtime_cache,
                "IRuntimeCache.deserialize": deserialize_cache, "IRuntimeCache.serialize": serialize_kernels,
            }  # fmt: skip


class HostMemory(bytes):
    """IHostMemory: a buffer, and no bytes of Python's (3.11 has no buffer protocol for classes)."""
