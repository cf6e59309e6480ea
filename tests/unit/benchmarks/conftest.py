"""Runs that nobody measured, their rows as JSON has them: what the tables, `compare` and `report` are tested on."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samkit.benchmarks.record import statistics
from samkit.benchmarks.record.rows import read_row
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import significant

CASES = ("phantom 1", "phantom 2", "phantom 3")
CLICKS = 4
TARGETS = ("0.80", "0.85", "0.90")
MACHINE = {
    "processor": "Fabricated 1000, family 6, model 1", "cores": 2, "threads": 2, "device": "cpu", "gpus": [],
    "memory_gb": 8.0, "system": "Linux 6", "clock_mhz": {"before": [2000], "after": [2000]},
    "load": {"before": 0.1, "after": 2.0}, "gemm_gflops": 100.0, "copy_gb_per_s": 10.0, "settled": True,
    "unsettled": [],
}  # fmt: skip


def made_run(kind, rows, **changes):
    """Return a run of `rows`, which are JSON, with one export for each of their methods."""
    exports = tuple(
        {"method": method, "size": "small", "weights": "demonstration", "demonstration": True, "manifest": "ab" * 32}
        for method in dict.fromkeys(row["method"] for row in rows)
    )
    given = {
        "kind": kind, "command": ("sam-bench", kind, "--export", "exports/m-sam"), "exports": exports,
        "started": "2026-11-22T00:00:00+00:00", "seconds": 60.0, "machine": MACHINE, "commit": "abc1234",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.25.0"},
        "rows": tuple(map(read_row, rows)),
    }  # fmt: skip
    return Run(**(given | changes))


def row_of(kind, method, backend, precision="fp32", **more):
    """Return what every row has."""
    names = {"kind": kind, "method": method, "size": "small", "weights": "demonstration", "manifest": "ab" * 32}
    return {**names, "backend": backend, "device": "cpu", "precision": precision, **more}


@pytest.fixture
def made():
    """The functions below that make rows and runs, for what a test needs besides."""
    return SimpleNamespace(
        run=made_run, row=row_of, accuracy=accuracy_row, latency=latency_row, load=load_row, scaling=scaling_row
    )


# --- Accuracy ---


def accuracy_row(method, backend, precision="fp32", *, policy="trained", flipped=0, worse=0.0, cases=CASES, **more):
    """Return a row of masks whose Dice grows with the clicks; `flipped` voxels at worst, truth worse by `worse`."""
    curve = [[0.95 - 0.4 * 0.5**click - 0.02 * n - worse for n in range(len(cases))] for click in range(CLICKS)]
    measured = [
        {"dice": row, "iou": row / (2 - row), "hd95_mm": 20 * (1 - row), "volume_error_ml": 1 - row}
        for row in curve[-1]
    ]
    parity = {"dice": 1 - flipped / 1000, "hd95_mm": 0.1 * flipped, "flipped_voxels": flipped}
    figures = {
        key: {
            "mean": asdict(statistics.mean_interval([case[key] for case in measured]).rounded()),
            "worst": measured[-1][key],
        }
        for key in measured[0]
    }
    return row_of(
        "accuracy", method, backend, precision, stage="masks", policy=policy, identity=["policy"],
        parity_dice=parity["dice"], parity_hd95_mm=parity["hd95_mm"], flipped_voxels=flipped,
        logit_difference=0.001 * flipped, relative_error={"mask_decoder": 1e-6 * (1 + flipped)},
        click_drift={"0.80": 0, "0.85": min(flipped, 1), "0.90": None}, figures=figures, dice_by_click=curve,
        clicks_to={target: [_clicks_to(curve, n, float(target)) for n in range(len(cases))] for target in TARGETS},
        cases=[
            {"case": name, "clicks": [
                {"click": click, "dice": row[n], "parity": parity} for click, row in enumerate(curve[:-1], 1)
            ] + [{"click": CLICKS, **measured[n], "parity": parity}]}
            for n, name in enumerate(cases)
        ],
        slices=[disagreement(name, flipped, seed=n) for n, name in enumerate(cases)], failures=[], **more,
    )  # fmt: skip


def _clicks_to(curve, case, target):
    return next((number for number, row in enumerate(curve, 1) if row[case] >= target), None)


def disagreement(case, flipped, seed=0, side=48):
    """Return a picture of a disc, the disc, and the disc with `flipped` voxels the other way at its edge."""
    i, j = np.indices((side, side))
    disc = (i - side / 2) ** 2 + (j - side / 2) ** 2 < (side / 4) ** 2
    noise = np.random.default_rng(seed).integers(0, 60, disc.shape)
    found = disc.copy()
    found.flat[np.flatnonzero(disc)[: (flipped + 1) // 2]] = False
    found.flat[np.flatnonzero(~disc)[side * side // 3 :][: flipped // 2]] = True
    pictures = {"image": 60 + 90 * disc + noise, "reference": 255 * disc, "found": 255 * found}
    encoded = {name: png(picture) for name, picture in pictures.items()}
    return {"case": case, "click": CLICKS, "axis": "axial", "index": 11 + seed, "flipped": flipped, **encoded}


def png(array):
    """Return an array of 0 to 255 as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def accuracy_run():
    """A method with prompts, one without, a detector; a gate that failed; TensorRT that was not run."""
    boxes = {"map50": 0.8, "map50_95": 0.6, "parity_dice": 1.0, "parity_hd95_mm": 0.0, "flipped_voxels": 0}
    rows = [
        accuracy_row("m-sam", "torch", reference=True),
        accuracy_row("m-sam", "onnxruntime"),
        {**accuracy_row("m-sam", "onnxruntime", "fp16", flipped=6, worse=0.01, emulated=True),
         "failures": ["mask_decoder onnxruntime fp16: phantom 1, click 2: Dice 0.994, and at least 0.995 is needed"]},
        row_of("accuracy", "m-sam", "tensorrt", "fp16", stage="masks", policy="trained", identity=["policy"],
               not_run="no TensorRT here; untested"),
        accuracy_row("medsam-yolo", "torch", policy="automatic", reference=True),
        accuracy_row("medsam-yolo", "onnxruntime", policy="automatic"),
        row_of("accuracy", "medsam-yolo", "torch", graph="detector", **boxes),
        row_of("accuracy", "medsam-yolo", "onnxruntime", graph="detector", **boxes),
    ]  # fmt: skip
    return made_run("accuracy", rows)


