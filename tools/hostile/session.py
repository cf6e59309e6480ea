"""Python's own way in: a session on an export, an image, a click, the mask saved."""

from __future__ import annotations

import logging
import sys

import samkit
from samkit.errors import SamkitError


def main() -> None:
    """Segment as a script would; what samkit refuses is told as its commands tell it."""
    folder, image, saved, place = sys.argv[1:]
    logging.getLogger("samkit").setLevel(logging.ERROR)
    try:
        with samkit.open_session(folder, threads=1) as session:
            session.set_image(image)
            session.click(tuple(float(index) for index in place.split(",")))
            session.save(saved)
    except SamkitError as error:
        sys.stderr.write(f"session: {error}\n")
        sys.exit(error.exit_code)
