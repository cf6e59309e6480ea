"""Plots of runs as SVG text, made of their rows alone: Dice over clicks, times, readers on a server, growth of cost.

The same rows give the same text: no date, no chance in its ids, text as text. The colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart, and a backend has the same one everywhere; one that nobody gave a colour
gets it by its name. Lines that lie on each other are drawn ever thinner, so that all of them are seen.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.record.figures import FIGURES, interval
from samkit.benchmarks.record.rows import Absent, AccuracyRow, LatencyRow, LoadRow, Row
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import mean_interval, spread
from samkit.benchmarks.report.table import backend_of, by_backend, method_of, part_of
from samkit.errors import MissingDependencyError
from samkit.json_records import find

COLOURS: Mapping[tuple[str, str], str] = {
    ("torch", "fp32"): "#5A5A5A",
    ("torch-autocast", "bf16"): "#CC79A7",
    ("torch-autocast", "fp16"): "#CC79A7",
    ("torch-compile", "fp32"): "#009E73",
    ("onnxruntime-no-fold", "fp32"): "#56B4E9",
    ("onnxruntime", "fp32"): "#0072B2",
    ("onnxruntime", "fp16"): "#E69F00",
    ("tensorrt", "fp16"): "#D55E00",
    ("tensorrt", "fp32"): "#8C510A",
    ("triton", "fp32"): "#7B3294",
}
OTHER_COLOURS = ("#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#661100", "#6699CC")
"""Of what has none above, by its name: Paul Tol's muted ones."""
BLACK = "#000000"
DASHES: Mapping[str, str] = {"trained": "-", "centre": "--", "automatic": ":"}
STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MOST_TICKS = 120
"""Samples of one row that are drawn."""
MOST_POINTS = 30
"""Samples of one size that are drawn."""
WIDTH = 11.0
"""Of a plot [inches of 72 points]; the page scales it."""
STYLE = Path(__file__).with_name("plots.mplstyle")
_UNNAMED = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""What Matplotlib would write about itself, with addresses."""


@dataclass(frozen=True)
class Plot:
    """One picture of a section."""

    title: str
    caption: str
    """How to read it."""
    svg: str


def plots_of(run: Run) -> list[Plot]:
    """Return the plots of a run; none of what has no figures. Raises MissingDependencyError without Matplotlib."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise MissingDependencyError("plots need Matplotlib; pip install 'samkit[bench]'") from error
    with style.context(STYLE):
        made = [make([row for row in run.rows if not isinstance(row, Absent)]) for make in _MAKERS[run.kind]]
    return [plot for plot in made if plot is not None]


def colour_of(row: Row) -> str:
    """Return the colour of a row's backend and precision."""
    name = (row.identity.backend, row.identity.precision)
    return COLOURS.get(name) or OTHER_COLOURS[zlib.crc32(" ".join(name).encode()) % len(OTHER_COLOURS)]


# --- Accuracy ---


def _dice_plot(rows: Sequence[AccuracyRow]) -> Plot | None:
    curves = [row for row in rows if row.dice_by_click]
    if not curves:
        return None
    methods = list(dict.fromkeys(method_of(row) for row in curves))
    figure, panels = _panels(len(methods), columns=4, height=2.6, sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        of_method = [row for row in curves if method_of(row) == method]
        backends = by_backend(of_method)
        for row in sorted(of_method, key=lambda row: backends.index(backend_of(row))):
            _dice_curve(axes, row, max(1.2, 4.8 - 1.2 * backends.index(backend_of(row))), shade=0.3 / len(of_method))
        counts = sorted({len(row.dice_by_click[0]) for row in of_method})
        axes.set_title(f"{method}, n = {' and '.join(map(str, counts))}")
        axes.set_xlabel("click (0: before any)")
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in panels[::4]:
        axes.set_ylabel("Dice to the truth")
    policies = [policy for policy in DASHES if any(row.identity.policy == policy for row in curves)]
    keys = [_key(name, colour) for name, colour in _backends(curves).items()]
    keys += [_key(f"clicks: {policy}", BLACK, DASHES[policy]) for policy in policies]
    _legend(figure, keys)
    caption = (
        "Mean over n cases, or structures of cases; the band holds the mean in 95 of 100 bootstrap draws. Backends "
        "that agree lie on each other, PyTorch the widest."
    )
    return Plot("Dice over clicks", caption, _svg(figure, "dice"))


def _dice_curve(axes: Any, row: AccuracyRow, width: float, *, shade: float) -> None:
    first = 0 if row.identity.policy == "automatic" else 1
    means = [mean_interval(cases) for cases in row.dice_by_click if cases]
    clicks = np.arange(first, first + len(means))
    style = {"color": colour_of(row), "linewidth": width, "linestyle": DASHES.get(str(row.identity.policy), "-.")}
    if len(means) == 1:
        style |= {"marker": "o", "markersize": 3 + 2 * width}
    axes.fill_between(
        clicks, [m.low for m in means], [m.high for m in means], color=colour_of(row), alpha=shade, linewidth=0
    )
    axes.plot(clicks, [m.value for m in means], **style)


# --- Latency ---


def _time_plot(part: str, title: str, rows: Sequence[LatencyRow]) -> Plot | None:
    """Return a line for each row in groups of one method and part, on a logarithmic axis."""
    timed = [row for row in rows if getattr(row.identity, part) and row.times.samples_ms]
    if not timed:
        return None
    groups: dict[str, list[LatencyRow]] = {}
    for row in timed:
        groups.setdefault(_group(row, timed), []).append(row)
    order = by_backend(timed)
    lines = sum(map(len, groups.values())) + len(groups)
    figure = _figure(WIDTH, 1.5 + 0.13 * lines)
    axes = figure.subplots()
    height, middles = 0.0, []
    for rows_ in groups.values():
        start = height
        for row in sorted(rows_, key=lambda row: order.index(backend_of(row))):
            _time_line(axes, row, height)
            height += 1
        middles.append((start + height - 1) / 2)
        axes.axhline(height, color="#D0D0D0", linewidth=0.6)
        height += 1
    axes.set_yticks(middles, list(groups))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=True)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(height - 0.5, -1)
    _logarithmic(axes.xaxis)
    axes.set_xlabel("time [ms], logarithmic")
    _legend(figure, [_key(name, colour, width=3) for name, colour in _backends(timed).items()], "upper")
    caption = (
        "Each thin tick is one sample, the tall one the median; the line goes from the 5th to the 95th percentile. "
        "Left is faster."
    )
    return Plot(title, caption, _svg(figure, f"{part}s"))


