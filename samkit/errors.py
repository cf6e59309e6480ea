"""Every deliberate failure of samkit.

SamkitError                 exit code 1: a stage failed
├── UnknownMethodError      2  the name is not in samkit/methods/
├── OptionError             2  options that make no sense, alone or together
├── PromptError             2  the clicks given can't drive a segmentation
├── MissingDependencyError  1  an optional package is needed for this stage
├── TensorMismatchError     1  an array does not fit the TensorSpec it was given for
├── GeometryError           3  spacing, affine or patch can't be used as given
├── InputRefused            3  a file from outside failed the gate: code, reason, remedy
├── CheckpointError         3  weights and network do not fit
├── ExportError             1  a stage of an export failed
│   └── ParityError         1  it ran, but the numbers moved too far
├── ManifestError           3  manifest.json is missing, too new, or its files changed
└── ServingError            1  a server, or what it should serve, is not as needed
    ├── ServerUnreachable   1  nothing answers there, or the connection was lost for good
    ├── ServerTimeout       1  no answer within the time that was given
    ├── AtCapacity          1  the server holds as many sessions as it may
    ├── SessionExpired      1  nobody used the session for too long; its scan is forgotten
    ├── UnknownSession      1  no session has this token: it was closed, or never opened
    ├── ServerRestarted     1  the server forgot all sessions when it was started again
    ├── ServerRestarting    1  a part of the server, or all of it, is being started again: in how many seconds to ask
    ├── ServerStopping      1  the server is being stopped and takes no new requests
    └── WrongTurn           1  a call that does not follow the one before

Exit codes of every command: 0 done, 1 a stage or parity failed, 2 usage, 3 input refused, 128 + N stopped by
signal N. What the system refuses (files, memory) and what can't be decoded is a sentence, too (samkit/command.py).
Anything else that escapes is our bug and keeps its traceback.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Self


class SamkitError(Exception):
    """Root of the tree. The message says what was found, what was needed, and what to do next.

    Where it speaks of an option, the text has its Python name in braces, with a value behind it where one is shown, and
    `options` lists what stands in the braces: a command spells it as its flag, everybody else reads the name, or the
    call of a session that does what the flag does.

    >>> error = SamkitError("{fp16} is of folded graphs; leave {folded} as it is", options=("fp16", "folded"))
    >>> str(error)
    'fp16 is of folded graphs; leave folded as it is'
    >>> error.sentence({"fp16": "--fp16", "folded": "--no-fold"}.get)
    '--fp16 is of folded graphs; leave --no-fold as it is'
    >>> error = SamkitError("no click was given; e.g. {points 60,70,30,+}", options=("points 60,70,30,+",))
    >>> str(error)
    'no click was given; e.g. click((60, 70, 30))'
    >>> error.sentence({"points": "--point"}.get)
    'no click was given; e.g. --point 60,70,30,+'
    """

    exit_code = 1

    def __init__(self, text: str, *, options: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.options = tuple(options)

    def sentence(self, spell: Callable[[str], str | None]) -> str:
        """Return the message with each option's name as `spell` writes it, or as it is where that returns None."""

        def write(option: str) -> str:
            name, gap, value = option.partition(" ")
            return f"{spell(name) or name}{gap}{value}"

        return _written(self.text, self.options, write)

    def __str__(self) -> str:
        """Return the message as Python's user reads it."""
        return _written(self.text, self.options, _in_python)


def _written(text: str, options: Sequence[str], write: Callable[[str], str]) -> str:
    for option in options:
        text = text.replace(f"{{{option}}}", write(option))
    return text


# --- What a session's user writes for an option of sam-segment ---


def _click(value: str) -> str:
    *place, sign = value.split(",")
    return f"click(({', '.join(place)}){', positive=False' if sign == '-' else ''})" if place else "click()"


def _box(value: str) -> str:
    sides = value.split(",")
    half = len(sides) // 2
    return f"box(({', '.join(sides[:half])}), ({', '.join(sides[half:])}))" if half else "box()"


def _image(value: str) -> str:
    name, found, image = value.partition("=")
    return f'set_image({{"{name}": {image}, ...}})' if found else "inputs"


def _argument(name: str) -> Callable[[str], str]:
    def write(value: str) -> str:
        numbers = value.replace(",", ", ")
        return f"{name}=({numbers})" if "," in value else f"{name}={value}" if value else name

    return write


