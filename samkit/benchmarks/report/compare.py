"""`sam-bench compare`: what got better or worse between two runs of one kind, beyond the noise.

Rows are joined by what tells them apart (run_file.identity). Each figure has its own rule:

- Times: a percentile is worse where the bootstrap interval of the ratio of both runs lies wholly above 1 + noise. The
  median needs MOST_FEW samples in both, the 95th percentile TAIL; p99 is not judged: it is close to the maximum.
- Parity with PyTorch is deterministic, so any step in the wrong direction counts that is no rounding (EXACT).
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

from samkit.benchmarks.record.metrics import METRICS
from samkit.benchmarks.record.run import WHY_NOT, Row, Run, identity, load_run
from samkit.benchmarks.record.statistics import Estimate, mean_interval, percentile_ratio
from samkit.benchmarks.report.table import backend_of, measured, method_of, metric_title, number, part_of
from samkit.errors import InputRefused, SamkitError

NOISE = 0.05
"""How far timings, rates and memory of two runs of the same software may lie apart, as a share."""
MOST_FEW = 5
"""Samples of each run below which a median is not compared: three and three lie apart by chance once in twenty."""
TAIL = 20
"""Samples of each run below which a 95th percentile is little but the maximum, and not compared."""
WORSE, GONE, NEW, BETTER, UNJUDGED, SAME = VERDICTS = ("worse", "gone", "new", "better", "unjudged", "same")
"""In the order in which they are printed; of the last two only the number is."""
EXACT: Mapping[str, tuple[str, int, float]] = {
    "parity_dice": ("worst Dice to PyTorch", 1, 1e-6),
    "flipped_voxels": ("voxels that differ from PyTorch's", -1, 0),
    "parity_hd95_mm": ("worst HD95 to PyTorch [mm]", -1, 1e-3),
    "logit_difference": ("largest logit difference", -1, 1e-4),
    "relative_error": ("relative error", -1, 1e-5),
    "click_drift": ("drift of clicks to a Dice", -1, 0),
    "map50": ("mAP50", 1, 1e-6),
    "map50_95": ("mAP50-95", 1, 1e-6),
}
"""Figures without chance: what they are called, whether more (1) or less (-1) is better, and what is rounding."""
UNSAMPLED: Mapping[str, tuple[str, int]] = {
    "peak_mb": ("peak memory [MB]", -1),
    "above_session_mb": ("memory above the session [MB]", -1),
    "server_rss_mb": ("server memory, RSS [MB]", -1),
    "clicks_per_second": ("clicks per second", 1),
}
"""Figures with noise and without samples: what they are called, and whether more (1) or less (-1) is better."""
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
@click.option(
    "--noise",
    default=NOISE,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="How far timings, rates and memory may lie apart and still be the same, as a share.",
)
@click.option("--different-machines", is_flag=True, help="Compare timings of different machines all the same.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all changes for programs.")
def command(before: Path, after: Path, noise: float, different_machines: bool, out: Path | None) -> None:
    """Say what got better or worse from run BEFORE to run AFTER; exit code 1 where anything got worse."""
    runs = load_run(before), load_run(after)
    differences = machine_differences(*runs)
    if differences and runs[0].kind != "accuracy" and not different_machines:
        raise click.UsageError(
            f"timings of different machines say nothing of the software ({'; '.join(differences)}); measure both on "
            "one machine, or give --different-machines"
        )
    changes = compare_runs(*runs, noise=noise, different_machines=different_machines)
    warnings = list(unsettled({before.name: runs[0], after.name: runs[1]}))
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

    Raises InputRefused for runs of two kinds or on two sets of data, for timings of different machines unless
    `different_machines`, and for a run two rows of which nothing tells apart.
    """
    if before.kind != after.kind:
        raise InputRefused(
            "two-kinds", f"one run is of {before.kind}, the other of {after.kind}", "give two runs of one kind"
        )
    if before.kind == "accuracy" and before.data != after.data:
        raise InputRefused(
            "two-data-sets", f"one run was measured on {before.data}, the other on {after.data}", "measure both on one"
        )
    differences = machine_differences(before, after)
    if differences and before.kind != "accuracy" and not different_machines:
        raise InputRefused(
            "two-machines", f"the runs are of different machines ({'; '.join(differences)})", "measure both on one"
        )
    ours, theirs = _by_identity(before), _by_identity(after)
    changes = [change for key, row in ours.items() if key in theirs for change in _compare(row, theirs[key], noise)]
    changes += [*_lone(ours, theirs, GONE), *_lone(theirs, ours, NEW)]
    if differences:
        note = f"different machines: {'; '.join(differences)}"
        changes = [replace(change, note="; ".join(filter(None, (change.note, note)))) for change in changes]
    return sorted(changes, key=lambda change: (VERDICTS.index(change.verdict), -change.size, change.row, change.figure))


