"""Holds the AutoAugment policies as data, and draws one sub-policy per image.

Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data" (CVPR 2019), appendix, with the
magnitude ranges of the torchvision implementation. A published policy has 25 sub-policies; a sub-policy has two steps,
each of an operation, its probability and its magnitude index 0..9 (None: the operation has no magnitude).

"digits" is this project's own: the published policies are half photometric, and photometric operations either do
nothing to ink on a blank page or turn it into its negative. On validation data of MNIST it is better than "cifar10" and
"svhn".
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from erat.data.augment.ops import MATRICES
from erat.data.random import BatchRandom
from erat.errors import unknown_name

Step = tuple[str, float, int | None]

# Operations by the name of their function in `ops`; the position is the number of the operation. The geometric ones
# come first, so that images sorted by number have them side by side and one resampling call serves all five.
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
PHOTOMETRIC = (
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "invert",
)
OPERATIONS = GEOMETRIC + PHOTOMETRIC
UNCHANGED = len(OPERATIONS)  # the number that stands for "this step was not applied"

# Operations whose magnitude gets a random sign: a shear goes left or right, brightness goes up or down.
SIGNED = frozenset(GEOMETRIC) | {"brightness", "color", "contrast", "sharpness"}

SLOTS = 2
LEVELS = 10  # magnitude indices 0..9

POLICIES: dict[str, tuple[tuple[Step, Step], ...]] = {
    "cifar10": (
        (("invert", 0.1, None), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, None), ("equalize", 0.9, None)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, None), ("equalize", 0.5, None)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, None), ("autocontrast", 0.4, None)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, None)),
        (("equalize", 0.2, None), ("autocontrast", 0.6, None)),
        (("equalize", 0.2, None), ("equalize", 0.6, None)),
        (("color", 0.9, 9), ("equalize", 0.6, None)),
        (("autocontrast", 0.8, None), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, None)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, None), ("solarize", 0.8, 3)),
        (("equalize", 0.8, None), ("invert", 0.1, None)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, None)),
    ),
    "svhn": (
        (("shear_x", 0.9, 4), ("invert", 0.2, None)),
        (("shear_y", 0.9, 8), ("invert", 0.7, None)),
        (("equalize", 0.6, None), ("solarize", 0.6, 6)),
        (("invert", 0.9, None), ("equalize", 0.6, None)),
        (("equalize", 0.6, None), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("autocontrast", 0.8, None)),
        (("shear_y", 0.9, 8), ("invert", 0.4, None)),
        (("shear_y", 0.9, 5), ("solarize", 0.2, 6)),
        (("invert", 0.9, None), ("autocontrast", 0.8, None)),
        (("equalize", 0.6, None), ("rotate", 0.9, 3)),
        (("shear_x", 0.9, 4), ("solarize", 0.3, 3)),
        (("shear_y", 0.8, 8), ("invert", 0.7, None)),
        (("equalize", 0.9, None), ("translate_y", 0.6, 6)),
        (("invert", 0.9, None), ("equalize", 0.6, None)),
        (("contrast", 0.3, 3), ("rotate", 0.8, 4)),
        (("invert", 0.8, None), ("translate_y", 0.0, 2)),
        (("shear_y", 0.7, 6), ("solarize", 0.4, 8)),
        (("invert", 0.6, None), ("rotate", 0.8, 4)),
        (("shear_y", 0.3, 7), ("translate_x", 0.9, 3)),
        (("shear_x", 0.1, 6), ("invert", 0.6, None)),
        (("solarize", 0.7, 2), ("translate_y", 0.6, 7)),
        (("shear_y", 0.8, 4), ("invert", 0.8, None)),
        (("shear_x", 0.7, 9), ("translate_y", 0.8, 3)),
        (("shear_y", 0.8, 5), ("autocontrast", 0.7, None)),
        (("shear_x", 0.7, 2), ("invert", 0.1, None)),
    ),
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, None)),
        (("equalize", 0.8, None), ("equalize", 0.6, None)),
        (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, None), ("solarize", 0.2, 4)),
        (("equalize", 0.4, None), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, None)),
        (("posterize", 0.8, 5), ("equalize", 1.0, None)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, None), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, None)),
        (("equalize", 0.0, None), ("equalize", 0.8, None)),
        (("invert", 0.6, None), ("equalize", 1.0, None)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, None)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, None)),
        (("color", 0.4, 0), ("equalize", 0.6, None)),
        (("equalize", 0.4, None), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, None)),
        (("invert", 0.6, None), ("equalize", 1.0, None)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, None), ("equalize", 0.6, None)),
    ),
    "digits": (
        (("rotate", 0.9, 5), ("translate_x", 0.9, 2)),
        (("rotate", 0.9, 5), ("translate_y", 0.9, 2)),
        (("shear_x", 0.9, 6), ("translate_x", 0.9, 2)),
        (("shear_x", 0.9, 6), ("translate_y", 0.9, 2)),
        (("shear_y", 0.9, 6), ("rotate", 0.9, 4)),
        (("shear_x", 0.9, 6), ("shear_y", 0.9, 6)),
    ),
}


class PolicyDraws(NamedTuple):
    """The operations that were drawn for each of n images, on the CPU.

    Attributes:
        subpolicy: int64, shape (n,), the number of the sub-policy that was drawn.
        operations: int64, shape (n, SLOTS), the number of the operation to apply, UNCHANGED for none.
        magnitudes: float64, shape (n, SLOTS), with sign; 0 if the operation has no magnitude.
        matrices: float32, shape (n, SLOTS, 2, 3), for the geometric operations; without meaning for the others.
    """

    subpolicy: Tensor
    operations: Tensor
    magnitudes: Tensor
    matrices: Tensor


def draw_policy(random: BatchRandom, n: int, policy: str, height: int, width: int) -> PolicyDraws:
    """Draw independently for each image its sub-policy, and for each step whether it applies and with which sign.

    Args:
        random: the source of the draws; it is called exactly three times, whatever it returns.
        n: the number of images.
        policy: a key of POLICIES.
        height, width: size of the images in pixels, the unit of a translation.

    Raises:
        UserError: there is no policy of that name.
    """
    if policy not in POLICIES:
        raise unknown_name("AutoAugment policy", policy, POLICIES)
    table = _policy_table(policy, height, width)
    subpolicy = random.randint(len(POLICIES[policy]), n)
    applied = random.rand(n, SLOTS) < table.probability[subpolicy]
    signed_steps = (random.rand(n, SLOTS) < 0.5).long(), subpolicy[:, None], torch.arange(SLOTS)
    return PolicyDraws(
        subpolicy=subpolicy,
        operations=torch.where(applied, table.operation[subpolicy], UNCHANGED),
        magnitudes=table.magnitude[signed_steps],
        matrices=table.matrix[signed_steps],
    )


def magnitude_space(operation: str, height: int, width: int) -> Tensor:
    """Return the magnitudes for the indices 0..9: float64, shape (LEVELS,).

    Shears are in pixels per pixel, translations in pixels, rotations in degrees; the magnitude of the four enhancements
    is the distance of their factor from 1, that of posterize the number of bits kept, that of solarize the threshold in
    [0, 1]. Operations without a magnitude get zeros.
    """
    index = torch.arange(LEVELS, dtype=torch.float64)
    share = index / (LEVELS - 1)
    match operation:
        case "shear_x" | "shear_y":
            return share * 0.3
        case "translate_x":
            return share * (150 / 331 * width)
        case "translate_y":
            return share * (150 / 331 * height)
        case "rotate":
            return share * 30
        case "brightness" | "color" | "contrast" | "sharpness":
            return share * 0.9
        case "posterize":
            return (8 - 4 * share).round()
        case "solarize":
            return 1 - share
        case _:
            return torch.zeros(LEVELS, dtype=torch.float64)


class _PolicyTable(NamedTuple):
    """A policy as arrays.

    Attributes:
        operation, probability: shape (sub-policies, SLOTS).
        magnitude: shape (2, sub-policies, SLOTS), unchanged and with the other sign if the sign is drawn.
        matrix: shape (2, sub-policies, SLOTS, 2, 3), for these magnitudes. Looking a matrix up is several times faster
            than computing it.
    """

    operation: Tensor
    probability: Tensor
    magnitude: Tensor
    matrix: Tensor


@functools.lru_cache(maxsize=16)
def _policy_table(policy: str, height: int, width: int) -> _PolicyTable:
    subpolicies = POLICIES[policy]
    shape = len(subpolicies), SLOTS
    magnitude, matrix = torch.zeros(2, *shape, dtype=torch.float64), torch.zeros(2, *shape, 2, 3)
    for number, steps in enumerate(subpolicies):
        for slot, (name, _, index) in enumerate(steps):
            value = magnitude_space(name, height, width)[index or 0]
            both = torch.stack((value, -value if name in SIGNED else value))
            magnitude[:, number, slot] = both
            if name in MATRICES:
                matrix[:, number, slot] = MATRICES[name](both, height, width)
    return _PolicyTable(
        operation=torch.tensor([[OPERATIONS.index(name) for name, _, _ in steps] for steps in subpolicies]),
        probability=torch.tensor([[probability for _, probability, _ in steps] for steps in subpolicies]),
        magnitude=magnitude,
        matrix=matrix,
    )
