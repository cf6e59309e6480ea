"""Pictures and masks in pictures that are none, or lie."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from random import Random

import numpy as np
from PIL import Image

from tools.hostile.kind import OTHERS, Kind, changed, cut, flip, of_bytes
from tools.hostile.no_files import no_files

SIDE = 64
_GIVEN = ("segment a picture", "set_image of a picture")
"""Doors that are given the picture's path itself."""


@cache
def pixels() -> np.ndarray:
    """Return a bright square in noise, grey."""
    values = np.random.default_rng(0).integers(40, 60, (SIDE, SIDE)).astype(np.uint8)
    values[20:40, 20:40] += 150
    return values


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return a picture as a file of that form."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@cache
def png() -> bytes:
    """Return a good picture, PNG."""
    return saved(Image.fromarray(pixels()))


@cache
def _jpeg() -> bytes:
    return saved(Image.fromarray(pixels()), "JPEG")


@cache
def mask() -> bytes:
    """Return the square as a mask, PNG."""
    return saved(Image.fromarray((pixels() > 100).astype(np.uint8) * 255))


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a part of a PNG with its sum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _stated(
    width: int, height: int, *, depth: int = 8, colour: int = 0, interlaced: int = 0, more: bytes = b""
) -> bytes:
    """Return a PNG of a few bytes that states a size."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = chunk(b"IDAT", zlib.compress(bytes(2000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + body + chunk(b"IEND", b"")


def _jpeg_of(width: int, height: int) -> bytes:
    """Return the good JPEG with another size in its frame's header."""
    data = _jpeg()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _bomb(name: bytes, head: bytes) -> bytes:
    """Return the good PNG with a compressed text, or profile, of 500 MB before its pixels."""
    data = png()
    packed = zlib.compress(bytes(10**6), 9)
    return data[:33] + chunk(name, head + packed) + data[33:]


def _in_colours(form: str) -> Image.Image:
    return Image.fromarray(pixels()).convert(form)


def _animated() -> bytes:
    frames = [Image.fromarray(np.roll(pixels(), 9 * n, axis=0)) for n in range(3)]
    return saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


_UNREAD = "can't be read as PNG or JPEG"

