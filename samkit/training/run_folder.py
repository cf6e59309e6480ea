"""The folder of one training run, and the callback that fills it.

run.json                 the plan, the data's counts, versions, how it ended
metrics.csv              one row per epoch: mean loss, seconds, metrics of what is held back where validated
best.safetensors/.json   the best by the decisive metric: what `--checkpoint RUN` and `--init RUN` take
last.safetensors/.json   the newest validated weights
last.ckpt                Lightning's own state, for `--resume`; read with weights_only=True
tensorboard/             the same metrics for TensorBoard
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from samkit.checkpoints import BEST, CheckpointInfo, save_checkpoint
from samkit.errors import InputRefused
from samkit.files import reason_of, working_folder, write_whole
from samkit.json_files import read_json
from samkit.training.run_module import RunModule

RESUME = "last.ckpt"
RUNNING, STOPPED = "running", "stopped"
"""What run.json says of a run that has not finished: at work, or killed without a word; or stopped by a signal."""
_FACTS, _METRICS = "run.json", "metrics.csv"
_COLUMNS = ("epoch", "step", "seconds", "loss")


def check_run_folder(out: Path, resume: bool) -> None:
    """Raise InputRefused unless `out` is empty or absent, or with `resume` holds a run that can go on.

    A run that ended before its first whole epoch left nothing to go on with, so its folder may be started in again.
    """
    if is_replica():  # the first process has checked, and has begun to write
        return
    if resume and not (out / RESUME).is_file():
        raise InputRefused(
            "no-run",
            f"{out} holds no {RESUME} to resume",
            "give the run's folder, or leave {resume} to start one",
            options=("resume",),
        )
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())) and not _ended_early(out):
        raise InputRefused(
            "run-exists", f"{out} is not empty, and nothing is overwritten",
            "go on with it by {resume}, or choose another {out}", options=("resume", "out"),
        )  # fmt: skip


def _ended_early(out: Path) -> bool:
    """Return whether a run began in `out` and left no whole epoch."""
    if (out / RESUME).exists() or not (out / _FACTS).is_file():
        return False
    try:
        return read_run(out).get("state") in (RUNNING, STOPPED)
    except InputRefused:
        return False


def read_run(out: Path) -> dict[str, Any]:
    """Return the facts of a run's run.json; InputRefused where they are not there or not whole."""
    try:
        facts: dict[str, Any] = read_json(out / _FACTS)
        _decisive(facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefused(
            "bad-run",
            f"{_FACTS} in {out} does not say what was run ({error!r})",
            "start anew in another {out}",
            options=("out",),
        ) from error
    return facts


def check_same_run(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputRefused unless `now` goes on with the run in `out`, of which `before` are the facts.

    Only the number of epochs may change, to no fewer than were trained.
    """
    old, new = _decisive(before), _decisive(json.loads(json.dumps(now)))
    other = [
        f"{name} was {_shown(old.get(name))} and is {_shown(new.get(name))} now"
        for name in (*new, *(name for name in old if name not in new))
        if old.get(name) != new.get(name)
    ]
    if other:
        raise InputRefused(
            "another-run",
            f"this is not the run that {out} holds: {', '.join(other[:5])}{', ...' if len(other) > 5 else ''}",
            "repeat the run's own {method}, {preset}, {data}, {init}, {label} and {set} (epochs may change), or choose "
            "another {out} without {resume}",
            options=("method", "preset", "data", "init", "label", "set", "out", "resume"),
        )
    epochs, done = now["plan"]["recipe"]["epochs"], len(read_metrics(out))
    if epochs < done:
        raise InputRefused(
            "another-run", f"{out} has trained {done} epochs and epochs={epochs} asks for fewer",
            f"give {{set}} epochs={done} or more", options=("set",),
        )  # fmt: skip


def _decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """Return by name what must not change between a run and its resumption."""
    plan, init, data = facts["plan"], facts["init"], facts["data"]
    return {
        **{name: plan[name] for name in ("method", "part", "refinement", "label")},
        **plan["config"],
        **{name: value for name, value in plan["recipe"].items() if name != "epochs"},
        "init": f"{init['file']} (SHA-256 {init['sha256'][:8]})" if init else None,
        **{name: data[name] for name in ("cases", "trained_on", "held_back")},
    }


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def is_replica() -> bool:
    """Return whether Lightning started this process for another device of the same run."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


class RunFolder(Callback):
    """Validates, and writes metrics, checkpoints and the state to resume from after each epoch."""

    def __init__(
        self, out: Path, describe: Callable[[dict[str, Any]], CheckpointInfo], half: bool = False,
        without: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Write into `out`. Checkpoints leave out the parameters whose names begin with one of `without`."""
        self.out = out
        self.describe = describe
        self.half = half
        self.without = without
        self.last_metrics: dict[str, float] = {}
        self._listens = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop metric rows of epochs that a resumed run repeats; give SIGTERM back to whoever listened to it.

        Lightning listens, too, and would end the training as if it had finished.
        """
        if self._listens is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._listens)
        if trainer.is_global_zero and isinstance(pl_module, RunModule):
            kept = [row for row in read_metrics(self.out) if int(row["epoch"]) < trainer.current_epoch]
            _write_metrics(self.out, kept, pl_module.metrics)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate where it is due, then write."""
        module = pl_module
        if not isinstance(module, RunModule):  # for the type checker; Lightning passes what fit() was given
            return
        epoch = trainer.current_epoch
        every = module.recipe.validate_every
        due = (epoch + 1) % every == 0 or epoch + 1 == trainer.max_epochs or trainer.should_stop
        losses = [float(loss) for loss in module.losses]
        module.losses.clear()
        row: dict[str, float | str] = {
            "epoch": epoch,
            "step": trainer.global_step,
            "loss": round(sum(losses) / max(1, len(losses)), 5),
        }
        if due:
            metrics = module.validate_held_back()
            row |= metrics
            for name, value in metrics.items():
                module.log(f"held_back/{name}", value, rank_zero_only=True)
            self.last_metrics = {**metrics, "epoch": epoch + 1, "seconds": round(module.seconds, 1)}
        row["seconds"] = round(module.seconds, 1)
        if trainer.is_global_zero:
            _write_metrics(self.out, [*read_metrics(self.out), row], module.metrics)
            if due:
                info = self.describe(self.last_metrics)
                names = ["last.safetensors", *([BEST] if self.last_metrics[module.decisive] > module.best else [])]
                for name in names:
                    save_checkpoint(self.out / name, module.trained, info, half=self.half, without=self.without)
        if due:
            module.best = max(module.best, self.last_metrics[module.decisive])
        # Written beside and moved, so that a kill while writing leaves the epoch before.
        with working_folder(self.out) as work:
            trainer.save_checkpoint(work / RESUME, weights_only=False)
            if trainer.is_global_zero:
                (work / RESUME).replace(self.out / RESUME)


def read_metrics(out: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv, none where there is no such file; InputRefused where it is damaged."""
    if not (out / _METRICS).exists():
        return []
    try:
        with (out / _METRICS).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if "epoch" not in (reader.fieldnames or ()):
            raise ValueError("it does not begin with the names of its columns")
        if [int(row["epoch"]) for row in rows] != list(range(len(rows))) or any(None in row.values() for row in rows):
            raise ValueError("it does not hold a row for each epoch")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(out, _METRICS, error) from error
    return rows


def check_resumable(out: Path) -> None:
    """Raise InputRefused where the state to go on from is damaged: what loads it in the end would not say so."""
    import torch

    try:
        torch.load(out / RESUME, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a broken file raises any of a zip's, a pickle's and PyTorch's own
        raise _damaged(out, RESUME, error) from error


def _damaged(out: Path, name: str, error: Exception) -> InputRefused:
    why = reason_of(error).splitlines()[0]
    return InputRefused(
        "bad-run", f"{name} in {out} is damaged ({why:.200})",
        "restore it, or start anew in another {out}, from the weights with {init} if you like", options=("out", "init"),
    )  # fmt: skip


def _write_metrics(out: Path, rows: Sequence[Mapping[str, object]], metrics: Sequence[str]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, (*_COLUMNS, *metrics), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / _METRICS, text.getvalue())


def write_run(out: Path, facts: dict[str, Any]) -> None:
    """Write run.json in one move."""
    write_whole(out / _FACTS, json.dumps(facts, indent=1) + "\n")
