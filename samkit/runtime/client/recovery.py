"""What helps after a request failed: the one place that decides between waiting, opening again and giving up."""

from __future__ import annotations

from enum import Enum

from samkit.errors import ServerRestarted, ServerRestarting, SessionExpired, UnknownSession
from samkit.runtime.client.triton_transport import ConnectionLost


class Cure(Enum):
    """What a client can do by itself."""

    AGAIN = "send the same request again, after a pause"
    ANEW = "open the scan again: the session is gone, and all that it held"
    NONE = "tell the user"


def cure_for(error: Exception) -> Cure:
    """Return what helps where a request ended with `error`.

    A server that is being stopped is no cure's business: another one, or a person, has to take over.

    >>> from samkit.errors import ServerStopping
    >>> [cure_for(kind("")).name for kind in (ConnectionLost, ServerRestarting, SessionExpired, ServerStopping)]
    ['AGAIN', 'AGAIN', 'ANEW', 'NONE']
    """
    if isinstance(error, (ConnectionLost, ServerRestarting)):
        return Cure.AGAIN
    if isinstance(error, (ServerRestarted, SessionExpired, UnknownSession)):
        return Cure.ANEW
    return Cure.NONE
