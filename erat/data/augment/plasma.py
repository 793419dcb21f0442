"""Makes UEraser's strong views: plasma brightness and contrast, shuffled channels, one operation of TrivialAugment.

Source: Qin et al., "Learning the Unlearnable: Adversarial Augmentations Suppress Unlearnable Example Attacks" (2023),
with the strengths and probabilities of its authors' code (`ueraser.py`), which takes the augmentations from kornia. The
operations of TrivialAugment (Mueller, Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation",
ICCV 2021) are this project's own (`ops`) with kornia's ranges.

Images are float32 NCHW in [0,1] with 1 or 3 channels, on any device; they are never modified.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erat.data.augment.grouped import apply_each
from erat.data.augment.ops import MATRICES
from erat.data.augment.policies import OPERATIONS
from erat.data.random import BatchRandom

PROBABILITY = 0.5  # of each of the first three augmentations
ROUGHNESS = (0.3, 0.7)  # by which a plasma's displacements shrink from one level to the next
INTENSITY = (0.5, 1.0)  # of a plasma's brightness

# The operations of TrivialAugment with the ranges of their magnitudes: degrees, pixels per pixel, shares of the size of
# the image, thresholds, distances of a factor from 1, bits. Kornia keeps 0 to 3 bits, of which 0 leave a black image;
# here they are 1 to 3.
TRIVIAL: tuple[tuple[str, float, float], ...] = (
    ("autocontrast", 0, 0),
    ("equalize", 0, 0),
    ("rotate", -30, 30),
    ("posterize", 1, 4),
    ("solarize", 0, 1),
    ("contrast", -0.9, 0.9),
    ("brightness", -0.9, 0.9),
    ("sharpness", -0.9, 0.9),
    ("shear_x", -0.3, 0.3),
    ("shear_y", -0.3, 0.3),
    ("translate_x", -0.5, 0.5),
    ("translate_y", -0.5, 0.5),
)


@torch.no_grad()
def ueraser_view(images: Tensor, random: BatchRandom) -> Tensor:
    """Return a strongly changed copy of each image, (N, C, H, W), with draws of its own; no gradient flows through it.

    Grey images have no channels to shuffle; everything else is the same for them.
    """
    views = images.detach()
    brightness = 2 * _plasma_of(views, random) - 1
    views = _for_some(views, (views + brightness * _between(INTENSITY, views, random)).clamp(0, 1), random)
    contrast = 4 * _plasma_of(views, random)
    views = _for_some(views, ((views - 0.5) * contrast + 0.5).clamp(0, 1), random)
    if views.shape[1] > 1:
        views = _for_some(views, shuffled_channels(views, random), random)
    return trivial_augment(views, random)


def plasma(noise: Tensor, roughness: Tensor) -> Tensor:
    """Return fractal maps in [0, 1] by the diamond-square algorithm, one for each image and channel.

    The four corners are their noise. From there on the distance of points is halved level by level: a new point is
    (1 - s) times the mean of its nearest neighbours, four or at the border three, plus s times its own noise, where s
    is the roughness to the power of the level. Kornia counts a neighbour at the border twice and divides the first nine
    points by three; mean and spread of the maps are alike.

    Args:
        noise: shape (N, C, S, S) with S = 2^k + 1 and k at least 1, uniform in [0, 1): the noise of each point.
        roughness: shape (N,), in [0, 1].
    """
    values, step = noise.clone(), noise.shape[-1] - 1
    assert step & (step - 1) == 0, f"a plasma has 2^k + 1 points a side, got {step + 1}"
    shrink = roughness.view(-1, 1, 1, 1)
    scale = torch.ones_like(shrink)
    while step > 1:
        scale, half = scale * shrink, step // 2
        grid, centres = values[..., ::step, ::step], values[..., half::step, half::step]
        rows = grid[..., :-1] + grid[..., 1:]
        columns = grid[..., :-1, :] + grid[..., 1:, :]
        _displace(centres, (rows[..., :-1, :] + rows[..., 1:, :]) / 4, scale)
        _displace(values[..., ::step, half::step], _with_both(rows, centres, -2), scale)
        _displace(values[..., half::step, ::step], _with_both(columns, centres, -1), scale)
        step = half
    return values


def shuffled_channels(images: Tensor, random: BatchRandom) -> Tensor:
    """Return each image with its channels in an order of its own, uniform over all orders."""
    n, channels = images.shape[:2]
    order = random.rand(n, channels, device=images.device).argsort(1)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def trivial_augment(images: Tensor, random: BatchRandom) -> Tensor:
    """Return each image after one operation of `TRIVIAL`, drawn uniformly, as is its magnitude.

    Both are drawn on the CPU, so that images are grouped by operation without waiting for a device.
    """
    n, _, height, width = images.shape
    chosen, share = random.randint(len(TRIVIAL), n), random.rand(n).double()
    low, high = (torch.tensor([entry[k] for entry in TRIVIAL], dtype=torch.float64)[chosen] for k in (1, 2))
    magnitudes = low + (high - low) * share
    operations = torch.tensor([OPERATIONS.index(name) for name, _, _ in TRIVIAL])[chosen]
    sizes = {"translate_x": width, "translate_y": height}
    for name, size in sizes.items():
        magnitudes = torch.where(operations == OPERATIONS.index(name), magnitudes * size, magnitudes)
    magnitudes = torch.where(operations == OPERATIONS.index("posterize"), magnitudes.floor(), magnitudes)
    matrices = torch.zeros(n, 2, 3)
    for name, matrix in MATRICES.items():
        mine = operations == OPERATIONS.index(name)
        matrices[mine] = matrix(magnitudes[mine], height, width)
    return apply_each(images, operations, magnitudes, matrices)


def _plasma_of(images: Tensor, random: BatchRandom) -> Tensor:
    """Return the maps of one batch of images, of their shape, with a roughness drawn for each image."""
    n, channels, height, width = images.shape
    side = 2 ** max(1, (max(height, width) - 2).bit_length()) + 1
    noise = random.rand(n, channels, side, side, device=images.device)
    return plasma(noise, _between(ROUGHNESS, images, random).flatten())[..., :height, :width]


def _between(bounds: tuple[float, float], images: Tensor, random: BatchRandom) -> Tensor:
    """Draw a number between the bounds for each image: shape (N, 1, 1, 1)."""
    low, high = bounds
    return low + (high - low) * random.rand(len(images), 1, 1, 1, device=images.device)


def _for_some(images: Tensor, changed: Tensor, random: BatchRandom) -> Tensor:
    """Return the changed version of the images for which a coin says so."""
    applied = random.bernoulli(PROBABILITY, len(images), images.device)
    return torch.where(applied[:, None, None, None], changed, images)


def _displace(points: Tensor, mean: Tensor, scale: Tensor) -> None:
    """Mix, in place, the noise that points hold with the mean of their neighbours."""
    points.copy_((1 - scale) * mean + scale * points)


def _with_both(pairs: Tensor, centres: Tensor, dim: int) -> Tensor:
    """Return the mean of a pair of grid points and the centres on both sides, of which one is missing at the border."""
    last = pairs.shape[dim] - 1
    total, count = pairs.clone(), torch.full_like(pairs, 2)
    for start in (0, 1):
        total.narrow(dim, start, last).add_(centres)
        count.narrow(dim, start, last).add_(1)
    return total / count
