"""Compresses a batch of float images as JPEG does, on their device, without writing a file.

What JPEG loses it loses before the bits are coded: chroma at half the resolution, and the coefficients of the cosine
transform of 8 x 8 blocks in whole multiples of a table. So nothing needs to be coded, and nothing waits for a device.
Pictures agree with those of libjpeg, which rounds in integers, but for single levels, and in rare blocks one step of a
coefficient that lies between two.

Source: ITU-T T.81 (1992), Annex A and the tables of Annex K; scale of the quality and chroma as in libjpeg.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
BLOCK = 8
# Cosine transform: row u is the pattern of frequency u.
COSINES = tuple(
    tuple((0.5 if u else 0.5 / math.sqrt(2)) * math.cos((2 * i + 1) * u * math.pi / (2 * BLOCK)) for i in range(BLOCK))
    for u in range(BLOCK)
)


@torch.no_grad()
def jpeg(images: Tensor, quality: int) -> Tensor:
    """Return float images in [0, 1], (N, C, H, W) with 1 or 3 channels, as they are after JPEG: 256 levels, same shape.

    Args:
        images: float32 on any device; not modified, and no gradient flows through.
        quality: 1 (worst) to 100.
    """
    levels = images.detach().mul(255).round()
    if images.shape[1] == 1:
        return _coded(levels, LUMINANCE, quality).div(255)
    red, green, blue = levels.split(1, dim=1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    luma = _coded(_rounded(grey), LUMINANCE, quality)
    to_blue, to_red = (
        _chroma(_rounded((colour - grey) / span + 128), quality) - 128 for colour, span in ((blue, 1.772), (red, 1.402))
    )
    channels = (luma + 1.402 * to_red, luma - 0.344136 * to_blue - 0.714136 * to_red, luma + 1.772 * to_blue)
    return _rounded(torch.cat(channels, dim=1)).clamp_(0, 255).div_(255)


def _chroma(plane: Tensor, quality: int) -> Tensor:
    """Return a chroma plane, (N, 1, H, W) of levels, that was kept at half its resolution."""
    height, width = plane.shape[-2:]
    # As libjpeg has it: columns are repeated before the resolution is halved, rows, but for an odd one, after it.
    whole = F.pad(plane, (0, -width % (2 * BLOCK), 0, height % 2), mode="replicate")
    sums = F.avg_pool2d(whole, 2, divisor_override=1)
    # Sums of four are divided with a bias of 1 and 2 in turn, so that halves go up as often as down.
    bias = torch.arange(sums.shape[-1], device=plane.device) % 2 + 1
    small = _coded(((sums + bias) / 4).floor(), CHROMINANCE, quality)[..., : (width + 1) // 2]
    return F.interpolate(small, scale_factor=2, mode="bilinear")[..., :height, :width].round_()


def _coded(plane: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return a plane of levels, (N, 1, H, W), whose blocks were transformed, quantised, and transformed back."""
    n, _, height, width = plane.shape
    steps = torch.tensor(table, dtype=torch.float32, device=plane.device)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = ((steps * percent + 50) / 100).floor_().clamp_(1, 255)
    down, right = -height % BLOCK, -width % BLOCK
    whole = F.pad(plane, (0, right, 0, down), mode="replicate") - 128
    blocks = whole.view(n, (height + down) // BLOCK, BLOCK, (width + right) // BLOCK, BLOCK).transpose(2, 3)
    coefficients = _transformed(blocks, inverse=False)
    blocks = _transformed(_rounded(coefficients / steps) * steps, inverse=True)
    levels = _rounded(blocks.transpose(2, 3).reshape(whole.shape) + 128).clamp_(0, 255)
    return levels[..., :height, :width]


def _rounded(values: Tensor) -> Tensor:
    """Return the nearest whole numbers; halves go away from zero, and so does what lies a ten-thousandth below a half.

    Halves are frequent here, and the last bit of a sum must not decide where they go, which is another one on another
    processor or in a batch of another size.
    """
    return torch.copysign(values.abs().add_(0.5 + 1e-4).floor_(), values)


def _transformed(blocks: Tensor, *, inverse: bool) -> Tensor:
    """Return the cosine transform of the last two dimensions, or its inverse.

    It is a sum of eight terms, not a matrix product, because reduced-precision modes (TF32, autocast) would move
    coefficients by whole steps of the table.
    """
    cosines = torch.tensor(COSINES, dtype=torch.float32, device=blocks.device)
    if not inverse:
        cosines = cosines.T
    for _ in range(2):  # the columns, and, transposed, the rows
        total = torch.zeros_like(blocks)
        for i in range(BLOCK):
            total = torch.addcmul(total, blocks[..., i : i + 1], cosines[i])
        blocks = total.transpose(-1, -2)
    return blocks
