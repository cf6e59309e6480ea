"""Files that say more than they hold are refused before memory is taken for it; what is damaged is found."""

import pickle
import resource
import struct
import zipfile

import pytest
import torch

from samkit.checkpoints import read_state
from samkit.errors import CheckpointError
from samkit.pytorch_files import read_pytorch


def archive(path, content, *records, method=zipfile.ZIP_STORED):
    """Write an archive as PyTorch does, of any pickle and records."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in records:
            file.writestr(f"archive/{name}", data)
    return path


def tensor(sides, strides, count, *, key=b"0", storage=b"FloatStorage"):
    """Return the pickle of {"a": tensor} whose shape says what it likes."""

    def number(value):
        return b"\x8a\x08" + struct.pack("<q", value)

    def row(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    text = b"X" + struct.pack("<I", len(key)) + key
    held = b"(X\x07\0\0\0storagectorch\n" + storage + b"\n" + text + b"X\x03\0\0\0cpu" + number(count) + b"tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + held + number(0) + row(sides) + row(strides)
    return b"\x80\x02}X\x01\0\0\0a" + made + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_what_torch_writes_is_read(tmp_path):
    content = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor([True, False]),
        "d": torch.empty(0),
        "e": torch.tensor(3),
        "f": torch.nn.Parameter(torch.ones(2)),
        "g": {"lr": 0.1, 5: [1, "x", (2, None)]},
    }
    for name, options in (
        ("new.pt", {}),
        ("old.pt", {"_use_new_zipfile_serialization": False}),
        ("four.pt", {"pickle_protocol": 4}),
    ):
        torch.save(content, tmp_path / name, **options)
        read = read_pytorch(tmp_path / name)
        for key in "abcdef":
            assert read[key].dtype == content[key].dtype
            torch.testing.assert_close(read[key], content[key].detach(), rtol=0, atol=0)
        assert read["g"] == content["g"]


def test_every_flipped_byte_of_a_record_is_found(tmp_path):
    torch.save({"a": torch.arange(100.0)}, tmp_path / "c.pt")
    data = (tmp_path / "c.pt").read_bytes()
    start = data.index(torch.arange(100.0).numpy().tobytes())
    for place in range(start, start + 400, 7):
        (tmp_path / "d.pt").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="CRC"):
            read_pytorch(tmp_path / "d.pt")


DEEP = b"\x80\x02" + b")" + b"\x85" * 200_000 + b"."
KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
COPIES = b"\x80\x02(" + b"K\x00" * 50_000 + b"lq\x00" + b"c__builtin__\nset\n(h\x00tR" * 100_000 + b"."


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x02Nr\xff\xff\xff\x7f.", id="an index of the memo that C's unpickler takes 4 GB for"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".", id="a long array of bytes"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b".", id="a long text of bytes"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 2**36) + b".", id="a long frame"),
        pytest.param(b"\x80\x02L" + b"9" * 10**6 + b"L\n.", id="a number of a million digits"),
        pytest.param(DEEP, id="a nest"),
        pytest.param(KEY, id="a nest as a key"),
        pytest.param(COPIES, id="copies of a list"),
        pytest.param(tensor([10**6, 10**6], [0, 0], 1), id="a tensor of one number, 10^12 times"),
        pytest.param(tensor([2**40], [1], 2**40), id="a storage that the file does not have"),
        pytest.param(tensor([2], [1], 2), id="a storage one number too long"),
        pytest.param(tensor([-1], [1], 1), id="a negative side"),
        pytest.param(tensor([1], [2**60], 1), id="a stride beyond"),
        pytest.param(tensor([1], [1], 1, key=b"../0"), id="a key that is a path"),
        pytest.param(tensor([1], [1], 1, storage=b"DoubleStorage"), id="another storage"),
        pytest.param(b"", id="nothing"),
    ],
)
@pytest.mark.parametrize("is_older", [False, True])
def test_a_hostile_pickle_takes_no_memory(tmp_path, content, is_older):
    if is_older:
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path = tmp_path / "c.pt"
        path.write_bytes(b"".join(head) + content)
    else:
        path = archive(tmp_path / "c.pt", content, ("data/0", struct.pack("<f", 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"c\.pt (is not a PyTorch checkpoint that can be read|holds no weights)"):
        read_state(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_an_archive_is_no_larger_than_its_file(tmp_path):
    bomb = archive(
        tmp_path / "c.pt", tensor([2**26], [1], 2**26), ("data/0", bytes(2**28)), method=zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="records are compressed"):
        read_pytorch(bomb)


def test_records_that_share_bytes_are_refused(tmp_path):
    """Entries of the directory that all point to one record: each would be read anew."""
    path = archive(tmp_path / "c.pt", tensor([2**16], [1], 2**16), ("data/0", bytes(2**18)))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        start = file.start_dir
    directory, end = data[start:-22], data[-22:]
    entries = len(directory.split(b"PK\x01\x02")) - 1
    many = directory * 50
    end = end[:8] + struct.pack("<HHII", entries * 50, entries * 50, len(many), start) + end[20:]
    path.write_bytes(data[:start] + many + end)
    with pytest.raises(CheckpointError, match="said to have"):
        read_pytorch(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 375042383\n", "pointer of Git LFS"),
        (b"\n<!doctype HTML>\n<html>", "page of HTML"),
        (b"", "it is empty"),
        (b"MZ\x90", "it begins with b'MZ"),
        (pickle.dumps({"a": 1}, 2), "none of torch.save"),
    ],
)
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_what_a_download_left_is_said(tmp_path, content, told, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told if name == "c.pth" or "HTML" in told or "LFS" in told else "c."):
        read_state(tmp_path / name)
