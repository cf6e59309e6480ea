"""`sam-bench compare`: what got better or worse between two runs of one kind, beyond the noise.

Rows are joined by what tells them apart (rows.Identity), and each figure has its own rule:

- Times: a percentile is worse where the bootstrap interval of the ratio of both runs lies wholly above 1 + noise; p99,
  close to the maximum, is not judged.
- Parity with PyTorch is deterministic, so any step in the wrong direction counts that is no rounding.
- Metrics against the truth: of the same cases after the last click that both runs have. The mean difference by a paired
  bootstrap, beyond SEEN; and because a mean hides a case that was lost, each case whose Dice falls by more than LOST.
- Memory and rates have no samples; they count where they move by more than the noise.

Of many figures, each judged at 95 %, a few move by chance; a second run tells.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np

from samkit.benchmarks.record.figures import FIGURES, METRICS, number
from samkit.benchmarks.record.rows import Absent, AccuracyRow, LatencyRow, LoadRow, Row
from samkit.benchmarks.record.run import Run, load_run
from samkit.benchmarks.record.statistics import mean_interval, percentile_ratio
from samkit.benchmarks.report.table import backend_of, method_of, part_of
from samkit.errors import InputRefused, OptionError, SamkitError
from samkit.files import make_folder, write_whole
from samkit.json_records import find

NOISE = 0.05
"""How far timings, rates and memory of two runs of the same software may lie apart, as a share."""
FEWEST: Mapping[int, int] = {50: 5, 95: 20}
"""Samples of each run that a percentile takes: medians of three lie apart by chance once in twenty, and the 95th
percentile of less than twenty is little but the maximum."""
WORSE, GONE, NEW, BETTER, UNJUDGED, SAME = VERDICTS = ("worse", "gone", "new", "better", "unjudged", "same")
"""In the order in which they are printed; of the last two only the number is."""
SEEN = 1e-3
"""How far a mean of metrics has to move to count, as a share of it."""
LOST = 0.1
"""How far the Dice of one case may fall, whatever becomes of the mean."""
_LEAST = 1e-9
"""What shares are taken of at least."""
Rows: TypeAlias = dict[tuple[tuple[str, Any], ...], Row]
"""By what tells them apart."""


@dataclass(frozen=True)
class Change:
    """What became of one figure of one row."""

    row: str
    figure: str
    """Empty where it is the whole row that came or went."""
    verdict: str
    words: str
    size: float
    """How far it moved, to sort by: infinite where there is no figure any more, else a share."""
    note: str = ""

    def line(self) -> str:
        """Return it as one line."""
        figure = f": {self.figure}" if self.figure else ""
        return f"{self.verdict:6} {self.row}{figure}: {self.words}{f' ({self.note})' if self.note else ''}"


@click.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--noise", default=NOISE, show_default=True, type=click.FloatRange(0, 1),
              help="How far timings, rates and memory may lie apart and still be the same, as a share.")  # fmt: skip
@click.option("--different-machines", is_flag=True, help="Compare timings of different machines all the same.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all changes for programs.")
def command(before: Path, after: Path, noise: float, different_machines: bool, out: Path | None) -> None:
    """Say what got better or worse from run BEFORE to run AFTER; exit code 1 where anything got worse."""
    runs = load_run(before), load_run(after)
    changes = compare_runs(*runs, noise=noise, different_machines=different_machines)
    named = zip((before.name, after.name), runs, strict=True)
    warnings = [f"NOT SETTLED: {name}: {why}" for name, run in named if (why := run.disturbance)]
    told = [change.line() for change in changes if change.verdict not in (UNJUDGED, SAME)]
    counts = Counter(change.verdict for change in changes)
    titles = {UNJUDGED: "unjudged (too few samples)"}
    summary = ", ".join(f"{counts[v]} {titles.get(v, v)}" for v in VERDICTS if counts[v]) or "nothing to compare"
    click.echo("\n".join((*warnings, *told, summary)))
    if out is not None:
        described = [{"command": list(run.command), "started": run.started, "commit": run.commit} for run in runs]
        lines = [{**asdict(change), "size": change.size if math.isfinite(change.size) else None} for change in changes]
        record = {"before": described[0], "after": described[1], "warnings": warnings, "changes": lines}
        make_folder(out.parent)
        write_whole(out, json.dumps(record, indent=1) + "\n")
    if worse := counts[WORSE]:
        raise SamkitError(f"{worse} of {len(changes)} figures got worse from {before.name} to {after.name}")


def compare_runs(before: Run, after: Run, *, noise: float = NOISE, different_machines: bool = False) -> list[Change]:
    """Return what became of every figure, worst first; those too few to judge and the same are there, too, at the end.

    Raises InputRefused for runs of two kinds or on two sets of data and for a run two rows of which nothing tells
    apart, OptionError for timings of different machines unless `different_machines`.
    """
    if before.kind != after.kind:
        kinds = f"one run is of {before.kind}, the other of {after.kind}"
        raise InputRefused("two-kinds", kinds, "give two runs of one kind")
    if before.kind == "accuracy" and before.data != after.data:
        data = f"one run was measured on {before.data}, the other on {after.data}"
        raise InputRefused("two-data-sets", data, "measure both on one")
    differences = "; ".join(_machine_differences(before, after))
    if differences and before.kind != "accuracy" and not different_machines:
        raise OptionError(
            f"timings of different machines say nothing of the software ({differences}); measure both on one machine, "
            "or give {different_machines}",
            options=("different_machines",),
        )
    ours, theirs = _by_identity(before), _by_identity(after)
    changes = [change for key, row in ours.items() if key in theirs for change in _compare(row, theirs[key], noise)]
    changes += [*_lone(ours, theirs, GONE, "before"), *_lone(theirs, ours, NEW, "after")]
    if differences:
        note = f"different machines: {differences}"
        changes = [replace(change, note="; ".join(filter(None, (change.note, note)))) for change in changes]
    return sorted(changes, key=lambda change: (VERDICTS.index(change.verdict), -change.size, change.row, change.figure))


def _machine_differences(before: Run, after: Run) -> list[str]:
    ours, theirs = (
        {key: run.machine.get(key) for key in ("processor", "cores", "threads", "device")}
        | {"gpus": ", ".join(str(gpu.get("name")) for gpu in run.machine.get("gpus") or ()) or "none"}
        for run in (before, after)
    )
    return [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def _by_identity(run: Run) -> Rows:
    found: Rows = {}
    for row in run.rows:
        if (key := row.identity.key()) in found:
            double = f"two rows of {run.command_line} are both {_name(row)}"
            raise InputRefused("double-row", double, "measure each of them once")
        found[key] = row
    return found


def _name(row: Row) -> str:
    more = [f"{key} {getattr(row.identity, key)}" for key in row.identity.settings]
    return ", ".join((f"{method_of(row)} {part_of(row)}", backend_of(row), *more))


def _lone(rows: Rows, others: Rows, verdict: str, where: str) -> Iterator[Change]:
    """Yield a change for each of `rows` that `others` lack, and one for all of a method."""
    methods = set(map(method_of, others.values()))
    for method, count in Counter(map(method_of, rows.values())).items():
        if method not in methods:
            yield Change(method, "", verdict, f"only in the run {where}, in {count} row{'s' * (count > 1)}", 0.0)
    for key, row in rows.items():
        if key not in others and method_of(row) in methods:
            yield Change(_name(row), "", verdict, f"only in the run {where}", 0.0)


def _compare(before: Row, after: Row, noise: float) -> Iterator[Change]:
    name = _name(before)
    if isinstance(before, Absent) or isinstance(after, Absent):
        whys = [f"{row.word.replace('_', ' ')}: {row.reason}" for row in (before, after) if isinstance(row, Absent)]
        if not isinstance(before, Absent):
            yield Change(name, "", WORSE, f"was measured, and now {whys[0]}", math.inf)
        elif not isinstance(after, Absent):
            yield Change(name, "", NEW, f"is measured now, and was {whys[0]}", 0.0)
    elif isinstance(before, AccuracyRow) and isinstance(after, AccuracyRow):
        yield from _accuracy(name, before, after, noise)
    elif not isinstance(before, AccuracyRow) and not isinstance(after, AccuracyRow):
        yield from _times(name, before, after, noise)
        yield from _figures(name, before, after, noise)
    if isinstance(before, LoadRow) and isinstance(after, LoadRow):
        failed = [sum(row.errors.values()) for row in (before, after)]
        if any(failed):
            yield _step(name, "errors", failed[0], failed[1], -1, 0)
        if before.scaling is not None and after.scaling is not None:
            old, new = before.scaling.exponent, after.scaling.exponent
            apart = new.low > old.high + noise or new.high < old.low - noise
            yield _step(name, "exponent", old.value, new.value, -1, 0 if apart else math.inf)


def _times(name: str, before: LatencyRow | LoadRow, after: LatencyRow | LoadRow, noise: float) -> Iterator[Change]:
    ours, theirs = before.times.samples_ms, after.times.samples_ms
    count = min(len(ours), len(theirs))
    for percent, fewest in FEWEST.items() if count else ():
        key = f"p{percent}_ms"
        if count < fewest:
            words = f"{len(ours)} and {len(theirs)} samples, and {fewest} of each are needed"
            yield Change(name, FIGURES[key].name, UNJUDGED, words, 0.0)
            continue
        ratio = percentile_ratio(theirs, ours, percent)
        verdict = WORSE if ratio.low > 1 + noise else BETTER if ratio.high < 1 - noise else SAME
        ends = f"{number(find(before, key))} to {number(find(after, key))}"
        words = f"{ends}, {ratio.value:.2f} times [{ratio.low:.2f}, {ratio.high:.2f}]"
        yield Change(name, FIGURES[key].name, verdict, words, abs(ratio.value - 1))


def _figures(name: str, before: Row, after: Row, noise: float) -> Iterator[Change]:
    """Yield what became of the FIGURES without samples: beyond rounding, or beyond the noise."""
    for key, figure in FIGURES.items():
        if figure.rounding is None and not figure.is_noisy:
            continue
        found = (find(row, key) for row in (before, after))
        ours, theirs = (value if isinstance(value, Mapping) else {"": value} for value in found)
        for part, old in ours.items():
            if old is not None and (new := theirs.get(part)) is not None:
                margin = noise * abs(old) if figure.rounding is None else figure.rounding
                title = f"{figure.name}, {part}" if part else figure.name
                yield _step(name, title, old, new, figure.sign, margin)


def _step(name: str, title: str, before: float, after: float, sign: int, margin: float) -> Change:
    """Return the change of a figure; more (sign 1) or less (-1) is better, `margin` is no change, nan is worst."""
    gained = 0.0 if before == after or (math.isnan(before) and math.isnan(after)) else sign * (after - before)
    if math.isnan(gained):
        gained = -math.inf if math.isnan(after) else math.inf
    verdict = BETTER if gained > margin else WORSE if gained < -margin else SAME
    share = abs(gained) / max(abs(before), abs(after), _LEAST) if math.isfinite(gained) else math.inf
    return Change(name, title, verdict, f"{number(before, 6)} to {number(after, 6)}", share)


def _accuracy(name: str, before: AccuracyRow, after: AccuracyRow, noise: float) -> Iterator[Change]:
    new = (sentence for sentence in after.failures if sentence not in before.failures)
    yield from (Change(name, "gate", WORSE, sentence, math.inf) for sentence in new)
    ours, theirs = (
        {case.case: {step.click: step.figures for step in case.clicks} for case in row.cases} for row in (before, after)
    )
    is_same = ours.keys() == theirs.keys() and all(list(ours[case]) == list(theirs[case]) for case in ours)
    for change in _figures(name, before, after, noise):
        yield replace(change, note="" if is_same else "of other cases or clicks")

    # Against the truth, after the last click that both have
    shared = {case: ours[case].keys() & theirs[case].keys() for case in ours if case in theirs}
    steps = {case: (ours[case][max(clicks)], theirs[case][max(clicks)]) for case, clicks in shared.items() if clicks}
    for key, metric in METRICS.items():
        size = abs if metric.better == "zero" else float
        pairs = [(size(old[key]), size(new[key])) for old, new in steps.values() if key in old and key in new]
        if metric.sign and pairs:
            yield _paired(name, f"{metric.title} to the truth", pairs, metric.sign)
    if steps:
        falls = {case: old["dice"] - new["dice"] for case, (old, new) in steps.items()}
        most = max(falls, key=lambda case: falls[case])
        lost = sum(fall > LOST for fall in falls.values())
        ends = " to ".join(number(figures["dice"]) for figures in steps[most])
        words = f"{lost} fell by more than {LOST:g}, the most {most}, {ends}"
        yield Change(name, "Dice of each case", WORSE if lost else SAME, words, max(0.0, falls[most]))

    # A case that never reached a Dice counts as one click more than all
    beyond = 1 + max(len(before.dice_by_click), len(after.dice_by_click))
    for target, reached in before.clicks_to.items() if list(ours) == list(theirs) else ():
        both = reached, after.clicks_to.get(target, ())
        if reached and len(both[0]) == len(both[1]):
            counts = [tuple(beyond if n is None else n for n in pair) for pair in zip(*both, strict=True)]
            yield _paired(name, f"clicks to Dice {target}", counts, -1)


def _paired(name: str, title: str, pairs: Sequence[tuple[float, ...]], sign: int) -> Change:
    """Return the change of a mean over cases, by a paired bootstrap; a case that became infinite decides alone."""
    gains = np.array([0.0 if a == b else sign * (b - a) for a, b in pairs])
    means = [float(np.mean(values)) for values in zip(*pairs, strict=True)]
    words = f"mean of {len(pairs)} cases {number(means[0], 4)} to {number(means[1], 4)}"
    if not np.isfinite(gains).all():
        is_better = (gains[~np.isfinite(gains)] > 0).all()
        return Change(name, title, BETTER if is_better else WORSE, words, math.inf)
    gain = mean_interval(gains)
    scale = max(_LEAST, *(abs(mean) for mean in means if math.isfinite(mean)), _LEAST)
    verdict = BETTER if gain.low > SEEN * scale else WORSE if gain.high < -SEEN * scale else SAME
    words = f"{words}, better by {number(gain.value)} [{number(gain.low)}, {number(gain.high)}]"
    return Change(name, title, verdict, words, abs(gain.value) / scale)
