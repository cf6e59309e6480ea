"""`make release`: whether changelog, version and tag say the same; then both wheels, in dist/.

    python -m tools.release [--out dist]

Nothing is uploaded, and no tag is made: that is what a person does who has read the changelog.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import click

import samkit
from samkit.command import run_command
from samkit.errors import SamkitError

ROOT = Path(__file__).parents[1]
_HEADING = re.compile(r"^## \[(?P<name>[^]]+)\](?: - (?P<date>\S+))?$", re.M)


@click.command()
@click.option("--out", default=Path("dist"), show_default=True, type=click.Path(file_okay=False, path_type=Path))
def release(out: Path) -> None:
    """Check that changelog, version and tag agree, and build both wheels."""
    weights = tomllib.loads((ROOT / "weights" / "pyproject.toml").read_text())["project"]["version"]
    check_changelog((ROOT / "CHANGELOG.md").read_text(), samkit.__version__)
    check_tags(_git("tag", "--points-at", "HEAD").split(), samkit.__version__)
    if weights != samkit.__version__:
        raise SamkitError(
            f"the weights are of version {weights}, samkit of {samkit.__version__}; give both one version"
        )
    if changed := _git("status", "--porcelain"):
        raise SamkitError(f"{changed.splitlines()[0]} is not committed; commit it, or take it back")
    words = ("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out.resolve()), str(ROOT), str(ROOT / "weights"))
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    for wheel in sorted(out.glob("*.whl")):
        click.echo(f"{wheel}: {wheel.stat().st_size} bytes")


def check_changelog(text: str, version: str) -> None:
    """Raise SamkitError unless the newest version in a changelog is `version`, with a date, and nothing is unreleased.

    >>> check_changelog("## [Unreleased]\\n\\n## [0.1.0] - 2026-11-28\\n- A fix.\\n", "0.1.0")
    """
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        if heading["name"] == "Unreleased":
            if text[heading.end() : end].strip():
                raise SamkitError(f"the changelog has unreleased changes; put them under version {version}")
            continue
        if heading["name"] != version:
            raise SamkitError(
                f"the changelog's newest version is {heading['name']}, samkit is {version}; make them one"
            )
        try:
            date.fromisoformat(heading["date"] or "")
        except ValueError:
            raise SamkitError(
                f"version {version} has no date in the changelog; write '- YYYY-MM-DD' after it"
            ) from None
        return
    raise SamkitError(f"the changelog has no version; write '## [{version}] - YYYY-MM-DD' over its changes")


def check_tags(tags: list[str], version: str) -> None:
    """Raise SamkitError unless one of the `tags` of what is checked out is that of `version`."""
    if f"v{version}" not in tags:
        found = ", ".join(tags) or "none"
        raise SamkitError(f"this commit has the tags {found}, needed is v{version}; run git tag -a v{version}")


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run_command(release, "release")
