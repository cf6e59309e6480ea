"""Guards the references that an export keeps: a file that holds none is refused as what it is."""

import pytest

from samkit.errors import ManifestError
from samkit.export.references import FILE_NAME, load_references
from samkit.methods import get_method


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no archive", b"\x93NUMPY", b"<!doctype html>"])
def test_file_without_references_is_refused(content, tmp_path):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match="does not hold parity references"):
        load_references(get_method("m-sam"), tmp_path)
