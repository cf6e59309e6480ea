"""Guards what a picture becomes: its channels, its range, its masks, and what can't be read is told in a sentence."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused
from samkit.imageio import pictures
from samkit.imageio.reading import picture_shape, read_picture, read_picture_mask
from samkit.intensities import STORED, scale_intensities


def save(path, array, mode=None):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(1, 255, (6, 9), np.uint8)


@pytest.mark.parametrize("mode", [None, "RGB", "LA", "RGBA"])
def test_grey_is_one_channel_however_it_is_stored(tmp_path, grey, mode):
    path = save(tmp_path / "a.png", grey, mode)

    picture = read_picture(path).array

    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, grey[..., None])
    assert picture_shape(path) == (6, 9)


def test_colour_keeps_three_channels(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    picture = read_picture(save(tmp_path / "a.png", colour))
    np.testing.assert_array_equal(picture.array, colour)
    assert (picture.limits, picture.remarks) == (STORED, ())


DEEP = {"grey": 0, "colour": 2, "grey and alpha": 4, "colour and alpha": 6}


def save_deep(path, array, kind):
    """Write a PNG of 16 bits, which Pillow writes in grey alone."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, DEEP[kind], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    )
    return path


@pytest.mark.parametrize(("kind", "channels", "seen"), zip(DEEP, (1, 3, 2, 4), (1, 3, 1, 3), strict=True))
def test_sixteen_bits_are_scaled_as_scans_are_with_both_bytes(tmp_path, kind, channels, seen):
    array = np.random.default_rng(0).integers(1000, 2000, (32, 40, channels), np.uint16)
    array[3, 4, :seen] = 65535  # one burnt-in pixel leaves the rest as it is

    picture = read_picture(save_deep(tmp_path / "a.png", array, kind))

    expected, limits = scale_intensities(array[..., :seen], "a.png")
    np.testing.assert_array_equal(picture.array, expected)
    assert picture.limits == limits
    assert 990 < limits.low < limits.high < 2010
    assert len(np.unique(picture.array)) > 500
    assert "16 bits are scaled" in picture.remarks[0]


def test_a_mask_of_sixteen_bits_keeps_its_low_byte(tmp_path):
    label = np.zeros((6, 9, 3), np.uint16)
    label[2:4, 3:8] = 1
    np.testing.assert_array_equal(
        read_picture_mask(save_deep(tmp_path / "a.png", label, "colour")).array, label[..., 0] == 1
    )


def test_a_deep_picture_without_contrast_is_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"a\.png has no contrast"):
        read_picture(save_deep(tmp_path / "a.png", np.full((4, 4, 1), 900, np.uint16), "grey"))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_mask_is_what_is_above_zero(tmp_path, mode):
    mask = np.zeros((6, 9), bool)
    mask[2:4, 3:8] = True
    path = tmp_path / "a.png"
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    read = read_picture_mask(path)
    np.testing.assert_array_equal(read.array, mask)
    assert not read.remarks


def test_mask_of_zeros_and_ones_counts_and_jpeg_noise_does_not(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    assert read_picture_mask(save(tmp_path / "a.png", mask)).array.sum() == 256
    assert read_picture_mask(save(tmp_path / "a.jpg", mask * 255)).array.sum() == 256
    assert not read_picture_mask(save(tmp_path / "b.jpg", mask * 9)).array.any()
    assert "count from 128" in read_picture_mask(tmp_path / "a.jpg").remarks[0]


def test_a_jpeg_is_one_whatever_its_name(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    (tmp_path / "a.png").write_bytes(save(tmp_path / "a.jpg", mask, "RGB").read_bytes())
    read = read_picture_mask(tmp_path / "a.png")
    assert read.array.sum() == 256
    assert "count from 128" in read.remarks[0]


@pytest.mark.parametrize("colours", [[255, 255, 255, 0, 0, 0], [0, 0, 0, 255, 0, 0], [7, 7, 7, 7, 7, 7]])
def test_indices_of_a_palette_are_labels_whatever_their_colours(tmp_path, colours):
    label = np.zeros((6, 9), np.uint8)
    label[2:4, 3:8] = 1
    image = Image.frombytes("P", (9, 6), label.tobytes())
    image.putpalette(colours)
    image.save(tmp_path / "a.png")

    np.testing.assert_array_equal(read_picture_mask(tmp_path / "a.png").array, label == 1)
    seen = np.array(colours, np.float32).reshape(2, 3)[label]  # as a picture it is what one sees
    np.testing.assert_array_equal(np.broadcast_to(read_picture(tmp_path / "a.png").array, seen.shape), seen)


def test_one_colour_on_black_is_a_mask_and_several_are_refused(tmp_path):
    colour = np.zeros((6, 9, 3), np.uint8)
    colour[2:4, 3:8] = (200, 30, 0)
    for name in ("a.png", "a.jpg"):
        mask = read_picture_mask(save(tmp_path / name, np.kron(colour, np.ones((16, 16, 1), np.uint8)))).array
        np.testing.assert_array_equal(mask[8::16, 8::16], colour.any(axis=2))
    colour[0, 0] = (0, 255, 0)
    with pytest.raises(InputRefused, match=r"several colours besides black, such as \(0, 255, 0\) and \(200, 30, 0\)"):
        read_picture_mask(save(tmp_path / "b.png", colour))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_that_is_transparent_in_a_part_is_refused(tmp_path, mode):
    image = Image.new(mode, (9, 6), "white")
    image.save(tmp_path / "whole.png")
    assert read_picture_mask(tmp_path / "whole.png").array.all()
    image.putpixel((3, 4), (0,) * len(mode))
    image.save(tmp_path / "part.png")
    with pytest.raises(InputRefused, match=r"part\.png is transparent in a part.*; save it without transparency"):
        read_picture_mask(tmp_path / "part.png")


def test_photographs_are_turned_upright(tmp_path, grey):
    image, exif = Image.fromarray(grey), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert picture_shape(tmp_path / "a.png") == read_picture(tmp_path / "a.png").array.shape[:2] == (9, 6)


def test_what_can_not_be_read_is_refused_without_its_path(tmp_path, grey, monkeypatch):
    path = save(tmp_path / "a.png", grey)
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "b.png").write_text("no picture")
    for name in ("a.png", "b.png", "c.png"):
        with pytest.raises(InputRefused, match=name) as refused:
            read_picture(tmp_path / name)
        assert str(tmp_path) not in str(refused.value)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 50)
    with pytest.raises(InputRefused, match="9 x 6 pixels"):
        picture_shape(save(tmp_path / "d.png", grey))


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_picture, read_picture_mask, picture_shape):
        with pytest.raises(InputRefused, match=r"a\.png is no regular file"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "1", "P"])
@pytest.mark.parametrize("read", [read_picture, read_picture_mask])
def test_no_flipped_bit_changes_a_pixel_unseen(tmp_path, mode, read):
    rng = np.random.default_rng(15)
    shades = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8) * 2
    shades[10:20] = rng.integers(0, 255, (10, 48), np.uint8)
    path = save(tmp_path / "a.png", shades, mode)
    right, pixels = path.read_bytes(), read(path).array
    for place in rng.choice(8 * len(right), 300, replace=False):
        changed = bytearray(right)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read(path).array
        except InputRefused:
            continue
        np.testing.assert_array_equal(found, pixels)
