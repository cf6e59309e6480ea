"""Guards README and docs/: links lead somewhere, commands are what the command line takes, what can be run here runs.

Commands of shell blocks are parsed whole, those in the middle of a text option by option. NEEDS lists the ones that
this machine can't run, or not within minutes; RUN says which do run, on small exports.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import tomllib

import click
import nibabel
import numpy as np
import pytest
from PIL import Image

from samkit.benchmarks.cli import bench
from samkit.export import cli as export_cli
from samkit.segment import cli as segment_cli
from samkit.training import cli as train_cli
from samkit.triton_models import cli as serve_cli
from support import pages
from support.pages import PAGES, ROOT, name_of
from support.serving import need_server

NEEDS = {
    r"docker |export SAMKIT_": "Docker, and NVIDIA's image",
    r"pip |make venv|\. \.venv": "packages from an index",
    r"dcm2niix ": "dcm2niix, and a DICOM series",
    r".*(RUNTIME=gpu|--device cuda|test-gpu)": "a GPU",
    r".*(--build-engines|--require-tensorrt|tensorrt)": "TensorRT and a GPU",
    r".*\.(pth|pt)\b": "a file that others give out, or that you have",
    r"make (demo|test|check|bench|weights|release|clean)": "minutes, or the clone for itself",
    r"python -m (tools\.(rewrites|fp16|serving|flops)|samkit\.training\.demo_weights|samkit\.demo)": "minutes",
    r"(sam-train|sam-bench (accuracy|latency|load|compare|report))": "minutes, or data of your own",
    r"sam-export --method \S+ (--out \S+ )?(--fp16|--checkpoint|--size full)": "minutes, or weights of your own",
    r"sam-export --method medsam --out exports/medsam$": "half a minute; `stage` has such an export",
    r"python \.\./shared/": "the folder shared/ beside the repository",
    r"sam-segment --server": "a server, which the test of its page starts",
    r"sam-segment --export (DIR|EXPORT|exports/brainseg-dmif)": "an export that other tests make",
    r".*\b(zeros|plain-net)\b": "what a page adds: its own test does, and runs it",
    r"sam-serve write exports/m-sam --out /srv": "a folder of the machine",
}
"""Why a command isn't run by this file; by how it looks. `make test` has tests of most of them elsewhere."""
RUN = (
    r"sam-segment --export exports/(m-sam|medsam|sam|lora-sam) (?!.*(tensorrt|zeros|phantoms/))",
    r"sam-export --(list|verify exports/m-sam)$",
    r"sam-export --method NAME --size small --dry-run",
    r"sam-serve (write exports/m-sam --out repository|check repository)$",
    r"python -m (tools\.bench --dry-run|samkit\.runtime\.protocol)$",
)
"""What runs on the exports and scans of `stage`, each command once."""
PYTHON = {
    "README.md": "here",
    "docs/how-to/segment.md": "here",
    "docs/start/first-steps.md": "test_first_steps",
    "docs/how-to/serve.md": "test_serving_docs.py",
    "docs/how-to/add-a-method.md": "test_tenth_method.py",
    "docs/how-to/add-a-backend.md": "test_fifth_backend.py",
    "docs/how-to/add-a-reader.md": "test_fifth_reader.py",
}
"""Where the Python blocks of each page that has some are run."""
PROGRAMS = {
    "sam-export": export_cli.export,
    "sam-segment": segment_cli.segment,
    "sam-train": train_cli.command,
    "sam-serve": serve_cli.serve,
    "sam-bench": bench,
}
INVENTED = "zeros"
"""The backend that a page adds."""
TEXT = {page: page.read_text() for page in PAGES}
SPEAKING = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of what was
WHOLE = sorted({(name_of(page), line) for page in SPEAKING for line in pages.shell_commands(TEXT[page])})
SPOKEN = sorted({(name_of(page), line) for page in SPEAKING for line in pages.spoken_commands(TEXT[page])})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


# --- Links ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in pages.links(TEXT[page]):
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", file):
            assert file.startswith("https://"), f"{link} is neither a page of ours nor https"
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in pages.headings(target.read_text()), f"{link}: no such heading"


def test_every_page_can_be_reached_from_the_readme():
    found, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page.suffix != ".md" or page in found:
            continue
        found.add(page)
        local = (link.partition("#")[0] for link in pages.links(page.read_text()) if not re.match(r"\w+:", link))
        left += [(page.parent / file).resolve() for file in local if file]
    assert {name_of(page) for page in (ROOT / "docs").rglob("*.md") if page not in found} == set()


def test_root_links_lead_into_the_package():
    for name in ("training", "export", "runtime", "triton_models", "benchmarks"):
        assert (ROOT / name).resolve() == ROOT / "samkit" / name


# --- Commands ---


def command_of(words):
    """Return the command of a line of ours, and what it is given; None where it takes no options of ours."""
    program, *given = words
    if program in PROGRAMS:
        command = PROGRAMS[program]
    else:  # python -m MODULE
        module, *given = given[1:]
        if not given:
            return None, []
        found = vars(importlib.import_module(module)).values()
        command = next(one for one in found if isinstance(one, click.Command))
    if isinstance(command, click.Group) and given and not given[0].startswith("-"):
        named = command.get_command(click.Context(command), given[0])
        assert named is not None, f"{program} has no command {given[0]}"
        command, given = named, given[1:]
    return command, given


def check_options(command, given):
    """Fail for an option that the command does not have."""
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    known |= set(command.get_help_option_names(click.Context(command)))
    asked = {word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)}
    assert asked - known == set()


