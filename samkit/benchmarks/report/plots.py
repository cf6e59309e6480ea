"""Plots of runs as SVG text, made of their rows alone: Dice over clicks, times, readers on a server, growth of cost.

The same rows give the same text: no date, no chance in its ids, text as text. The colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart, and a backend has the same one everywhere. Lines that lie on each other
are drawn ever thinner, so that all of them are seen.
"""

from __future__ import annotations

import io
import itertools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from samkit.benchmarks.record.figures import FIGURES, interval
from samkit.benchmarks.record.rows import AccuracyRow, LatencyRow, LoadRow, Row
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import mean_interval, spread
from samkit.benchmarks.report.table import backend_of, by_backend, measured, method_of, part_of
from samkit.json_records import find

COLOURS: Mapping[str, str] = {
    "torch fp32": "#5A5A5A",
    "torch-autocast bf16": "#CC79A7", "torch-autocast fp16": "#CC79A7",
    "torch-compile fp32": "#009E73",
    "onnxruntime-no-fold fp32": "#56B4E9", "onnxruntime fp32": "#0072B2", "onnxruntime fp16": "#E69F00",
    "tensorrt fp16": "#D55E00", "tensorrt fp32": "#8C510A",
    "tensorrt-rtx fp16": "#76B900", "tensorrt-rtx fp32": "#3F6B00",
    "triton fp32": "#7B3294",
}  # fmt: skip
OTHER_COLOURS = ("#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#661100", "#6699CC")
"""Of what has none above, by its name: Paul Tol's muted ones."""
BLACK, RED = "#000000", "#D55E00"
STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", RED, "#56B4E9")
POLICY_DASHES: Mapping[str, str] = {"trained": "-", "centre": "--", "automatic": ":"}
PERCENT_DASHES: Mapping[str, str] = {"p50_ms": "-", "p95_ms": "--", "p99_ms": ":"}
MOST_TICKS, MOST_POINTS = 120, 30
"""Samples that are drawn of one row, and of one size where cost grows."""
CROSS = {"linestyle": "", "marker": "x", "markersize": 9, "markeredgewidth": 2, "color": RED, "zorder": 5}
"""Where requests failed."""
WIDTH = 11.0
"""Of a plot [inches of 72 points]; the page scales it."""


def plots_of(run: Run) -> list[tuple[str, str, str]]:
    """Return title, caption and SVG text of each plot of a run, but of what has no figures."""
    with matplotlib.style.context(Path(__file__).with_name("plots.mplstyle")):
        return [
            (title, caption, _svg(draw(rows), name))
            for name, title, caption, takes, draw in _PLOTS[run.kind]
            if (rows := [row for row in run.rows if measured(row) and takes(row)])
        ]


def colour_of(row: Row) -> str:
    """Return the colour of a row's backend and precision."""
    name = f"{row.identity.backend} {row.identity.precision}"
    return COLOURS.get(name) or OTHER_COLOURS[zlib.crc32(name.encode()) % len(OTHER_COLOURS)]


# --- Accuracy ---


def _draw_dice(rows: Sequence[AccuracyRow]) -> Any:
    methods = list(dict.fromkeys(map(method_of, rows)))
    figure, panels = _panels(len(methods), 4, 2.6, sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        of_method = [row for row in rows if method_of(row) == method]
        order = by_backend(of_method)
        for row in sorted(of_method, key=lambda row: order.index(backend_of(row))):
            _draw_curve(axes, row, max(1.2, 4.8 - 1.2 * order.index(backend_of(row))), shade=0.3 / len(of_method))
        counts = " and ".join(map(str, sorted({len(row.dice_by_click[0]) for row in of_method})))
        axes.set(title=f"{method}, n = {counts}", xlabel="click (0: before any)", ylim=(-0.02, 1.02))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in panels[::4]:
        axes.set_ylabel("Dice to the truth")
    policies = {row.identity.policy for row in rows}
    dashes = [_key(f"clicks: {name}", BLACK, dash) for name, dash in POLICY_DASHES.items() if name in policies]
    return _legend(figure, [*_backend_keys(rows), *dashes])


def _draw_curve(axes: Any, row: AccuracyRow, width: float, *, shade: float) -> None:
    means = [mean_interval(cases) for cases in row.dice_by_click if cases]
    first = 0 if row.identity.policy == "automatic" else 1
    clicks, colour = np.arange(first, first + len(means)), colour_of(row)
    axes.fill_between(clicks, [m.low for m in means], [m.high for m in means], color=colour, alpha=shade, linewidth=0)
    dash = POLICY_DASHES.get(str(row.identity.policy), "-.")
    marker = {"marker": "o", "markersize": 3 + 2 * width} if len(means) == 1 else {}
    axes.plot(clicks, [m.value for m in means], color=colour, linewidth=width, linestyle=dash, **marker)


# --- Latency ---


def _draw_times(rows: Sequence[LatencyRow]) -> Any:
    groups: dict[str, list[LatencyRow]] = {}
    for row in rows:
        groups.setdefault(_group(row, rows), []).append(row)
    order = by_backend(rows)
    figure, (axes,) = _panels(1, 1, 0.13 * (len(rows) + len(groups)), margin=1.5)
    height, middles = 0.0, []
    for of_group in groups.values():
        middles.append(height + (len(of_group) - 1) / 2)
        for row in sorted(of_group, key=lambda row: order.index(backend_of(row))):
            samples, colour = spread(row.times.samples_ms, MOST_TICKS), colour_of(row)
            low, middle, high = np.percentile(row.times.samples_ms, (5, 50, 95))
            axes.plot((low, high), (height, height), color=colour, linewidth=1.2, solid_capstyle="butt")
            # One path with gaps: a path for each tick would make the file five times as large
            x, y = np.repeat(samples, 3), np.tile((height - 0.22, height + 0.22, np.nan), len(samples))
            axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.6)
            tall = height - 0.45, height + 0.45
            axes.plot((middle, middle), tall, color=colour, linewidth=3, solid_capstyle="butt")
            height += 1
        axes.axhline(height, color="#D0D0D0", linewidth=0.6)
        height += 1
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=True)
    axes.grid(visible=False, axis="y")
    axes.set(yticks=middles, yticklabels=groups, ylim=(height - 0.5, -1), xlabel="time [ms], logarithmic")
    _make_logarithmic(axes.xaxis)
    return _legend(figure, _backend_keys(rows, width=3), "upper")


