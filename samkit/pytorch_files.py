"""PyTorch's files, read without running what is in them and within the size that they have.

A file is a pickle and the numbers of its tensors: an archive of stored records, or in the older form one after the
other. The pickle goes through an unpickler that builds containers and tensors and puts an inert stub in the place of
everything else, so that nothing a file names is ever called. It is Python's own, written in Python: the one in C takes
memory for whatever a file counts up to. Sizes are compared before anything is made of them, and records with their
checksums.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from samkit.errors import CheckpointError
from samkit.json_files import what_it_is

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LONGEST_PICKLE = 16 * 2**20
"""Bytes: names, shapes and settings. An object of one byte there takes some fifty in memory."""
_MOST_VIEWS = 4
"""How often all tensors together may hold the file's bytes: they may share storages."""
_MOST_AXES = 16
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What the older form begins with."""
_DTYPES = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
"""What a pickle calls a storage, without its last word."""


def read_pytorch(path: Path) -> object:
    """Return what a file that `torch.save` wrote holds; CheckpointError for whatever is none, or can't be read safely.

    Objects of unknown classes are `Inert`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1024)
            file.seek(0)
            if what := what_it_is(start):
                raise _Refused(f"it is {what}")
            if start.startswith(b"PK\x03\x04"):
                return _read_archive(file, size)
            if start.startswith(b"\x80"):
                return _read_older(file, size)
        raise _Refused("it is empty" if not start else f"it begins with {start[:8]!r}")
    except _Refused as error:
        raise CheckpointError(
            f"{path.name} is not a PyTorch checkpoint that can be read ({error}); give the file that the training "
            "script wrote"
        ) from error
    except Exception as error:  # whatever else a pickle can make of Python's unpickler
        raise CheckpointError(
            f"{path.name} is not a PyTorch checkpoint that can be read without running code from it "
            f"({_first_line(error)}); download it again, or save its state dict alone: "
            "torch.save(network.state_dict(), FILE)"
        ) from error


class _Refused(Exception):
    """Half a sentence on what was found."""


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    shown = text if " " in text else f"{type(error).__name__} {text}".strip()  # a KeyError's text is its key alone
    return f"{shown:.200}"


