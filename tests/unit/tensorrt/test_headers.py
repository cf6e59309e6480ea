"""What an engine's first bytes say, by the real library, and what --verify makes of engines without it."""

from __future__ import annotations

import logging
import shutil
import struct
from dataclasses import replace

import pytest

from samkit.engine_libraries import RTX
from samkit.errors import ManifestError, MissingDependencyError
from samkit.export import engine_headers
from samkit.export.engine_headers import HEADER_SIZE, EngineHeader
from samkit.export.verify import verify_export
from samkit.manifest import Manifest, describe_files
from support.rtx import built, one_node

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]

ENGINE = "mask_decoder.fp32.rtx.engine"
VERSION = "1.7.1.116"


def header(*, version=(1, 7, 1, 116), size=4096, targets=0b1111110, magic=b"vtrt"):
    """Return a header as the library writes it."""
    start = struct.pack("<4sIIIQ4B4sI", magic, 0, 2, 0, size, *version, magic, targets)
    return start + bytes(HEADER_SIZE - len(start))


# --- By the library ---


def test_header_is_what_the_library_writes(rtx, tmp_path):
    path = one_node(tmp_path, "Relu", ("y", ["n", 4]))
    for target in RTX.targets:
        engine = built(path, target=target).engine
        found = EngineHeader.read(engine)
        assert found == EngineHeader(rtx.__version__, len(engine), RTX.generations(target))
        if rtx.__version__ == VERSION:
            number = struct.unpack_from("<I", engine, 32)[0]
            assert engine[:HEADER_SIZE] == header(size=len(engine), targets=number)
    assert EngineHeader.read(engine[: HEADER_SIZE - 1]) is None


def test_library_reads_magic_version_and_size_there(rtx, tmp_path):
    said = []

    class Log(rtx.ILogger):
        def __init__(self):
            rtx.ILogger.__init__(self)

        def log(self, severity, msg):
            said.append(msg)

    log = Log()
    runtime = rtx.Runtime(log)
    assert runtime.engine_header_size == HEADER_SIZE
    engine = built(one_node(tmp_path, "Relu", ("y", ["n", 4]))).engine

    def judged(data):
        said.clear()
        return runtime.get_engine_validity(bytes(data))[1], " ".join(said)

    malformed = int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert judged(engine[:HEADER_SIZE])[0] & malformed == 0
    assert judged(b"other" + engine[5:HEADER_SIZE])[0] & malformed
    assert judged(engine[: HEADER_SIZE - 1])[0] & malformed
    newer = bytearray(engine[:HEADER_SIZE])
    newer[25] += 1
    assert "has been created with TensorRT-RTX version" in judged(newer)[1]
    assert "has been created with TensorRT-RTX version" not in judged(engine[:HEADER_SIZE])[1]
    said.clear()
    assert runtime.deserialize_cuda_engine(engine[:-1]) is None
    assert "header.size == blobSize" in " ".join(said)


# --- By --verify ---


@pytest.fixture
def listed(tiny_export, tmp_path, monkeypatch):
    """Return a function that puts an engine of some bytes into an export, with the entry and the hash that fit it."""
    monkeypatch.setattr(engine_headers, "tensorrt_version", lambda library: VERSION)
    folder = shutil.copytree(tiny_export, tmp_path / "export")

    def put(data, **facts):
        (folder / ENGINE).write_bytes(data)
        plain = Manifest.load(folder)
        entry = {"library": "rtx", "tensorrt_rtx": VERSION, "target": "portable", "files": [ENGINE], **facts}
        artifacts = (*plain.artifacts, *describe_files(folder, [ENGINE]))
        replace(plain, artifacts=artifacts, engines={ENGINE: entry}).save(folder)
        return folder

    return put


WHOLE = header() + bytes(4096 - HEADER_SIZE)


def test_export_is_verified_with_its_engines(listed, caplog):
    folder = listed(WHOLE)
    caplog.set_level(logging.INFO, "samkit")
    verify_export(folder)
    assert "1 engines of TensorRT for RTX have the header that the manifest speaks of; none was run" in caplog.messages


@pytest.mark.parametrize(
    ("data", "facts", "sentence"),
    [
        (WHOLE[:-1], {}, "has 4095 bytes, and its header says 4096"),
        (WHOLE[:20], {}, "begins as no engine of TensorRT for RTX does"),
        (b"", {}, "begins as no engine of TensorRT for RTX does"),
        (header(magic=b"ptrt") + WHOLE[HEADER_SIZE:], {}, "begins as no engine of TensorRT for RTX does"),
        (
            header(version=(1, 8, 0, 2)) + WHOLE[HEADER_SIZE:],
            {},
            f"was built by TensorRT for RTX 1.8.0.2, and the manifest says {VERSION}",
        ),
        (WHOLE, {"target": "sm86"}, "was built for sm80, sm86, sm89, sm120, and the manifest says sm86"),
        (header(targets=1) + WHOLE[HEADER_SIZE:], {}, "was built for sm75, and the manifest says portable"),
        (header(targets=0) + WHOLE[HEADER_SIZE:], {}, "was built for no known target, and the manifest says portable"),
    ],
)
def test_engine_that_is_another_is_one_sentence(listed, data, facts, sentence):
    folder = listed(data, **facts)
    with pytest.raises(ManifestError) as refused:
        verify_export(folder)
    assert str(refused.value) == (f"{folder / ENGINE} {sentence}; build it again: sam-export --build-engines {folder}")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"1"], ids=["cut", "changed"])
def test_engine_that_changed_since_is_told_by_its_hash(listed, change):
    folder = listed(WHOLE)
    (folder / ENGINE).write_bytes(change(WHOLE))
    with pytest.raises(ManifestError, match=r"changed since it was exported; .* sam-export --build-engines [^\n]*$"):
        verify_export(folder)


def test_engine_that_its_entry_does_not_list_is_told(listed):
    folder = listed(WHOLE, files=[])
    with pytest.raises(ManifestError, match=f"lists no file {ENGINE} for the engine of this name"):
        verify_export(folder)


def test_engines_of_versions_that_are_not_known_are_left_to_their_hash(listed, caplog):
    folder = listed(b"another layout", tensorrt_rtx="1.9.0.1")
    verify_export(folder)
    assert f"{ENGINE}: its header was not read, that of TensorRT for RTX 1.9.0.1 is not known" in caplog.messages


def test_other_version_here_is_said(listed, monkeypatch, caplog):
    folder = listed(WHOLE)
    monkeypatch.setattr(engine_headers, "tensorrt_version", lambda library: "1.7.0.12")
    verify_export(folder)
    (said,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert said.startswith(
        f"{ENGINE} was built by TensorRT for RTX {VERSION}, and here is 1.7.0.12, which may refuse it"
    )


def test_library_is_not_needed(listed, monkeypatch):
    def missing(library):
        raise MissingDependencyError("it is not installed")

    folder = listed(WHOLE)
    monkeypatch.setattr(engine_headers, "tensorrt_version", missing)
    verify_export(folder)