def machine_differences(before: Run, after: Run) -> list[str]:
    """Return in what the machines of two runs differ that timings depend on."""

    def read(run: Run) -> dict[str, Any]:
        facts = {key: run.machine.get(key) for key in ("processor", "cores", "threads", "device")}
        return {**facts, "gpus": ", ".join(str(gpu.get("name")) for gpu in run.machine.get("gpus") or ()) or "none"}

    ours, theirs = read(before), read(after)
    return [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def unsettled(runs: Mapping[str, Run]) -> Iterator[str]:
    """Yield a warning for each run, by the name of its file, whose timings something disturbed."""
    for name, run in runs.items():
        if run.kind != "accuracy" and run.machine.get("settled") is False:
            yield f"NOT SETTLED: {name}: {'; '.join(run.machine.get('unsettled') or ['no reason given'])}"


def count_changes(changes: Sequence[Change]) -> str:
    """Return how many figures changed in which way."""
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in VERDICTS}
    words = {UNJUDGED: "unjudged (too few samples)"}
    told = [f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.items() if count]
    return ", ".join(told) or "nothing to compare"


def _record(runs: tuple[Run, Run], warnings: Sequence[str], changes: Sequence[Change]) -> dict[str, Any]:
    described = [{"command": list(run.command), "started": run.started, "commit": run.commit} for run in runs]
    lines = [{**asdict(change), "size": change.size if math.isfinite(change.size) else None} for change in changes]
    return {"before": described[0], "after": described[1], "warnings": list(warnings), "changes": lines}


# --- One row ---


Rows: TypeAlias = dict[tuple[tuple[str, Any], ...], Row]
"""By identity."""


def _by_identity(run: Run) -> Rows:
    found: Rows = {}
    for row in run.rows:
        key = identity(row)
        if key in found:
            raise InputRefused(
                "double-row", f"two rows of {run.command_line} are both {_name(row)}", "measure each of them once"
            )
        found[key] = row
    return found


def _name(row: Row) -> str:
    more = [f"{key} {row[key]}" for key in row.get("identity", ()) if row.get(key) is not None]
    return ", ".join((f"{method_of(row)} {part_of(row)}", backend_of(row), *more))


def _why(row: Row) -> str:
    return next(f"{key.replace('_', ' ')}: {row[key]}" for key in WHY_NOT if key in row)


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
    if measured(before) and not measured(after):
        yield Change(name, "", WORSE, f"was measured, and now {_why(after)}", math.inf)
    elif measured(after) and not measured(before):
        yield Change(name, "", NEW, f"is measured now, and was {_why(before)}", 0.0)
    if not (measured(before) and measured(after)):
        return
    known = before.get("failures") or ()
    for sentence in after.get("failures") or ():
        if sentence not in known:
            yield Change(name, "gate", WORSE, sentence, math.inf)
    yield from _times(name, before, after, noise)
    yield from _exact(name, before, after)
    yield from _unsampled(name, before, after, noise)
    yield from _truths(name, before, after)
    yield from _clicks(name, before, after)


def _times(name: str, before: Row, after: Row, noise: float) -> Iterator[Change]:
    ours, theirs = before.get("samples_ms") or (), after.get("samples_ms") or ()
    for percent, least, title in ((50, MOST_FEW, "median [ms]"), (95, TAIL, "95th percentile [ms]")):
        if not (ours and theirs):
            continue
        if min(len(ours), len(theirs)) < least:
            words = f"{len(ours)} and {len(theirs)} samples, and {least} of each are needed"
            yield Change(name, title, UNJUDGED, words, 0.0)
            continue
        ratio = percentile_ratio(theirs, ours, percent)
        verdict = WORSE if ratio.low > 1 + noise else BETTER if ratio.high < 1 - noise else SAME
        words = (
            f"{number(before[f'p{percent}_ms'])} to {number(after[f'p{percent}_ms'])}, {ratio.value:.2f} times "
            f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        )
        yield Change(name, title, verdict, words, abs(ratio.value - 1))


def _exact(name: str, before: Row, after: Row) -> Iterator[Change]:
    ours, theirs = ({case: list(clicks) for case, clicks in _by_click(row).items()} for row in (before, after))
    note = "" if ours == theirs else "of other cases or clicks"
    for key, (title, sign, rounding) in EXACT.items():
        for part, old, new in _pairs(before.get(key), after.get(key)):
            change = _step(name, f"{title}{f', {part}' if part else ''}", old, new, sign, rounding)
            yield replace(change, note=note)
    old, new = (sum((row.get("errors") or {}).values()) for row in (before, after))
    if old or new:
        yield _step(name, "errors", old, new, -1, 0)


