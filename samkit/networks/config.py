"""NetworkConfig: what every network's description can do. Plain data, no torch: records and manifests hold it."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from samkit.errors import CheckpointError, SamkitError
from samkit.json_records import read_value

LARGEST = 2**16
"""Of every whole number in a config."""


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides the shape of a network, and the input it was trained for."""

    MOST: ClassVar[Mapping[str, int]] = {"image": 4096, "patch": 384, "depth": 512, "masks": 512}
    """Largest values of whole numbers, where LARGEST is no bound: sides of an input, and copies of a layer."""

    def __post_init__(self) -> None:
        if problems := self.too_large() or self.problems():
            raise CheckpointError(f"this network can't be built: {'; '.join(problems)}; correct its config")

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each; empty where it can be built."""
        return []

    def too_large(self) -> list[str]:
        """Return one clause for each number that is none a network was ever built with: it would only take memory."""
        return [
            f"{field.name} {value} is above {most}"
            for field in fields(self)
            for value in (getattr(self, field.name),)
            for most in (self.MOST.get(field.name, LARGEST),)
            if isinstance(value, int) and value > most
        ]

    @property
    def copies(self) -> int:
        """How often a layer is repeated, at the most: a file of such a network holds more tensors than that."""
        held = [getattr(self, field.name) for field in fields(self) if field.name in ("depth", "masks")]
        parts = [
            value.copies for field in fields(self) if isinstance(value := getattr(self, field.name), NetworkConfig)
        ]
        return max((*held, *parts), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return the config that `to_dict` wrote; unknown fields and values of another type raise CheckpointError."""
        if not isinstance(data, Mapping):
            raise CheckpointError(f"the config is {str(data)[:40]!r}, needed is a JSON object; restore it")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(str(name) for name in set(data) - known):
            raise CheckpointError(
                f"the config has unknown fields {unknown!s:.200}, this samkit knows {sorted(known)}; "
                "upgrade samkit or correct the checkpoint's JSON"
            )
        types, values = typing.get_type_hints(cls), {}
        for name, value in data.items():
            kind = types[name]
            if isinstance(kind, type) and issubclass(kind, NetworkConfig):
                values[name] = kind.from_dict(value)
                continue
            try:
                values[name] = read_value(kind, value, f"the config's {name}")
            except SamkitError as error:
                raise CheckpointError(f"{error}; correct the JSON, or restore it from where it was made") from error
        return cls(**values)


def below_one(config: NetworkConfig, names: tuple[str, ...]) -> list[str]:
    """Return one clause for each of the fields `names` that is not at least 1."""
    return [f"{name} {getattr(config, name)} is not at least 1" for name in names if not getattr(config, name) >= 1]
