"""One training from its plan to the run's folder: cases, network, Lightning's trainer."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from samkit.checkpoints import BEST, CheckpointInfo, LoadedNetwork, read_info
from samkit.errors import InputRefused, SamkitError
from samkit.methods import get_method
from samkit.training.cases import CheckedCase, CheckedCases
from samkit.training.module import TrainingModule
from samkit.training.plan import TrainingPlan, fitted_spacing
from samkit.training.run_folder import (
    RESUME,
    RunFolder,
    check_run_folder,
    check_same_run,
    is_replica,
    read_run,
    write_run,
)
from samkit.training.samples import TrainingSamples, cache_cases, validation_samples
from samkit.training.start import count_parameters, freeze, start_weights

HELD_BACK = 5
"""One case in this many is held back."""
_SPLIT_SEED = 5


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


def split_cases(cases: tuple[CheckedCase, ...]) -> tuple[list[CheckedCase], list[CheckedCase]]:
    """Return the cases to train on and those held back, one in five by a fixed seed over the sorted names."""
    if len(cases) < 2:
        raise InputRefused(
            "too-few-cases", "there is 1 usable case, at least 2 are needed: one trains, one is held back",
            "add cases",
        )  # fmt: skip
    ordered = sorted(cases, key=lambda checked: checked.case.name)
    drawn = np.random.default_rng(_SPLIT_SEED).permutation(len(ordered))[: max(1, len(ordered) // HELD_BACK)]
    held = {int(number) for number in drawn}
    return (
        [case for number, case in enumerate(ordered) if number not in held],
        [case for number, case in enumerate(ordered) if number in held],
    )


def train(
    plan: TrainingPlan,
    checked: CheckedCases,
    options: RunOptions,
    *,
    data_name: str,
    start: LoadedNetwork | None = None,
    start_name: str = "",
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Train as planned and return the facts that run.json then holds; `say` gets sentences for people."""
    check_run_folder(options.out, options.resume)
    before = read_run(options.out) if options.resume else None
    options.out.mkdir(parents=True, exist_ok=True)
    method = get_method(plan.method)
    training, held = split_cases(checked.cases)
    if plan.recipe.fit_spacing:
        if before is None:
            finest = float(np.median([case.finest_mm for case in training]))
            i, j, k = (max(case.extent_mm[axis] for case in training) for axis in range(3))
            spacing = fitted_spacing((i, j, k), plan.config.patch, finest)
            say(f"spacing {spacing} mm: the largest of the training targets and a margin fill the patch")
        else:
            i, j, k = before["plan"]["config"]["spacing"]
            spacing = (i, j, k)
            say(f"spacing {spacing} mm, as the run began")
        plan = replace(plan, config=replace(plan.config, spacing=spacing))
    decided: dict[str, Any] = {
        "plan": plan.to_dict(),
        "init": {"file": start_name, "sha256": start.sha256} if start is not None else None,
        "data": {
            "folder": data_name,
            "cases": len(checked.cases),
            "trained_on": len(training),
            "held_back": len(held),
        },
    }
    if before is not None:
        check_same_run(options.out, before, decided)
    cuda = torch.cuda.is_available()
    precision = plan.recipe.precision
    if precision == "16-mixed" and not cuda:
        say("precision 16-mixed needs a GPU and there is none: training in 32-true")
        precision = "32-true"

    torch.manual_seed(plan.recipe.seed)
    network = method.build(plan.config)
    if start is not None:
        fresh = start_weights(network, start, start_name)
        freeze(network, method)
        say(f"started from {start_name}; {fresh} tensors are fresh")
    counts = count_parameters(network)
    say(f"{plan.method}, preset {plan.preset}: {counts.to_text()}")

    say(f"{len(training)} cases to train on, {len(held)} held back")
    training_cases = cache_cases(training, plan.config, plan.recipe.target)
    samples = TrainingSamples(training_cases, method, plan.config, plan.recipe)
    held_cases = cache_cases(held, plan.config, plan.recipe.target)
    module = TrainingModule(
        network,
        samples,
        validation_samples(held_cases, method, plan.config, plan.recipe.seed),
        plan.recipe,
        plan.refinement,
        time_limit_s=None if options.time_limit_min is None else 60 * options.time_limit_min,
        workers=4 if cuda else 0,
    )
    facts: dict[str, Any] = {
        "command": _command(),
        **decided,
        "data": {
            **decided["data"],
            "held_back_targets": len(module.held_back),
            "skipped": len(checked.skipped),
        },
        "parameters": {"total": counts.total, "tunable": counts.tunable},
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "state": "running",
    }

    def describe(metrics: dict[str, Any]) -> CheckpointInfo:
        kept = {k: v for k, v in metrics.items() if k.startswith("dice_")}
        provenance = {k: facts[k] for k in ("command", "data", "init", "threads", "versions")}
        provenance |= {"seed": plan.recipe.seed, "epochs": metrics["epoch"], "seconds": metrics["seconds"]}
        return CheckpointInfo(
            plan.method, plan.recipe.size, plan.config, plan.refinement, provenance, kept, options.demonstration
        )

    folder = RunFolder(options.out, describe, half=options.demonstration)
    if not is_replica():
        write_run(options.out, facts)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips and device tables are not ours to give
    trainer = _trainer(plan, options, precision, folder)
    with warnings.catch_warnings():
        # Lightning's advice on workers, loggers and batch counts does not hold for cached cases keyed by epoch.
        warnings.filterwarnings("ignore", module=r"(lightning|torch|monai)\..*")
        trainer.fit(
            module, ckpt_path=options.out / RESUME if options.resume else None, weights_only=True
        )  # plain numbers and tensors only
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = read_info(options.out / BEST)
    if best is None:
        raise SamkitError(
            f"training ended without a validated checkpoint in {options.out}; "
            "raise --time-limit or lower validate_every"
        )
    facts |= {
        "state": "finished",
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(module.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "best": best.metrics,
        "last": {k: v for k, v in folder.last_metrics.items() if k.startswith("dice_")},
    }
    if trainer.is_global_zero:
        write_run(options.out, facts)
    return facts


def _trainer(plan: TrainingPlan, options: RunOptions, precision: str, folder: RunFolder) -> lightning.Trainer:
    recipe = plan.recipe
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
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip_norm or None,
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


def _command() -> str:
    """Return the command line without folders, which may name people or places."""
    words = [Path(word).name if os.sep in word and "=" not in word else word for word in sys.argv[1:]]
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
