"""`sam-bench report`: one HTML file of any runs, made of their JSON alone, which asks no other host for anything.

What is read first stands on top: what ran, whether the gate passed, how far from PyTorch, whether the machine was
settled. Then one section for each run: plots, tables, and for each case the slice with the largest disagreement.
Everything that comes from a run is escaped; a policy in the page forbids it scripts and every address.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy import ndimage

from samkit.benchmarks.accuracy_tables import failures
from samkit.benchmarks.paper_tables import paper_tables
from samkit.benchmarks.plots import Plot, plots_of
from samkit.benchmarks.run_file import Row, Run, load_run
from samkit.benchmarks.speed_tables import median_ratios
from samkit.benchmarks.table import (
    Table,
    backend_of,
    interval,
    is_eager,
    measured,
    method_of,
    number,
    or_worst,
    overlap,
    part_of,
)
from samkit.benchmarks.tables import definitions, facts, markdown, summary_tables, tables_of
from samkit.errors import InputRefused, MissingDependencyError

TEMPLATE = "report.html.j2"
MASK = (0, 158, 115)
ONLY_PYTORCH = (230, 159, 0)
ONLY_EXPORT = (86, 180, 233)
"""Colours of Okabe and Ito, which colour-blind readers tell apart."""
SHOWN = 6
"""Cases of a run that are not folded away."""
SHADE = 150
"""How dark the rest is where differences are shown, 0 to 255."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default=Path("bench/report.html"), show_default=True, help="Where the page is written.",
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--tables", type=click.Path(dir_okay=False, path_type=Path), help="Write all tables as Markdown, too.")
def command(files: tuple[Path, ...], out: Path, tables: Path | None) -> None:
    """Write one HTML file of the runs in FILES; it holds slices of the cases, unless they were measured without."""
    runs = [load_run(path) for path in files]
    write_report(runs, out)
    click.echo(out)
    if tables is not None:
        _write(tables, markdown(runs))
        click.echo(tables)


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write the page of `runs`; a folder that is missing is made.

    Raises InputRefused where a picture in a run is none, and MissingDependencyError without Jinja2 or Matplotlib.
    """
    _write(path, render(runs))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def render(runs: Sequence[Run]) -> str:
    """Return the page; the same runs give the same text."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("the report needs Jinja2; pip install 'samkit[bench]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(run, place) for place, run in enumerate(runs, 1)]
    papers_note, papers = paper_tables(runs)
    return environment.get_template(TEMPLATE).render(
        title="samkit: " + ", ".join(dict.fromkeys(run.kind for run in runs)),
        subtitle=_subtitle(runs),
        banners=_banners(runs, any(section.different or section.identical for section in sections)),
        sections=sections,
        shown=SHOWN,
        failures=failures(runs),
        summary=summary_tables(runs),
        definitions=definitions() if any(run.kind == "accuracy" for run in runs) else None,
        papers=papers,
        papers_note=papers_note,
    )


# --- What is read first ---


@dataclass(frozen=True)
class Banner:
    """What a reader must be told before any figure."""

    title: str
    words: str
    grave: bool = False


@dataclass(frozen=True)
class Card:
    """A run at a glance."""

    headline: str
    lines: tuple[str, ...]
    state: str
    """good, bad, or empty where nothing was judged."""
    settled: bool | None
    """None where nothing was timed."""


def _subtitle(runs: Sequence[Run]) -> str:
    methods = dict.fromkeys(row["method"] for run in runs for row in run.rows)
    machines = dict.fromkeys(str(run.machine.get("processor", "an unnamed processor")) for run in runs)
    commits = dict.fromkeys(run.commit or "no commit" for run in runs)
    return f"{', '.join(methods)}. On {'; '.join(machines)}. samkit {runs[0].samkit} at {', '.join(commits)}."


