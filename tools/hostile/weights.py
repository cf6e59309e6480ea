"""Checkpoints that are none, or lie."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tools.hostile.documents import broken
from tools.hostile.kind import OTHERS, Kind, Make, changed, cut, flip, of_bytes
from tools.hostile.no_files import absent, fifo, folder_of, link, unreadable


def _pickled(held: object, **options: Any) -> bytes:
    """Return what torch.save writes."""
    import torch

    file = io.BytesIO()
    torch.save(held, file, **options)
    return file.getvalue()


def _pickling(held: object) -> Callable[[Random], bytes]:
    return lambda chance: _pickled(held)


@cache
def _small() -> bytes:
    """Return a file of a few weights, as torch.save writes it."""
    import torch

    return _pickled({"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.ones(30)})


@cache
def _older() -> bytes:
    import torch

    return _pickled({"a.weight": torch.arange(600.0)}, _use_new_zipfile_serialization=False)


def _archive(pickled: bytes, *records: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive as PyTorch writes it, of any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        made.writestr("archive/data.pkl", pickled)
        for name, data in records:
            made.writestr(f"archive/{name}", data)
    return file.getvalue()


def _tensor(sides: list[int], strides: list[int], count: int, *, key: bytes = b"0", kind: bytes = b"Float") -> bytes:
    """Return the pickle of one tensor that states any shape of a storage of `count` numbers."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def row(values: list[int]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    name = b"X" + struct.pack("<I", len(key)) + key
    held = b"(X\x07\0\0\0storagectorch\n" + kind + b"Storage\n" + name + b"X\x03\0\0\0cpu" + number(count) + b"tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + number(0) + row(sides) + row(strides)
    return b"\x80\x02}X\x01\0\0\0a" + made + b"\x89ccollections\nOrderedDict\n)RtRs."