_CALLS: Mapping[str, Callable[[str], str]] = {
    "points": _click,
    "boxes": _box,
    "inputs": _image,
    "world": lambda value: "world=True",
    "assume_ras": lambda value: "assume_ras=True",
    "propagate": lambda value: "propagate()",
    "plane": lambda value: f"plane='{value}'" if value else "plane",
    **{
        name: _argument(name)
        for name in ("volume", "max_bytes", "spacing", "intensities", "threads", "timeout", "weights")
    },
}
"""By the option's name, from its value; any other option is an argument of that name."""


def _in_python(option: str) -> str:
    name, _, value = option.partition(" ")
    return _CALLS[name](value) if name in _CALLS else option


class UnknownMethodError(SamkitError):
    """The name is not in samkit/methods/."""

    exit_code = 2


class OptionError(SamkitError):
    """Options that make no sense, alone or together; they are named as data."""

    exit_code = 2


class PromptError(SamkitError):
    """The clicks given can't drive a segmentation: none at all, or a file that is no list of clicks."""

    exit_code = 2


class MissingDependencyError(SamkitError):
    """An optional package is needed for this stage; the message names the extra that installs it."""


class TensorMismatchError(SamkitError):
    """An array does not fit the TensorSpec it was given for."""


class GeometryError(SamkitError):
    """Spacing, affine or patch can't be used as given."""

    exit_code = 3


class InputRefused(SamkitError):
    """A file from outside failed the gate.

    `code` is a stable word for programs, `reason` and `remedy` are sentences for people, with options by their names.
    """

    exit_code = 3

    def __init__(self, code: str, reason: str, remedy: str, *, options: Sequence[str] = ()) -> None:
        super().__init__(f"{reason}; {remedy}", options=options)
        self.code = code
        self.parts = (reason, remedy)
        """Both as the text has them, with options in braces."""
        self.reason, self.remedy = (_written(part, options, _in_python) for part in self.parts)

    def about(self, what: str) -> Self:
        """Return the same refusal with `what` it is about before its reason.

        >>> str(InputRefused("no-label", "no label", "name it with {label}", options=("label",)).about("case a"))
        'case a: no label; name it with label'
        """
        reason, remedy = self.parts
        return type(self)(self.code, f"{what}: {reason}", remedy, options=self.options)


class CheckpointError(SamkitError):
    """Weights and network do not fit."""

    exit_code = 3


class ExportError(SamkitError):
    """A stage of an export failed."""


class ParityError(ExportError):
    """The exported graph ran, but its numbers moved too far from PyTorch float32."""


class ManifestError(SamkitError):
    """manifest.json is missing, too new, or its files changed."""

    exit_code = 3


class ServingError(SamkitError):
    """A server, or what it should serve, is not as needed."""


class ServerUnreachable(ServingError):
    """Nothing answers there, or the connection was lost for good."""


class ServerTimeout(ServingError):
    """No answer within the time that was given; what was asked may still happen."""


class AtCapacity(ServingError):
    """The server holds as many sessions as it may."""


class SessionExpired(ServingError):
    """Nobody used the session for too long, and the server forgot its scan."""


class UnknownSession(ServingError):
    """No session has this token: it was closed, or never opened."""


class ServerRestarted(ServingError):
    """The server forgot all sessions when it was started again."""


class ServerRestarting(ServingError):
    """A part of the server, or all of it, died and is being started again; ask again in `seconds`."""

    def __init__(self, text: str, *, seconds: float = 10.0, options: Sequence[str] = ()) -> None:
        super().__init__(text, options=options)
        self.seconds = seconds
        """How long to wait before the next try [s]."""


class ServerStopping(ServingError):
    """The server is being stopped: what runs there ends, and what is new has to go to another one."""


class WrongTurn(ServingError):
    """A call that does not follow the one before: each one of a session is numbered."""


class Stopped(BaseException):
    """A signal asks a command to end. It is no SamkitError: nothing failed, and nobody may catch it and go on.

    >>> stopped = Stopped(15, "go on with {resume}", options=("resume",))
    >>> stopped.name, stopped.exit_code, str(stopped)
    ('SIGTERM', 143, 'stopped by SIGTERM; go on with resume')
    """

    def __init__(self, number: int, advice: str = "", *, options: Sequence[str] = ()) -> None:
        self.number, self.name, self.exit_code = int(number), signal.Signals(number).name, 128 + int(number)
        advice = advice or "nothing half-made is left; run it again"
        self.error = SamkitError(f"stopped by {self.name}; {advice}", options=options)
        super().__init__(str(self.error))