def _group(row: Row, rows: Sequence[Row]) -> str:
    given = {key: {find(other, key) for other in rows} - {None} for key in ("threads", "batch", "points")}
    more = [f"{key} {find(row, key)}" for key, values in given.items() if len(values) > 1 and find(row, key) in values]
    return ", ".join((f"{method_of(row)} {part_of(row)}", *more))


# --- Load ---


def _draw_levels(rows: Sequence[LoadRow]) -> Any:
    groups: dict[str, list[LoadRow]] = {}
    for row in rows:
        groups.setdefault(f"{method_of(row)}, {row.identity.mode or 'closed'}", []).append(row)
    stages = dict.fromkeys(str(row.identity.stage) for row in rows)
    colours = dict(zip(stages, itertools.cycle(STAGE_COLOURS), strict=False))
    figure, panels = _panels(3 * len(groups), 3, 2.6, margin=0.9)
    for (name, of_group), left, *others in zip(groups.items(), panels[::3], panels[1::3], panels[2::3], strict=True):
        for stage, colour in colours.items():
            of_stage = [row for row in of_group if row.identity.stage == stage]
            for key, dash in PERCENT_DASHES.items():
                _draw_over_readers(left, of_stage, key, color=colour, linestyle=dash, marker=".")
            _draw_over_readers(left, [row for row in of_stage if any(row.errors.values())], "p99_ms", **CROSS)
        _make_logarithmic(left.yaxis)
        left.set(ylabel="time [ms], logarithmic", title=name)
        clicked = [row for row in of_group if row.identity.stage == "click"] or of_group
        for axes, key in zip(others, ("clicks_per_second", "server_rss_mb"), strict=True):
            most = _draw_over_readers(axes, clicked, key, color=STAGE_COLOURS[0], marker=".")
            _draw_over_readers(axes, [row for row in clicked if any(row.errors.values())], key, **CROSS)
            axes.set(ylim=(0, 1.1 * most or 1.0), ylabel=FIGURES[key].title)
        for axes in (left, *others):
            axes.set(xlabel="sessions at once", xticks=sorted({find(row, "sessions") for row in of_group}))
    keys = [_key(stage.replace("_", " "), colour) for stage, colour in colours.items()]
    keys += [_key(FIGURES[key].label, BLACK, dash) for key, dash in PERCENT_DASHES.items()]
    return _legend(figure, [*keys, _key("errors at this level", RED, "", marker="x")])


def _draw_over_readers(axes: Any, rows: Sequence[LoadRow], key: str, **style: Any) -> float:
    """Draw a figure over the readers of each level; return the largest value."""
    found = [row for row in sorted(rows, key=lambda row: find(row, "sessions")) if find(row, key) is not None]
    values = [find(row, key) for row in found]
    axes.plot([find(row, "sessions") for row in found], values, **style)
    return max(values, default=1.0)


