"""A file is there whole or not at all, a share may know less than a disk, and the dead leave nothing for long."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from samkit import files
from samkit.errors import SamkitError
from samkit.files import make_folder, replacing, working_folder, write_whole


@pytest.fixture(autouse=True)
def _newly_started(monkeypatch):
    monkeypatch.setattr(files, "_swept", set())


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_gets_the_mode_that_any_new_file_has_and_nothing_else_is_left(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "text")

    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "whole"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_a_share_that_knows_neither_fsync_nor_locks_nor_modes_keeps_the_file(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    monkeypatch.setattr(os, "chmod", failing(number))
    monkeypatch.setattr(files.fcntl, "flock", failing(number))
    write_whole(tmp_path / "mask.nii", b"finished")

    assert (tmp_path / "mask.nii").read_bytes() == b"finished"
    with working_folder(tmp_path) as folder:
        write_whole(folder / "other", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_did_not_reach_the_disk_is_an_error_and_the_old_file_stays(tmp_path, monkeypatch, number):
    write_whole(tmp_path / "mask.nii", b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(SamkitError, match=rf"mask\.nii can't be written \({os.strerror(number)}\)"):
        write_whole(tmp_path / "mask.nii", b"new")

    assert (tmp_path / "mask.nii").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SamkitError, match=r"file/run can't be made \(Not a directory\)"):
        make_folder(tmp_path / "file" / "run")


WORK = """
import sys
from pathlib import Path
from samkit.files import replacing, working_folder
with working_folder(Path(sys.argv[1])) as folder, replacing(Path(sys.argv[1]) / "mask.nii") as file:
    (folder / "graph.onnx").write_text("half")
    file.write(b"half")
    print("at work", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_works_on_never(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        unfinished = sorted(path.name for path in tmp_path.iterdir())
        with replacing(tmp_path / "other.nii"), working_folder(tmp_path):
            assert len(unfinished) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == [*unfinished, "other.nii"]
        process.send_signal(signal.SIGKILL)

    assert sorted(path.name for path in tmp_path.iterdir()) == [*unfinished, "other.nii"]
    files._swept.clear()
    write_whole(tmp_path / "third.nii", b"")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.nii", "third.nii"]


def test_leftovers_of_another_machine_on_the_same_share_are_not_ours_to_remove(tmp_path):
    (tmp_path / ".samkit-00000000-12345678.part").write_bytes(b"half")
    write_whole(tmp_path / "mask.nii", b"")

    assert (tmp_path / ".samkit-00000000-12345678.part").exists()
