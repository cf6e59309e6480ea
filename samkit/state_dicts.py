"""Sets of weights in what a checkpoint holds, and which of them is meant.

A set is a mapping of names to tensors, anywhere in the file: it may be all of it, or lie under `model`, `state_dict`,
`ema`, ... Training wraps networks, and each wrapper puts a word before every name. One rule undoes that: the longest
prefix that leaves every name the network needs. Where several sets fit, none is guessed: `{weights}` says which one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from samkit.errors import CheckpointError
from samkit.methods.method import State
from samkit.networks.config import NetworkConfig
from samkit.pytorch_files import Inert

EMA, MODEL = "ema", "model"
"""Values of `{weights}` for any set that is an average of the weights, and for any that is none."""
_DEEPEST = 4
"""Mappings inside mappings that are looked into."""
_MOST_SETS, _MOST_PREFIXES = 64, 16
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)+")
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)")

Read: TypeAlias = Callable[[State], tuple[NetworkConfig, State]]
"""Config and parameters, in our names, of a state dict in the authors' names."""


@dataclass(frozen=True)
class WeightSet:
    """One mapping of names to tensors in a file."""

    name: str
    """Where it lies, keys with dots between; empty for the file itself."""
    state: State
    is_pickled: bool = False
    """Whether it is a whole network that was pickled, as YOLOv5 writes it."""

    @property
    def is_average(self) -> bool:
        """Return whether these are an average of the weights over the training."""
        return bool(_AVERAGED.search(self.name)) or "n_averaged" in self.state

    @property
    def called(self) -> str:
        """Return what `{weights}` calls it."""
        return self.name or (EMA if self.is_average else MODEL)


@dataclass(frozen=True)
class Fitting:
    """A set that has all that a network needs."""

    called: str
    config: NetworkConfig
    state: State
    """The needed names, and names of the network's own modules that it does not need."""
    left: tuple[str, ...]
    """Names in the set that are of nothing in the network."""
    is_average: bool
    is_pickled: bool
    source: frozenset[int]
    """Which tensors of the file these are: the same ones may be found in two ways."""


def find_sets(content: object) -> list[WeightSet]:
    """Return every set of weights in what a file holds; the outer ones first."""
    import torch

    found: list[WeightSet] = []
    level: list[tuple[str, object]] = [("", content)]
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        inner: list[tuple[str, object]] = []
        for name, held in level:
            if id(held) in seen or len(found) == _MOST_SETS:
                continue
            seen.add(id(held))
            entries = held.tensors() if isinstance(held, Inert) else held
            if not isinstance(entries, Mapping):
                continue
            state = {key: value for key, value in entries.items() if isinstance(key, str)}
            tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
            if tensors:
                found.append(WeightSet(name, tensors, isinstance(held, Inert)))
            inner += [(f"{name}.{key}" if name else key, value) for key, value in state.items() if key not in tensors]
        level = inner
    return found


