"""What client and server say arrives as it was said: scans voxel by voxel, JSON value by value."""

from __future__ import annotations

import numpy as np
import pytest

from samkit.errors import InputRefused, TensorMismatchError
from samkit.runtime.protocol import wire

# --- Scans ---


@pytest.mark.parametrize(
    ("dtypes", "name"),
    [
        (["uint8"], "volume_uint8"),
        (["uint8", "uint8"], "volume_uint8"),
        (["int16"], "volume_int16"),
        (["int16", "int16"], "volume_int16"),
        (["float32"], "volume"),
        (["float64"], "volume"),
        (["uint16"], "volume"),
        (["int32"], "volume"),
        (["bool"], "volume"),
        ([">i2"], "volume"),
        (["uint8", "int16"], "volume"),
    ],
)
def test_scan_travels_exactly(dtypes, name):
    random = np.random.default_rng(1)
    arrays = [random.integers(0, 2 if dtype == "bool" else 200, (3, 4, 5)).astype(dtype) for dtype in dtypes]
    sent, tensor = wire.pack_volumes(arrays)

    assert sent == name
    assert tensor.dtype == wire.VOLUMES[name]
    assert tensor.shape == (len(arrays), 3, 4, 5)
    assert all(np.array_equal(row, array) for row, array in zip(tensor, arrays, strict=True))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_integers_travel_to_their_ends(dtype):
    ends = np.iinfo(dtype)
    array = np.array([ends.min, ends.max, 0, 1], dtype).reshape(1, 2, 2)
    _, tensor = wire.pack_volumes([array[:, ::-1]])

    assert tensor.dtype == dtype
    assert np.array_equal(tensor[0], array[:, ::-1])


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2), (1, 2, 2, 2, 1), (0, 2, 2, 2), (1, 2, 0, 2)])
def test_tensor_that_is_no_scan_is_refused(shape):
    with pytest.raises(InputRefused, match="needed are sequence, I, J and K") as caught:
        wire.check_size(shape, 1000)
    assert caught.value.code == "not-3d"


def test_size_counts_over_all_sequences():
    wire.check_size((2, 5, 10, 10), 1000)
    for shape in ((2, 5, 10, 11), (1, 2**20, 2**20, 2**20)):
        with pytest.raises(InputRefused, match="this server's limit is 1000") as caught:
            wire.check_size(shape, 1000)
        assert caught.value.code == "too-large"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value):
    array = np.zeros((2, 3, 3, 3), np.float32)
    wire.check_finite(array, "volume")
    array[1, 2, 2, 2] = value
    with pytest.raises(InputRefused, match="tensor 'volume' holds values that are NaN or infinite"):
        wire.check_finite(array, "volume")
    wire.check_finite(np.zeros((1, 1, 1, 1), np.int16), "volume_int16")


# --- JSON ---


@pytest.mark.parametrize("data", [None, {}, [1, "ä", {"a": None}], "text", 0.1 + 0.2, {"point": [1e-300, -2.5, 3]}])
def test_json_arrives_as_it_was_sent(data):
    tensor = wire.encode(data)

    assert (tensor.shape, tensor.dtype) == ((1,), object)
    assert isinstance(tensor[0], bytes)
    assert wire.decode(tensor, "request") == data


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b"{}", b"{}"],
        [b""],
        [b"{"],
        [b"\xff\xfe\x00"],
        [b"{}{}"],
        pytest.param([b"9" * 5000], id="long number"),
        pytest.param([b"[" * 200_000], id="deep"),
        [3],
        [None],
    ],
)
def test_what_is_no_json_is_refused(values):
    with pytest.raises(TensorMismatchError, match=r"tensor 'request' holds \d element\(s\) and not one text of JSON"):
        wire.decode(np.array(values, object), "request")


@pytest.mark.parametrize(
    ("values", "text"), [([b"abc"], "abc"), ([], ""), ([b"a", b"b"], "ab"), ([b"\xff"], "\N{REPLACEMENT CHARACTER}")]
)
def test_text_of_any_bytes_is_text(values, text):
    assert wire.text(np.array(values, object)) == text


def test_names_of_tensors_are_told_apart():
    names = [value for key, value in vars(wire).items() if key[0].isupper() and isinstance(value, str)]

    assert len(names) == len(set(names)) == 14
    assert not set(names) & set(wire.VOLUMES)


def test_size_that_overflows_64_bits_is_too_large():
    with pytest.raises(InputRefused, match="limit"):
        wire.check_size((1, 2**21, 2**21, 2**22), 2**28)
