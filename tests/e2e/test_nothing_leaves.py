"""Nothing leaves the machine, nothing is written but what was asked for, and no other user reads what is temporary:
every command, and all that it imports.

A table of commands, so that whatever a command comes to depend on is watched as well. To see what a command does, run
its test with -s: the commands' own words are shown.
"""

from __future__ import annotations

import functools
import signal
import subprocess
from dataclasses import dataclass

import pytest

from support.serving import need_server
from support.watching import watched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("watched")]

SESSION = """
import sys, samkit
with samkit.open_session(sys.argv[1]) as session:
    session.set_image(sys.argv[2])
    session.click((16, 16, 16))
    session.save(sys.argv[3])
"""
CONTROL = """
import ctypes, os, socket
from pathlib import Path

def attempt(call):
    try:
        call()
    except OSError:
        pass

attempt(lambda: socket.getaddrinfo("python.example", 443))
ctypes.CDLL(None).getaddrinfo(b"native.example", None, None, None)
attempt(lambda: socket.create_connection(("192.0.2.1", 443)))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.2", 53)))
attempt(lambda: socket.create_connection(("127.0.0.1", 1)))
for folder in (Path.home() / ".cache", Path(os.environ["TMPDIR"])):
    folder.mkdir(exist_ok=True)
    (folder / "left").write_text("")
private = Path(os.environ["TMPDIR"], "private")
private.mkdir(0o700)
(private / "hidden").write_text("")
(private / "hidden").unlink()
private.rmdir()
os.close(os.memfd_create("no file"))
"""


@dataclass(frozen=True)
class Command:
    """What is run: the words behind `python`, in which {out}, {scan} and {bright} are put in."""

    words: str
    needs: tuple[str, ...] = ()
    """Commands whose output it reads."""
    served: bool = False
    """Whether it starts a server."""
    until: str = ""
    """A line after which it is ended by SIGTERM, where it would run on."""


_BENCH = "-m samkit.benchmarks.cli"
COMMANDS = {
    "phantoms": Command("-m samkit.phantoms --out {out}/phantoms --cases 5 --size 44"),
    "sam-train": Command(
        "-m samkit.training.cli --method sam-med3d --data {out}/phantoms --out {out}/run --preset tiny --threads 1 "
        "--set spacing=1.5 --set epochs=1",
        needs=("phantoms",),
    ),
    "sam-export": Command(
        "-m samkit.export.cli --method sam-med3d --checkpoint {out}/run --out {out}/export", needs=("sam-train",)
    ),
    "sam-export --verify": Command("-m samkit.export.cli --verify {out}/export", needs=("sam-export",)),
    "sam-segment": Command(
        "-m samkit.segment.cli --export {bright} -i {scan} -o {out}/mask.nii.gz --point 16,16,16,+ "
        "--overlay {out}/overlay.png --report {out}/report.json",
        needs=("phantoms",),
    ),
    "session": Command("{out}/session.py {bright} {scan} {out}/saved.nii.gz", needs=("phantoms",)),
    "sam-bench accuracy": Command(
        f"{_BENCH} accuracy --export {{out}}/export --backends torch,onnxruntime --cases 1 --clicks 1 "
        "--json {out}/accuracy.json",
        needs=("sam-export",),
    ),
    "sam-bench latency": Command(
        f"{_BENCH} latency --export {{out}}/export --rounds 1 --part graphs --graph mask_decoder --threads 1 "
        "--rival torch --cold-starts 0 --json {out}/latency.json",
        needs=("sam-export",),
    ),
    "sam-bench report": Command(
        f"{_BENCH} report {{out}}/accuracy.json {{out}}/latency.json --out {{out}}/report.html",
        needs=("sam-bench accuracy", "sam-bench latency"),
    ),
    "sam-serve write": Command("-m samkit.triton_models.cli write {bright} --out {out}/repository"),
    "sam-serve check": Command(
        "-m samkit.triton_models.cli check {out}/repository", needs=("sam-serve write",), served=True
    ),
    "sam-serve start": Command(
        "-m samkit.triton_models.cli start {out}/repository --grpc-port 0 --http-port 0 --metrics-port 0",
        needs=("sam-serve write",),
        served=True,
        until="READY\n",
    ),
    "sam-bench load": Command(
        f"{_BENCH} load --export {{bright}} --sessions 1 --mode closed --seconds 1 --scaling none "
        "--json {out}/load.json",
        served=True,
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, bright_export):
    """Return a function that runs a command of the table once, after those it needs, and gives what was seen."""
    place = watched(tmp_path_factory.mktemp("watched"))
    (place.out / "session.py").write_text(SESSION)
    puts = {
        "out": place.out,
        "bright": bright_export,
        "scan": place.out / "phantoms" / "images" / "phantom-0000-t1.nii.gz",
    }

    @functools.cache
    def once(name):
        command = COMMANDS[name]
        for needed in command.needs:
            once(needed)
        process = place.start(command.words.format(**puts).split(), stdout=subprocess.PIPE)
        if command.until:
            for line in process.stdout:
                if line == command.until:
                    process.send_signal(signal.SIGTERM)
                    break
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return place.seen()

    return once


@pytest.mark.parametrize("name", COMMANDS)
def test_command_leaves_nothing_and_tells_nobody(name, run):
    if COMMANDS[name].served:
        need_server()

    assert not (found := run(name)), "\n".join(found)


def test_what_leaves_is_seen(tmp_path):
    place = watched(tmp_path)
    place.start(["-c", CONTROL]).wait()
    home, temporary = tmp_path / "HOME" / ".cache", tmp_path / "TMPDIR"

    assert [line.removeprefix("python3").removeprefix("python").removeprefix(": ") for line in place.seen()] == [
        "connect 192.0.2.1 port 443",
        "look-up native.example",
        "look-up python.example",
        "send 192.0.2.2 port 53",
        f"shown {temporary}/left",
        f"write {home}",
        f"write {home}/left",
        f"write {temporary}/left",
        f"left: {home}",
        f"left: {home}/left",
        f"left: {temporary}/left",
    ]
