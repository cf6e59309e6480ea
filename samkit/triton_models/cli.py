"""The command `sam-serve`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from samkit.command import run_command, show_progress
from samkit.errors import ServingError
from samkit.precisions import BASE, PRECISIONS
from samkit.triton_models.limits import DRAIN_SECONDS, MOST_RESTARTS
from samkit.version import __version__

if TYPE_CHECKING:
    from samkit.triton_models.server import EmbeddedServer

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_PORT = click.IntRange(0, 65535)
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@click.group(epilog="Exit codes: 0 done, 1 a stage failed, 2 usage, 3 input refused. Not a medical device.")
@click.version_option(__version__, prog_name="sam-serve")
def serve() -> None:
    """Serve exports with Triton: write a model repository, check it, start a server on it."""


@serve.command()
@click.argument("exports", nargs=-1, required=True, metavar="EXPORT...", type=_FOLDER)
@click.option("--out", required=True, metavar="REPO", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--precision", type=click.Choice([one.name for one in PRECISIONS]),
              help=f"Of all graphs. Default: {BASE.name}.")  # fmt: skip
@click.option("--name", help="What to serve one export as. Default: its method, with _ for -.")
@click.option("--no-engines", is_flag=True, help="Serve ONNX files though engines were built of them.")
@click.option("--rtx/--no-rtx", default=None,
              help="Serve engines of TensorRT for RTX. Default: where this machine runs them.")  # fmt: skip
@click.option("--max-sessions", type=click.IntRange(min=1), help="Sessions open at once, of each name.")
@click.option("--idle-seconds", type=click.IntRange(min=1), help="A session that rests so long is closed.")
@click.option("--max-memory", type=click.IntRange(min=1),
              help="What sessions may hold together [MiB]. Default: half of what the server has.")  # fmt: skip
@click.option("--cache-mb", type=click.IntRange(min=0), help="Memory for embeddings, of each name [MiB].")
@click.option("--max-voxels", type=click.IntRange(min=1), help="Of the largest scan taken, all sequences together.")
@click.option("--threads", type=click.IntRange(min=1), help="Requests worked on at once, of each name.")
def write(
    exports: tuple[Path, ...],
    out: Path,
    precision: str | None,
    name: str | None,
    no_engines: bool,
    rtx: bool | None,
    max_sessions: int | None,
    idle_seconds: int | None,
    max_memory: int | None,
    cache_mb: int | None,
    max_voxels: int | None,
    threads: int | None,
) -> None:
    """Write exports as one model repository, in place of one that was there."""
    if rtx and no_engines:
        raise click.UsageError("--rtx contradicts --no-engines; leave one out")
    from samkit.triton_models.limits import Limits
    from samkit.triton_models.repository import write_repository

    limits = {
        "max_sessions": max_sessions,
        "idle_seconds": idle_seconds,
        "memory_bytes": None if max_memory is None else max_memory << 20,
        "cache_bytes": None if cache_mb is None else cache_mb << 20,
        "max_voxels": max_voxels,
        "threads": threads,
    }
    record = write_repository(
        exports,
        out,
        precision=precision,
        name=name,
        engines=not no_engines,
        rtx=rtx,
        limits=Limits(**{key: value for key, value in limits.items() if value is not None}),
    )
    for served, export in record.exports.items():
        click.echo(f"{served}: {export.method} in {export.precision}, {len(export.models)} models")


@serve.command()
@click.argument("repository", metavar="REPO", type=_FOLDER)
@click.option("--container", is_flag=True, help="For NVIDIA's container on this machine, not the embedded server.")
def check(repository: Path, container: bool) -> None:
    """Say what would fail if REPO were served on this machine; exit 1 where anything would."""
    from samkit.triton_models.checks import find_problems

    problems = find_problems(repository, embedded=not container)
    for problem in problems:
        click.echo(f"sam-serve: {problem}", err=True)
    if problems:
        sys.exit(1)
    click.echo("it can be served here")


@serve.command()
@click.argument("repository", metavar="REPO", type=_FOLDER)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="0 takes a free one; so do the others.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Always on loopback.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Of IPv4; where gRPC and HTTP listen.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="What ONNX Runtime runs the graphs on; cuda was never tried.")  # fmt: skip
@click.option("--restarts", type=click.IntRange(min=0), default=MOST_RESTARTS, show_default=True,
              help="How often in a row a part that dies at once is started again.")  # fmt: skip
@click.option("--drain-seconds", type=click.FloatRange(min=0), default=DRAIN_SECONDS, show_default=True,
              help="How long requests may take that are worked on when the server is stopped.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="The server's log does not go to stderr.")
def start(
    repository: Path,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    address: str,
    device: str,
    restarts: int,
    drain_seconds: float,
    quiet: bool,
) -> None:
    """Serve REPO until Ctrl-C or SIGTERM, with the Triton of nvidia-pytriton: for this machine and for development.

    What dies of it is started again. Stopping lets requests end that are worked on; a second signal ends all at once.

    It is release 24.10, older than security fixes of 25.07: hospitals serve REPO with NVIDIA's container.
    """
    from samkit.triton_models.checks import find_problems
    from samkit.triton_models.server import EmbeddedServer, is_loopback
    from samkit.triton_models.supervisor import Supervisor

    show_progress(quiet)
    is_local = is_loopback(address)  # first: it may be none that can be listened on
    if problems := find_problems(repository):
        raise ServingError(f"{repository} can't be served here: {'; '.join(problems)}")
    if not is_local:
        click.echo(
            f"sam-serve: warning: whoever reaches {address} can send scans to this server and read its answers, "
            "unencrypted and without a password, and its Triton is older than security fixes; use it on loopback",
            err=True,
        )
    server = EmbeddedServer(
        repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        address=address,
        device=device,
    )
    is_idle, clean, before = True, True, {number: signal.signal(number, _interrupt) for number in _STOPS}
    try:
        server.start()
        _print_endpoints(repository, server.grpc, server.http, server.metrics)
        Supervisor(server, most=restarts).run()
    except KeyboardInterrupt:
        is_idle = _drain(server, drain_seconds)
    finally:
        clean = _stop(server, at_once=not is_idle)
        for number, handler in before.items():
            signal.signal(number, handler)
    if not (is_idle and clean):
        raise ServingError("the server did not end in order and was killed; requests may have gone without an answer")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _drain(server: EmbeddedServer, seconds: float) -> bool:
    """Return whether nobody is at work any more: not after `seconds`, and not where another signal came."""
    try:
        click.echo("sam-serve: stopping; a second signal ends it at once", err=True)
        return server.drain(seconds)
    except KeyboardInterrupt:
        return False


def _stop(server: EmbeddedServer, *, at_once: bool) -> bool:
    """Return whether the server ended in order; it leaves no process behind, however impatient somebody is."""
    try:
        return server.stop(at_once=at_once)
    except KeyboardInterrupt:
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)
        server.stop(at_once=True)
        return False


def _print_endpoints(repository: Path, grpc: str, http: str, metrics: str) -> None:
    from samkit.triton_models.record import Repository

    click.echo("READY")
    for name in Repository.load(repository).exports:
        click.echo(f"triton://{grpc}/{name.replace('_', '-')}")
        click.echo(f"triton+http://{http}/{name.replace('_', '-')}")
    click.echo(metrics)


def main() -> None:
    """Run `sam-serve`."""
    run_command(serve, "sam-serve", extras=("cpu", "serve"))


if __name__ == "__main__":
    main()
