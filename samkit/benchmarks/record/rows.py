"""The rows of a run: what was measured of one export's graph or stage on one backend, or why it was not.

In a run's JSON each is a flat object: `kind`, `method`, `graph` or `stage`, `backend`, `device`, `precision`; and what
was measured: `parity_dice` (accuracy: the worst), or `p50_ms`, `p95_ms`, `p99_ms` (latency, load) with the samples; or
in its place a sentence, `not_run` (nobody could have: no GPU) or `error` (it failed).
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from samkit.benchmarks.record.figures import METRICS
from samkit.benchmarks.record.statistics import Estimate, mean_interval, significant, spread
from samkit.errors import SamkitError
from samkit.json_records import flat, from_json, key, keys_of, to_json
from samkit.manifest import ExportPlan

DETECTOR = "detector"
"""The graph whose rows are of boxes."""
EAGER = ("torch", "fp32")
"""Backend and precision that everything is compared with."""
NOT_RUN, ERROR = WHY_NOT = ("not_run", "error")
"""What JSON has in place of figures."""


@dataclass(frozen=True)
class Identity:
    """Which part of which export, run by what, and how: what tells a row from the others of its run."""

    method: str
    backend: str
    """`torch` is PyTorch, upstream's formulation; the others by name, with baselines such as `torch-compile`."""
    device: str
    precision: str
    graph: str | None = None
    stage: str | None = None
    """`masks`, or what a reader waits for; a row is of a graph or of a stage."""
    size: str | None = None
    weights: str | None = None
    """Where they come from: checkpoint, demonstration, random."""
    manifest: str | None = None
    """SHA-256 of the export's, which joins no rows: another export of a method is what `compare` is for."""
    policy: str | None = None
    """How the reader of accuracy clicks."""
    threads: int | None = None
    batch: int | None = None
    points: int | None = None
    mode: str | None = None
    """Of readers on a server: `think` or `closed`."""
    think_s: float | None = None
    sessions: int | None = None
    """Readers at once."""
    backend_title: str | None = None
    emulated: bool = False
    """Whether the backend's arithmetic was imitated: float16 on a CPU."""

    @classmethod
    def of(cls, plan: ExportPlan, digest: str, backend: str, precision: str, device: str, **more: Any) -> Identity:
        """Return the identity of a row on an export with that plan and digest of the manifest."""
        names = {"method": plan.method, "size": plan.size, "weights": plan.weights.kind, "manifest": digest}
        return cls(**names, backend=backend, precision=precision, device=device, **more)  # type: ignore[arg-type]

    @property
    def settings(self) -> tuple[str, ...]:
        """Return which of the fields that vary within one backend and part are set."""
        return tuple(name for name in _SETTINGS if getattr(self, name) is not None)

    def key(self, *, without: Sequence[str] = ()) -> tuple[tuple[str, Any], ...]:
        """Return what tells this row from others, in a fixed order, but for the fields `without`."""
        pairs = ((name, getattr(self, name)) for name in (*_PLACE, *_SETTINGS) if name not in without)
        return tuple((name, value) for name, value in pairs if value is not None)


_PLACE = ("method", "size", "weights", "graph", "stage", "backend", "device", "precision")
_SETTINGS = ("policy", "threads", "batch", "points", "mode", "think_s", "sessions")


@dataclass(frozen=True)
class Times:
    """How long one thing took, time after time [ms]."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    samples_ms: tuple[float, ...] = ()
    count: int | None = None
    """How many there were: not all samples are kept."""

    @classmethod
    def of(cls, seconds: Iterable[float], most: int | None = None) -> Times:
        """Return the percentiles of some times [s], between them by linear interpolation, with `most` samples at most,
        spread evenly over them.
        """
        milliseconds = [1e3 * second for second in seconds]
        kept = milliseconds if most is None else spread(milliseconds, most)
        p50, p95, p99 = map(significant, np.percentile(milliseconds, (50, 95, 99)))
        return cls(p50, p95, p99, samples_ms=tuple(map(significant, kept)), count=len(milliseconds))

    @property
    def n(self) -> int:
        """Return how many times it was timed."""
        return len(self.samples_ms) if self.count is None else self.count


@dataclass(frozen=True)
class Parity:
    """How far masks, or filled boxes, are from PyTorch float32's, the worst of all."""

    dice: float = field(metadata=key("parity_dice"))
    hd95_mm: float = field(metadata=key("parity_hd95_mm"))
    flipped_voxels: int
    logit_difference: float | None = None
    """None where the session shows no logits."""
    relative_error: Mapping[str, float] = field(default_factory=dict)
    """By graph, the worst of its outputs, norm over norm."""