def _banners(runs: Sequence[Run], pictured: bool) -> list[Banner]:
    exports = [export for run in runs for export in run.exports]
    found = [Banner("Not a medical device.", "Nothing here says that a mask is fit for a patient.")]
    for kind, words in (
        (
            "demonstration",
            "trained on phantoms, to show that everything works; metrics to the truth say nothing of the method.",
        ),
        ("random", "figures of time and of parity hold, Dice to the truth means nothing."),
    ):
        named = dict.fromkeys(
            str(export["method"])
            for export in exports
            if export.get("weights") == kind or (kind == "demonstration" and export.get("demonstration"))
        )
        if named:
            found.append(Banner(f"{kind.upper()} WEIGHTS ({', '.join(named)}):", words, grave=True))
    if pictured:
        found.append(
            Banner("This file holds image data", "of the cases that were measured. Treat it as you treat their scans.")
        )
    for run in runs:
        if run.kind != "accuracy" and run.machine.get("settled") is False:
            reasons = "; ".join(run.machine.get("unsettled") or ["no reason given"])
            found.append(Banner(f"The machine was NOT SETTLED during {run.kind}:", reasons))
    return found


def _card(run: Run) -> Card:
    rows = [row for row in run.rows if measured(row)]
    lost = sum("error" in row for row in run.rows)
    if run.kind == "accuracy":
        headline, lines, state = _accuracy_card(rows, lost, run.data)
    else:
        headline, lines, state = _latency_card(rows) if run.kind == "latency" else _load_card(rows)
    if lost:
        lines.append(f"{lost} of {len(run.rows)} rows: error")
    missing = {backend_of(row) for row in run.rows if "not_run" in row} - {backend_of(row) for row in rows}
    if missing:
        lines.append(f"not run: {', '.join(missing) if len(missing) == 1 else f'{len(missing)} backends'}")
    return Card(headline, tuple(lines), state, None if run.kind == "accuracy" else run.machine.get("settled"))


def _accuracy_card(rows: Sequence[Row], lost: int, data: str) -> tuple[str, list[str], str]:
    """Return headline, lines and state; `lost` rows more were to be compared, and failed before they could be."""
    compared = [row for row in rows if not is_eager(row)]
    if not compared:
        return "Nothing was compared", [], "bad"
    failed = sum(bool(row.get("failures")) for row in compared) + lost
    worst = min(compared, key=lambda row: or_worst(row["parity_dice"], -math.inf))
    cases = {(row["method"], case["case"]) for row in rows for case in row.get("cases") or ()}
    lines = [
        f"worst Dice to PyTorch {overlap(worst['parity_dice'])}: {worst['method']}, {backend_of(worst)}",
        f"{len({row['method'] for row in rows})} methods, {len(cases)} cases of {data}",
    ]
    if failed:
        return f"Gate FAILED in {failed} of {len(compared) + lost} rows", lines, "bad"
    return f"Gate passed in all {len(compared)} rows", lines, "good"


def _latency_card(rows: Sequence[Row]) -> tuple[str, list[str], str]:
    methods = {method_of(row) for row in rows}
    lines = [f"{len(rows)} rows of {len(methods)} methods"]
    if ratios := median_ratios(rows):
        fastest = min(ratios, key=lambda backend: ratios[backend])
        lines.append(f"{fastest} takes {number(ratios[fastest], 2)} of PyTorch eager's time, the median of graphs")
    clicks: dict[str, list[float]] = {}
    for row in rows:
        if row.get("stage") == "click" and not row["backend"].startswith("torch"):
            clicks.setdefault(backend_of(row), []).append(row["p50_ms"])
    if not clicks:
        return f"{len(rows)} timings", lines, ""
    quickest = min(clicks, key=lambda backend: float(np.median(clicks[backend])))
    least, most = (number(end(clicks[quickest])) for end in (min, max))
    lines.insert(0, f"the median of each method, with {quickest}")
    return f"A click takes {least if least == most else f'{least} to {most}'} ms", lines, ""


