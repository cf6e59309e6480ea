"""JSON that is none, or says what cannot be: clicks, exports, repositories, runs, lists of cases."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tools.hostile.kind import HTML, LFS, Kind, Make, cut, of_bytes
from tools.hostile.no_files import fifo, folder_of, link, no_files, unreadable
from tools.mutations import TARGETS


def broken(name: str, good: Callable[[], bytes], code: int, says: str, **facts: Any) -> tuple[Kind, ...]:
    """Return kinds of what is no JSON, or too much of it, in a file of that name."""
    deep = 100_000
    return (
        *(
            Kind(f"JSON: {what}", of_bytes(name, content), says, code, **facts)
            for what, content in (
                ("empty", b""), ("a page", HTML), ("LFS", LFS), ("zeros", bytes(500)), ("not UTF-8", b'["\xe4\xff"]'),
                ("null", b"null"), ("a number", b"1"), ("a text", b'"x"'), ("NaN", b"NaN"),
                ("deep lists", b"[" * deep), ("deep and whole", b"[" * deep + b"]" * deep),
                ("deep objects", b'{"a":' * deep + b"1" + b"}" * deep), ("long number", b"[" + b"9" * 100_000 + b"]"),
                ("UTF-16", '[{"a": 1}]'.encode("utf-16")), ("comment", b"// x\n[]"), ("an object too many", b"{} {}"),
            )
        ),
        Kind("JSON: cut", of_bytes(name, lambda chance: cut(good(), chance)), says, code, count=3, **facts),
        Kind("JSON: a million numbers", of_bytes(name, b"[" + b"1," * 10**6 + b"1]"), says, code, **facts),
        Kind("JSON: 100 MB", _large(name), says, code, **facts),
    )  # fmt: skip


def _large(name: str) -> Make:
    def make(folder: Path, chance: Random) -> Path:
        (folder / name).write_bytes(b"[")
        os.truncate(folder / name, 10**8)
        return folder / name

    return make


# --- Clicks ---

_POINT = {"point": [8, 8, 8], "label": 1}


def _clicks() -> bytes:
    return json.dumps([_POINT, {"point": [2, 2, 2], "label": 0}], indent=1).encode()


CLICKS: tuple[Kind, ...] = (
    *broken("clicks.json", _clicks, 2, "clicks.json|no click"),
    *no_files("clicks.json", _clicks, (), "No such file", 2),
    Kind("clicks with a byte order mark", of_bytes("clicks.json", b"\xef\xbb\xbf" + _clicks()), "", 0, grid=24**3),
    Kind("clicks with CRLF", of_bytes("clicks.json", _clicks().replace(b"\n", b"\r\n")), "", 0, grid=24**3),
    *(
        Kind(f"clicks: {what}", of_bytes("clicks.json", json.dumps(said).encode()), says, code)
        for what, said, says, code in (
            ("none", [], "no click", 2),
            ("object", {"points": []}, "holds a dict", 2),
            ("a bare place", [[8, 8, 8]], "click 0", 2),
            ("two numbers", [{"point": [8, 8], "label": 1}], "8", 2),
            ("four numbers", [{"point": [8, 8, 8, 8], "label": 1}], "click 0", 2),
            ("no label", [{"point": [8, 8, 8]}], "click 0", 2),
            ("label 2", [{"point": [8, 8, 8], "label": 2}], "click 0", 2),
            ("label true", [{"point": [8, 8, 8], "label": True}], "click 0", 2),
            ("label 1.0", [{"point": [8, 8, 8], "label": 1.0}], "click 0", 2),
            ("label as text", [{"point": [8, 8, 8], "label": "1"}], "click 0", 2),
            ("numbers as text", [{"point": ["8", "8", "8"], "label": 1}], "numbers", 2),
            ("underscores", [{"point": ["1_5", 8, 8], "label": 1}], "numbers", 2),
            ("null", [{"point": [None, 8, 8], "label": 1}], "numbers", 2),
            ("truth", [{"point": [True, 8, 8], "label": 1}], "numbers", 2),
            ("NaN", [{"point": [float("nan"), 8, 8], "label": 1}], "finite", 2),
            ("infinite", [{"point": [float("inf"), 8, 8], "label": 1}], "finite", 2),
            ("1e308", [{"point": [1e308, 8, 8], "label": 1}], "outside|lies", 3),
            ("outside", [{"point": [800, 8, 8], "label": 1}], "outside|lies", 3),
            ("below zero", [{"point": [-8, 8, 8], "label": 1}], "outside|lies", 3),
            ("unknown key", [{**_POINT, "name": "Doe^Jane"}], "click 0", 2),
            ("point and box", [{**_POINT, "box": [1, 1, 1, 2, 2, 1]}], "click 0", 2),
            ("a box for clicks", [{"box": [1, 1, 1, 5, 5, 1]}], "box", 2),
            ("structure that is none", [{**_POINT, "structure": "x"}], "structure", 2),
            ("structure of a number", [{**_POINT, "structure": 5}], "click 0", 2),
            ("background alone", [{"point": [8, 8, 8], "label": 0}], "none of the 1", 3),
            ("nested", [[[_POINT]]], "click 0", 2),
        )
    ),
)

# --- Exports ---


@cache
def _manifest() -> dict[str, Any]:
    """Return a good manifest of m-sam, without its files."""
    return json.loads(TARGETS["manifest"].seeds()[0])


def export_with(change: Callable[[dict[str, Any]], object] = lambda data: None, **graphs: bytes) -> Make:
    """Return what makes an export whose manifest is changed, with graphs of those bytes, by default zeros."""

    def make(folder: Path, chance: Random) -> Path:
        own = folder / "export"
        own.mkdir()
        data = json.loads(json.dumps(_manifest()))
        data |= {"artifacts": [], "engines": {}}
        for name in data["plan"]["graphs"]:
            content = graphs.get(name, graphs.get("all", bytes(64)))
            (own / f"{name}.onnx").write_bytes(content)
            data["artifacts"].append(
                {"file": f"{name}.onnx", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            )
        change(data)
        (own / "manifest.json").write_text(json.dumps(data))
        return own

    return make


def _manifest_of(content: Make) -> Make:
    """Return what makes an export whose manifest another maker makes."""

    def make(folder: Path, chance: Random) -> Path:
        own = export_with()(folder, chance)
        (own / "manifest.json").unlink()
        content(own, chance)
        return own

    return make


def _put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    """Return what puts a value at a place of a manifest."""

    def put(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return put


def _without(*keys: Any) -> Callable[[dict[str, Any]], object]:
    def take(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return take


@cache
def _other_graph() -> bytes:
    """Return a graph that is good and does something else."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "other", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


