"""CUDA, convolution-based unlearnable data (Sadasivan, Soltanolkotabi, Feizi, CVPR 2023): each class has its own blur.

This is not NVIDIA's CUDA. What it does to an image is not small under any norm; the manifest says `unbounded`, and
tells how far the images moved under l_2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.norms import per_image
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import by_part

SIDE = 3


class ClassConvolutions(kinds.CUDA, DataCorruption):
    """Convolves all images of a class with the same random kernel, and divides each by its brightest value."""

    def perturb(self, craft: Craft) -> Tensor:
        """Draw a kernel for each class, and convolve every channel of its images with it."""
        kernels = _kernels(craft.num_classes, craft.options["blur"], craft.generator)

        def change(part: slice) -> Tensor:
            levels = (craft.images[part] * 255).round().double().cpu()
            blurred = convolved(levels, kernels[craft.labels[part].cpu()])
            brightest = blurred.flatten(1).amax(1).clamp_min(1e-12)  # a black image stays black
            return ((blurred * per_image(255 / brightest)).round() - levels) / 255

        return by_part(craft, "convolutions", change)


def _kernels(num_classes: int, blur: float, generator: torch.Generator) -> Tensor:
    """Return a kernel for each class, float64 (K, 3, 3): uniform in [0, blur], but for one entry of 1."""
    kernels = torch.rand(num_classes, SIDE**2, generator=generator, dtype=torch.float64) * blur
    chosen = torch.randint(SIDE**2, (num_classes,), generator=generator)
    kernels[torch.arange(num_classes), chosen] = 1.0
    return kernels.view(num_classes, SIDE, SIDE)


def convolved(images_NCHW: Tensor, kernels_N33: Tensor) -> Tensor:
    """Return each image convolved with its own kernel, as networks convolve, with zeros around it; same shape.

    The sum has a fixed order, so that it is the same to the last bit for any batch.
    """
    height, width = images_NCHW.shape[2:]
    padded = F.pad(images_NCHW, (1, 1, 1, 1))
    total = torch.zeros_like(images_NCHW)
    for row in range(SIDE):
        for column in range(SIDE):
            window = padded[..., row : row + height, column : column + width]
            total += per_image(kernels_N33[:, row, column]) * window
    return total


CUDA = ClassConvolutions()