@dataclass(frozen=True)
class ClickFigures:
    """What one case came to after one click."""

    click: int
    """0 is before any, where a method decides by itself."""
    figures: Mapping[str, float] = field(metadata=flat())
    """By METRICS, against the truth."""
    parity: Mapping[str, float | None] = field(default_factory=dict)
    """The same mask against PyTorch's."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.figures if name not in METRICS]:
            raise SamkitError(f"{unknown[0]!r} of a click is no metric; known are {', '.join(METRICS)}")


@dataclass(frozen=True)
class CaseClicks:
    """One case, or one structure of it, click by click."""

    case: str
    clicks: tuple[ClickFigures, ...]


@dataclass(frozen=True)
class Summary:
    """A metric over the cases after their last click."""

    mean: Estimate
    """Of the finite ones; infinite where there is none."""
    worst: float | None = None
    """None for a size, of which none is better."""
    not_finite: int = 0
    """Cases left out of the mean: a distance to an empty mask is infinite."""


@dataclass(frozen=True)
class WorstSlice:
    """The slice of one case with most voxels `flipped` between a backend and PyTorch; pictures are PNG in base64."""

    case: str
    click: int
    axis: str
    """Axial, coronal or sagittal; or `picture`, which has no slices."""
    index: int
    image: str
    reference: str
    """PyTorch's mask, 0 and 255."""
    found: str
    flipped: int


def to_png(picture: Any, **options: Any) -> str:
    """Return an array of 0 to 255, or a picture of Pillow's, as such a PNG; `options` as Pillow takes them."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
    image.save(file, "PNG", optimize=True, **options)
    return base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class AccuracyRow:
    """One backend's masks of all cases by one policy, or its detector's boxes on all slices."""

    kind: ClassVar[str] = "accuracy"
    identity: Identity = field(metadata=flat())
    parity: Parity = field(metadata=flat())
    reference: bool = False
    """Whether it is PyTorch's own."""
    figures: Mapping[str, Summary] = field(default_factory=dict)
    dice_by_click: tuple[tuple[float, ...], ...] = ()
    """By click the Dice of each case; one that ended sooner keeps its last."""
    clicks_to: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    """By Dice ("0.80") how many clicks on its own errors each case took, None where it never got there."""
    click_drift: Mapping[str, float | None] = field(default_factory=dict)
    """By Dice the worst difference of those clicks from PyTorch's; infinite where one of the two never got there."""
    clicks: int | None = None
    """Asked for."""
    clicks_done: tuple[int, ...] = ()
    """The last click of each case."""
    cases: tuple[CaseClicks, ...] = ()
    slices: tuple[WorstSlice, ...] = ()
    failures: tuple[str, ...] = ()
    """What the gate found, as sentences."""
    failed_case: int | None = None
    """The place among the cases, from 1, of the first that broke."""
    notes: tuple[str, ...] = ()
    slices_measured: int | None = None
    map50: float | None = None
    map50_95: float | None = None
    """Of the detector's boxes against the truth's."""


def summarise(last: Iterable[ClickFigures]) -> dict[str, Summary]:
    """Return what METRICS came to over cases, of each of which it is given the last step."""
    found: dict[str, Summary] = {}
    steps = list(last)
    for name, metric in METRICS.items():
        values = np.array([step.figures[name] for step in steps if name in step.figures], np.float64)
        if values.size:
            finite = values[np.isfinite(values)]
            mean = mean_interval(finite).rounded() if finite.size else Estimate(math.inf, math.inf, math.inf)
            good = metric.sign * (np.abs(values) if metric.better == "zero" else values)
            worst = significant(float(values[good.argmin()])) if metric.sign else None
            found[name] = Summary(mean, worst, int(values.size - finite.size))
    return found