# --- Latency ---


def percentiles(samples):
    """Return the percentiles of times [ms], as a row has them."""
    return {f"p{percent}_ms": significant(float(np.percentile(samples, percent))) for percent in (50, 95, 99)}


def timed(middle, count=15, seed=0, spread=0.02):
    """Return samples around `middle` [ms], and their percentiles, as a row has them."""
    samples = (middle * (1 + spread * np.random.default_rng(seed).standard_normal(count))).tolist()
    return {"samples_ms": samples, **percentiles(samples)}


def latency_row(method, backend, middle, precision="fp32", *, threads=2, seed=0, count=15, spread=0.02, **more):
    """Return a row of a graph or a stage (named in `more`) that takes about `middle` ms."""
    return row_of(
        "latency", method, backend, precision, threads=threads, batch=1, points=1,
        identity=["threads", "batch", "points"], **timed(middle, count, seed, spread), **more,
    )  # fmt: skip


@pytest.fixture
def latency_run():
    """Graphs and stages on some backends; one rival that failed, one that was not run."""
    share = {"gflop": 4.0, "limit": "matrix product", "peak_mb": 300.0, "relative_error": 1e-6}
    rows = [
        latency_row("m-sam", "torch", 80, graph="image_encoder", limit_share=0.5, **share),
        latency_row("m-sam", "onnxruntime", 50, graph="image_encoder", limit_share=0.8, seed=1, **share),
        row_of("latency", "m-sam", "torch-compile", graph="image_encoder", error="no C++ compiler was found"),
        row_of("latency", "m-sam", "tensorrt", "fp16", graph="image_encoder", not_run="no TensorRT here"),
        latency_row("m-sam", "torch", 9, stage="click"),
        latency_row("m-sam", "onnxruntime", 6, stage="click", seed=1),
        latency_row("m-sam", "onnxruntime", 3000, stage="cold_start", count=3, seed=1, peak_mb=512.0),
    ]
    return made_run("latency", rows)


# --- Load ---


def load_row(sessions, middle, stage="click", mode="closed", **more):
    """Return a row of `sessions` readers whose `stage` takes about `middle` ms."""
    return row_of(
        "load", "m-sam", "triton", stage=stage, sessions=sessions, mode=mode, identity=["sessions", "mode"],
        clicks_per_second=1000 * sessions / middle, errors={}, server_rss_mb=900.0 + 20 * sessions,
        client_cpu_share=0.1, **timed(middle, 40, sessions), **more,
    )  # fmt: skip


def scaling_row(exponent=1.0, over="volume [voxels]"):
    """Return a row of a cost that grows with `exponent`."""
    sizes = [1e5, 2e5, 4e5, 8e5]
    costs = [[1e-3 * size**exponent * factor for factor in (0.99, 1.0, 1.01)] for size in sizes]
    fit = statistics.fit_exponent([x for x, ys in zip(sizes, costs, strict=True) for _ in ys], np.ravel(costs))
    scaling = {"over": over, "unit": "ms", "x": sizes, "y_ms": costs, "exponent": asdict(fit.rounded())}
    return row_of("load", "m-sam", "onnxruntime", stage=f"scan over {over.split()[0]}", scaling=scaling,
                  samples_ms=costs[-1], **percentiles(costs[-1]))  # fmt: skip


@pytest.fixture
def load_run():
    """Readers in a closed loop and with think time; what one scaling is; a level at which the server refused."""
    rows = [
        *(load_row(sessions, 30 * sessions, stage) for sessions in (1, 2, 4) for stage in ("scan", "click")),
        *(load_row(sessions, 35, mode="think", think_s=2.0) for sessions in (1, 2)),
        {**load_row(8, 400), "errors": {"AtCapacity": 3}},
        scaling_row(),
    ]
    return made_run("load", rows)
