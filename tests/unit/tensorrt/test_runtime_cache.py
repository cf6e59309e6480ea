"""Guards kernels that are kept between sessions: only this user's own file, of this engine and machine, unchanged."""

from __future__ import annotations

import os

import pytest

from samkit.runtime.backends import runtime_cache
from samkit.runtime.backends.runtime_cache import RuntimeCache

HERE = {"gpu": "RTX 4090", "compute_capability": "8.9", "driver": "580.1", "cuda_driver": "13.0", "cuda": "13.5"}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def cache(engine=b"engine", version="1.7.1", **facts):
    return RuntimeCache(engine, version, {**HERE, **facts})


def test_kernels_come_back_as_they_were(cache_home, caplog):
    assert cache().read() == b""
    cache().write(b"kernels\nand more")
    assert cache().read() == b"kernels\nand more"
    assert cache().path.parent == cache_home / "samkit" / "kernels"
    assert not caplog.records


def test_each_engine_gpu_driver_and_release_has_its_own():
    others = [
        cache(b"other"), cache(version="1.7.2"),
        *(cache(**{fact: "other"}) for fact in ("gpu", "compute_capability", "driver")),
    ]  # fmt: skip
    assert len({other.path for other in (cache(), *others)}) == 6


def changed(path, caplog):
    """Nothing is loaded, one line says so, and the file is gone."""
    caplog.set_level("INFO", "samkit")
    assert cache().read() == b""
    (line,) = [record.message for record in caplog.records]
    assert not path.exists()
    return line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "changed"),
        (lambda path: path.write_bytes(b"no header"), "Expecting value"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"580.1", b"581.1")), "another engine or machine"),
        (lambda path: path.chmod(0o620), "not this user's alone"),
        (lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")), "symbolic links"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "not this user's alone"),
    ],
)
def test_what_changed_or_may_be_anothers_is_dropped(change, words, caplog):
    cache().write(b"kernels")
    path = cache().path
    change(path)
    assert words in changed(path, caplog)


def test_what_is_too_large_is_neither_kept_nor_loaded(monkeypatch, caplog):
    cache().write(bytes(9000))
    path = cache().path
    monkeypatch.setattr(runtime_cache, "MOST_BYTES", 10)
    assert "more than is kept" in changed(path, caplog)
    cache().write(bytes(11))
    assert not path.exists()


def test_what_was_written_first_makes_room(monkeypatch):
    monkeypatch.setattr(runtime_cache, "FOLDER_BYTES", 1500)
    for number, engine in enumerate((b"a", b"b", b"c")):
        cache(engine).write(bytes(300))
        if cache(engine).path.exists():
            os.utime(cache(engine).path, (number, number))
    assert [cache(engine).path.exists() for engine in (b"a", b"b", b"c")] == [False, True, True]


def test_nothing_is_written_twice():
    kept = cache()
    kept.write(b"kernels")
    kept.path.unlink()
    kept.write(b"kernels")
    assert not kept.path.exists()


def test_relative_folder_is_none_and_a_user_without_home_has_no_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache().path.parent == tmp_path / "home" / ".cache" / "samkit" / "kernels"

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(runtime_cache.Path, "home", homeless)
    assert cache().path is None
    cache().write(b"kernels")
    assert cache().read() == b""