_SETTINGS = ("threads", "batch", "points")


def _group(row: Row, rows: Sequence[Row]) -> str:
    own = {key: getattr(row.identity, key) for key in _SETTINGS}
    given = {key: {getattr(other.identity, key) for other in rows} - {None} for key in _SETTINGS}
    more = [f"{key} {value}" for key, value in own.items() if len(given[key]) > 1 and value is not None]
    return ", ".join((f"{method_of(row)} {part_of(row)}", *more))


def _time_line(axes: Any, row: LatencyRow, height: float) -> None:
    samples = spread(row.times.samples_ms, MOST_TICKS)
    low, middle, high = np.percentile(row.times.samples_ms, (5, 50, 95))
    colour = colour_of(row)
    axes.plot((low, high), (height, height), color=colour, linewidth=1.2, solid_capstyle="butt")
    # One path with gaps: a path for each tick would make the file five times as large
    x = np.repeat(samples, 3)
    y = np.tile((height - 0.22, height + 0.22, np.nan), len(samples))
    axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.6)
    axes.plot((middle, middle), (height - 0.45, height + 0.45), color=colour, linewidth=3, solid_capstyle="butt")


# --- Load ---

_LEVELS = ("clicks_per_second", "server_rss_mb")
_PERCENT_DASHES: Mapping[str, str] = {"p50_ms": "-", "p95_ms": "--", "p99_ms": ":"}


def _level_plot(rows: Sequence[LoadRow]) -> Plot | None:
    levels = [row for row in rows if row.scaling is None and row.identity.sessions]
    groups: dict[str, list[LoadRow]] = {}
    for row in levels:
        groups.setdefault(f"{method_of(row)}, {row.identity.mode or 'closed'}", []).append(row)
    if not groups:
        return None
    stages = list(dict.fromkeys(str(row.identity.stage) for row in levels))
    colours = {stage: STAGE_COLOURS[n % len(STAGE_COLOURS)] for n, stage in enumerate(stages)}
    figure = _figure(WIDTH, 0.9 + 2.6 * len(groups))
    panels = figure.subplots(len(groups), 3, squeeze=False)
    for (name, of_group), (left, *others) in zip(groups.items(), panels, strict=True):
        for stage, colour in colours.items():
            of_stage = [row for row in of_group if row.identity.stage == stage]
            for key, dash in _PERCENT_DASHES.items():
                _level_line(left, of_stage, key, colour, dash)
            _crosses(left, of_stage, "p99_ms")
        _logarithmic(left.yaxis)
        left.set_ylabel("time [ms], logarithmic")
        left.set_title(name)
        clicked = [row for row in of_group if row.identity.stage == "click"] or of_group
        for axes, key in zip(others, _LEVELS, strict=True):
            most = _level_line(axes, clicked, key, STAGE_COLOURS[0])
            _crosses(axes, clicked, key)
            axes.set_ylim(0, 1.1 * most or 1.0)
            axes.set_ylabel(FIGURES[key].title)
        for axes in (left, *others):
            axes.set_xlabel("sessions at once")
            axes.set_xticks(sorted({row.identity.sessions or 0 for row in of_group}))
    keys = [_key(stage.replace("_", " "), colour) for stage, colour in colours.items()]
    keys += [_key(FIGURES[key].label, BLACK, dash) for key, dash in _PERCENT_DASHES.items()]
    keys.append(_key("errors at this level", "#D55E00", "", marker="x"))
    _legend(figure, keys)
    return Plot(
        "Readers on a server",
        "closed: a reader clicks as soon as the mask is there; think: after a pause. A cross: requests failed there.",
        _svg(figure, "levels"),
    )


