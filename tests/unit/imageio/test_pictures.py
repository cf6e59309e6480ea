"""Guards what a picture becomes: its channels, its range, its masks, and what can't be read is told in a sentence."""

import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused
from samkit.imageio import pictures
from samkit.imageio.pictures import picture_shape, read_picture, read_picture_mask


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

    picture = read_picture(path)

    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, grey[..., None])
    assert picture_shape(path) == (6, 9)


def test_colour_keeps_three_channels(tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", colour)), colour)


def test_sixteen_bits_are_scaled_to_255(tmp_path, grey):
    picture = read_picture(save(tmp_path / "a.png", grey.astype(np.uint16) * 10 + 300))
    assert (picture.min(), picture.max()) == (0, pytest.approx(255))
    expected = (grey.astype(float) - grey.min()) / (int(grey.max()) - grey.min()) * 255
    np.testing.assert_allclose(picture[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_mask_is_what_is_above_zero(tmp_path, mode):
    mask = np.zeros((6, 9), bool)
    mask[2:4, 3:8] = True
    path = tmp_path / "a.png"
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    np.testing.assert_array_equal(read_picture_mask(path), mask)


def test_mask_of_zeros_and_ones_counts_and_jpeg_noise_does_not(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    assert read_picture_mask(save(tmp_path / "a.png", mask)).sum() == 256
    assert read_picture_mask(save(tmp_path / "a.jpg", mask * 255)).sum() == 256
    assert not read_picture_mask(save(tmp_path / "b.jpg", mask * 9)).any()


def test_photographs_are_turned_upright(tmp_path, grey):
    image, exif = Image.fromarray(grey), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert picture_shape(tmp_path / "a.png") == read_picture(tmp_path / "a.png").shape[:2] == (9, 6)


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