def check_whole(command, given):
    """Fail where the command would call this usage: an option unknown or missing, a value that it never takes."""
    context = click.Context(command, info_name=command.name)
    values, rest, _ = command.make_parser(context).parse_args(list(given))
    assert rest == [], f"nothing takes {rest}"
    for option in command.params:
        value = values.get(option.name)
        if isinstance(value, (str, list, tuple)) and not isinstance(option.type, click.Path) and value != INVENTED:
            option.type_cast_value(context, value)
        assert value or not option.required or "--help" in given, f"{option.name} is missing"


def check(line, whole):
    """Fail where a command line is none: a program, target, module, extra, option or value that does not exist."""
    words = pages.words(line)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
    elif words[0] == "pip":
        extras = re.findall(r"(?:samkit|\.)\[([\w,]+)\]", line)
        assert {extra for named in extras for extra in named.split(",")} <= set(PROJECT["optional-dependencies"])
        assert all((ROOT / word).exists() for word in words if word.startswith("./"))
    elif words[0] == "python" and words[1] != "-m":
        assert words[1].startswith("../shared/") or (ROOT / words[1]).is_file()
    else:
        assert words[0] in {*PROGRAMS, "python"}
        assert words[0] != "python" or importlib.util.find_spec(words[2]) is not None
        command, given = command_of(words)
        if command is not None:
            (check_whole if whole else check_options)(command, given)


@pytest.mark.parametrize(("page", "line"), WHOLE)
def test_command_of_a_block_is_what_the_command_line_takes(page, line):
    if pages.words(line)[0] not in {*PROGRAMS, "make", "pip", "python"}:
        assert any(re.match(need, line) for need in NEEDS), f"{line}: neither a command of ours nor in NEEDS"
        return
    check(line, whole=True)


@pytest.mark.parametrize(("page", "line"), SPOKEN)
def test_command_in_a_text_exists(page, line):
    check(line, whole=False)


@pytest.mark.parametrize("need", NEEDS)
def test_what_is_not_run_is_still_written_somewhere(need):
    assert any(re.match(need, line) for _, line in (*WHOLE, *SPOKEN))


def test_every_command_is_run_or_says_why_not():
    told = (*NEEDS, *RUN)
    ran_with_their_page = {line for page in ("docs/start/first-steps.md", "docs/how-to/serve.md") for line in of(page)}
    left = [
        line for _, line in WHOLE if line not in ran_with_their_page and not any(re.match(one, line) for one in told)
    ]
    assert left == []


def of(page):
    return pages.shell_commands((ROOT / page).read_text())


# --- What runs ---


@pytest.fixture(scope="module")
def stage(tiny_export, bright_slices, bright_structures, bright_boxes, tmp_path_factory):
    """A folder with the exports and scans that the pages speak of."""
    folder = tmp_path_factory.mktemp("stage")
    for name, made in (
        ("m-sam", tiny_export), ("sam", bright_slices), ("lora-sam", bright_structures), ("medsam", bright_boxes),
    ):  # fmt: skip
        shutil.copytree(made, folder / "exports" / name)
    rng = np.random.default_rng(0)
    scan = rng.uniform(1, 100, (100, 110, 40)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), folder / "scan.nii.gz")
    brain = np.zeros((160, 120, 176), np.float32)
    brain[100:140, 100:118, 110:150] = rng.uniform(1, 100, (40, 18, 40))
    nibabel.save(nibabel.MGHImage(brain, np.eye(4)), folder / "brain.mgz")
    Image.fromarray(rng.integers(0, 255, (160, 240), np.uint8)).save(folder / "photo.png")
    (folder / "clicks.json").write_text(json.dumps([{"point": [60, 70, 30], "label": 1}]))
    return folder


TO_RUN = sorted({line.replace("NAME", "m-sam") for _, line in (*WHOLE, *SPOKEN) for one in RUN if re.match(one, line)})


@pytest.mark.xdist_group("export")
def test_commands_run(stage, monkeypatch):
    monkeypatch.chdir(stage)
    assert len(TO_RUN) > 8
    for line in sorted(TO_RUN, key=lambda line: not line.startswith("sam-serve write")):
        pages.run(line)


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("page", [page for page, where in PYTHON.items() if where == "here"])
def test_python_blocks_run(page, stage, monkeypatch):
    monkeypatch.chdir(stage)
    names = {}
    for language, block in pages.blocks((ROOT / page).read_text()):
        if language == "python":
            exec(compile(block, page, "exec"), names)  # noqa: S102 - our own page
    assert names["mask"].shape == (100, 110, 40)


def test_python_blocks_are_run_somewhere():
    has = {name_of(page) for page in PAGES for language, _ in pages.blocks(TEXT[page]) if language == "python"}
    assert has == set(PYTHON)


@pytest.mark.xdist_group("export of m-sam")
def test_first_steps(export_of, tmp_path):
    """The page runs from top to bottom; a shared export stands for its first one, and training is the tiny recipe."""
    need_server()
    page = ROOT / "docs/start/first-steps.md"
    done = pages.run_page(
        page,
        pages.blocks(page.read_text()),
        tmp_path,
        {
            "make venv": None,
            ". .venv": None,
            "sam-export --method m-sam ": lambda _: shutil.copytree(export_of("m-sam"), tmp_path / "exports" / "m-sam"),
            "sam-train ": lambda line: pages.run(line, "--preset", "tiny", "--threads", "1", "--quiet"),
        },
    )
    (clicks,) = done.left
    assert clicks["first"].mask.any()
    assert np.array_equal(clicks["mask"], clicks["first"].mask)
    assert (tmp_path / "mask.nii.gz").read_bytes() == (tmp_path / "served.nii.gz").read_bytes()
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), clicks["mask"])
    assert (tmp_path / "exports/mine/manifest.json").is_file()
    assert done.codes == [0]
