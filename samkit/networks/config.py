"""NetworkConfig: what every network's description can do. Plain data, no torch: records and manifests hold it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from samkit.errors import CheckpointError


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the shape of a network, and the input it was trained for."""

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise CheckpointError(f"this network can't be built: {'; '.join(problems)}; correct its config")

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each; empty where it can be built."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the config that `to_dict` wrote; unknown fields raise CheckpointError."""
        types = typing.get_type_hints(cls)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CheckpointError(
                f"the config has unknown fields {unknown}, this samkit knows {sorted(known)}; "
                "upgrade samkit or correct the checkpoint's JSON"
            )
        return cls(**{name: _read(value, types[name]) for name, value in data.items()})


def _read(value: Any, wanted: Any) -> Any:
    """Return a JSON value as a field holds it: lists are tuples, and a config inside a config is one of its own."""
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return typing.cast(type[NetworkConfig], wanted).from_dict(value)
    return tuple(_read(entry, None) for entry in value) if isinstance(value, list) else value


def below_one(config: NetworkConfig, names: tuple[str, ...]) -> list[str]:
    """Return one clause for each of the fields `names` that is not at least 1."""
    return [f"{name} {getattr(config, name)} is not at least 1" for name in names if not getattr(config, name) >= 1]