_RUNS = ("segment with an export", "open_session of an export")
"""Doors that open the graphs; the others take their hashes' word, or find no references."""

EXPORTS: tuple[Kind, ...] = (
    *(Kind(kind.name, _manifest_of(kind.make), kind.says, kind.code, count=kind.count)
      for kind in broken("manifest.json", lambda: json.dumps(_manifest()).encode(), 3, "manifest")),
    *(Kind(f"manifest: {what}", _manifest_of(make), "manifest", is_unreadable=what == "unreadable")
      for what, make in (
          ("pipe", fifo("manifest.json")), ("folder", folder_of("manifest.json")),
          ("link in circles", link("manifest.json", "manifest.json")),
          ("unreadable", unreadable("manifest.json", lambda: b"{}")),
      )),
    *(
        Kind(f"manifest: {what}", export_with(change), "manifest|export again|unknown method|schema")
        for what, change in (
            *((f"schema_version {value!r}", _put("schema_version", value=value))
              for value in (0, -1, 10**9, 1.0, "1", True, None, float("nan"), [1])),
            ("no schema_version", _without("schema_version")),
            ("no plan", _without("plan")),
            ("plan of a list", _put("plan", value=[])),
            ("no graphs", _put("plan", "graphs", value=[])),
            ("graphs twice", _put("plan", "graphs", value=["image_encoder", "image_encoder", "mask_decoder"])),
            ("unknown graph", _put("plan", "graphs", value=["image_encoder", "x"])),
            ("graphs of a text", _put("plan", "graphs", value="image_encoder")),
            ("unknown method", _put("plan", "method", value="sam-99")),
            ("method of a number", _put("plan", "method", value=7)),
            ("method of a path", _put("plan", "method", value="../../x")),
            ("unknown precision", _put("plan", "precision", value="fp8")),
            ("opset of a text", _put("plan", "opset", value="20")),
            ("opset below zero", _put("plan", "opset", value=-1)),
            ("folded of a number", _put("plan", "folded", value=1)),
            ("patch of 10^9", _put("plan", "config", "patch", value=10**9)),
            ("width below zero", _put("plan", "config", "width", value=-48)),
            ("width that is no multiple", _put("plan", "config", "width", value=47)),
            ("spacing NaN", _put("plan", "config", "spacing", value=[float("nan"), 1, 1])),
            ("spacing zero", _put("plan", "config", "spacing", value=[0, 1, 1])),
            ("spacing of two", _put("plan", "config", "spacing", value=[1, 1])),
            ("unknown field of the network", _put("plan", "config", "x", value=1)),
            ("no artifacts", _put("artifacts", value=[])),
            ("artifact twice", lambda data: data["artifacts"].append(data["artifacts"][0])),
            ("artifact elsewhere", _put("artifacts", 0, "file", value="../image_encoder.onnx")),
            ("artifact in /etc", _put("artifacts", 0, "file", value="/etc/passwd")),
            ("artifact of a device", _put("artifacts", 0, "file", value="/dev/zero")),
            ("hash of a number", _put("artifacts", 0, "sha256", value=5)),
            ("hash of another file", _put("artifacts", 0, "sha256", value="0" * 64)),
            ("bytes below zero", _put("artifacts", 0, "bytes", value=-1)),
            ("parity of a list", _put("parity", value=[])),
            ("engines that are no files", _put("engines", value={"a.plan": {"files": 5}})),
            ("unknown field", _put("x", value=1)),
        )
    ),
    *(
        Kind(f"graph: {what}", export_with(all=content), "can't load|has the inputs", doors=_RUNS)
        for what, content in (
            ("empty", b""), ("a page", HTML), ("LFS", LFS), ("zeros", bytes(4096)), ("text", b"patient 4711" * 99),
            ("another", _other_graph()), ("cut", _other_graph()[:40]), ("junk behind", _other_graph() + b"\xff" * 99),
        )
    ),
)  # fmt: skip

