"""How a request reaches a Triton server: gRPC or HTTP, and what of either's failures means what.

    address = Address.parse("triton://localhost:8001/m-sam")
    transport = connect(address)
    answer = transport.call({"request": ...}, timeout=120.0)

A call is one attempt; whoever calls decides whether another one is safe. No TLS here: a gateway before the server does
that (docs/how-to/serve.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import numpy as np

from samkit.errors import (
    InputRefused,
    OptionError,
    SamkitError,
    ServerRestarting,
    ServerStopping,
    ServerTimeout,
    ServingError,
)
from samkit.runtime.client import tritonclient_library
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import read_error

GRPC, HTTP = "triton", "triton+http"
"""Schemes of an address."""
MAX_MESSAGE = 2**31 - 1
"""Bytes of the largest gRPC message, which a scan has to fit into."""
CONNECTING = 5.0
"""How long a server that never answered may say nothing [s]: a firewall drops packets, and no error comes back."""

_ENVELOPE = 2**16
"""Bytes of a message besides its tensors; far more than there are."""
_OUTPUTS = (wire.ANSWER, wire.CHANGED)
_CHANNEL = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # gRPC waits up to two minutes before it tries a lost connection again; a person clicks sooner. Its shortest wait
    # (grpc.min_reconnect_backoff_ms) stays: it is how long a connection may take to come about, too
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),  # a scan goes to the server that was named, whatever the environment says
)


class ConnectionLost(Exception):
    """One attempt got no answer: nothing listens there, or the connection broke. Another attempt may get one.

    A session makes it a ServerUnreachable when it gives up; no user sees this one.
    """


class Transport(Protocol):
    """Carries requests to one model."""

    def call(self, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Return the model's outputs by name, within `timeout` [s].

        Raises ConnectionLost, ServerTimeout, ServingError, or the error that the server's answer carries.
        """

    def close(self) -> None:
        """Let go of the connection."""


# --- Addresses ---