def _draw_growth(rows: Sequence[LoadRow]) -> Any:
    figure, panels = _panels(len(rows), 3, 2.9)
    for axes, row in zip(panels, rows, strict=True):
        growth: Any = row.scaling
        sizes, colour = np.asarray(growth.x, float), colour_of(row)
        medians = np.array([np.median(values) for values in growth.y_ms])
        for size, values in zip(sizes, growth.y_ms, strict=True):
            drawn = spread(values, MOST_POINTS)
            axes.plot([size] * len(drawn), drawn, linestyle="", marker=".", color=colour, alpha=0.35)
        axes.plot(sizes, medians, linestyle="", marker="o", color=colour)
        # Through the middle of the points, as least squares of logarithms go
        centre, level = np.exp(np.log(sizes).mean()), np.exp(np.log(medians).mean())
        axes.plot(sizes, level * (sizes / centre) ** growth.exponent.value, color=BLACK, linewidth=1)
        axes.set_title(f"{part_of(row)}\n{method_of(row)}, {backend_of(row)}", fontsize=10)
        # A decade at least, so that what hardly grows looks flat
        ends = min(medians.min(), level / 3.2) / 1.3, max(medians.max(), level * 3.2) * 1.8
        axes.set(ylim=ends, xlabel=growth.over, ylabel="time [ms]")
        _make_logarithmic(axes.xaxis)
        _make_logarithmic(axes.yaxis)
        axes.text(0.04, 0.96, f"exponent {interval(growth.exponent)}", transform=axes.transAxes, va="top")
    return figure


# --- What plots are made of ---


def _panels(count: int, columns: int, height: float, *, margin: float = 0.8, **more: Any) -> tuple[Any, list[Any]]:
    """Return a figure and so many axes of that height [inches], `columns` in a row."""
    across = min(count, columns)
    down = -(-count // across)
    width = WIDTH * max(across, 2) / columns if count < columns else WIDTH
    figure = Figure(figsize=(width, margin + height * down))
    axes = list(figure.subplots(down, across, squeeze=False, **more).flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, axes[:count]


def _make_logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each power of ten."""

    def written(value: float, _: int) -> str:
        size, unit = (1e6, "M") if value >= 1e6 else (1e3, "k") if value >= 1e4 else (1, "")
        return f"{value / size:g}{unit}"

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,), numticks=30))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(written)


def _backend_keys(rows: Sequence[Row], **style: Any) -> list[Any]:
    colours = {backend_of(row): colour_of(row) for row in rows}
    return [_key(name, colours[name], **style) for name in by_backend(rows)]


def _key(name: str, colour: str, dash: str = "-", *, width: float = 2, marker: str = "") -> Any:
    return Line2D([], [], color=colour, linestyle=dash, linewidth=width, marker=marker, label=name)


def _legend(figure: Any, keys: Sequence[Any], place: str = "lower") -> Any:
    """Return a figure with a legend outside the axes, with as many keys in a line as surely fit."""
    longest = max(len(key.get_label()) for key in keys)
    fitting = int(figure.get_size_inches()[0] / (0.6 + 0.085 * longest))
    figure.legend(handles=keys, loc=f"outside {place} center", ncols=max(1, min(len(keys), fitting)))
    return figure


def _svg(figure: Any, name: str) -> str:
    """Return a figure as SVG for a page: without prologue, and without ids that nothing in it refers to."""
    file = io.StringIO()
    # Without metadata, in which Matplotlib names itself, with addresses
    with matplotlib.rc_context({"svg.hashsalt": f"samkit {name}"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return text[text.index("<svg") :].strip()


_TIMES = (
    "Each thin tick is one sample, the tall one the median; the line goes from the 5th to the 95th percentile. Left is "
    "faster."
)
_PLOTS: Mapping[str, Sequence[tuple[str, str, str, Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "accuracy": (("dice", "Dice over clicks",
        "Mean over n cases, or structures of cases; the band holds the mean in 95 of 100 bootstrap draws. Backends "
        "that agree lie on each other, PyTorch the widest.",
        lambda row: row.dice_by_click, _draw_dice),),
    "latency": (
        ("graphs", "Time of each graph", _TIMES,
         lambda row: row.identity.graph and row.times.samples_ms, _draw_times),
        ("stages", "Time that a reader waits", _TIMES,
         lambda row: row.identity.stage and row.times.samples_ms, _draw_times),
    ),
    "load": (
        ("levels", "Readers on a server",
         "closed: a reader clicks as soon as the mask is there; think: after a pause. A cross: requests failed there.",
         lambda row: row.scaling is None and row.identity.sessions, _draw_levels),
        ("scaling", "How cost grows",
         "Both axes are logarithmic: the slope is the exponent; 1 is proportional, 0 no dependence.",
         lambda row: row.scaling is not None, _draw_growth),
    ),
}  # fmt: skip
"""By kind the name, the title and the caption of each plot, which rows it takes, and what draws it."""