# --- What sam-serve keeps ---


def _repository() -> bytes:
    return TARGETS["repository"].seeds()[0]


def _repository_of(content: Make) -> Make:
    """Return what makes a repository whose record another maker makes."""

    def make(folder: Path, chance: Random) -> Path:
        content(folder, chance)
        return folder

    return make


REPOSITORIES: tuple[Kind, ...] = (
    *(Kind(kind.name, _repository_of(kind.make), kind.says, kind.code, count=kind.count)
      for kind in broken("samkit.json", _repository, 1, "samkit.json")),
    *(
        Kind(f"repository: {what}", _repository_of(of_bytes("samkit.json", json.dumps(
            {**json.loads(_repository()), **changes}).encode())), says, 1)
        for what, changes, says in (
            ("no version", {"schema_version": 0}, "samkit.json"),
            ("later version", {"schema_version": 999}, "samkit.json"),
            ("of another samkit", {"samkit": "99.0"}, "was written by samkit"),
            ("exports of a list", {"exports": []}, "samkit.json"),
            ("exports of numbers", {"exports": {"sam": 5}}, "samkit.json"),
            ("unknown field", {"x": 1}, "samkit.json"),
            ("whose files are gone", {}, "missing"),
        )
    ),
)  # fmt: skip

# --- Runs, lists of cases ---