def _full(tensors: State) -> State:
    """Return floating numbers as float32, all others as they are."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def likeliest(sets: list[WeightSet], modules: Collection[str] = ()) -> State:
    """Return the set with the most tensors of `modules`, the network's outermost, or the most at all; bare names.

    Where a file has a network's average and the network as YOLOv5 writes them, it is the average.
    """
    if not modules:
        pickled = [one for one in sets if one.is_pickled]
        ranked = sorted(pickled or sets, key=lambda one: (not (pickled and one.is_average), -len(one.state)))
        return _full(_without(ranked[0].state, _common(ranked[0].state)))
    ways = [_without(one.state, prefix) for one in sets for prefix in _prefixes(one.state, modules)]
    return _full(max(ways, key=lambda state: sum(_module(name) in modules for name in state)))


def find_fitting(
    sets: list[WeightSet],
    read: Read,
    needed: Callable[[NetworkConfig], Collection[str]],
    modules: Collection[str],
) -> list[Fitting]:
    """Return the sets that hold every name that a network needs, each under the longest prefix that makes it so.

    `read` raises CheckpointError for what is no such network, `needed` names its parameters, `modules` its outermost
    modules. Names that are in none of those, such as a loss's, are left over.
    """
    found: dict[frozenset[int], Fitting] = {}
    for one in sets:
        for prefix in _prefixes(one.state, modules):
            try:
                config, parameters = read(_without(one.state, prefix))
                names = set(needed(config))
            except CheckpointError:
                continue
            if not names <= set(parameters):
                continue
            kept = {name: tensor for name, tensor in parameters.items() if name in names or _module(name) in modules}
            source = frozenset(map(id, kept.values()))
            where = ".".join(part for part in (one.name, prefix.rstrip(".")) if part)
            fitting = Fitting(
                called=one.called if _is_wrapper(prefix) else where,
                config=config,
                state=_full(kept),
                left=tuple(name for name, tensor in one.state.items() if id(tensor) not in source),
                is_average=one.is_average or bool(_AVERAGED.search(prefix)),
                is_pickled=one.is_pickled,
                source=source,
            )
            found.setdefault(source, fitting)
    return list(found.values())


def choose(fitting: list[Fitting], wanted: str, file: str) -> Fitting:
    """Return the set that is meant; CheckpointError where several are possible, or none is as `wanted` says."""
    names = [one.called for one in fitting]
    meant = fitting
    if wanted:
        kinds = {EMA: True, MODEL: False}
        meant = [one for one in fitting if one.called == wanted] or [
            one for one in fitting if wanted in kinds and one.is_average is kinds[wanted]
        ]
    elif len(fitting) == 2 and all(one.is_pickled for one in fitting) and sorted(names) == [EMA, MODEL]:
        meant = [one for one in fitting if one.called == EMA]  # as YOLOv5 itself takes them
    if len(meant) == 1:
        return meant[0]
    if not meant:
        raise CheckpointError(
            f"{file} holds no weights called '{wanted:.40}' that fit, it holds {_listed(names)}; give one of those "
            "with {weights}, or leave it out",
            options=("weights",),
        )
    ways = f"weights {meant[0].called}", f"weights {meant[1].called}"
    raise CheckpointError(
        f"{file} holds {len(meant)} sets of weights that fit, {_listed([one.called for one in meant])}; say which is "
        f"meant: {{{ways[0]}}} or {{{ways[1]}}}",
        options=ways,
    )


def _listed(names: Iterable[str]) -> str:
    return f"{', '.join(repr(name) for name in names):.200}"


# --- Names ---


def _module(name: str) -> str:
    return name.partition(".")[0]


def _without(state: State, prefix: str) -> State:
    """Return what stands under `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _prefixes(state: Mapping[str, Any], modules: Collection[str]) -> list[str]:
    """Return what may stand before a network's outermost modules, the longest first, and nothing."""
    counts: dict[str, int] = {"": 0, _common(state): 0}
    for name in state:
        parts = name.split(".", 8)
        for place, part in enumerate(parts[:-1]):
            if part in modules:
                prefix = "".join(f"{before}." for before in parts[:place])
                counts[prefix] = counts.get(prefix, 0) + 1
    likely = sorted(counts, key=lambda prefix: -counts[prefix])[:_MOST_PREFIXES]
    return sorted(dict.fromkeys(("", *likely)), key=lambda prefix: -len(prefix))


def _common(state: Mapping[str, Any]) -> str:
    """Return the words of wrappers, `module.` and `_orig_mod.`, that every name begins with."""
    found = _WRAPPERS.match(next(iter(state), ""))
    return found[0] if found and all(name.startswith(found[0]) for name in state) else ""


def _is_wrapper(prefix: str) -> bool:
    """Return whether a prefix says no more than that the network was wrapped."""
    return set(prefix.split(".")) <= {"", "module", "_orig_mod", "model", "net", "network", "sam", "lora_sam"}
