"""Makes the two views of an image: a weak one (flip, crop or erasing) and a strong one (AutoAugment, or UEraser's).

The split into weak and strong views follows FixMatch and the paper's "Views"; random erasing follows Zhong et al.,
"Random Erasing Data Augmentation" (AAAI 2020). Every image of a batch has its own draw, and a batch is processed at
once. Images are float32 NCHW in [0,1] on any device; they are never modified, and no gradient flows through a view.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from erat.data.augment.grouped import apply_sorted
from erat.data.augment.plasma import ueraser_view
from erat.data.augment.policies import SLOTS, draw_policy
from erat.data.random import BatchRandom
from erat.devices import to_device
from erat.errors import unknown_name

WEAK_KINDS = ("erase", "crop")

# Random erasing: its probability, the range of the erased share of the area, and the range of the aspect ratio (height
# over width), whose logarithm is drawn uniformly.
ERASE_PROBABILITY = 0.5
ERASE_SCALE = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
# A rectangle as high or wide as the image does not fit, and another draw is used. This many are drawn in advance for
# each image, so that the number of draws is fixed. It is all but impossible that none fits; then nothing is erased.
ERASE_TRIES = 10


@torch.no_grad()
def weak_view(images: Tensor, random: BatchRandom, *, kind: str, flip: bool, fill: float = 0.0) -> Tensor:
    """Return a lightly changed copy of each image.

    Args:
        images: shape (N, C, H, W).
        random: source of the draws for each image.
        kind: "erase" for random erasing, "crop" for a random crop after zero padding by an eighth of the size.
        flip: whether to mirror each image left to right first with a probability of one half.
        fill: value of erased pixels, in [0, 1].

    Raises:
        UserError: `kind` is neither of the two.
    """
    if kind not in WEAK_KINDS:
        raise unknown_name("weak view", kind, WEAK_KINDS)
    if kind == "crop":
        return crop_view(images.detach(), random, flip=flip)
    return _erase(images.detach(), _flipped(images, random, flip), random, fill)


def crop_view(images: Tensor, random: BatchRandom, *, flip: bool) -> Tensor:
    """Return the weak view of the kind "crop", (N, C, H, W), with the gradient that leads back to the images."""
    return _crop(images, _flipped(images, random, flip), random)


@torch.no_grad()
def strong_view(images: Tensor, random: BatchRandom, *, policy: str) -> Tensor:
    """Apply AutoAugment with a sub-policy drawn for each image, or what UEraser has in its place.

    The batch is sorted by operation, so that the images of an operation lie side by side and one call serves them.
    The order comes from draws on the CPU, so nothing waits for a device.

    Args:
        images: shape (N, C, H, W), C 1 or 3, on or off the 8-bit grid.
        random: source of the draws for each image.
        policy: "cifar10", "svhn", "imagenet" or "digits"; "ueraser": see `ueraser_view`.

    Raises:
        UserError: there is no policy of that name.
    """
    if policy == "ueraser":
        return ueraser_view(images, random)
    n, _, height, width = images.shape
    draws = draw_policy(random, n, policy, height, width)
    views, place = images.detach(), torch.arange(n)  # row place[i] holds image i
    for slot in range(SLOTS):
        operations, order = draws.operations[:, slot].sort(stable=True)
        views = views.index_select(0, to_device(place[order], views.device))
        apply_sorted(views, operations, draws.magnitudes[order, slot], draws.matrices[order, slot])
        place = order.argsort()
    return views.index_select(0, to_device(place, views.device))


def _flipped(images: Tensor, random: BatchRandom, flip: bool) -> Tensor:
    """Draw which images are mirrored, bool (N,); with `flip` false none are, and nothing is drawn."""
    n, device = len(images), images.device
    return random.bernoulli(0.5, n, device) if flip else torch.zeros(n, dtype=torch.bool, device=device)


def _crop(images: Tensor, flipped: Tensor, random: BatchRandom) -> Tensor:
    """Cut a window of the image's size at a random place out of the zero-padded image, mirrored where `flipped`."""
    (n, channels, height, width), device = images.shape, images.device
    pad_y, pad_x = height // 8, width // 8
    top = random.randint(2 * pad_y + 1, n, device=device)
    left = random.randint(2 * pad_x + 1, n, device=device)
    columns = torch.arange(width, device=device)
    # The image is mirrored before it is cropped: column j of the window is column W'-1-(left+j) of the padded image.
    source_columns = left[:, None] + columns
    source_columns = torch.where(flipped[:, None], width + 2 * pad_x - 1 - source_columns, source_columns)
    source_rows = top[:, None] + torch.arange(height, device=device)
    padded = pad(images, (pad_x, pad_x, pad_y, pad_y)).flatten(2)
    pixels = (source_rows[:, :, None] * (width + 2 * pad_x) + source_columns[:, None, :]).flatten(1)
    return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view_as(images)


def _erase(images: Tensor, flipped: Tensor, random: BatchRandom, fill: float) -> Tensor:
    """Mirror the image where `flipped` and, with `ERASE_PROBABILITY`, set one random rectangle of it to `fill`."""
    n, _, height, width = images.shape
    edges = _rectangles(random, n, height, width, images.device)
    top, bottom, left, right = edges[:, :, None].unbind(1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = ((rows >= top) & (rows < bottom)).to(images.dtype)
    in_columns = ((columns >= left) & (columns < right)).to(images.dtype)
    erased = in_rows[:, None, :, None] * in_columns[:, None, None, :]
    mirrored = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    # Multiplying by 0 or 1 is exact, and faster than a choice per pixel.
    views = mirrored.mul_(1 - erased)
    return views.add_(erased, alpha=fill) if fill else views


def _rectangles(random: BatchRandom, n: int, height: int, width: int, device: torch.device) -> Tensor:
    """Draw the edges (top, bottom, left, right) of the rectangles to erase: int64, shape (n, 4).

    Where nothing is erased, the rectangle is empty.
    """
    chosen = random.bernoulli(ERASE_PROBABILITY, n, device)
    share, log_ratio = random.rand(n, ERASE_TRIES, 2, device=device).unbind(-1)
    area = (ERASE_SCALE[0] + (ERASE_SCALE[1] - ERASE_SCALE[0]) * share) * (height * width)
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    ratio = (low + (high - low) * log_ratio).exp()
    tall = (area * ratio).sqrt().round().long()
    wide = (area / ratio).sqrt().round().long()
    fits = (tall < height) & (wide < width)
    first = fits.long().argmax(dim=1, keepdim=True)
    used = (chosen & fits.any(dim=1)).long()
    tall, wide = tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
    place_y, place_x = random.rand(n, 2, device=device).unbind(-1)
    # Each of the height-tall+1 places is equally likely; the minimum guards against a product rounded up to the bound.
    top = torch.minimum((place_y * (height - tall + 1)).long(), height - tall)
    left = torch.minimum((place_x * (width - wide + 1)).long(), width - wide)
    return torch.stack((top, top + tall * used, left, left + wide * used), dim=1)
