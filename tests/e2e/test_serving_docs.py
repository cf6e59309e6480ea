"""Guards the pages on serving: the worked session runs as printed on a real server, tables say what the code does."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from samkit import errors
from samkit.errors import PromptError, SamkitError
from samkit.manifest import Export
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.requests import read_request
from samkit.triton_models.limits import LIMITS, Limits
from samkit.triton_models.model_config import ROLES, SESSION, role_ports
from samkit.triton_models.python_backend import ERRORS_METRIC
from samkit.triton_models.served import Served
from samkit.triton_models.session_host import SessionHost
from support import pages
from support.pages import ROOT
from support.serving import need_server

SERVE, SERVER = (ROOT / "docs" / page for page in ("how-to/serve.md", "reference/server.md"))


def section(page, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(^## |\Z)", page.read_text(), re.M | re.S)[1]


def blocks():
    """Return the worked session: language and text of every block, in order."""
    return pages.blocks(section(SERVE, "One worked session"))


# --- The worked session ---


@pytest.fixture(scope="module")
def worked(export_of, tmp_path_factory):
    """Run the worked session in an empty folder; what its Python blocks leave, and the folder.

    The export is made by a fixture, which other tests share, and ports are free ones.
    """
    need_server()
    folder = tmp_path_factory.mktemp("worked")
    instead = {"sam-export ": lambda _: shutil.copytree(export_of("m-sam"), folder / "exports" / "m-sam")}
    done = pages.run_page(SERVE, blocks(), folder, instead)
    session, ensemble = done.left
    return SimpleNamespace(folder=folder, session=session, ensemble=ensemble, codes=done.codes)


@pytest.mark.xdist_group("export of m-sam")
def test_worked_session_gives_one_mask_by_all_ways(worked):
    first = worked.session["first"].mask
    assert first.any()
    assert first.shape == nibabel.load(worked.folder / "phantoms/images/phantom-0000-t1.nii.gz").shape
    assert not np.array_equal(worked.session["second"].mask, first)
    assert np.array_equal(worked.session["mask"], first)
    assert np.array_equal(worked.ensemble["mask"], first)
    assert worked.ensemble["report"]["volume_ml"] == worked.session["first"].volume_ml
    assert np.array_equal(np.asarray(nibabel.load(worked.folder / "mask.nii.gz").dataobj), first)


@pytest.mark.xdist_group("export of m-sam")
def test_worked_server_ends_in_order(worked):
    assert worked.codes == [0]


def test_ensemble_is_called_without_samkit():
    *_, (language, last) = blocks()
    assert language == "python"
    assert "samkit" not in last
    assert "tritonclient" in last


# --- The tables ---


def rows(title, page=SERVER):
    """Return the cells of every row of a section's tables."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_tensors_are_those_of_the_configs():
    (asked, _), (_, answered) = (role_ports(role, slices=False) for role in (ROLES[0], ROLES[-1]))
    request, answer = role_ports(SESSION, slices=False)
    table = {}
    for name, dtypes, dims, *_ in (row for row in rows("Tensors") if row[0].startswith(("in ", "out "))):
        for port, dtype in zip(named(name), dtypes.split(", "), strict=False):
            table.setdefault(port, (dtype, dims, "optional" in name))
    for port in (*asked, *answered, *request, *answer):
        # To Triton all inputs are optional; to the model these are, and of a scan the page says when it is needed
        of_scan = port.name in wire.VOLUMES or port.name == wire.AFFINE
        optional = table[port.name][2] if of_scan else port.name in (wire.PROMPTS, wire.OPTIONS, wire.TOKEN)
        triton = port.dtype.removeprefix("TYPE_").replace("STRING", "BYTES")
        assert table[port.name] == (triton, str(list(port.dims)), optional)
    assert set(table) == {port.name for port in (*asked, *answered, *request, *answer)}


def test_ops_are_those_of_the_server():
    with pytest.raises(PromptError) as refused:
        read_request({"op": "none of them"})
    known = re.search(r"known are (.*);", str(refused.value))[1].split(", ")
    asked = [row for row in rows("Requests and answers") if len(row) == 4 and re.fullmatch(r"`[A-Z]\w+`", row[3])]
    assert {op for row in asked for op in named(row[0])} == set(known)


def test_what_describe_says_is_what_the_page_lists(bright_slices):
    export = Export.open(bright_slices, verify=False)
    served = Served("sam", "fp32", export.digest, export, Limits())
    (says,) = (row[2] for row in rows("Requests and answers") if row[0] == "`ExportDescription`")
    assert named(says) == list(served.describe().to_json())


def test_open_takes_what_the_page_lists():
    with pytest.raises(PromptError) as refused:
        read_request({"op": "open", "none of them": 1})
    known = re.search(r"it knows (.*);", str(refused.value))[1].split(", ")
    (asked,) = (row[1] for row in rows("Requests and answers") if row[0] == "`open`")
    assert {"op", *named(asked)} == set(known)


def test_limits_stand_where_the_page_says():
    says = re.search(r"They stand as `parameters`.*?\. Edit", section(SERVER, "Limits"), re.S)[0]
    everywhere, of_voxels, of_threads = re.search(
        r"(all of them.*?), (`max_voxels`.*?), and (`threads`.*)", says, re.S
    ).groups()
    assert set(LIMITS["session"]) == set(vars(Limits()))
    assert named(everywhere) == ["NAME_session"]
    for text, limit in ((of_voxels, "max_voxels"), (of_threads, "threads")):
        roles = {role for role in LIMITS if limit in LIMITS[role] and role != "session"}
        assert set(named(text)) == {limit, *(f"NAME_{role}" for role in roles)}


def test_limits_are_those_of_the_code():
    defaults = [(named(row[0])[0], re.match(r"\d+", row[1])) for row in rows("Limits") if row[0].startswith("`")]
    found = {name: default[0] for name, default in defaults if default is not None}
    assert found == {name: str(value) for name, value in vars(Limits()).items()}


def test_errors_are_classes_and_none_of_a_server_is_left_out():
    found = {named(row[0])[0] for row in rows("Errors") if re.match(r"`[A-Z]", row[0])}
    assert all(issubclass(getattr(errors, name), SamkitError) for name in found)
    assert {kind.__name__ for kind in errors.ServingError.__subclasses__()} <= found


def test_metrics_are_those_of_the_host_and_of_every_model():
    host = SessionHost(SimpleNamespace(limits=Limits(), names=1), {})
    host.counters.seconds["encode"] = 1.0
    found = {name for row in rows("Metrics") for name in named(row[0]) if name.startswith("samkit_")}
    assert found == {ERRORS_METRIC, *(name for name, *_ in host.figures())}


def test_launch_line_is_that_of_the_compose_file():
    compose = (ROOT / "container" / "compose.yaml").read_text()
    command = re.search(r"command:\n(.*?)\n    environment:", compose, re.S)[1]
    used = {flag.partition("=")[0] for flag in re.findall(r"- (--\S+)", command)}
    table = {flag for row in rows("Production: NVIDIA's container", SERVE) for flag in named(row[0])}
    assert {flag.partition("=")[0] for flag in table} == used
    assert {flag for flag in table if "=" in flag and "..." not in flag} <= set(re.findall(r"--\S+", command))
