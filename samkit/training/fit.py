"""One training from its plan to the run's folder: cases, network, Lightning's trainer."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from samkit.checkpoints import BEST, CheckpointInfo, read_info
from samkit.errors import SamkitError, Stopped
from samkit.files import make_folder
from samkit.methods import get_method
from samkit.training.plan import TrainingPlan, part_of
from samkit.training.run_folder import (
    RESUME,
    RUNNING,
    STOPPED,
    RunFolder,
    check_resumable,
    check_run_folder,
    check_same_run,
    is_replica,
    read_metrics,
    read_run,
    write_run,
)
from samkit.training.run_module import RunModule
from samkit.training.start import Start, count_parameters, freeze, start_weights
from samkit.training.task import Task

_log = logging.getLogger(__name__)
_NAMING = ("folder", "split", "remarks", "file")
"""Facts about data and the weights before that name folders, files, or cases."""


@dataclass(frozen=True)
class RunOptions:
    """What a run needs besides its plan: where, on what, and how it talks."""

    out: Path
    resume: bool = False
    devices: int = 1
    time_limit_min: float | None = None
    quiet: bool = False
    demonstration: bool = False
    """Marks the checkpoint as demonstration weights, stored as float16."""
    words: Sequence[str] | None = None
    """The command line as the checkpoint, which is handed on, has it; None: as run.json has it."""
    show_names: bool = False
    """Whether the checkpoint names the data's folder and cases."""


