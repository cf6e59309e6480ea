"""The processes of a server, as Linux tells of them: who belongs to it, who died, who stands still."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LOOK_SECONDS = 0.2
"""How often processes are looked at that are alive and may stand still; of a death Linux tells at once."""
_STUB, _INSTANCE = "triton_python_backend_stub", 8
"""Its name, and the place of the model's among its words."""
_DEAD, _STOPPED = "ZX", "T"
"""States in /proc: ended, and held by SIGSTOP."""


def members(group: int, patience: float) -> list[int]:
    """Return the processes of a group that are still there after at most `patience` seconds; the dead don't count."""
    until = time.monotonic() + patience
    while found := list(_living(group)):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return found


def stubs(group: int) -> dict[int, str]:
    """Return the processes of a server's group that run Python models, each with its model's name."""
    found = {}
    for pid in _living(group):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            # triton_python_backend_stub FILE MEMORY ... INSTANCE, which is the model's name, its group and its number
            if words[0].endswith(_STUB) and len(words) > _INSTANCE:  # it has none while it ends
                found[pid] = words[_INSTANCE].rsplit("_", 2)[0]
    return found


def _living(group: int) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            found = _state(int(process.name))
            if found is not None and found[1] == group and found[0] not in _DEAD:
                yield int(process.name)


def _state(pid: int) -> tuple[str, int] | None:
    """Return the state and the group of a process; None where there is none."""
    try:
        # After the program's name, which may hold anything: state, parent, group
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return state, int(group)


@dataclass(frozen=True)
class Death:
    """What happened to a process."""

    model: str
    """That ran there; empty for the server itself."""
    how: str
    """Half a sentence: what became of it."""
    is_sudden: bool = True
    """Whether it ran before; else it did not start again."""

    def __str__(self) -> str:
        """Return a sentence without its end.

        >>> str(Death("m_sam_session", "ended"))
        'the process of m_sam_session ended'
        """
        return f"{f'the process of {self.model}' if self.model else 'the server'} {self.how}"


class Vigil:
    """Notices within milliseconds that one of some processes ended, and soon that one stands still.

    One that is held (SIGSTOP) counts as dead: Triton 24.10 takes it for that after a second, and ends itself when it
    goes on.
    """

    def __init__(self) -> None:
        """Begin with no process."""
        self._watched: dict[int, tuple[int, str]] = {}
        """By the descriptor that tells of its end: a process, and its model."""
        self._poll = select.poll()

    def watch(self, pid: int, model: str = "") -> None:
        """Watch a process, too; one that is gone already is noticed by the next `wait`."""
        try:
            told = os.pidfd_open(pid)
        except ProcessLookupError:
            told, other = os.pipe()  # it hangs up at once
            os.close(other)
        self._poll.register(told, select.POLLIN)
        self._watched[told] = (pid, model)

    def forget(self, model: str) -> None:
        """Watch the process of a model no longer."""
        for told in [told for told, (_, watched) in self._watched.items() if watched == model]:
            self._poll.unregister(told)
            os.close(told)
            del self._watched[told]

    def wait(self, seconds: float) -> Death | None:
        """Return the next death, of the server before those of its models; None after `seconds` without one."""
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ended = {self._watched[told][1] for told, _ in self._poll.poll(1000 * min(_LOOK_SECONDS, left))}
            if ended:
                return Death(min(ended), "ended")
            for pid, model in self._watched.values():
                state = _state(pid)
                if state is not None and state[0] in _STOPPED:
                    return Death(model, "stands still")
            if left == 0.0:
                return None

    def close(self) -> None:
        """Watch nobody any more."""
        for model in {model for _, model in self._watched.values()}:
            self.forget(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