@dataclass(frozen=True)
class LatencyRow:
    """One graph or one stage on one backend."""

    kind: ClassVar[str] = "latency"
    identity: Identity = field(metadata=flat())
    times: Times = field(metadata=flat())
    relative_error: float | None = None
    """Of the graph's outputs from PyTorch eager's on the same inputs."""
    official: str | None = None
    """The graph of upstream's formulation that does the same work, where it has another name."""
    turns: int | None = None
    gflop: float | None = None
    limit_share: float | None = None
    limit: str | None = None
    """What `limit_share` is of."""
    loaded_mb: float | None = None
    peak_mb: float | None = None
    above_session_mb: float | None = None
    """Memory of a process that runs it alone [MB, 10^6 bytes]."""
    clicks: int | None = None
    scan: tuple[int, ...] | None = None
    """Voxels of the phantom that a stage was timed on."""
    note: str | None = None


@dataclass(frozen=True)
class Growth:
    """Samples `y_ms` at each of the sizes `x`, and the e of cost = c * size^e through them."""

    over: str
    unit: str
    x: tuple[float, ...]
    y_ms: tuple[tuple[float, ...], ...]
    exponent: Estimate


@dataclass(frozen=True)
class LoadRow:
    """One stage that readers of one level came through, or how the time of a call grows."""

    kind: ClassVar[str] = "load"
    identity: Identity = field(metadata=flat())
    times: Times = field(metadata=flat())
    """At the largest size, where it is a growth."""
    scaling: Growth | None = None
    scan: str | None = None
    limit_ms: float | None = None
    sessions_held: int | None = None
    seconds: float | None = None
    clicks_per_second: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    """How many calls failed, by the kind of error."""
    server_rss_mb: float | None = None
    server_pss_mb: float | None = None
    client_cpu_share: float | None = None
    """The readers' part of the processors, 0 to 1."""
    server_cpu_share: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Absent:
    """What has no figures in place of a row of that kind, and why."""

    kind: str
    identity: Identity = field(metadata=flat())
    reason: str
    is_failure: bool
    """Whether it was there and failed; else nobody could have run it here, or nobody asked."""
    failures: tuple[str, ...] = ()
    failed_case: int | None = None
    notes: tuple[str, ...] = ()
    note: str | None = None

    @property
    def word(self) -> str:
        """Return what it is in one of WHY_NOT."""
        return ERROR if self.is_failure else NOT_RUN


Row: TypeAlias = AccuracyRow | LatencyRow | LoadRow | Absent
KINDS: Mapping[str, type[Any]] = {one.kind: one for one in (AccuracyRow, LatencyRow, LoadRow)}


def to_dict(row: Row) -> dict[str, Any]:
    """Return a row as a run's JSON has it: flat, with its `kind`, and in `identity` which settings it goes by."""
    data = {"kind": row.kind, **to_json(row), "identity": list(row.identity.settings)}
    if isinstance(row, Absent):
        del data["is_failure"]
        data[row.word] = data.pop("reason")
    return data


def read_row(data: Mapping[str, Any]) -> Row:
    """Return the row that a run's JSON has; raises SamkitError for a key or a type that no such row has."""
    left = {name: value for name, value in data.items() if name != "identity"}  # follows from the rest
    kind = left.pop("kind", None)
    if kind not in KINDS:
        raise SamkitError(f"a row is of kind {kind!r}, and {', '.join(KINDS)} are known")
    called, record = f"a row of {kind}", KINDS[kind]
    if (word := next((word for word in WHY_NOT if word in left), None)) is not None:
        noted = keys_of(record) - keys_of(Absent)  # before it failed: it stands in files, and nothing reads it
        left = {name: value for name, value in left.items() if name not in noted}
        left |= {"kind": kind, "reason": left.pop(word), "is_failure": word == ERROR}
        record = Absent
    row: Row = from_json(record, left, called)
    if (row.identity.graph is None) == (row.identity.stage is None):
        raise SamkitError(f"{called} of {row.identity.method} is of a graph or of a stage, of one of the two")
    return row
