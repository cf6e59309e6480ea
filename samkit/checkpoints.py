"""Checkpoints: our own (safetensors beside a JSON) and the official files, read without running what is in them.

Official files are pickles: `pytorch_files` opens them, `state_dicts` finds the weights in them.

A checkpoint of ours is `NAME.safetensors`, float32 or float16, and `NAME.json`: schema_version, method, part, size,
config, refinement, provenance, metrics, demonstration.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from samkit.errors import CheckpointError, SamkitError
from samkit.files import cannot_write, make_folder, where_known, working_folder
from samkit.json_files import read_json, take_version, what_it_is
from samkit.json_records import from_json, read_value
from samkit.manifest import file_sha256
from samkit.methods import get_method
from samkit.methods.method import Method, Part, State
from samkit.networks.config import NetworkConfig
from samkit.parameters import check_fit, outermost, outline
from samkit.pytorch_files import read_pytorch
from samkit.state_dicts import Read, WeightSet, choose, find_fitting, find_sets, likeliest
from samkit.version import __version__
from samkit.weights import find_demo

if TYPE_CHECKING:
    from samkit.networks.network import Network

SCHEMA_VERSION = 1
BEST = "best.safetensors"
"""What `--checkpoint RUN` takes from a run's folder."""
LAST = "last.safetensors"
_MARK = "samkit"
"""In the metadata of weights that samkit wrote, with its version: without their JSON they are no official file."""
NOTHING = 0.005
"""A metric below it, of 1 at best, reads 0.00."""

_log = logging.getLogger(__name__)


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

    @property
    def found_nothing(self) -> bool:
        """Return whether these weights found none of what their training held back; False where nobody says."""
        values = [value for value in self.metrics.values() if isinstance(value, int | float)]
        return bool(values) and max(values) < NOTHING

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
            save_file(state, weights, metadata={_MARK: __version__})
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
    if path.suffix != ".safetensors":
        return None
    if not facts.is_file():
        if _is_own(path):
            raise CheckpointError(
                f"{path.name} is samkit's own and has lost {facts.name}, which says what network it is; restore both "
                "from the training run, or go on with the run"
            )
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
            info = from_json(CheckpointInfo, data, "it", config=config)
            if info.size not in method.sizes:
                raise SamkitError(f"its size is {info.size!r:.40}, {method.name} has {', '.join(method.sizes)}")
            return info
    except (ValueError, SamkitError) as error:
        raise CheckpointError(
            f"{facts.name} beside the weights is not a checkpoint's JSON ({error}); restore it from the training run"
        ) from error
    raise CheckpointError(
        f"{facts.name} has schema {version}, this samkit reads up to {SCHEMA_VERSION}; upgrade samkit"
    )


def _is_own(path: Path) -> bool:
    """Return whether weights without a JSON beside them were written by samkit: they say so, or are called so."""
    from safetensors import SafetensorError, safe_open

    if path.name in (BEST, LAST) or (path.parent / "run.json").is_file():
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            return _MARK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False  # whoever reads its weights says what it is


def load_network(
    path: Path, method: Method, others: Mapping[str, Path] = MappingProxyType({}), weights: str = ""
) -> LoadedNetwork:
    """Return the network of `method` with the weights of `path`: a file or a run's folder, ours or official.

    `others` are an official file's companions and files for parts of the network, by the names in the method's record.
    A part that neither they nor `path` holds comes from the demonstration weights. `weights` says which is meant where
    an official file holds several sets. Raises CheckpointError for another method's weights, and lists every missing,
    unexpected and misshapen name.
    """
    path = resolve_checkpoint(path)
    return build_network(path, file_sha256(path), method, others, find_demo(method.name), weights)


def build_network(
    path: Path, sha256: str, method: Method, others: Mapping[str, Path], demo: Path | None, weights: str = ""
) -> LoadedNetwork:
    """Return what `load_network` does, of a file with that SHA-256; `demo` are the demonstration weights, if any."""
    info, state = _weights_of(path, sha256, method, others, weights)
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
    # What the file's tensors do not fill is never built: the config may say any size.
    check_fit(outline(method.build, config, len(state)), state, path.name, method.name)
    network = method.build(config)
    network.load_state_dict(state)
    return LoadedNetwork(network.eval(), info, sha256, tuple(borrowed))