def _load_card(rows: Sequence[Row]) -> tuple[str, list[str], str]:
    scaled = [row for row in rows if "scaling" in row]
    growth = [
        f"{row['method']}: {part_of(row)}: exponent {interval(row['scaling']['exponent'])}"
        for row in scaled
        if str(row["stage"]).startswith("click")
    ]
    clicking = {row["method"] for row in rows if row["stage"] == "click"}
    levels = [
        row
        for row in rows
        if row.get("sessions") and row["stage"] == ("click" if row["method"] in clicking else "scan")
    ]
    if not levels:
        return f"{len(scaled)} growths of cost", growth, ""
    held = [row for row in levels if _is_held(row)]
    best = {(row["method"], row.get("mode", "closed")): row for row in sorted(held, key=lambda row: row["sessions"])}
    lines = [
        f"{method}, {mode}: {row['sessions']}, p95 of a {row['stage']} {number(row['p95_ms'])} ms"
        for (method, mode), row in best.items()
    ]
    if beyond := len(levels) - len(held):
        lines.append(f"{beyond} level{'s' * (beyond > 1)} beyond the limit, or with errors")
    if not held:
        return "No reader was held", lines + growth, "bad"
    most = max(row["sessions"] for row in held)
    return f"{most} reader{'s' * (most > 1)} held at once", lines + growth, ""


def _is_held(row: Row) -> bool:
    """Return whether so many readers were answered, all of them and in time."""
    return not any((row.get("errors") or {}).values()) and row["p95_ms"] <= row.get("limit_ms", math.inf)


# --- One run ---


@dataclass(frozen=True)
class Section:
    """All of one run."""

    id: str
    title: str
    card: Card
    facts: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    tables: Sequence[Table]
    different: Sequence[Case]
    """Cases in which voxels differ, the most first."""
    identical: Sequence[Case]


@dataclass(frozen=True)
class Panel:
    """One of the four pictures of a case."""

    title: str
    overlay: str = ""
    """PNG in base64, laid over the image."""
    key: tuple[tuple[str, str], ...] = ()
    """Colours and what they mean."""
    box: tuple[int, int, int, int] | None = None
    """Where the differences are: x, y, width, height [pixels]."""


@dataclass(frozen=True)
class Case:
    """A case on the slice and with the backend that disagree with PyTorch the most."""

    id: str
    method: str
    case: str
    where: str
    backend: str
    flipped: int
    others: str
    """What the other rows of the case say."""
    image: str
    width: int
    height: int
    panels: tuple[Panel, ...]

    @property
    def stroke(self) -> float:
        """Return the width of a line that is as wide on every picture [pixels]."""
        return round(max(self.width, self.height) / 150, 2)


def _section(run: Run, place: int) -> Section:
    name = f"run-{place}"
    cases = list(_cases(run, name))
    methods = list(dict.fromkeys(row["method"] for row in run.rows))
    title = f"{run.kind.capitalize()}: {', '.join(methods) if len(methods) <= 3 else f'{len(methods)} methods'}"
    return Section(
        name,
        title,
        _card(run),
        facts(run),
        plots_of(run),
        tables_of(run),
        sorted((case for case in cases if case.flipped), key=lambda case: -case.flipped),
        [case for case in cases if not case.flipped],
    )


def _cases(run: Run, name: str) -> Iterable[Case]:
    """Yield each case of each method once, from the row in which most voxels of a slice differ."""
    found: dict[tuple[str, str], list[tuple[Row, Mapping[str, Any]]]] = {}
    for row in run.rows:
        for disagreement in row.get("slices") or ():
            if not row.get("reference"):
                found.setdefault((method_of(row), str(disagreement["case"])), []).append((row, disagreement))
    for place, ((method, case), entries) in enumerate(found.items(), 1):
        row, worst = max(entries, key=lambda entry: entry[1]["flipped"])
        yield _case(f"{name}-slice-{place}", method, case, row, worst, _others(row, entries))


def _others(row: Row, entries: Iterable[tuple[Row, Mapping[str, Any]]]) -> str:
    """Return how many voxels differ in the other rows of a case, each on its own worst slice; empty without others."""
    others = {_row_words(other): int(entry["flipped"]) for other, entry in entries if other is not row}
    same = [words for words, flipped in others.items() if not flipped]
    words = [f"{words}: {flipped}" for words, flipped in others.items() if flipped]
    words += [f"none in {', '.join(same)}"] if same else []
    return f"Elsewhere: {'; '.join(words)}." if words else ""


