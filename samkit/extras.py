"""How one installs what samkit can do without: the command that is true where samkit runs.

>>> install_command("cpu", "formats", clone=False)
"pip install 'samkit[cpu,formats]'"
>>> install_command("cpu", clone=True)
"pip install -e '.[cpu]' in samkit's clone"
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parents[1]


def how_to_install(*extras: str) -> str:
    """Return the command that installs some of samkit's extras here, as it stands in a message."""
    return install_command(*extras, clone=_is_clone())


def how_to_install_demo() -> str:
    """Return the command that installs the demonstration weights here."""
    return "pip install -e ./weights in samkit's clone" if _is_clone() else "pip install 'samkit[demo]'"


def install_command(*extras: str, clone: bool) -> str:
    """Return what `how_to_install` does, for a samkit that runs from a clone or for one that was installed."""
    named = ",".join(extras)
    return f"pip install -e '.[{named}]' in samkit's clone" if clone else f"pip install 'samkit[{named}]'"


def _is_clone() -> bool:
    return (_ROOT / "pyproject.toml").is_file() and (_ROOT / "weights").is_dir()
