"""Implements image shortcut squeezing: reduces images until a poison in them is no longer useful for training.

Source: Liu, Zhao, Larson, "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with Compression",
ICML 2023. Which of the three reductions helps depends on the poison: grey against colours, few levels or JPEG against
textures.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def squeeze(images_NCHW: Tensor, kind: str, *, quality: int = 10, bits: int = 2) -> Tensor:
    """Reduce uint8 images of 1 or 3 channels; the result has the same shape and device.

    Args:
        kind: "jpeg" (encode at `quality` and decode), "grayscale" (leaves images of one channel unchanged), "bits"
            (2^bits evenly spaced levels a channel) or "none" (unchanged).
        quality: JPEG quality, 1 to 100.
        bits: bits a channel.
    """
    if kind == "jpeg":
        return torch.stack([_through_jpeg(image, quality) for image in images_NCHW.cpu()]).to(images_NCHW.device)
    if kind == "grayscale" and images_NCHW.shape[1] == 3:
        # Imported here, because torchvision takes a second to load.
        from torchvision.transforms.functional import rgb_to_grayscale  # type: ignore[import-untyped,unused-ignore]

        grey: Tensor = rgb_to_grayscale(images_NCHW, num_output_channels=3)
        return grey
    if kind == "bits":
        levels = 2**bits - 1
        few: Tensor = (images_NCHW.float() * levels / 255).round() * 255 / levels
        return few.round().to(torch.uint8)
    return images_NCHW


def _through_jpeg(image_CHW: Tensor, quality: int) -> Tensor:
    pixels, file = image_CHW.permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file)))
    return decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)