def _row_words(row: Row) -> str:
    return f"{backend_of(row)} ({row['policy']})" if row.get("policy") else backend_of(row)


def _case(name: str, method: str, case: str, row: Row, entry: Mapping[str, Any], others: str) -> Case:
    image, reference, found = (_read_picture(entry[key], case) for key in ("image", "reference", "found"))
    ours, theirs = (picture.convert("L").point(lambda value: 255 * (value > 127)) for picture in (reference, found))
    if not image.size == ours.size == theirs.size:
        raise InputRefused("no-picture", f"the pictures of {case} have several sizes", "measure the run again")
    mask, export = (np.asarray(picture) > 0 for picture in (ours, theirs))
    differing = mask ^ export
    colours = {"PyTorch alone": ONLY_PYTORCH, "export alone": ONLY_EXPORT}
    panels = (
        Panel("image"),
        Panel("PyTorch's mask", _overlay({MASK: mask})),
        Panel("the export's mask", _overlay({MASK: export})),
        Panel(
            _difference_title(int(np.count_nonzero(differing)), int(entry["flipped"])),
            _overlay({ONLY_PYTORCH: _seen(mask & ~export), ONLY_EXPORT: _seen(export & ~mask)}, SHADE, solid=True),
            tuple((_css(colour), words) for words, colour in colours.items()) if differing.any() else (),
            _box(differing),
        ),
    )
    return Case(
        name, method, case, _where(entry), _row_words(row), int(entry["flipped"]), others, _png(image),
        image.width, image.height, panels,
    )  # fmt: skip


def _difference_title(shown: int, flipped: int) -> str:
    """Return what the last panel shows: voxels may differ beyond the picture's edge, or between two structures."""
    if shown == flipped:
        return "difference" if shown else "difference: none"
    return f"difference: {shown} of {flipped} seen here"


def _seen(mask: np.ndarray) -> np.ndarray:
    """Return a mask whose single pixels a reader can see on a large picture, by making them larger."""
    size = 2 * (max(mask.shape) // 150) + 1
    return ndimage.binary_dilation(mask, np.ones((size, size), bool))


def _where(entry: Mapping[str, Any]) -> str:
    """Return the click and the slice of a disagreement; a picture has no slices."""
    click = f"click {entry['click']}" if entry.get("click") else "before any click"
    return click if entry["axis"] == "picture" else f"{click}, {entry['axis']} slice {entry['index']}"


def _read_picture(text: str, case: str) -> Any:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        return picture.convert("RGB" if picture.mode not in ("L", "1") else "L")
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise InputRefused(
            "no-picture", f"a picture of {case} can't be read ({error})", "measure the run again"
        ) from error


def _png(picture: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _overlay(masks: Mapping[tuple[int, int, int], np.ndarray], shade: int = 0, *, solid: bool = False) -> str:
    """Return a PNG that is clear (or black by `shade`, 0 to 255) but for the masks, which have their colours."""
    from PIL import Image

    shape = next(iter(masks.values())).shape
    numbers = np.zeros(shape, np.uint8)
    palette = [0, 0, 0]
    opacity = [shade]
    for place, (colour, mask) in enumerate(masks.items(), 1):
        numbers[mask] = place
        palette += colour
        opacity.append(255 if solid else 130)
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=bytes(opacity))
    return base64.b64encode(file.getvalue()).decode()


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x, y, width and height [pixels] of a frame a little outside a mask; None where it would lead nowhere."""
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    room = max(2, max(mask.shape) // 40)
    x, y = int(columns.min()) - room, int(rows.min()) - room
    width, height = int(columns.max()) + 1 + room - x, int(rows.max()) + 1 + room - y
    return (x, y, width, height) if 4 * width * height < mask.size else None


def _css(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()
