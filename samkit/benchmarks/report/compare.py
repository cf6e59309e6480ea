"""`sam-bench compare`: what got better or worse between two runs of one kind, beyond the noise.

Rows are joined by what tells them apart (rows.Identity). Each figure has its own rule, and figures.FIGURES says which:

- Times: a percentile is worse where the bootstrap interval of the ratio of both runs lies wholly above 1 + noise. The
  median needs MOST_FEW samples in both, the 95th percentile TAIL; p99 is not judged: it is close to the maximum.
- Parity with PyTorch is deterministic, so any step in the wrong direction counts that is no rounding.
- Metrics against the truth: of the same cases after the last click that both runs have. The mean difference by a paired
  bootstrap, beyond SEEN; and because a mean hides a case that was lost, each case whose Dice falls by more than LOST.
  One case is not enough to say anything of a mean, so its figure counts as it stands.
- Memory and rates have no samples; they count where they move by more than the noise.

Of many figures, each judged at 95 %, a few move by chance; the noise in the rule makes that rarer, and a second run
tells. Timings of two machines say nothing of the software, so they are refused unless they are asked for.
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
from samkit.benchmarks.record.rows import Absent, AccuracyRow, ClickFigures, LatencyRow, LoadRow, Row
from samkit.benchmarks.record.run import Run, load_run
from samkit.benchmarks.record.statistics import mean_interval, percentile_ratio
from samkit.benchmarks.report.table import backend_of, method_of, part_of
from samkit.errors import InputRefused, OptionError, SamkitError
from samkit.json_records import find

NOISE = 0.05
"""How far timings, rates and memory of two runs of the same software may lie apart, as a share."""
MOST_FEW = 5
"""Samples of each run below which a median is not compared: three and three lie apart by chance once in twenty."""
TAIL = 20
"""Samples of each run below which a 95th percentile is little but the maximum, and not compared."""
WORSE, GONE, NEW, BETTER, UNJUDGED, SAME = VERDICTS = ("worse", "gone", "new", "better", "unjudged", "same")
"""In the order in which they are printed; of the last two only the number is."""
SEEN = 1e-3
"""How far a mean of metrics has to move to count, as a share of it."""
LOST = 0.1
"""How far the Dice of one case may fall, whatever becomes of the mean."""
_LEAST = 1e-9
"""What shares are taken of at least."""


@dataclass(frozen=True)
class Change:
    """What became of one figure of one row."""

    row: str
    """Method, graph or stage, backend, and whatever else tells the row from others."""
    figure: str
    """Empty where it is the whole row that came or went."""
    verdict: str
    """One of VERDICTS."""
    words: str
    """Both figures, and how sure the difference is."""
    size: float
    """How far it moved, to sort by: infinite where there is no figure any more, else a share."""
    note: str = ""
    """What a reader must not forget of this line."""

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
    disturbed = {path.name: run.disturbance for path, run in zip((before, after), runs, strict=True)}
    warnings = [f"NOT SETTLED: {name}: {why}" for name, why in disturbed.items() if why]
    told = [change.line() for change in changes if change.verdict not in (UNJUDGED, SAME)]
    for line in (*warnings, *told, count_changes(changes)):
        click.echo(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(_record(runs, warnings, changes), indent=1) + "\n")
    if worse := sum(change.verdict == WORSE for change in changes):
        raise SamkitError(f"{worse} of {len(changes)} figures got worse from {before.name} to {after.name}")


def compare_runs(before: Run, after: Run, *, noise: float = NOISE, different_machines: bool = False) -> list[Change]:
    """Return what became of every figure, worst first; those too few to judge and the same are there, too, at the end.

    Raises InputRefused for runs of two kinds or on two sets of data and for a run two rows of which nothing tells
    apart, OptionError for timings of different machines unless `different_machines`.
    """
    if before.kind != after.kind:
        raise InputRefused(
            "two-kinds", f"one run is of {before.kind}, the other of {after.kind}", "give two runs of one kind"
        )
    if before.kind == "accuracy" and before.data != after.data:
        raise InputRefused(
            "two-data-sets", f"one run was measured on {before.data}, the other on {after.data}", "measure both on one"
        )
    differences = "; ".join(machine_differences(before, after))
    if differences and before.kind != "accuracy" and not different_machines:
        raise OptionError(
            f"timings of different machines say nothing of the software ({differences}); measure both on one machine, "
            "or give {different_machines}",
            options=("different_machines",),
        )
    ours, theirs = _by_identity(before), _by_identity(after)
    changes = [change for key, row in ours.items() if key in theirs for change in _compare(row, theirs[key], noise)]
    changes += [*_lone(ours, theirs, GONE), *_lone(theirs, ours, NEW)]
    if differences:
        note = f"different machines: {differences}"
        changes = [replace(change, note="; ".join(filter(None, (change.note, note)))) for change in changes]
    return sorted(changes, key=lambda change: (VERDICTS.index(change.verdict), -change.size, change.row, change.figure))


def machine_differences(before: Run, after: Run) -> list[str]:
    """Return in what the machines of two runs differ that timings depend on."""
    ours, theirs = (
        {key: run.machine.get(key) for key in ("processor", "cores", "threads", "device")}
        | {"gpus": ", ".join(str(gpu.get("name")) for gpu in run.machine.get("gpus") or ()) or "none"}
        for run in (before, after)
    )
    return [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def count_changes(changes: Sequence[Change]) -> str:
    """Return how many figures changed in which way."""
    counts = Counter(change.verdict for change in changes)
    words = {UNJUDGED: "unjudged (too few samples)"}
    return ", ".join(f"{counts[v]} {words.get(v, v)}" for v in VERDICTS if counts[v]) or "nothing to compare"


def _record(runs: tuple[Run, Run], warnings: Sequence[str], changes: Sequence[Change]) -> dict[str, Any]:
    described = [{"command": list(run.command), "started": run.started, "commit": run.commit} for run in runs]
    lines = [{**asdict(change), "size": change.size if math.isfinite(change.size) else None} for change in changes]
    return {"before": described[0], "after": described[1], "warnings": list(warnings), "changes": lines}


# --- One row ---


Rows: TypeAlias = dict[tuple[tuple[str, Any], ...], Row]
"""By what tells them apart."""


def _by_identity(run: Run) -> Rows:
    found: Rows = {}
    for row in run.rows:
        key = row.identity.key()
        if key in found:
            raise InputRefused(
                "double-row", f"two rows of {run.command_line} are both {_name(row)}", "measure each of them once"
            )
        found[key] = row
    return found


def _name(row: Row) -> str:
    more = [f"{key} {getattr(row.identity, key)}" for key in row.identity.settings]
    return ", ".join((f"{method_of(row)} {part_of(row)}", backend_of(row), *more))


def _lone(rows: Rows, others: Rows, verdict: str) -> Iterator[Change]:
    """Yield a change for each of `rows` that `others` lack, and one for all of a method."""
    run = f"in the run {'before' if verdict == GONE else 'after'}"
    methods = {method_of(row) for row in others.values()}
    lone = [row for key, row in rows.items() if key not in others]
    for method, count in Counter(method_of(row) for row in lone if method_of(row) not in methods).items():
        yield Change(method, "", verdict, f"only {run}, in {count} row{'s' * (count > 1)}", 0.0)
    for row in lone:
        if method_of(row) in methods:
            yield Change(_name(row), "", verdict, f"only {run}", 0.0)


def _compare(before: Row, after: Row, noise: float) -> Iterator[Change]:
    """Yield what became of each figure that both rows have."""
    name = _name(before)
    if isinstance(before, Absent) or isinstance(after, Absent):
        if isinstance(after, Absent) and not isinstance(before, Absent):
            yield Change(name, "", WORSE, f"was measured, and now {_why(after)}", math.inf)
        elif isinstance(before, Absent) and not isinstance(after, Absent):
            yield Change(name, "", NEW, f"is measured now, and was {_why(before)}", 0.0)
        return
    if isinstance(before, AccuracyRow) and isinstance(after, AccuracyRow):
        for sentence in after.failures:
            if sentence not in before.failures:
                yield Change(name, "gate", WORSE, sentence, math.inf)
        clicks = [{case: list(steps) for case, steps in _by_click(row).items()} for row in (before, after)]
        note = "" if clicks[0] == clicks[1] else "of other cases or clicks"
        yield from (replace(change, note=note) for change in _figures(name, before, after, noise))
        yield from _truths(name, before, after)
        yield from _clicks(name, before, after)
    elif not isinstance(before, AccuracyRow) and not isinstance(after, AccuracyRow):
        yield from _times(name, before, after, noise)
        yield from _figures(name, before, after, noise)
        if isinstance(before, LoadRow) and isinstance(after, LoadRow):
            yield from _growth(name, before, after, noise)


def _why(row: Absent) -> str:
    return f"{row.word.replace('_', ' ')}: {row.reason}"


def _times(name: str, before: LatencyRow | LoadRow, after: LatencyRow | LoadRow, noise: float) -> Iterator[Change]:
    ours, theirs = before.times.samples_ms, after.times.samples_ms
    for percent, least in ((50, MOST_FEW), (95, TAIL)):
        if not (ours and theirs):
            continue
        title = FIGURES[f"p{percent}_ms"].name
        if min(len(ours), len(theirs)) < least:
            words = f"{len(ours)} and {len(theirs)} samples, and {least} of each are needed"
            yield Change(name, title, UNJUDGED, words, 0.0)
            continue
        ratio = percentile_ratio(theirs, ours, percent)
        verdict = WORSE if ratio.low > 1 + noise else BETTER if ratio.high < 1 - noise else SAME
        old, new = (number(getattr(row.times, f"p{percent}_ms")) for row in (before, after))
        words = f"{old} to {new}, {ratio.value:.2f} times [{ratio.low:.2f}, {ratio.high:.2f}]"
        yield Change(name, title, verdict, words, abs(ratio.value - 1))


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


def _growth(name: str, before: LoadRow, after: LoadRow, noise: float) -> Iterator[Change]:
    failed = [sum(row.errors.values()) for row in (before, after)]
    if any(failed):
        yield _step(name, "errors", failed[0], failed[1], -1, 0)
    if before.scaling is not None and after.scaling is not None:
        old, new = before.scaling.exponent, after.scaling.exponent
        apart = new.low > old.high + noise or new.high < old.low - noise
        yield _step(name, "exponent", old.value, new.value, -1, 0 if apart else math.inf)


def _step(name: str, title: str, before: float, after: float, sign: int, margin: float) -> Change:
    """Return the change of a figure; more (sign 1) or less (-1) is better, `margin` is no change, nan is worst."""
    gained = 0.0 if before == after or (math.isnan(before) and math.isnan(after)) else sign * (after - before)
    if math.isnan(gained):
        gained = -math.inf if math.isnan(after) else math.inf
    verdict = BETTER if gained > margin else WORSE if gained < -margin else SAME
    share = abs(gained) / max(abs(before), abs(after), _LEAST) if math.isfinite(gained) else math.inf
    return Change(name, title, verdict, f"{number(before, 6)} to {number(after, 6)}", share)


def _truths(name: str, before: AccuracyRow, after: AccuracyRow) -> Iterator[Change]:
    """Yield what became of each metric over the cases that both rows have, after the last click that both have."""
    ours, theirs = _by_click(before), _by_click(after)
    last = {case: max(ours[case].keys() & theirs[case].keys(), default=None) for case in ours if case in theirs}
    steps = {case: (ours[case][n].figures, theirs[case][n].figures) for case, n in last.items() if n is not None}
    for key, metric in METRICS.items():
        pairs = [(old[key], new[key]) for old, new in steps.values() if key in old and key in new]
        if metric.sign and pairs:
            if metric.better == "zero":
                pairs = [(abs(a), abs(b)) for a, b in pairs]
            yield _paired(name, f"{metric.title} to the truth", pairs, metric.sign)
    if steps:
        yield _lost_most(name, {case: (old["dice"], new["dice"]) for case, (old, new) in steps.items()})


def _lost_most(name: str, dice: Mapping[str, tuple[float, float]]) -> Change:
    """Return what became of the case whose Dice fell the most."""
    case = min(dice, key=lambda case: dice[case][1] - dice[case][0])
    old, new = dice[case]
    lost = sum(old - new > LOST for old, new in dice.values())
    words = f"{lost} fell by more than {LOST:g}, the most {case}, {number(old)} to {number(new)}"
    return Change(name, "Dice of each case", WORSE if lost else SAME, words, max(0.0, old - new))


def _by_click(row: AccuracyRow) -> dict[str, dict[int, ClickFigures]]:
    """Return what each case has after each click."""
    return {case.case: {step.click: step for step in case.clicks} for case in row.cases}


def _clicks(name: str, before: AccuracyRow, after: AccuracyRow) -> Iterator[Change]:
    """Yield what became of the clicks to each Dice; a case that never reached it counts as one click more than all."""
    if [case.case for case in before.cases] != [case.case for case in after.cases]:
        return
    beyond = 1 + max(len(before.dice_by_click), len(after.dice_by_click))
    for target, ours in before.clicks_to.items():
        theirs = after.clicks_to.get(target)
        if ours and theirs and len(ours) == len(theirs):
            pairs = [tuple(beyond if n is None else n for n in pair) for pair in zip(ours, theirs, strict=True)]
            yield _paired(name, f"clicks to Dice {target}", pairs, -1)


def _paired(name: str, title: str, pairs: Sequence[tuple[float, ...]], sign: int) -> Change:
    """Return the change of a mean over cases, by a paired bootstrap; a case that became infinite decides alone."""
    gains = np.array([0.0 if a == b else sign * (b - a) for a, b in pairs])
    means = [float(np.mean(values)) for values in zip(*pairs, strict=True)]
    words = f"mean of {len(pairs)} cases {number(means[0], 4)} to {number(means[1], 4)}"
    if not np.isfinite(gains).all():
        lost = not (gains[~np.isfinite(gains)] > 0).all()
        return Change(name, title, WORSE if lost else BETTER, words, math.inf)
    gain = mean_interval(gains)
    scale = max(*(abs(mean) for mean in means if math.isfinite(mean)), _LEAST, _LEAST)
    verdict = BETTER if gain.low > SEEN * scale else WORSE if gain.high < -SEEN * scale else SAME
    size = abs(gain.value) / scale
    words = f"{words}, better by {number(gain.value)} [{number(gain.low)}, {number(gain.high)}]"
    return Change(name, title, verdict, words, size)
