"""The terms that losses of the 2D methods are made of, by the names that SliceRecipe.losses uses.

n masks of s x s logits. Of one mask: logits (n, 1, s, s) and targets (n, 1, s, s), 0 or 1; of classes: logits
(n, K, s, s) and targets (n, 1, s, s), the numbers of the classes.

focal         alpha 0.25, gamma 2, mean over pixels: SAM, and BrainSegDMIF (methods 1.3); SAM-Med2D's sum over the
              number of pixels is the same
dice          1 - Dice of probabilities over the whole batch, smoothed by 1 (SAM-Med2D)
dice_squared  1 - Dice of each mask, squares in the denominator (MedSAM, equation 1 of MedSAM-YOLO)
bce           binary cross-entropy
iou           squared error of the predicted IoU against that of the probabilities (SAM-Med2D)
ce            cross-entropy over classes (SAMed)
dice_classes  1 - Dice of each class over the batch, squares in the denominator, mean with the background (SAMed)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from monai.losses import DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional as F

_focal = FocalLoss(alpha=0.25, gamma=2.0)
_dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
_dice_squared = DiceLoss(sigmoid=True, squared_pred=True)
_dice_classes = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, batch=True)

Term = Callable[[Tensor, Tensor, Tensor], Tensor]


def _iou(logits: Tensor, target: Tensor, predicted: Tensor) -> Tensor:
    """Teaches the head that predicts the IoU, of each mask, and leaves the mask alone.

    Upstream compares with one IoU of the whole batch, and lets the error pull the mask to a wrong prediction, too.
    """
    probability = logits.detach().sigmoid()
    shared = (probability * target).sum((1, 2, 3))
    union = (probability + target).sum((1, 2, 3)) - shared
    return F.mse_loss(predicted, (shared + 1e-7) / (union + 1e-7))


TERMS: Mapping[str, Term] = {
    "focal": lambda logits, target, predicted: _focal(logits, target),
    "dice": lambda logits, target, predicted: _dice(logits, target),
    "dice_squared": lambda logits, target, predicted: _dice_squared(logits, target),
    "bce": lambda logits, target, predicted: F.binary_cross_entropy_with_logits(logits, target),
    "iou": _iou,
    "ce": lambda logits, target, predicted: F.cross_entropy(logits, target[:, 0].long()),
    "dice_classes": lambda logits, target, predicted: _dice_classes(logits, target),
}


def slice_loss(terms: Sequence[tuple[str, float]], logits: Tensor, target: Tensor, predicted: Tensor) -> Tensor:
    """Return the weighted sum of `terms`; `predicted` (n,) is the network's own IoU of the masks."""
    first, *others = (weight * TERMS[name](logits, target, predicted) for name, weight in terms)
    return sum(others, start=first)