def _pairs(before: Any, after: Any) -> Iterator[tuple[str, float, float]]:
    """Yield the numbers that both have: by name where they are several, and by no name where it is one."""
    ours, theirs = (value if isinstance(value, Mapping) else {"": value} for value in (before, after))
    for part, value in ours.items():
        if value is not None and theirs.get(part) is not None:
            yield part, value, theirs[part]


def _step(name: str, title: str, before: float, after: float, sign: int, margin: float) -> Change:
    """Return the change of a figure; more (sign 1) or less (-1) is better, `margin` is no change, nan is worst."""
    gained = 0.0 if before == after or (math.isnan(before) and math.isnan(after)) else sign * (after - before)
    if math.isnan(gained):
        gained = -math.inf if math.isnan(after) else math.inf
    verdict = BETTER if gained > margin else WORSE if gained < -margin else SAME
    share = abs(gained) / max(abs(before), abs(after), _LEAST) if math.isfinite(gained) else math.inf
    return Change(name, title, verdict, f"{number(before, 6)} to {number(after, 6)}", share)


def _unsampled(name: str, before: Row, after: Row, noise: float) -> Iterator[Change]:
    for key, (title, sign) in UNSAMPLED.items():
        for _, ours, theirs in _pairs(before.get(key), after.get(key)):
            yield _step(name, title, ours, theirs, sign, noise * abs(ours))
    grown = [row["scaling"]["exponent"] for row in (before, after) if "scaling" in row]
    if len(grown) == 2:
        old, new = (Estimate(**exponent) for exponent in grown)
        apart = new.low > old.high + noise or new.high < old.low - noise
        yield _step(name, "exponent", old.value, new.value, -1, 0 if apart else math.inf)


def _truths(name: str, before: Row, after: Row) -> Iterator[Change]:
    """Yield what became of each metric over the cases that both rows have, after the last click that both have."""
    ours, theirs = _by_click(before), _by_click(after)
    last = {case: max(ours[case].keys() & theirs[case].keys(), default=None) for case in ours if case in theirs}
    steps = {case: (ours[case][click], theirs[case][click]) for case, click in last.items() if click is not None}
    for key, metric in METRICS.items():
        sign = {"higher": 1, "lower": -1, "zero": -1}.get(metric.better)
        pairs = [(old[key], new[key]) for old, new in steps.values() if key in old and key in new]
        if sign and pairs:
            if metric.better == "zero":
                pairs = [(abs(a), abs(b)) for a, b in pairs]
            yield _paired(name, f"{metric_title(key)} to the truth", pairs, sign)
    if steps:
        yield _lost_most(name, {case: (old["dice"], new["dice"]) for case, (old, new) in steps.items()})


def _lost_most(name: str, dice: Mapping[str, tuple[float, float]]) -> Change:
    """Return what became of the case whose Dice fell the most."""
    case = min(dice, key=lambda case: dice[case][1] - dice[case][0])
    old, new = dice[case]
    lost = sum(old - new > LOST for old, new in dice.values())
    words = f"{lost} fell by more than {LOST:g}, the most {case}, {number(old)} to {number(new)}"
    return Change(name, "Dice of each case", WORSE if lost else SAME, words, max(0.0, old - new))


def _by_click(row: Row) -> dict[str, dict[int, dict[str, float]]]:
    """Return what each case has after each click."""
    return {
        case["case"]: {step.get("click", number): step for number, step in enumerate(case["clicks"], 1)}
        for case in row.get("cases") or ()
    }


def _clicks(name: str, before: Row, after: Row) -> Iterator[Change]:
    """Yield what became of the clicks to each Dice; a case that never reached it counts as one click more than all."""
    for target, ours in (before.get("clicks_to") or {}).items():
        theirs = (after.get("clicks_to") or {}).get(target)
        names = [[case["case"] for case in row.get("cases") or ()] for row in (before, after)]
        if ours and theirs and names[0] == names[1] and len(ours) == len(theirs):
            beyond = 1 + max(len(before.get("dice_by_click") or ()), len(after.get("dice_by_click") or ()))
            pairs = [(_or(a, beyond), _or(b, beyond)) for a, b in zip(ours, theirs, strict=True)]
            yield _paired(name, f"clicks to Dice {target}", pairs, -1)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _paired(name: str, title: str, pairs: Sequence[tuple[float, float]], sign: int) -> Change:
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