@dataclass(frozen=True)
class Address:
    """What is served under one name at one place."""

    scheme: str
    """GRPC or HTTP."""
    server: str
    """`host:port`; a host of IPv6 stands in brackets."""
    name: str
    """`m_sam`: what its models' names begin with."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return what `url` says; raises OptionError for what is no such address.

        >>> Address.parse("triton://localhost:8001/m-sam")
        Address(scheme='triton', server='localhost:8001', name='m_sam')
        """
        shown = "" if "@" in url else f"'{url}' "  # what stands before an @ may be a password
        wrong = OptionError(
            f"the address {shown}is no server's, needed is {GRPC}://HOST:PORT/NAME (gRPC) or {HTTP}://HOST:PORT/NAME; "
            f"e.g. {GRPC}://localhost:8001/m-sam"
        )
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:  # a port that is no number, a bracket that is not closed
            raise wrong from error
        name = parts.path.removeprefix("/").replace("-", "_")
        is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
        if parts.scheme not in (GRPC, HTTP) or not host or not port or not is_plain or not re.fullmatch(r"\w+", name):
            raise wrong
        return cls(parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", name)

    @property
    def model(self) -> str:
        """Return the model that holds the sessions."""
        return f"{self.name}_session"

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        return f"{self.scheme}://{self.server}/{self.name}"


def is_url(target: object) -> bool:
    """Return whether `target` is meant as an address and not as a folder.

    >>> is_url("triton://localhost:8001/m-sam"), is_url("exports/m-sam")
    (True, False)
    """
    return isinstance(target, str) and "://" in target


def meant_address(target: object) -> str | None:
    """Return the address that `target` is meant as where it lacks its scheme; None where it is a folder, or neither.

    >>> meant_address("localhost:8001/m-sam"), meant_address("exports/m-sam")
    ('triton://localhost:8001/m-sam', None)
    """
    found = re.fullmatch(r"(?P<server>[\w.-]+:\d+)(/(?P<name>[\w-]+)?)?", target) if isinstance(target, str) else None
    if found is None or os.path.exists(found[0]):  # noqa: PTH110 - Path.exists raises for a name that is too long
        return None
    return f"{GRPC}://{found['server']}/{found['name'] or 'NAME'}"


def connect(address: Address) -> Transport:
    """Return what carries requests to `address`; nothing is sent yet. Raises MissingDependencyError."""
    return GrpcTransport(address) if address.scheme == GRPC else HttpTransport(address)


# --- Protocols ---


class GrpcTransport:
    """One gRPC channel, which any threads may use."""

    def __init__(self, address: Address) -> None:
        """Open the channel; it connects with the first call."""
        self._address = address
        self._library = tritonclient_library.grpc()
        self._client = self._library.InferenceServerClient(address.server, channel_args=list(_CHANNEL))
        self._is_met = self._has_answered = False

    def call(self, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Return the model's outputs by name, within `timeout` [s]."""
        if (size := sum(array.nbytes for array in inputs.values())) > MAX_MESSAGE - _ENVELOPE:
            raise InputRefused(
                "too-large",
                f"the scan has {size} bytes, and a gRPC message takes {MAX_MESSAGE}",
                f"crop or resample the scan first, or use {HTTP}://",
            )
        self._meet(min(timeout, CONNECTING))
        try:
            result = self._client.infer(
                self._address.model, tritonclient_library.as_inputs(self._library, inputs), client_timeout=timeout
            )
        except self._library.InferenceServerException as error:
            status, text = str(error.status()), str(error.message())
            raise _failure(self._address, status, text, timeout, was_there=self._has_answered) from error
        self._has_answered = True
        return _outputs(result)

    def _meet(self, timeout: float) -> None:
        """Raise ConnectionLost where nobody says a word, before a request gets all the time that its work may take."""
        if self._is_met:
            return
        try:
            self._client.is_server_live(client_timeout=timeout)
        except self._library.InferenceServerException as error:
            if str(error.status()) in _TOO_LATE:
                raise _silent(self._address, timeout) from error
            # Any other error is an answer, or the request hears it, too
        self._is_met = True

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class HttpTransport:
    """HTTP, with a connection for each call: its time limit is the connection's, and so any thread may call."""

    def __init__(self, address: Address) -> None:
        """Load the library; a call connects."""
        self._address = address
        self._library = tritonclient_library.http()
        self._is_met = self._has_answered = False

    def call(self, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Return the model's outputs by name; `timeout` [s] is the longest silence."""
        self._meet(min(timeout, CONNECTING))
        client = self._client(timeout)
        try:
            result = client.infer(self._address.model, tritonclient_library.as_inputs(self._library, inputs))
            self._has_answered = True
            return _outputs(result)
        except self._library.InferenceServerException as error:
            status, text = str(error.status()), str(error.message())
            raise _failure(self._address, status, text, timeout, was_there=self._has_answered) from error
        except TimeoutError as error:
            raise _too_late(self._address, timeout) from error
        except (OSError, HTTPException) as error:
            raise _lost(self._address, str(error)) from error
        finally:
            client.close()

    def _meet(self, timeout: float) -> None:
        """Raise ConnectionLost where nobody says a word, before a request gets all the time that its work may take."""
        if self._is_met:
            return
        client = self._client(timeout)
        try:
            client.is_server_live()
        except TimeoutError as error:
            raise _silent(self._address, timeout) from error
        except (OSError, HTTPException, self._library.InferenceServerException):
            pass  # an answer, or the request hears it, too
        finally:
            client.close()
        self._is_met = True

    def _client(self, timeout: float) -> Any:
        return self._library.InferenceServerClient(
            self._address.server, connection_timeout=min(timeout, CONNECTING), network_timeout=timeout
        )

    def close(self) -> None:
        """Do nothing: every call closed its own connection."""


def _outputs(result: Any) -> dict[str, np.ndarray]:
    found = {name: result.as_numpy(name) for name in _OUTPUTS}
    return {name: array for name, array in found.items() if array is not None}


# --- Failures ---

AWAY_SECONDS = 10.0
"""After how long a user should try again by himself where this end does not wait [s]."""
_LOST = ("StatusCode.UNAVAILABLE", "502", "503")
_TOO_LATE = ("StatusCode.DEADLINE_EXCEEDED", "504")
_DIED = ("is not healthy", "is not ready")
"""What Triton says of a model whose process died, or that is being loaded again."""
_STOPPING = ("has no available versions", "server is stopping")
"""What Triton says of a model that was there, and of all while it ends; the session says so in words of its own before.
"""


def _failure(
    address: Address, status: str, text: str, timeout: float, *, was_there: bool
) -> SamkitError | ConnectionLost:
    """Return what a failed call means: `status` is gRPC's or HTTP's, `text` the server's or the library's.

    `was_there` says whether the model answered before: a name that was right is no wrong one.
    """
    if (carried := read_error(text)) is not None:
        return carried
    if status in _TOO_LATE:
        return _too_late(address, timeout)
    if any(words in text.lower() for words in _STOPPING):
        return ServerStopping(
            f"{address.server} is being stopped and takes nothing new; try again at another server, or later "
            "at this one"
        )
    is_unknown = "unknown model" in text.lower()
    if (is_unknown and was_there) or any(words in text.lower() for words in _DIED):
        return ServerRestarting(
            f"a part of {address.server} is away ({_one_line(text)}), and started again where sam-serve start runs it; "
            f"try again in {AWAY_SECONDS:.0f} s",
            seconds=AWAY_SECONDS,
        )
    if is_unknown:
        return ServingError(
            f"{address.server} has no model {address.model}; check the name after the last slash, of which sam-serve "
            "start prints all, or add the export there with sam-serve write"
        )
    if status in _LOST:
        return _lost(address, text)
    return ServingError(f"{address.server} did not answer the request ({_one_line(text)}); see the server's log")


def _too_late(address: Address, timeout: float) -> ServerTimeout:
    return ServerTimeout(
        f"{address.server} gave no answer within {timeout:.3g} s, and what was asked may still happen; give more time, "
        "or look at the server's load"
    )


def _lost(address: Address, text: str) -> ConnectionLost:
    return ConnectionLost(f"{address.server} can't be reached ({_one_line(text)})")


def _silent(address: Address, timeout: float) -> ConnectionLost:
    return _lost(address, f"nothing came back within {timeout:.3g} s")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