class Inert:
    """Stands where a file names a class outside the allow-list: takes anything, does nothing.

    Of a pickled module it keeps the parameters, buffers and parts, which are plain data.
    """

    kept: Mapping[str, Any] = {}

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object) -> Inert:
        return Inert()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.kept = {name: state[name] for name, kind in _MODULE_PARTS.items() if isinstance(state.get(name), kind)}

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a pickled module by their dotted names.

        A part that stands in several places gives its first name alone, so that no file can make this endless.
        """
        import torch

        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        waiting = [("", self)]
        while waiting:
            prefix, module = waiting.pop()
            if id(module) in seen or prefix.count(".") > _MOST_AXES:
                continue
            seen.add(id(module))
            parameters, buffers, transient, parts = (module.kept.get(name, {}) for name in _MODULE_PARTS)
            named = [
                *parameters.items(),
                *((name, buffer) for name, buffer in buffers.items() if name not in transient),
            ]
            state |= {f"{prefix}{name}": tensor.detach() for name, tensor in named if isinstance(tensor, torch.Tensor)}
            waiting += [(f"{prefix}{name}.", part) for name, part in parts.items() if isinstance(part, Inert)][::-1]
        return state


_MODULE_PARTS = {"_parameters": Mapping, "_buffers": Mapping, "_non_persistent_buffers_set": set, "_modules": Mapping}
"""Where an `nn.Module` holds what its state dict is made of."""


# --- Archives, and the older form ---


def _read_archive(file: IO[bytes], size: int) -> object:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records):
            raise _Refused("its records are compressed, and PyTorch writes none such; save it again with torch.save")
        if (total := sum(record.file_size for record in records)) > size:
            raise _Refused(f"its records are said to have {total} bytes, and the file has {size}")
        pickles = [r for r in records if r.filename.count("/") == 1 and r.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused(f"it is an archive with {len(pickles)} data.pkl, needed is one")
        folder = pickles[0].filename.removesuffix("data.pkl")
        names = {record.filename for record in records}
        if f"{folder}constants.pkl" in names:
            raise _Refused("it is a TorchScript program; save the state dict of its network")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise _Refused("it was written with the bytes of numbers the other way round")
        if pickles[0].file_size > _LONGEST_PICKLE:
            raise _Refused(f"its data.pkl has {pickles[0].file_size} bytes, and {_LONGEST_PICKLE} are the most")

        def bring(dtype: torch.dtype, key: str, count: int) -> Tensor:
            import torch

            record = archive.getinfo(f"{folder}data/{key}")
            if record.file_size != count * dtype.itemsize:
                raise _Refused(f"the record of a tensor has {record.file_size} bytes, and {count} numbers of {dtype}")
            content = bytearray(archive.read(record))
            return torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), size, bring).load()


def _read_older(file: IO[bytes], size: int) -> object:
    import torch

    made: dict[str, Tensor] = {}
    total = 0

    def bring(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal total
        total += count * dtype.itemsize
        if total > size:
            raise _Refused(f"its tensors are said to have {total} bytes, and the file has {size}")
        made[key] = torch.empty(count, dtype=dtype)
        return made[key]

    def following() -> object:
        return _Unpickler(capped, size, bring).load()

    capped: Any = _Capped(file)
    if following() != _MAGIC or following() != _PROTOCOL:
        raise _Refused("it is a pickle, and none of torch.save")
    facts = following()
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise _Refused("it was written with the bytes of numbers the other way round")
    content, keys = following(), following()
    if not isinstance(keys, list) or set(map(str, keys)) != set(made) or len(keys) != len(made):
        raise _Refused("its tensors are not those that it names")
    for key in keys:
        raw = made[str(key)].view(torch.uint8)
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(made[str(key)]):
            raise _Refused(f"a tensor has {count} numbers where {len(made[str(key)])} are named")
        content_of = file.read(len(raw))
        if len(content_of) != len(raw):
            raise _Refused("it ends too early")
        if content_of:
            raw.copy_(torch.frombuffer(bytearray(content_of), dtype=torch.uint8))
    return content


class _Capped:
    """A file whose pickles together are no longer than they may be; pickles read from where it stands."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _LONGEST_PICKLE

    def read(self, size: int) -> bytes:
        return self._counted(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise _Refused(f"its pickles have more than {_LONGEST_PICKLE} bytes")
        return data


# --- The unpickler ---


class _Unpickler(pickle._Unpickler):
    """Builds containers and tensors alone. `bring` returns the numbers of a storage, all in a row.

    What is hashed is no nest: Python's hash of a deep one ends the process. What a call would copy is counted.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes], size: int, bring: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._bring = bring
        self._storages: dict[str, Tensor] = {}
        self._bytes_left, self._copies_left = _MOST_VIEWS * size, _LONGEST_PICKLE // 8
        self._allowed: Mapping[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._ordered,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("torch", "Size"): lambda sides=(): tuple(self._counted(sides)),
            ("builtins", "set"): lambda items=(): self._set(items),
            ("__builtin__", "set"): lambda items=(): self._set(items),
            **{("torch", f"{name}Storage"): _Kind(dtype) for name, dtype in _DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        return self._allowed.get((module, name), Inert)

    def persistent_load(self, told: Any) -> Any:
        import torch

        if isinstance(told, tuple) and len(told) > 1 and told[0] == "module":  # the oldest files hold source code, too
            return told[1]
        try:
            word, kind, key, _, count, *view = told
        except (TypeError, ValueError):
            raise _Refused("it names a storage in a way that PyTorch does not") from None
        if word != "storage" or not isinstance(kind, _Kind) or not isinstance(key, (str, int)) or not _is_count(count):
            raise _Refused("it names a storage in a way that PyTorch does not")
        key = str(key)
        if key not in self._storages:
            self._storages[key] = self._bring(getattr(torch, kind.dtype), key, count)
        storage = self._storages[key]
        if storage.dtype != getattr(torch, kind.dtype) or len(storage) != count:
            raise _Refused("it names one storage in two ways")
        if view and view[0] is not None:
            _, first, length = view[0]
            return storage.narrow(0, first, length)
        return storage

    def _tensor(self, storage: Any, first: Any, sides: Any, strides: Any, *_: object) -> Tensor:
        if not (isinstance(sides, tuple) and isinstance(strides, tuple) and len(sides) == len(strides) <= _MOST_AXES):
            raise _Refused("a tensor has no shape")
        if not all(map(_is_count, (first, *sides, *strides))):
            raise _Refused("a tensor has a shape or strides that are no counts")
        if math.prod(sides) > len(storage):
            raise _Refused(f"a tensor of shape {sides} has {len(storage)} numbers")
        self._bytes_left -= math.prod(sides) * storage.element_size()
        if self._bytes_left < 0:
            raise _Refused("its tensors together have far more numbers than the file")
        tensor: Tensor = storage.as_strided(sides, strides, first)
        return tensor

    def _counted(self, items: Any) -> list[Any]:
        found = list(items)
        self._copies_left -= len(found)
        if self._copies_left < 0:
            raise _Refused("it copies lists over and over")
        return found

    def _ordered(self, items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
        return OrderedDict((key, value) for key, value in self._counted(items) if _is_key(key))

    def _set(self, items: Iterable[Any] = ()) -> set[Any]:
        return {item for item in self._counted(items) if _is_key(item)}

    # What Python's unpickler does with more than containers and tensors. Each is called with the unpickler alone.

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert):
            made.__setstate__(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, dict):
            into.update((k, v) for k, v in zip(items[::2], items[1::2], strict=True) if _is_key(k))

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._put(items)

    def _add_items(self) -> None:
        items, into = self.pop_mark(), self.stack[-1]
        if isinstance(into, set):
            into.update(item for item in items if _is_key(item))

    def _frozen_set(self) -> None:
        self.append(frozenset(item for item in self.pop_mark() if _is_key(item)))

    def _refuse(self) -> None:
        raise _Refused("its pickle has a part that PyTorch never writes")

    dispatch |= {
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set,
        **dict.fromkeys(
            [*pickle.BYTEARRAY8, *pickle.NEXT_BUFFER, *pickle.READONLY_BUFFER, *pickle.EXT1, *pickle.EXT2, *pickle.EXT4,
             *pickle.PERSID],
            _refuse,
        ),
    }  # fmt: skip


class _Kind:
    """What a pickle calls the class of a storage."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


_PLAIN = (str, int, float, bytes, type(None), Inert)


def _is_key(key: object) -> bool:
    return isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(isinstance(part, _PLAIN) for part in key))
