"""The 2D methods' Lightning module: prompts as decoder rows, one step, and steps of the decoder alone after it.

Everything goes through the functions that are exported, with the tensors of the exported graphs. Optimisation is by
hand because SAM-Med2D takes several steps on one batch: the first moves all that trains, the `error_rounds` after it
move prompt encoder and decoder alone, each asked with clicks where the mask was wrong (1, 3, 5 or 9 of them) and with
that mask; the last, and one drawn from those between first and last, with the mask alone. Upstream holds the prompt
encoder still in these rounds; here it moves, since from random weights nothing else would teach it the mask prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samkit.methods.method import SliceMethod, SliceRecipe
from samkit.networks.network import Network
from samkit.prompts import ABSENT
from samkit.runtime.backends.torch_runner import TorchRunner
from samkit.training.run_module import RunModule
from samkit.training.slice_losses import slice_loss
from samkit.training.slice_prompts import error_points
from samkit.training.slice_samples import (
    CACHE_BYTES,
    SliceSample,
    SliceSamples,
    SliceStore,
    is_prompted,
    labels_on_input,
    validation_prompts,
)

ERROR_POINTS = (1, 3, 5, 9)
"""How many clicks an error round gives, one of these (SAM-Med2D, `train.py`)."""
_ENCODED_AT_ONCE = 8
"""Slices that the exported image encoder takes at most."""


class SliceModule(RunModule):
    """Trains a network on slices. B images, m objects of each, n = B m rows, S side of the input, s of the logits."""

    recipe: SliceRecipe
    samples: SliceSamples
    decisive = "dice"

    def __init__(
        self, network: Network, method: SliceMethod, config: Any, samples: SliceSamples, store: SliceStore,
        held_back: Sequence[tuple[int, int]], recipe: SliceRecipe, time_limit_s: float | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        """Validate on those `held_back` (case, slice) of `store`."""
        super().__init__(network, samples, recipe, time_limit_s, workers)
        self.automatic_optimization = False
        self.method, self.config, self.store, self.held_back = method, config, store, held_back
        self.graphs = {graph.name: graph for graph in method.graphs(config)}
        self.metrics = ("dice",) if is_prompted(recipe) else ("dice", "dice_slice")
        moving = any(p.requires_grad for name, p in network.named_parameters() if name.startswith("image_encoder."))
        self._keeps_embeddings = recipe.cache_embeddings and not moving and not recipe.augment
        self._embeddings: dict[tuple[int, int], Tensor] = {}

    @property
    def planned_steps(self) -> int:
        """Return the steps of the learning rate in all epochs: one for each batch that is not only accumulated."""
        batches = super().planned_steps // max(1, self.recipe.epochs)
        return math.ceil(batches / self.recipe.accumulate) * self.recipe.epochs

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimiser and its schedule."""
        recipe = self.recipe
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimiser: torch.optim.Optimizer
        if recipe.optimiser == "sgd":
            optimiser = torch.optim.SGD(parameters, rate, momentum=recipe.betas[0], weight_decay=decay)
        else:
            kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
            optimiser = kind(parameters, rate, betas=recipe.betas, weight_decay=decay)
        return {"optimizer": optimiser, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate_factor)}

    def rate_factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by: a linear rise, then the recipe's schedule."""
        recipe, done = self.recipe, self.progress(step)
        if recipe.schedule == "steps":
            fall = recipe.decay ** sum(done * recipe.epochs >= milestone for milestone in recipe.milestones)
        elif recipe.schedule == "polynomial":
            past = done - recipe.warmup_steps / max(1, self.planned_steps)
            fall = (1 - min(1.0, max(0.0, past))) ** recipe.decay
        else:
            fall = 1.0
        return self.rise(step) * float(fall)

    def training_step(self, batch: list[SliceSample], index: int) -> None:
        """Take the full step, and the error rounds after it."""
        embeddings = self._encode(batch)
        points = _padded([row for sample in batch for row in sample.points], self.device)
        loss, chosen = self._loss(embeddings, batch, points, None)
        self.losses.append(loss.detach())
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        self._step(loss, index)
        embeddings = embeddings.detach()
        rngs = [self.samples.round_rng(sample.key) for sample in batch]
        last = self.recipe.error_rounds
        # The first round always clicks, also where it is the only one.
        without_clicks = {last, int(rngs[0].integers(2, last)) if last > 2 else last} - {1}
        for number in range(1, last + 1):
            count = 0 if number in without_clicks else int(rngs[0].choice(ERROR_POINTS))
            points = self._error_points(chosen, batch, rngs, count)
            loss, chosen = self._loss(embeddings, batch, points, chosen)
            self._step(loss, index)
        if self._is_boundary(index):
            schedule: Any = self.lr_schedulers()
            schedule.step()

    def _encode(self, batch: Sequence[SliceSample]) -> Tensor:
        """Return `image_embeddings` (B, C, g, g), from the cache where the recipe keeps them."""
        if not self._keeps_embeddings:
            return self._encoded([sample.image for sample in batch])
        missing = {sample.where: sample for sample in batch if sample.where not in self._embeddings}
        fresh = {}
        if missing:
            with torch.no_grad():
                fresh = dict(zip(missing, self._encoded([s.image for s in missing.values()]).float(), strict=True))
        used = [self._embeddings[s.where] if s.where in self._embeddings else fresh[s.where] for s in batch]
        for where, embedding in fresh.items():
            if (len(self._embeddings) + 1) * embedding.nbytes <= CACHE_BYTES:
                self._embeddings[where] = embedding.cpu()
        return torch.stack([embedding.to(self.device) for embedding in used])

    def _encoded(self, images: Sequence[np.ndarray]) -> Tensor:
        return self.network.run_graph("image_encoder", torch.from_numpy(np.stack(images)).to(self.device))[0]

    def _loss(
        self, embeddings: Tensor, batch: Sequence[SliceSample], points: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of one decoding and the logits (n, 1 or K, s, s) that are the answer.

        `points` (n, P, 3); `before` are the logits of the decoding before, which become the mask prompt.
        """
        rows = len(points)
        outputs = self._decode(embeddings, points, before)
        masks = outputs["low_res_masks"].float()
        iou = outputs.get("iou_predictions", masks.new_zeros(rows, masks.shape[1])).float()
        chosen, predicted = self._choose(masks, iou, points)
        side, logits = chosen.shape[-1], chosen
        if self.recipe.loss_side == "input":
            side = int(batch[0].placement.side)
            logits = F.interpolate(chosen, (side, side), mode="bilinear", align_corners=False)
        target = torch.from_numpy(_targets(batch, side)).to(self.device, torch.float32)
        return slice_loss(self.recipe.losses, logits, target, predicted), chosen.detach()

    def _decode(self, embeddings: Tensor, points: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        """Return the decoder's outputs by name, given as much of the prompts as its graph takes."""
        graph = self.graphs["mask_decoder"]
        inputs = {"image_embeddings": embeddings.repeat_interleave(len(points) // len(embeddings), dim=0)}
        if any(spec.name == "mask_input" for spec in graph.inputs):
            side = self.config.logits
            given = before
            if given is not None and self.recipe.mask_prompt == "probability":
                given = given.sigmoid()
            blank = points.new_zeros(len(points), 1, side, side)
            inputs |= {
                "point_coords": points[..., :2],
                "point_labels": points[..., 2],
                "mask_input": blank if given is None else given,
                "has_mask_input": points.new_full((len(points), 1, 1, 1), float(given is not None)),
            }
        outputs = self.network.run_graph(graph.name, *(inputs[spec.name] for spec in graph.inputs))
        return {spec.name: output for spec, output in zip(graph.outputs, outputs, strict=True)}

    def _choose(self, masks: Tensor, iou: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (n, 1, s, s), or all K, that the recipe trains, and their predicted IoU (n,)."""
        if self.recipe.output == "classes":
            return masks, iou[:, 0]
        if self.recipe.output == "first":
            which = torch.zeros(len(masks), dtype=torch.long, device=masks.device)
        else:
            which = 1 + iou[:, 1:].argmax(dim=1)
            if self.recipe.output == "by_prompt":
                which = torch.where((points[..., 2] != ABSENT).sum(dim=1) == 1, which, 0)
        rows = torch.arange(len(masks), device=masks.device)
        return masks[rows, which][:, None], iou[rows, which]

    def _error_points(
        self, chosen: Tensor, batch: Sequence[SliceSample], rngs: Sequence[np.random.Generator], count: int
    ) -> Tensor:
        """Return `count` clicks (n, count, 3) where the masks are wrong, x, y [pixels of the input] and label."""
        side = int(batch[0].placement.side)
        upsampled = F.interpolate(chosen, (side, side), mode="bilinear", align_corners=False)[:, 0]
        wanted, rows = _targets(batch, side)[:, 0] > 0, len(chosen) // len(batch)
        clicks = []
        for number, mask in enumerate((upsampled > 0).cpu().numpy()):
            if count:
                places, labels = error_points(mask, wanted[number], rngs[number // rows], count)
                clicks.append(np.concatenate([places, labels[:, None]], axis=1))
            else:
                clicks.append(np.zeros((0, 3)))
        return _padded(clicks, self.device)

    def _step(self, loss: Tensor, index: int) -> None:
        """Backpropagate; move the weights, unless batches are only accumulated yet."""
        optimiser: Any = self.optimizers()
        self.manual_backward(loss / self.recipe.accumulate)
        if self._is_boundary(index):
            if self.recipe.clip_norm:
                # With 16-mixed the gradients are scaled until the optimiser's own step.
                scaler = getattr(self.trainer.precision_plugin, "scaler", None)
                scale = 1.0 if scaler is None else float(scaler.get_scale())
                self.clip_gradients(optimiser, self.recipe.clip_norm * scale, "norm")
            optimiser.step()
            optimiser.zero_grad()

    def _is_boundary(self, index: int) -> bool:
        return (index + 1) % self.recipe.accumulate == 0 or index + 1 == self.trainer.num_training_batches

    def validate_held_back(self) -> dict[str, float]:
        """Return the Dice of what the runtime would answer on the held-back slices, on their own pixels.

        `dice` is the mean over slices where each is prompted, by its objects' tight boxes or a fixed click; without
        prompts it is the mean over cases and structures of all their held-back slices together, and `dice_slice` that
        over slices with some of the target.
        """
        self.network.eval()
        own = self.held_back[self.trainer.global_rank :: self.trainer.world_size]
        structures = max(1, len(self.method.structures(self.config)))
        volumes = np.zeros((len(self.store.cases), structures, 2))
        slices = np.zeros(2)
        for start in range(0, len(own), _ENCODED_AT_ONCE):
            for (case, number), labels in self._answers(own[start : start + _ENCODED_AT_ONCE]):
                counts = _overlap(labels, self.store[case].labels[number], structures)
                volumes[case] += counts
                if self.store[case].labels[number].any():
                    known = counts[:, 1] > 0
                    slices += (float((counts[known, 0] / counts[known, 1]).mean()), 1)
        volumes, slices = (self._summed(values) for values in (volumes, slices))
        per_slice = float(slices[0] / max(1.0, slices[1]))
        if is_prompted(self.recipe):
            return {"dice": round(per_slice, 4)}
        known = volumes[..., 1] > 0
        return {
            "dice": round(float((volumes[known][:, 0] / volumes[known][:, 1]).mean()), 4),
            "dice_slice": round(per_slice, 4),
        }

    def _answers(self, places: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], np.ndarray]]:
        """Return the labels (H, W) that the method answers on some held-back slices, as `Session` would."""
        runners = {name: TorchRunner(self.network, graph, str(self.device)) for name, graph in self.graphs.items()}
        prepared = [self.store.prepared(*place) for place in places]
        inputs = np.stack([image for image, _ in prepared])
        embeddings = runners["image_encoder"].run({"image": inputs})["image_embeddings"]
        answers = []
        for place, (_, fit), embedding in zip(places, prepared, embeddings, strict=True):
            prompts = validation_prompts(self.store[place[0]].labels[place[1]], self.recipe, place)
            answer = self.method.answer(
                lambda name, feed: runners[name].run(feed), embedding[None], fit, prompts, self.config
            )
            answers.append((place, answer.labels))
        return answers

    def _summed(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over replicas."""
        shared = torch.tensor(values, device=self.device, dtype=torch.float32)
        total: np.ndarray = self.trainer.strategy.reduce(shared, reduce_op="sum").cpu().numpy()
        return total


def _padded(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Return rows of (p, 3) points as one tensor (n, P, 3); rows are filled up with points that are ABSENT."""
    longest = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    out = np.full((len(rows), longest, 3), (0.0, 0.0, float(ABSENT)), np.float32)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return torch.from_numpy(out).to(device)


def _targets(batch: Sequence[SliceSample], side: int) -> np.ndarray:
    """Return the labels (n, 1, side, side) of all objects on the network's square."""
    return np.concatenate([labels_on_input(sample.labels, sample.placement, side) for sample in batch])[:, None]


def _overlap(found: np.ndarray, wanted: np.ndarray, structures: int) -> np.ndarray:
    """Return, per structure, twice the shared pixels and the sum of both: (structures, 2); one structure is all > 0."""
    pairs = (
        [(found > 0, wanted > 0)]
        if structures == 1
        else [(found == number, wanted == number) for number in range(1, structures + 1)]
    )
    return np.array([(2 * np.count_nonzero(a & b), np.count_nonzero(a) + np.count_nonzero(b)) for a, b in pairs], float)
