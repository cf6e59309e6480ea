"""Checkpoints: our own (safetensors beside a JSON) and the official files, read without running what is in them.

Official files are pickles. `torch.load(weights_only=True)` reads most; some hold an optimizer or an
`argparse.Namespace`, and those go through one restricted unpickler that builds tensors from a fixed allow-list and
puts an inert stub in the place of everything else, so that nothing a file names is ever called.

A checkpoint of ours is `NAME.safetensors`, float32 or float16, and `NAME.json`: schema_version, method, part, size,
config, refinement, provenance, metrics, demonstration.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from samkit.errors import CheckpointError, SamkitError
from samkit.files import cannot_write, make_folder, where_known, working_folder
from samkit.json_files import read_json, take_version
from samkit.json_records import from_json, read_value
from samkit.manifest import file_sha256
from samkit.methods import get_method
from samkit.methods.method import Method, Part, State
from samkit.networks.config import NetworkConfig
from samkit.weights import find_demo

if TYPE_CHECKING:
    from torch import Tensor

    from samkit.networks.network import Network

SCHEMA_VERSION = 1
BEST = "best.safetensors"
"""What `--checkpoint RUN` takes from a run's folder."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What the JSON beside our weights says; for official files, what their shapes and the method's record say."""

    method: str
    size: str
    config: NetworkConfig
    refinement: str
    """`anchored`, `recurrent` or `none`: what the network was trained to be fed."""
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    demonstration: bool = False
    """Trained on phantoms to show the tool at work; never for patients."""
    weights_sha256: str = ""
    """Of the weights beside this JSON, so that the two can't be mixed; `save_checkpoint` fills it in."""
    part: str = ""
    """The part of the network that these weights are, such as `detector`; empty for the whole one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema_version": SCHEMA_VERSION, **self.__dict__, "config": self.config.to_dict()}


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, in evaluation mode, and where they came from."""

    network: Network
    info: CheckpointInfo
    sha256: str
    """Of the weights file."""
    borrowed: tuple[str, ...] = ()
    """Parts that no file was given for: they come from the demonstration weights."""


def resolve_checkpoint(path: Path) -> Path:
    """Return the weights file of `path`: the file itself, or the best one of a run's folder."""
    if path.is_dir():
        best = path / BEST
        if not best.is_file():
            raise CheckpointError(
                f"the folder {path} holds no {BEST}; give a checkpoint file, or a run's folder whose training validated"
            )
        return best
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; check the path")
    return path