PICTURES: tuple[Kind, ...] = (
    *(
        Kind(f"{what} as {end}", of_bytes(f"x{end}", content), _UNREAD)
        for what, content in OTHERS
        for end in (".png", ".jpg")
    ),
    *no_files("x.png", png, _GIVEN, "there is no file"),
    Kind("PNG cut", of_bytes("x.png", changed(png, cut)), _UNREAD, count=4),
    Kind("PNG flipped", of_bytes("x.png", changed(png, flip)), _UNREAD, count=8, grid=SIDE**2),
    Kind("JPEG cut", of_bytes("x.jpg", changed(_jpeg, cut)), _UNREAD, count=3, grid=SIDE**2),
    *(
        Kind(
            f"picture of another form: {form}",
            of_bytes("x.png", saved(Image.fromarray(pixels()), form)),
            _UNREAD,
        )
        for form in ("GIF", "BMP", "TIFF", "WEBP", "PPM")
    ),
    Kind("drawing", of_bytes("x.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), _UNREAD),
    *(
        Kind(f"PNG states {width} x {height}", of_bytes("x.png", _stated(width, height)), says)
        for width, height, says in (
            (60000, 60000, "60000 x 60000 pixels|more pixels than"),
            (2**31 - 1, 1, "pixels"),
            (2**31 - 1, 2**31 - 1, "pixels"),
            (0, 9, _UNREAD),
            (9000, 9000, "pixels"),
        )
    ),
    Kind("PNG of more than it holds", of_bytes("x.png", lambda chance: _stated(2000, 2000)), _UNREAD, grid=2000**2),
    Kind("PNG of depth 3", of_bytes("x.png", lambda chance: _stated(9, 9, depth=3)), _UNREAD),
    Kind("PNG of colour type 5", of_bytes("x.png", lambda chance: _stated(9, 9, colour=5)), _UNREAD),
    Kind("PNG without pixels", of_bytes("x.png", lambda chance: png()[:33] + chunk(b"IEND", b"")), _UNREAD),
    Kind("PNG with a bomb of text", of_bytes("x.png", lambda chance: _bomb(b"zTXt", b"a\0\0")), "", 0, doors=_GIVEN),
    Kind("JPEG states 65500 x 65500", of_bytes("x.jpg", lambda chance: _jpeg_of(65500, 65500)), "pixels"),
    Kind("JPEG of no size", of_bytes("x.jpg", lambda chance: _jpeg_of(0, 0)), _UNREAD),
    Kind(
        "JPEG of four inks",
        of_bytes("x.jpg", lambda chance: saved(_in_colours("CMYK"), "JPEG")),
        "",
        0,
        grid=SIDE**2,
        doors=_GIVEN,
    ),
    Kind(
        "PNG with a palette",
        of_bytes("x.png", lambda chance: saved(_in_colours("P"))),
        "",
        0,
        grid=SIDE**2,
        doors=_GIVEN,
    ),
    Kind(
        "PNG with alpha",
        of_bytes("x.png", lambda chance: saved(_in_colours("RGBA"))),
        "",
        0,
        grid=SIDE**2,
        doors=_GIVEN,
    ),
    Kind(
        "PNG of 16 bits",
        of_bytes("x.png", lambda chance: saved(Image.fromarray(pixels().astype(np.uint16) * 200))),
        "",
        0,
        grid=SIDE**2,
        doors=_GIVEN,
    ),
    Kind(
        "PNG of one bit", of_bytes("x.png", lambda chance: saved(_in_colours("1"))), "", 0, grid=SIDE**2, doors=_GIVEN
    ),
    Kind("PNG that moves", of_bytes("x.png", lambda chance: _animated()), "", 0, grid=SIDE**2, doors=_GIVEN),
)


def _painted(chance: Random) -> bytes:
    values = np.zeros((SIDE, SIDE, 3), np.uint8)
    values[20:30], values[30:40] = (255, 0, 0), (0, 255, 0)
    return saved(Image.fromarray(values))


def _seen_through(chance: Random) -> bytes:
    values = np.zeros((SIDE, SIDE, 4), np.uint8)
    values[20:40, :, 3] = 255
    return saved(Image.fromarray(values))


MASKS: tuple[Kind, ...] = (
    *(Kind(f"{what} as a mask", of_bytes("x.png", content), _UNREAD) for what, content in OTHERS),
    Kind("mask in colours", of_bytes("x.png", _painted), "several colours"),
    Kind("mask that is transparent", of_bytes("x.png", _seen_through), "transparent"),
    Kind("mask of another size", of_bytes("x.png", lambda chance: saved(Image.fromarray(pixels()[:50]))), "64 x 50"),
    Kind("mask cut", of_bytes("x.png", changed(mask, cut)), _UNREAD, count=2),
    Kind("mask flipped", of_bytes("x.png", changed(mask, flip)), _UNREAD, count=3, grid=SIDE**2),
    Kind("mask of 60000 x 60000", of_bytes("x.png", lambda chance: _stated(60000, 60000)), "pixels"),
)

_FORM = "each line is|whole number|numbers|fraction"
BOXES: tuple[Kind, ...] = tuple(
    Kind(f"boxes: {what}", of_bytes("x.txt", content), _FORM)
    for what, content in (
        ("words", b"tumour left\n"), ("four numbers", b"0 0.5 0.5 0.1\n"),
        ("six numbers", b"0 0.5 0.5 0.1 0.1 0.9 1\n"),
        ("NaN", b"0 nan 0.5 0.1 0.1\n"), ("infinite", b"0 0.5 inf 0.1 0.1\n"),
        ("class below zero", b"-1 .5 .5 .1 .1\n"),
        ("class of 400 digits", b"9" * 400 + b" .5 .5 .1 .1\n"), ("half a class", b"0.5 .5 .5 .1 .1\n"),
        ("pixels", b"0 30 30 10 10\n"), ("below zero", b"0 0.5 0.5 -0.1 0.1\n"),
        ("underscores", b"0 0.5 0.5 1_0 0.1\n"),
        ("a page", b"<!DOCTYPE html><html></html>"), ("not UTF-8", b"0 0.5 0.5 0.1 0.1 \xe4\xff\n"),
        ("zeros", bytes(64)),
        ("commas", b"0,0.5,0.5,0.1,0.1\n"),
    )
)  # fmt: skip
