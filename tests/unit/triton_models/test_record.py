"""Guards the record of a repository: it comes back as it was written, and is read strictly."""

from __future__ import annotations

import json

import pytest

from samkit.errors import ManifestError
from samkit.triton_models.record import FILE_NAME, Repository, ServedExport

RECORD = Repository(
    samkit="0.1.0",
    exports={
        "m_sam": ServedExport(
            method="m-sam",
            precision="fp32",
            manifest="3f9a",
            models={"m_sam_image_encoder": "onnxruntime", "m_sam": "ensemble"},
            files={"m_sam_image_encoder/1/model.onnx": "77ab"},
            engines={"m_sam_mask_decoder": {"gpu": "H100"}},
        )
    },
)


def test_record_comes_back(tmp_path):
    RECORD.save(tmp_path)
    assert Repository.load(tmp_path) == RECORD


def test_models_are_those_of_all_exports():
    other = ServedExport("sam", "fp32", "9c", models={"sam": "ensemble"}, files={})
    both = Repository("0.1.0", {**RECORD.exports, "sam": other})
    assert both.models == {"m_sam_image_encoder": "onnxruntime", "m_sam": "ensemble", "sam": "ensemble"}


def test_folder_without_record_is_no_repository(tmp_path):
    with pytest.raises(ManifestError, match="no repository of samkit's; write one: sam-serve write"):
        Repository.load(tmp_path)


def test_newer_schema_is_refused_with_advice(tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({**RECORD.to_dict(), "schema_version": 99}))
    with pytest.raises(ManifestError, match="schema 99, this samkit reads up to 1; upgrade samkit"):
        Repository.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"schema_version": "one"}',
        '{"schema_version": 1, "samkit": "0.1.0", "exports": []}',
        '{"schema_version": 1, "samkit": "0.1.0", "exports": {"a": {}}}',
    ],
)
def test_broken_record_is_a_sentence(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ManifestError, match="is no record of a repository"):
        Repository.load(tmp_path)
