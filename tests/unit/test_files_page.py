"""docs/reference/files.md lists every key of the files that it describes."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import samkit
from samkit.benchmarks.record.run import Run
from samkit.checkpoints import CheckpointInfo
from samkit.errors import GeometryError, InputRefused, PromptError, SamkitError
from samkit.manifest import ExportPlan, GivenFile, Manifest, Weights
from samkit.triton_models.record import Repository, ServedExport

PAGE = (Path(__file__).parents[2] / "docs/reference/files.md").read_text()


def table(head):
    """Return the names in the first column of the table with that head, and those in the second."""
    rows = re.search(rf"^\| `{re.escape(head)}` \| \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.M)[1].splitlines()
    first, second = zip(*(row.strip("| ").split(" | ", 1) for row in rows), strict=True)
    return [re.findall(r"`([\w-]+)`", " ".join(cells)) for cells in (first, second)]


def names(record):
    return {one.name for one in fields(record)}


@pytest.mark.parametrize(
    ("head", "record"), [("manifest.json", Manifest), ("best.json", CheckpointInfo), ("samkit.json", Repository)]
)
def test_keys_of_a_record_are_told(head, record):
    assert set(table(head)[0]) == {"schema_version", *names(record)}


def test_keys_of_a_run_are_told():
    assert set(table("--json FILE")[0]) == names(Run)


def test_keys_of_a_plan_are_told():
    method, given = samkit.get_method("sam"), GivenFile("0" * 64)
    plan = ExportPlan(
        "sam", Weights("random", None, None), "tiny", method.sizes["tiny"], "none", "fp16", True, 20,
        ("image_encoder",), calibration=given, keep_list=given,
    )  # fmt: skip
    assert set(table("plan")[0]) == set(plan.to_dict())


def test_keys_of_a_served_export_are_told():
    assert set(table("samkit.json")[1]) >= names(ServedExport)


def test_exit_codes_are_those_of_the_errors():
    codes = dict(re.findall(r"^\| (\d) \| (\w+)", PAGE, re.M))
    assert codes == {"0": "done", "1": "a", "2": "usage", "3": "the"}
    assert (SamkitError.exit_code, PromptError.exit_code, InputRefused.exit_code, GeometryError.exit_code) == (
        1,
        2,
        3,
        3,
    )