def save_checkpoint(
    path: Path, network: Network, info: CheckpointInfo, *, half: bool = False, without: Sequence[str] = ()
) -> None:
    """Write `path` (.safetensors) and its JSON; `half` stores float16, which loads as float32.

    Parameters whose names begin with one of `without` are left out: parts that nobody trained.

    Both are written beside their names and moved, weights first; a pair that an interrupt left mixed is refused when
    it is loaded.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {
        name: tensor.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(tuple(without))
    }
    if any(not torch.isfinite(tensor).all() for tensor in state.values()):
        raise CheckpointError(f"weights hold NaN or Inf, {path.name} is not written; train with a lower learning rate")
    make_folder(path.parent)
    try:
        with working_folder(path.parent) as work:
            weights, facts = work / "weights", work / "facts"
            save_file(state, weights)
            info = replace(info, weights_sha256=file_sha256(weights))
            facts.write_text(json.dumps(info.to_dict(), indent=1) + "\n")
            where_known(weights.chmod, facts.stat().st_mode)  # safetensors writes for the owner alone
            weights.replace(path)
            facts.replace(path.with_suffix(".json"))
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error


def read_info(path: Path) -> CheckpointInfo | None:
    """Return what the JSON beside a weights file says, None where there is none (official files)."""
    facts = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not facts.is_file():
        return None
    try:
        version, data = take_version(read_json(facts))
        if version <= SCHEMA_VERSION:
            method = get_method(read_value(str, data.get("method"), "its method"))
            described = method.sizes["full"]
            if part := read_value(str, data.get("part", ""), "its part"):
                if part not in (one.name for one in method.parts):
                    raise SamkitError(f"its part is {part!r:.40}, which {method.name} does not have")
                described = getattr(described, part)
            config = type(described).from_dict(data.pop("config", None))
            return from_json(CheckpointInfo, data, "it", config=config)
    except (ValueError, SamkitError) as error:
        raise CheckpointError(
            f"{facts.name} beside the weights is not a checkpoint's JSON ({error}); restore it from the training run"
        ) from error
    raise CheckpointError(
        f"{facts.name} has schema {version}, this samkit reads up to {SCHEMA_VERSION}; upgrade samkit"
    )


def load_network(path: Path, method: Method, others: Mapping[str, Path] = MappingProxyType({})) -> LoadedNetwork:
    """Return the network of `method` with the weights of `path`: a file or a run's folder, ours or official.

    `others` are an official file's companions and files for parts of the network, by the names in the method's record.
    A part that neither they nor `path` holds comes from the demonstration weights. Raises CheckpointError for another
    method's weights, and lists every missing, unexpected and misshapen name.
    """
    path = resolve_checkpoint(path)
    return build_network(path, file_sha256(path), method, others, find_demo(method.name))


def build_network(
    path: Path, sha256: str, method: Method, others: Mapping[str, Path], demo: Path | None
) -> LoadedNetwork:
    """Return what `load_network` does, of a file with that SHA-256; `demo` are the demonstration weights, if any."""
    info, state = _weights_of(path, sha256, method, others)
    config, borrowed = info.config, []
    for part in method.parts:
        if part.name in others:
            described, parameters = read_part(others[part.name], method, part)
        elif any(name.startswith(part.prefix) for name in state):
            continue
        elif demo is not None:
            described, parameters = _part_of(demo, part)
            borrowed.append(part.name)
        else:
            raise CheckpointError(
                f"{path.name} holds no {part.name}, and samkit has no demonstration weights of '{method.name}' to take "
                f"it from; give {{{part.name}}}",
                options=(part.name,),
            )
        state = {name: tensor for name, tensor in state.items() if not name.startswith(part.prefix)}
        state |= {f"{part.prefix}{name}": tensor for name, tensor in parameters.items()}
        config = replace(config, **{part.name: described})
    info = replace(info, config=config)
    network = method.build(config)
    fill_network(network, state, path.name, method.name)
    return LoadedNetwork(network.eval(), info, sha256, tuple(borrowed))


def read_weights(
    path: Path, method: Method, others: Mapping[str, Path] = MappingProxyType({})
) -> tuple[CheckpointInfo, State, str]:
    """Return what a file of `method`'s weights holds, ours or official, and its SHA-256, without building a network.

    Parameters of parts may be missing. `others` are an official file's companions.
    """
    path = resolve_checkpoint(path)
    sha256 = file_sha256(path)
    return (*_weights_of(path, sha256, method, others), sha256)


def _weights_of(path: Path, sha256: str, method: Method, others: Mapping[str, Path]) -> tuple[CheckpointInfo, State]:
    info, state = read_info(path), read_state(path)
    companions = {name: read_state(others[name]) for name in method.companions if name in others}
    if info is None:
        config, state = method.official(state, companions)
        info = CheckpointInfo(method.name, "full", config, method.official_refinement, {"file": path.name})
    else:
        _check_own(path, info, method, sha256)
        if companions:
            given = ", ".join(f"{{{name}}}" for name in companions)
            raise CheckpointError(
                f"{path.name} is a whole network of samkit's; leave {given} out", options=tuple(companions)
            )
    return info, state


def _check_own(path: Path, info: CheckpointInfo, method: Method, sha256: str) -> None:
    """Raise CheckpointError unless the JSON beside `path` describes a whole network of `method` and these weights."""
    if info.method != method.name:
        raise CheckpointError(
            f"{path.name} was trained for '{info.method}', not '{method.name}'; pass {{method}} {info.method}",
            options=("method",),
        )
    if info.part:
        raise CheckpointError(
            f"{path.name} holds the {info.part} alone; give it with {{{info.part}}}", options=(info.part,)
        )
    if info.refinement not in method.refinements or info.weights_sha256 not in ("", sha256):
        raise CheckpointError(
            f"{path.name} and the JSON beside it do not belong together (refinement '{info.refinement}', weights "
            f"{sha256[:12]}... where the JSON names {info.weights_sha256[:12]}...); restore both from the training run"
        )


def read_part(path: Path, method: Method, part: Part) -> tuple[NetworkConfig, State]:
    """Return config and parameters of one part, from a file of its own or from a whole network of ours."""
    path = resolve_checkpoint(path)
    info = read_info(path)
    if info is None:
        return part.official(read_state(path))
    if info.method != method.name or info.part not in ("", part.name):
        raise CheckpointError(
            f"{path.name} holds {info.part or 'the network'} of '{info.method}', needed is the {part.name} of "
            f"'{method.name}'; give another file with {{{part.name}}}",
            options=(part.name,),
        )
    return (info.config, read_state(path)) if info.part else _part_of(path, part)


def _part_of(path: Path, part: Part) -> tuple[NetworkConfig, State]:
    """Return config and parameters of one part of a whole network of ours."""
    info = read_info(path)
    if info is None:
        raise CheckpointError(f"{path.name} has lost the JSON beside it; restore both")
    parameters = {
        name.removeprefix(part.prefix): tensor
        for name, tensor in read_state(path).items()
        if name.startswith(part.prefix)
    }
    return getattr(info.config, part.name), parameters


def read_state(path: Path) -> dict[str, Tensor]:
    """Return name to tensor of a safetensors or pickle file, float16 as float32, wrappers and `module.` removed.

    A file that holds a whole pickled network (YOLOv5's `ema`, or else `model`) gives its state dict.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content: object = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path.name} is not a readable safetensors file ({error})") from error
    else:
        content = _pickled_weights(_read_pickle(path))
    for wrapper in ("model_state_dict", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise CheckpointError(
            f"{path.name} holds no weights: needed is a state dict, plain or under 'model_state_dict', 'model' or "
            f"'state_dict', and found is {type(content).__name__}; give the checkpoint that the training script wrote"
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def fill_network(network: Network, state: State, file: str, what: str) -> None:
    """Copy `state` into `network`; one CheckpointError lists everything that does not fit."""
    import torch

    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    shapes = sorted(
        f"{name} is {tuple(state[name].shape)}, needed {tuple(wanted[name].shape)}"
        for name in set(wanted) & set(state)
        if state[name].shape != wanted[name].shape
    )
    broken = sorted(name for name, tensor in state.items() if not torch.isfinite(tensor).all())
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", shapes),
            ("with NaN or Inf", broken),
        )
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{file} does not fit {what}: {'; '.join(parts)}. Is it a checkpoint of another method? "
            "`sam-export --list` names them"
        )
    network.load_state_dict(state)


# --- Reading pickles ---


class _Inert:
    """Stands where a file names a class outside the allow-list: takes anything, does nothing.

    Of a pickled module it keeps the parameters, buffers and parts, which are plain data.
    """

    kept: Mapping[str, Any] = {}
    dump_patches = False
    """Read by torch where a file of its oldest format also holds source code: False writes no file."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.kept = {name: state[name] for name, kind in _MODULE_PARTS.items() if isinstance(state.get(name), kind)}

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


_MODULE_PARTS = {"_parameters": Mapping, "_buffers": Mapping, "_non_persistent_buffers_set": set, "_modules": Mapping}
"""Where an `nn.Module` holds what its state dict is made of."""

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")),
}
"""Everything a pickle may really construct: containers, tensors and their storages."""


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in _ALLOWED else _Inert


class _RestrictedPickle:
    """What `torch.load(pickle_module=...)` expects of a pickle module."""

    __name__ = "samkit restricted pickle"
    Unpickler = _RestrictedUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _RestrictedUnpickler(file, **options).load()


def _pickled_weights(content: object) -> object:
    """Return the state dict of the pickled network that `content` is or holds; any other content as it is."""
    found = [content.get(name) for name in ("ema", "model")] if isinstance(content, Mapping) else [content]
    states = (_module_state(entry) for entry in found if isinstance(entry, _Inert))
    return next((state for state in states if state), content)


def _module_state(root: _Inert) -> dict[str, Tensor]:
    """Return the tensors of a pickled module by their dotted names.

    A part that stands in several places gives its first name alone, so that no file can make this endless.
    """
    import torch

    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        parameters, buffers, transient, parts = (module.kept.get(name, {}) for name in _MODULE_PARTS)
        named = [*parameters.items(), *((name, buffer) for name, buffer in buffers.items() if name not in transient)]
        state |= {f"{prefix}{name}": tensor.detach() for name, tensor in named if isinstance(tensor, torch.Tensor)}
        waiting += [(f"{prefix}{name}.", part) for name, part in parts.items() if isinstance(part, _Inert)][::-1]
    return state


def _read_pickle(path: Path) -> object:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # it names something that weights_only does not know: stubbed below
    except Exception as error:
        raise CheckpointError(f"{path.name} is not a PyTorch checkpoint ({_first_line(error)})") from error
    try:
        with warnings.catch_warnings():
            # The oldest format holds the source of the classes it names, which is not that of the stub.
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RestrictedPickle)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} can't be read without running code from it ({_first_line(error)}); "
            "save its state dict alone: torch.save(network.state_dict(), FILE)"
        ) from error


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if " " in text else f"{type(error).__name__} {text}".strip()  # a KeyError's text is its key alone