def run() -> bytes:
    """Return a good run of sam-bench."""
    return TARGETS["run"].seeds()[0]


def _run(changes: Mapping[str, object]) -> bytes:
    return json.dumps({**json.loads(run()), **changes}).encode()


RUNS: tuple[Kind, ...] = (
    *broken("run.json", run, 3, "run.json"),
    *(
        Kind(f"run: {what}", of_bytes("run.json", _run(changes)), "run.json")
        for what, changes in (
            ("no version", {"schema_version": 0}), ("later version", {"schema_version": 999}),
            ("kind of a list", {"kind": []}), ("rows of a text", {"rows": "x"}), ("rows of numbers", {"rows": [1, 2]}),
            ("rows of nothing", {"rows": [{}]}), ("machine of a list", {"machine": []}),
            ("command of a text", {"command": "sam-bench"}), ("seconds of a text", {"seconds": "1"}),
            ("unknown field", {"x": 1}), ("exports of nulls", {"exports": [None]}),
            ("exports of nothing", {"exports": [{}]}),
            ("export of a number", {"exports": [{"method": 5}]}), ("load of a number", {"machine": {"load": 5}}),
            ("clocks of a list", {"machine": {"clock_mhz": [1, 2]}}),
            ("memory of a text", {"machine": {"memory_gb": "8"}}),
            ("settled by a number", {"machine": {"settled": 0}}),
            ("unsettled by a number", {"machine": {"unsettled": 5}}),
            ("gpus of numbers", {"machine": {"gpus": [1]}}), ("versions of numbers", {"versions": {"numpy": 2}}),
            ("notes of a text", {"notes": "x"}), ("started of a number", {"started": 2026}),
        )
    ),
)  # fmt: skip
SETS: tuple[Kind, ...] = (
    *broken("dataset.json", lambda: b'{"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}', 3, "dataset.json"),
    *(
        Kind(f"dataset: {what}", of_bytes("dataset.json", json.dumps(said).encode()), "dataset.json|outside|no case")
        for what, said in (
            ("no list", {}), ("list of a text", {"training": "x"}), ("cases of numbers", {"training": [1, 2]}),
            ("no label", {"training": [{"image": "a.nii.gz"}]}),
            ("image of a number", {"training": [{"image": 1, "label": 2}]}),
            ("elsewhere", {"training": [{"image": "../../../etc/passwd", "label": "/etc/passwd"}]}),
            ("nothing there", {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}),
            ("no name", {"training": [{"image": "", "label": ""}]}), ("no case", {"training": []}),
        )
    ),
)  # fmt: skip
RESUMED: tuple[Kind, ...] = (
    *broken("run.json", lambda: b'{"plan": {}, "init": null, "data": {}, "state": "running"}', 3, "run.json"),
    *(
        Kind(f"{what} as {name}", of_bytes(name, content), name.replace(".", r"\."))
        for what, content in (("empty", b""), ("html", HTML), ("zeros", bytes(4096)), ("pickle", b"\x80\2}q\0."),
                              ("memo", b"\x80\2]r\xff\xff\xff\x7f."), ("zip", b"PK\5\6" + bytes(18)))
        for name in ("last.ckpt", "metrics.csv")
    ),
    *(
        Kind(f"metrics: {what}", of_bytes("metrics.csv", content), r"metrics\.csv")
        for what, content in (
            ("other columns", b"a,b\n1,2\n"), ("epoch of a text", b"epoch,step,seconds,loss\nx,1,1,1\n"),
            ("epochs twice", b"epoch,step,seconds,loss\n0,1,1,1\n0,2,2,2\n"),
            ("a row cut", b"epoch,step,seconds,loss\n0,1"),
            ("not UTF-8", b"epoch,step,seconds,loss\n0,1,1,\xff\n"), ("a huge field", b"epoch\n" + b"9" * 200_000),
        )
    ),
)  # fmt: skip
