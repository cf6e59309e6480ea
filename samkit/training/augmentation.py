"""Random changes of a slice and its labels; all that is random comes from the generator passed in.

An image is (H, W, C) float32, 0..255; labels are (H, W) uint8. Functions never change what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

_DEGREES = 20
_CONTRAST, _BRIGHTNESS = 0.2, 0.2 * 255


def rot90_flip_or_rotate(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return what SAMed's training does: in half of all calls quarter turns and a flip, in a quarter a slight turn.

    Quarter turns are 0 to 3 of them, and a flip along either axis always follows; height and width trade places in odd
    ones. The slight turn is by a whole number of degrees from -20 to 19, nearest neighbour for image and labels alike,
    with zeros where nothing was (dataset_synapse.py, RandomGenerator; section 4.3 of the facts on LoRA-SAM).
    """
    if rng.random() < 0.5:
        quarters, axis = int(rng.integers(4)), int(rng.integers(2))
        turned, turned_labels = (np.flip(np.rot90(array, quarters), axis) for array in (image, labels))
        return np.ascontiguousarray(turned), np.ascontiguousarray(turned_labels)
    if rng.random() < 0.5:
        from scipy import ndimage  # here and below, not above: the command's help names what there is without scipy

        degrees = int(rng.integers(-_DEGREES, _DEGREES))
        turned, turned_labels = (ndimage.rotate(array, degrees, order=0, reshape=False) for array in (image, labels))
        return turned, turned_labels
    return image, labels


def place_anew(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return both turned by up to 20 degrees, scaled by up to 15 %, and moved by up to a sixteenth of each side.

    Sides and upright stay what they are. Linear for the image, nearest neighbour for the labels, zeros from outside.
    """
    from scipy import ndimage

    angle = np.deg2rad(rng.uniform(-_DEGREES, _DEGREES))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / rng.uniform(0.85, 1.15)
    shape = np.array(labels.shape)
    middle = (shape - 1) / 2
    start = middle - turn @ (middle + rng.uniform(-1, 1, 2) * shape / 16)
    moved = [ndimage.affine_transform(image[..., channel], turn, start, order=1) for channel in range(image.shape[-1])]
    return np.stack(moved, axis=-1), ndimage.affine_transform(labels, turn, start, order=0)


def mirror(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return both with left and right exchanged, half the time; for labels that do not tell sides apart."""
    if rng.random() < 0.5:
        return image, labels
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])


def brightness_contrast(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image brighter or darker and with more or less contrast, by up to a fifth each, within 0..255.

    Each channel draws its own: sequences vary apart from one another. Zeros stay zero, since they are no tissue.
    """
    channels = image.shape[-1]
    contrast = 1 + rng.uniform(-_CONTRAST, _CONTRAST, channels)
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, channels)
    tissue = image != 0
    mean = image.sum(axis=(0, 1)) / np.maximum(1, tissue.sum(axis=(0, 1)))
    changed = np.clip((image - mean) * contrast + mean + brightness, 0, 255)
    return np.where(tissue, changed, 0).astype(np.float32), labels


Augmentation = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

AUGMENTATIONS: Mapping[str, Augmentation] = {
    "rot90_flip_or_rotate": rot90_flip_or_rotate,
    "place_anew": place_anew,
    "mirror": mirror,
    "brightness_contrast": brightness_contrast,
}
"""What a recipe can name."""


def augment(
    names: Sequence[str], image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels after the augmentations of these names, in order."""
    for name in names:
        image, labels = AUGMENTATIONS[name](image, labels, rng)
    return image, labels
