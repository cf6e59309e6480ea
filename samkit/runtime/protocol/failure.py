"""How an error travels: as text inside of Triton's own message, and out of it again as the same exception."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from samkit import errors
from samkit.errors import InputRefused, PromptError, SamkitError, ServerRestarting, ServingError
from samkit.runtime.protocol import readers
from samkit.runtime.protocol.record import Key, Record

_MARK = "samkit-error "


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """An error, as JSON in Triton's message behind `samkit-error`."""

    called: ClassVar[str] = "the error"

    type: Annotated[str, Key("text", "its class in `samkit.errors`", readers.read_text)]
    message: Annotated[str, Key("text", "the sentence", readers.read_text)]
    text: Annotated[
        str | None,
        Key("text", "the sentence with options as `{name}`, where it speaks of some", readers.read_optional_text),
    ] = None
    options: Annotated[
        tuple[str, ...],
        Key(
            "list of texts",
            "what stands in those braces: an option, and a value where one is shown; a command writes its flags",
            readers.read_names,
        ),
    ] = ()
    code: Annotated[
        str | None, Key("text", "of `InputRefused`: the stable word for programs", readers.read_optional_text)
    ] = None
    reason: Annotated[
        str | None, Key("text", "of `InputRefused`: what was found and needed", readers.read_optional_text)
    ] = None
    remedy: Annotated[str | None, Key("text", "of `InputRefused`: what to do next", readers.read_optional_text)] = None
    parts: Annotated[
        tuple[str, ...],
        Key("`[reason, remedy]`", "of `InputRefused`: both with options as `{name}`, where it speaks of some",
            readers.read_names),
    ] = ()  # fmt: skip
    seconds: Annotated[
        float | None,
        Key("number", "of `ServerRestarting`: how long to wait before the next try", readers.read_optional_measure),
    ] = None

    @classmethod
    def of(cls, error: SamkitError) -> Failure:
        """Return what travels of `error`."""
        failure = cls(
            type=type(error).__name__,
            message=str(error),
            text=error.text if error.options else None,
            options=error.options,
        )
        if isinstance(error, ServerRestarting):
            return replace(failure, seconds=error.seconds)
        if not isinstance(error, InputRefused):
            return failure
        parts = error.parts if error.options else ()
        return replace(failure, code=error.code, reason=error.reason, remedy=error.remedy, parts=parts)

    def error(self) -> SamkitError:
        """Return the error again; one of a class that is not known here is a ServingError.

        Raises PromptError for an InputRefused without its code, reason or remedy.
        """
        kind = getattr(errors, self.type, None)
        if not (isinstance(kind, type) and issubclass(kind, SamkitError)):
            kind = ServingError  # of a newer server
        if kind is InputRefused:
            parts = self.parts or (self.reason, self.remedy)
            if self.code is None or len(parts) != 2 or parts[0] is None or parts[1] is None:
                raise PromptError("the error has no code, reason and remedy, which InputRefused needs; send them")
            return InputRefused(self.code, parts[0], parts[1], options=self.options)
        text = self.message if self.text is None else self.text
        if kind is ServerRestarting and self.seconds is not None:
            return ServerRestarting(text, seconds=self.seconds, options=self.options)
        error: SamkitError = kind(text, options=self.options)
        return error


def error_text(error: SamkitError) -> str:
    """Return `error` as the text of a Triton error; `read_error` makes it again."""
    return _MARK + json.dumps(Failure.of(error).to_json())


def read_error(text: str) -> SamkitError | None:
    """Return the error that a Triton message carries, whatever the server put around it, or None.

    What a newer server says besides is left out: an error that can't be read would hide what it says.

    >>> raise read_error("in ensemble: " + error_text(errors.AtCapacity("16 sessions are open; close one")))
    Traceback (most recent call last):
    samkit.errors.AtCapacity: 16 sessions are open; close one
    """
    found = re.search(re.escape(_MARK) + r"(\{.*\})", text, re.DOTALL)
    if found is None:
        return None
    try:
        data = json.JSONDecoder().raw_decode(found[1])[0]
        return Failure.from_json({name: data[name] for name in Failure.keys() if name in data}).error()  # noqa: SIM118
    except (ValueError, RecursionError, PromptError):
        return None