def _level_line(axes: Any, rows: Sequence[LoadRow], key: str, colour: str, dash: str = "-") -> float:
    """Draw a figure over the readers of each level; return the largest value."""
    points = _points(rows, key)
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linestyle=dash, marker=".")
    return max((y for _, y in points), default=1.0)


def _crosses(axes: Any, rows: Sequence[LoadRow], key: str) -> None:
    points = _points([row for row in rows if any(row.errors.values())], key)
    style = {"linestyle": "", "marker": "x", "markersize": 9, "markeredgewidth": 2, "color": "#D55E00", "zorder": 5}
    axes.plot([x for x, _ in points], [y for _, y in points], **style)


def _points(rows: Sequence[LoadRow], key: str) -> list[tuple[int, float]]:
    ordered = sorted(rows, key=lambda row: row.identity.sessions or 0)
    found = ((row.identity.sessions or 0, find(row, key)) for row in ordered)
    return [(sessions, value) for sessions, value in found if value is not None]


def _scaling_plot(rows: Sequence[LoadRow]) -> Plot | None:
    scaled = [(row, row.scaling) for row in rows if row.scaling is not None]
    if not scaled:
        return None
    figure, panels = _panels(len(scaled), columns=3, height=2.9)
    for axes, (row, growth) in zip(panels, scaled, strict=True):
        sizes = np.asarray(growth.x, float)
        medians = np.array([np.median(values) for values in growth.y_ms])
        for size, values in zip(sizes, growth.y_ms, strict=True):
            drawn = spread(values, MOST_POINTS)
            axes.plot([size] * len(drawn), drawn, linestyle="", marker=".", color=colour_of(row), alpha=0.35)
        axes.plot(sizes, medians, linestyle="", marker="o", color=colour_of(row))
        # Through the middle of the points, as least squares of logarithms go
        centre, level = np.exp(np.log(sizes).mean()), np.exp(np.log(medians).mean())
        axes.plot(sizes, level * (sizes / centre) ** growth.exponent.value, color=BLACK, linewidth=1)
        axes.set_title(f"{part_of(row)}\n{method_of(row)}, {backend_of(row)}", fontsize=10)
        # A decade at least, so that what hardly grows looks flat
        axes.set_ylim(min(medians.min(), level / 3.2) / 1.3, max(medians.max(), level * 3.2) * 1.8)
        _logarithmic(axes.xaxis)
        _logarithmic(axes.yaxis)
        axes.set_xlabel(growth.over)
        axes.set_ylabel("time [ms]")
        axes.text(0.04, 0.96, f"exponent {interval(growth.exponent)}", transform=axes.transAxes, va="top")
    return Plot(
        "How cost grows",
        "Both axes are logarithmic: the slope is the exponent; 1 is proportional, 0 no dependence.",
        _svg(figure, "scaling"),
    )


# --- What plots are made of ---


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _panels(count: int, *, columns: int, height: float, sharey: bool = False) -> tuple[Any, list[Any]]:
    """Return a figure and so many axes, `columns` in a row."""
    across = min(count, columns)
    down = -(-count // across)
    width = WIDTH * max(across, 2) / columns if count < columns else WIDTH
    figure = _figure(width, 0.8 + height * down)
    axes = figure.subplots(down, across, squeeze=False, sharey=sharey).ravel()
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, list(axes[:count])


def _logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,), numticks=30))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    """Return a number as an axis has it.

    >>> _short(0.05), _short(2000.0), _short(50000.0), _short(2e6)
    ('0.05', '2000', '50k', '2M')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= (1e4 if unit == "k" else size):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _backends(rows: Sequence[Row]) -> dict[str, str]:
    """Return the colour of each backend, in the order of columns."""
    colours = {backend_of(row): colour_of(row) for row in rows}
    return {name: colours[name] for name in by_backend(rows)}


def _key(name: str, colour: str, dash: str = "-", *, width: float = 2, marker: str = "") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, linewidth=width, marker=marker, label=name)


def _legend(figure: Any, keys: Sequence[Any], place: str = "lower") -> None:
    """Lay a legend outside the axes, with as many keys in a line as surely fit."""
    longest = max(len(key.get_label()) for key in keys)
    fitting = int(figure.get_size_inches()[0] / (0.6 + 0.085 * longest))
    figure.legend(handles=keys, loc=f"outside {place} center", ncols=max(1, min(len(keys), fitting)))


def _svg(figure: Any, name: str) -> str:
    """Return a figure as SVG for a page: without prologue, and without ids that nothing in it refers to."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"samkit {name}"}):
        figure.savefig(file, format="svg", metadata=dict(_UNNAMED))
    text = file.getvalue()
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return text[text.index("<svg") :].strip()


_MAKERS: Mapping[str, Sequence[Callable[[Sequence[Any]], Plot | None]]] = {
    "accuracy": (_dice_plot,),
    "latency": (
        partial(_time_plot, "graph", "Time of each graph"),
        partial(_time_plot, "stage", "Time that a reader waits"),
    ),
    "load": (_level_plot, _scaling_plot),
}