def _tensors(header: object, data: bytes = bytes(64), *, length: int | None = None) -> bytes:
    """Return a file of safetensors of that header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(**facts: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **facts}}


def _all_of(dtype: str) -> Callable[[dict[str, Any]], Any]:
    """Return what gives weights another type."""

    def change(weights: dict[str, Any]) -> Any:
        import torch

        return {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}

    return change


@cache
def _trained() -> tuple[bytes, dict[str, Any]]:
    """Return weights of a tiny sam-med3d as samkit writes them, and what it writes beside them."""
    from samkit.checkpoints import CheckpointInfo, save_checkpoint
    from samkit.methods import get_method

    method = get_method("sam-med3d")
    config = method.sizes["tiny"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.safetensors"
        save_checkpoint(path, method.build(config), CheckpointInfo(method.name, "tiny", config, method.refinements[0]))
        return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def _ours(
    change: Callable[[dict[str, Any]], object] = lambda facts: None,
    changed_weights: Callable[[dict[str, Any]], Any] | None = None,
) -> Make:
    """Return what makes a checkpoint of ours whose JSON, or whose weights, are changed."""

    def make(folder: Path, chance: Random) -> Path:
        from safetensors.torch import load, save

        data, own = _trained()
        facts = json.loads(json.dumps(own))
        if changed_weights is not None:
            data = save(changed_weights(load(data)), {"samkit": "0"})
            facts["weights_sha256"] = hashlib.sha256(data).hexdigest()
        change(facts)
        (folder / "c.json").write_text(json.dumps(facts))
        return of_bytes("c.safetensors", data)(folder, chance)

    return make


def _beside(make_json: Make) -> Make:
    """Return what makes a checkpoint of ours whose JSON another maker makes."""

    def make(folder: Path, chance: Random) -> Path:
        path = _ours()(folder, chance)
        path.with_suffix(".json").unlink()
        make_json(folder, chance)
        return path

    return make


def _without_json(folder: Path, chance: Random) -> Path:
    path = _ours()(folder, chance)
    path.with_suffix(".json").unlink()
    return path


_DEEP = b"\x80\x02" + b")" + b"\x85" * 100_000 + b"."
_COPIES = b"\x80\x02(" + b"K\x00" * 50_000 + b"lq\x00" + b"c__builtin__\nset\n(h\x00tR" * 10_000 + b"."
_SYSTEM = b"\x80\x02cposix\nsystem\nX\x0e\0\0\0touch ../pwned0\x85R."

WEIGHTS: tuple[Kind, ...] = (
    *(
        Kind(f"{what} as {end}", of_bytes(f"c{end}", content), r"c\.")
        for what, content in OTHERS
        for end in (".pt", ".pth", ".safetensors")
    ),
    Kind("checkpoint: pipe", fifo("c.pt"), r"c\.pt"),
    Kind("checkpoint: device", link("c.pt", "/dev/zero"), r"c\.pt"),
    Kind("checkpoint: empty folder", folder_of("c.pt"), "holds no best.safetensors"),
    Kind("checkpoint: link in circles", link("c.pt", "c.pt"), r"c\.pt"),
    Kind("checkpoint: absent", absent("c.pt"), "there is no checkpoint"),
    Kind("checkpoint: long name", absent("x" * 300 + ".pt"), "File name too long"),
    Kind("checkpoint: unreadable", unreadable("c.pt", _small), "ermission", is_unreadable=True),
    Kind("checkpoint cut", of_bytes("c.pt", changed(_small, cut)), r"c\.pt", count=4),
    Kind("checkpoint flipped", of_bytes("c.pt", changed(_small, flip)), r"c\.pt|no image encoder", count=4),
    Kind("older checkpoint cut", of_bytes("c.pt", changed(_older, cut)), r"c\.pt", count=3),
    *(
        Kind(f"pickle: {what}", of_bytes("c.pt", _archive(content, ("data/0", bytes(4)))), r"c\.pt")
        for what, content in (
            ("memo of 2^31", b"\x80\2Nr\xff\xff\xff\x7f."),
            ("bytes of 2^36", b"\x80\5\x96" + struct.pack("<Q", 2**36) + b"."),
            ("text of 2^36", b"\x80\4\x8d" + struct.pack("<Q", 2**36) + b"."),
            ("frame of 2^36", b"\x80\4\x95" + struct.pack("<Q", 2**36) + b"."), ("number of a million digits",
             b"\x80\2L" + b"9" * 10**6 + b"L\n."), ("deep", _DEEP), ("copies", _COPIES), ("a command", _SYSTEM),
            ("10^12 times one number", _tensor([10**6, 10**6], [0, 0], 1)),
            ("storage of 2^40", _tensor([2**40], [1], 2**40)),
            ("side below zero", _tensor([-1], [1], 1)), ("stride beyond", _tensor([1], [2**60], 1)),
            ("key of a path", _tensor([1], [1], 1, key=b"../0")),
            ("another storage", _tensor([1], [1], 1, kind=b"Double")),
            ("nothing", b""), ("no end", b"\x80\2}"), ("stack is empty", b"\x80\2R."),
        )
    ),
    Kind("bare memo of 2^31", of_bytes("c.pt", b"\x80\2]r\xff\xff\xff\x7f."), r"c\.pt"),
    Kind("bare command", of_bytes("c.pt", _SYSTEM), r"c\.pt"),
    Kind("bomb of 256 MB", of_bytes("c.pt", lambda chance: _archive(
        _tensor([2**26], [1], 2**26), ("data/0", bytes(2**28)), method=zipfile.ZIP_DEFLATED)), "compressed"),
    *(
        Kind(f"safetensors: {what}", of_bytes("c.safetensors", content), r"c\.safetensors|no image encoder")
        for what, content in (
            ("header of 2^62", _tensors({}, length=2**62)), ("header of 99 MB", _tensors({}, length=99 * 10**6)),
            ("no JSON", _tensors(b"{" * 64)), ("deep", _tensors(b'{"a":' * 10**5)), ("list", _tensors([1, 2])),
            ("offsets beyond", _tensors(_one(data_offsets=[0, 2**40]))),
            ("offsets back", _tensors(_one(data_offsets=[64, 0]))),
            ("shape of 2^62", _tensors(_one(shape=[2**31, 2**31]))), ("side below zero", _tensors(_one(shape=[-4, 4]))),
            ("unknown type", _tensors(_one(dtype="F7"))), ("whole numbers", _tensors(_one(dtype="I32"))),
            ("no tensors", _tensors({}, b"")), ("junk behind", _tensors(_one(), bytes(99))), ("short", b"\x10"),
            ("shape of texts", _tensors(_one(shape=["4", "4"]))), ("overlap", _tensors(_one() | {"b": _one()["a"]})),
            ("others' weights", _tensors(_one())),
        )
    ),
    *(
        Kind(f"weights: {what}", _ours(changed_weights=change), r"c\.safetensors")
        for what, change in (
            ("whole numbers", _all_of("int32")),
            ("truth values", _all_of("bool")),
            ("complex numbers", _all_of("complex64")),
            ("half of them", lambda weights: dict(list(weights.items())[::2])),
            ("none", lambda weights: {}),
            ("three numbers of each", lambda weights: {n: v.reshape(-1)[:3].clone() for n, v in weights.items()}),
            ("NaN", lambda weights: {n: v * float("nan") for n, v in weights.items()}),
            ("others besides", lambda weights: {**weights, "x": weights["mask_decoder.iou_token.weight"].clone()}),
        )
    ),
    *(
        Kind(f"weights of a pickle: {what}", of_bytes("c.pt", _pickling(held)), r"c\.pt")
        for what, held in (
            ("a number", 5), ("a text", "x"), ("a list", [1]), ("nothing", {}), ("names alone", {"a": 1}),
        )
    ),
    *(Kind(f"facts of weights, {kind.name}", _beside(kind.make), kind.says, count=kind.count)
      for kind in broken("c.json", lambda: b'{"schema_version": 1, "method": "sam-med3d"}', 3, r"c\.")),
    Kind("weights that lost their facts", _without_json, r"c\."),
    *(
        Kind(f"facts of weights: {what}", _ours(change), r"c\.|size|method|spacing|width|depth|patch")
        for what, change in (
            ("schema_version 0", lambda facts: facts.update(schema_version=0)),
            ("schema_version 99", lambda facts: facts.update(schema_version=99)),
            ("schema_version NaN", lambda facts: facts.update(schema_version=float("nan"))),
            ("unknown method", lambda facts: facts.update(method="sam-99")),
            ("another method", lambda facts: facts.update(method="sam")),
            ("method of a list", lambda facts: facts.update(method=["sam-med3d"])),
            ("unknown size", lambda facts: facts.update(size="huge")),
            ("no config", lambda facts: facts.pop("config")),
            ("config of a list", lambda facts: facts.update(config=[])),
            ("width of 10^6", lambda facts: facts["config"].update(width=10**6)),
            ("depth of 10^6", lambda facts: facts["config"].update(depth=10**6)),
            ("depth of 10^300", lambda facts: facts["config"].update(depth=10**300)),
            ("depth below zero", lambda facts: facts["config"].update(depth=-1)),
            ("depth of one more", lambda facts: facts["config"].update(depth=facts["config"]["depth"] + 1)),
            ("heads that do not divide", lambda facts: facts["config"].update(heads=7)),
            ("no heads", lambda facts: facts["config"].update(heads=0)),
            ("patch of 10^6", lambda facts: facts["config"].update(patch=10**6)),
            ("width as text", lambda facts: facts["config"].update(width="48")),
            ("spacing NaN", lambda facts: facts["config"].update(spacing=[float("nan"), 1.5, 1.5])),
            ("spacing infinite", lambda facts: facts["config"].update(spacing=[float("inf"), 1.5, 1.5])),
            ("unknown refinement", lambda facts: facts.update(refinement="magic")),
            ("hash of other weights", lambda facts: facts.update(weights_sha256="0" * 64)),
            ("unknown field", lambda facts: facts.update(x=1)),
        )
    ),
)  # fmt: skip