def read_weights(
    path: Path, method: Method, others: Mapping[str, Path] = MappingProxyType({}), weights: str = ""
) -> tuple[CheckpointInfo, State, str]:
    """Return what a file of `method`'s weights holds, ours or official, and its SHA-256, without building a network.

    Parameters of parts may be missing; nothing else of what the JSON beside our own says. `others` and `weights` are
    as in `load_network`.
    """
    path = resolve_checkpoint(path)
    sha256 = file_sha256(path)
    info, state = _weights_of(path, sha256, method, others, weights)
    if read_info(path) is not None:
        parts = tuple(part.prefix for part in method.parts)
        wanted = outline(method.build, info.config, len(state))
        whole = {name: one for name, one in wanted.items() if name in state or not name.startswith(parts)}
        check_fit(whole, state, path.name, method.name)
    return info, state, sha256


def _weights_of(
    path: Path, sha256: str, method: Method, others: Mapping[str, Path], weights: str
) -> tuple[CheckpointInfo, State]:
    info = read_info(path)
    given = [name for name in method.companions if name in others]
    if info is not None:
        _check_own(path, info, method, sha256)
        if given := [*given, *(["weights"] if weights else [])]:
            said = ", ".join(f"{{{name}}}" for name in given)
            raise CheckpointError(f"{path.name} is a whole network of samkit's; leave {said} out", options=given)
        return info, read_state(path)
    modules = outermost(method.build, method.sizes["tiny"], tuple(part.prefix for part in method.parts))
    companions = {name: likeliest(_sets_of(others[name]), modules) for name in given}
    found = _official_weights(path, lambda state: method.official(state, companions), method, modules, weights)
    provenance = {"file": path.name, **({"weights": weights} if weights else {})}
    return CheckpointInfo(method.name, "full", found[0], method.official_refinement, provenance), found[1]


def _official_weights(
    path: Path, read: Read, built: Method | Part, modules: frozenset[str], weights: str
) -> tuple[NetworkConfig, State]:
    """Return config and parameters of a file from elsewhere: the set in it that fits, told what else is in it."""
    parts = tuple(part.prefix for part in built.parts) if isinstance(built, Method) else ()
    sets = _sets_of(path)

    def needed(config: NetworkConfig) -> list[str]:
        return [name for name in outline(built.build, config) if not name.startswith(parts)]

    fitting = find_fitting(sets, read, needed, modules)
    if not fitting:  # what does not fit is said of the set that comes nearest
        return read(likeliest(sets, modules))
    found = choose(fitting, weights, path.name)
    if found.left:
        _log.warning(
            "%s also holds %d tensors that are no weights of %s, and they are left out: %s%s", path.name,
            len(found.left), built.name, ", ".join(found.left[:10]), ", ..." if len(found.left) > 10 else "",
        )  # fmt: skip
    return found.config, found.state


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


def read_part(path: Path, method: Method, part: Part, weights: str = "") -> tuple[NetworkConfig, State]:
    """Return config and parameters of one part, from a file of its own or from a whole network of ours.

    `weights` is as in `load_network`.
    """
    path = resolve_checkpoint(path)
    info = read_info(path)
    if info is None:
        modules = outermost(part.build, getattr(method.sizes["tiny"], part.name), ())
        return _official_weights(path, part.official, part, modules, weights)
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


def read_state(path: Path) -> State:
    """Return name to tensor of a safetensors or pickle file, float16 as float32, wrappers and `module.` removed.

    Of several sets it is the largest. A file that holds a whole pickled network (YOLOv5's `ema`, or else `model`) gives
    its state dict.
    """
    return likeliest(_sets_of(path))


def _sets_of(path: Path) -> list[WeightSet]:
    """Return every set of weights in a file; CheckpointError where there is none."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            content: object = load_file(path)
        except (OSError, SafetensorError) as error:
            with path.open("rb") as file:
                what = what_it_is(file.read(1024)) or str(error)
            raise CheckpointError(f"{path.name} is not a readable safetensors file ({what})") from error
    else:
        content = read_pytorch(path)
    sets = find_sets(content)
    if not sets:
        raise CheckpointError(
            f"{path.name} holds no weights: needed is a state dict, plain or under 'model_state_dict', 'model' or "
            f"'state_dict', and found is {type(content).__name__}; give the checkpoint that the training script wrote"
        )
    return sets