def train(
    plan: TrainingPlan,
    task: Task,
    options: RunOptions,
    *,
    data_name: str,
    start: Start | None = None,
) -> dict[str, Any]:
    """Train as planned and return the facts that run.json then holds; what people want to follow is logged."""
    check_run_folder(options.out, options.resume)
    before = read_run(options.out) if options.resume else None
    method = get_method(plan.method)
    plan = task.settle(plan, before["plan"]["config"] if before else None)
    decided: dict[str, Any] = {
        "plan": plan.to_dict(),
        "init": {"file": start.name, "sha256": start.sha256} if start is not None else None,
        "data": {"folder": data_name, **task.counts},
    }
    if before is not None:
        check_same_run(options.out, before, decided)
        check_resumable(options.out)
    cuda = torch.cuda.is_available()
    precision = plan.recipe.precision
    if precision == "16-mixed" and not cuda:
        _log.info("precision 16-mixed needs a GPU and there is none: training in 32-true")
        precision = "32-true"

    torch.manual_seed(plan.recipe.seed)
    network = part_of(method, plan.part).build(plan.config) if plan.part else method.build(plan.config)
    fresh_parts = [part.prefix for part in method.parts if not plan.part]
    if start is not None:
        _log.info("started from %s; %s", start.name, start_weights(network, start, method, plan))
        fresh_parts = [prefix for prefix in fresh_parts if prefix not in start.parts]
        if not plan.part:
            freeze(network, method)
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(fresh_parts)):
            parameter.requires_grad = False  # a part has a training of its own
    counts = count_parameters(network)
    trained = f"{plan.method} {plan.part}".rstrip()
    _log.info("%s, preset %s: %s", trained, plan.preset, counts.to_text())
    _log.info("%s", task.splitting)
    limit = None if options.time_limit_min is None else 60 * options.time_limit_min
    module = task.module(network, plan, limit, workers=4 if cuda else 0)
    facts: dict[str, Any] = {
        "command": _command(sys.argv[1:]),
        **decided,
        "data": {**decided["data"], **task.notes},
        "parameters": {"total": counts.total, "tunable": counts.tunable},
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "state": RUNNING,
    }

    def describe(metrics: dict[str, Any]) -> CheckpointInfo:
        kept = {k: v for k, v in metrics.items() if k in module.metrics}
        provenance = {k: facts[k] for k in ("command", "data", "init", "threads", "versions")}
        if options.words is not None:
            provenance["command"] = _command(options.words)
        if not options.show_names:
            for fact in ("data", "init"):
                provenance[fact] = facts[fact] and {k: v for k, v in facts[fact].items() if k not in _NAMING}
        provenance |= {"seed": plan.recipe.seed, "epochs": metrics["epoch"], "seconds": metrics["seconds"]}
        return CheckpointInfo(
            plan.method, plan.recipe.size, plan.config, plan.refinement, provenance, kept, options.demonstration,
            part=plan.part,
        )  # fmt: skip

    make_folder(options.out)
    folder = RunFolder(options.out, describe, half=options.demonstration, without=fresh_parts)
    if not is_replica():
        write_run(options.out, facts)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips and device tables are not ours to give
    trainer = _trainer(plan, module, options, precision, folder)
    try:
        with warnings.catch_warnings():
            # Lightning's advice on workers, loggers and batch counts does not hold for cached cases keyed by epoch.
            warnings.filterwarnings("ignore", module=r"(lightning|torch|monai)\..*")
            trainer.fit(
                module, ckpt_path=options.out / RESUME if options.resume else None, weights_only=True
            )  # plain numbers and tensors only
    except (Stopped, SystemExit) as error:  # Lightning makes the latter of Ctrl-C
        if isinstance(error, SystemExit) and not trainer.interrupted:
            raise
        stopped = _stopped(options.out, error)
        if is_replica():  # the first process says it
            raise SystemExit(stopped.exit_code) from error
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # processes of other devices, which wait for this one
        write_run(options.out, facts | {"state": STOPPED})
        raise stopped from error
    best = read_info(options.out / BEST)
    if best is None:
        raise SamkitError(
            f"training ended without a validated checkpoint in {options.out}; "
            "raise {time_limit} or lower validate_every",
            options=("time_limit",),
        )
    facts |= {
        "state": "finished",
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(module.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "best": best.metrics,
        "last": {k: v for k, v in folder.last_metrics.items() if k in module.metrics},
    }
    if best.found_nothing:
        facts["warnings"] = [f"{module.decisive} stayed at 0 on what is held back"]
        # Nothing failed, and the run can go on; but who goes on to an export would have a network that finds nothing
        if trainer.is_global_zero:
            _log.warning("%s", _found_nothing(module.decisive, trainer.current_epoch))
    if trainer.is_global_zero:
        write_run(options.out, facts)
    return facts


def _found_nothing(decisive: str, epochs: int) -> SamkitError:
    """Return in a sentence, with options in it, what to do about weights that are of no use."""
    return SamkitError(
        f"NOTHING WAS LEARNT that shows on what is held back: {decisive} stayed at 0 in {epochs} epoch(s). Does the "
        "loss in metrics.csv fall? Then train longer, by {resume} and {settings epochs=N}; else begin with {init}, or "
        "lower {settings learning_rate=X}. Look at some cases, too: labels must lie on their images, and {label} be a "
        "value that they hold",
        options=("resume", "settings epochs=N", "init", "settings learning_rate=X", "label"),
    )


def _trainer(
    plan: TrainingPlan, module: RunModule, options: RunOptions, precision: str, folder: RunFolder
) -> lightning.Trainer:
    recipe, steps_itself = plan.recipe, not module.automatic_optimization
    callbacks: list[Callback] = [folder]
    if not options.quiet:
        callbacks.append(RichProgressBar(leave=False, console_kwargs={"stderr": True}))
    return lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=options.devices,
        # Heads that the first of four masks does not use never get a gradient, so DDP must look for them.
        strategy="ddp_find_unused_parameters_true" if options.devices > 1 else "auto",
        max_epochs=recipe.epochs,
        precision=precision,
        accumulate_grad_batches=1 if steps_itself else recipe.accumulate,
        gradient_clip_val=None if steps_itself else recipe.clip_norm or None,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not options.quiet,
        log_every_n_steps=10,  # TensorBoard flushes at each
        logger=TensorBoardLogger(options.out, name="tensorboard", version=""),
        callbacks=callbacks,
    )


def _stopped(out: Path, error: BaseException) -> Stopped:
    """Return what ends a training, with what can be done with what it left."""
    number = error.number if isinstance(error, Stopped) else signal.SIGINT
    if (out / RESUME).is_file():
        return Stopped(
            number, f"whole epochs kept: {len(read_metrics(out))}; go on with {{resume}}", options=("resume",)
        )
    return Stopped(number, "no epoch was whole yet; start again, in the same {out} if you like", options=("out",))


def _command(typed: Sequence[str]) -> str:
    """Return the command line without folders, which may name people or places."""
    words = [Path(word).name if os.sep in word and "=" not in word else word for word in typed]
    return f"{_program()} {shlex.join(words)}"


def _program() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None or module.name == "samkit.training.cli":
        return "sam-train"
    return f"python -m {module.name}"


def _versions() -> dict[str, str]:
    names = ("samkit", "torch", "lightning", "monai", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # running from a source tree
            continue
    return found
