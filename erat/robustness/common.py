"""Corrupts images as cameras and files do: eight kinds, each in three severities.

The kinds and their strengths are those of severities 1, 3 and 5 of CIFAR-10-C: Hendrycks, Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019). Unlike there, images are not rounded to
8 bits afterwards (but for JPEG), and pixels are merged by mean pooling over whole pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.data.squeeze import squeeze
from erat.data.types import to_float
from erat.defenses.base import Defense
from erat.seeding import generator

SEVERITIES = (1, 3, 5)
NOISE, BLUR, JPEG = (0.04, 0.08, 0.10), (0.4, 0.7, 1.0), (80, 58, 40)
# Kind -> its strength at each of the severities: the standard deviation of Gaussian noise; photons at white, of shot
# noise; the share of values that impulses turn black or white; sigma of the blur in pixels; the factor of contrast;
# what is added to the brightness; the share of the side that is left of an image with fewer, larger pixels; JPEG
# quality.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": NOISE,
    "shot": (500, 100, 50),
    "impulse": (0.01, 0.03, 0.07),
    "blur": BLUR,
    "contrast": (0.75, 0.4, 0.15),
    "brightness": (0.05, 0.15, 0.3),
    "pixelate": (0.95, 0.85, 0.65),
    "jpeg": JPEG,
}


def corrupt(images: Tensor, kind: str, strength: float, seed: int = 0) -> Tensor:
    """Convert uint8 images to floats in [0, 1] and apply a common corruption.

    Args:
        kind: "none" (no corruption), or a key of `STRENGTHS`.
        strength: as in `STRENGTHS`.
        seed: the seed of what is random.
    """
    if kind == "jpeg":
        return to_float(squeeze(images, "jpeg", quality=int(strength)))
    pixels = to_float(images)
    if kind == "blur":
        return blurred(pixels, strength)
    if kind == "contrast":
        mean = pixels.mean((2, 3), keepdim=True)
        return ((pixels - mean) * strength + mean).clamp(0, 1)
    if kind == "brightness":
        return brightened(pixels, strength)
    if kind == "pixelate":
        side = max(1, int(pixels.shape[-1] * strength))
        return F.interpolate(F.adaptive_avg_pool2d(pixels, side), pixels.shape[-2:], mode="nearest")
    if kind != "none":
        return _with_noise(pixels, kind, strength, generator(seed, kind, strength))
    return pixels


def _with_noise(pixels: Tensor, kind: str, strength: float, random: torch.Generator) -> Tensor:
    """Add random noise, which is drawn on the CPU, so that it is the same on every device."""
    if kind == "noise":
        noise = torch.randn(pixels.shape, generator=random).to(pixels.device)
        return (pixels + strength * noise).clamp(0, 1)
    if kind == "shot":
        return (torch.poisson(pixels.cpu() * strength, generator=random) / strength).clamp(0, 1).to(pixels.device)
    assert kind == "impulse", kind
    drawn = torch.rand(pixels.shape, generator=random).to(pixels.device)
    return torch.where(drawn < strength / 2, 0.0, torch.where(drawn >= 1 - strength / 2, 1.0, pixels))


def blurred(pixels_NCHW: Tensor, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) with a Gaussian of standard deviation `sigma` in pixels."""
    from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped,unused-ignore]

    side = 2 * min(max(1, round(2 * sigma)), (pixels_NCHW.shape[-1] - 1) // 2) + 1
    smooth: Tensor = gaussian_blur(pixels_NCHW, side, sigma) if side > 1 else pixels_NCHW
    return smooth


def brightened(pixels_NCHW: Tensor, added: float) -> Tensor:
    """Add to the value of each pixel in the sense of HSV, up to 1; hue and saturation stay."""
    value = pixels_NCHW.amax(1, keepdim=True)
    target = (value + added).clamp_max(1)
    return torch.where(value > 0, pixels_NCHW * (target / value.clamp_min(1e-6)), target).clamp(0, 1)


def corrupted_classes(defense: Defense, images: Tensor, kind: str, strength: float, seed: int) -> Tensor:
    """Return the classes, int64 (N,), that are predicted for uint8 images under a common corruption; see `corrupt`."""
    with frozen(defense), torch.no_grad():
        predicted = [
            defense.predict(corrupt(images[part], kind, strength, seed + part.start)).argmax(1)
            for part in parts(len(images), 1000)
        ]
    return torch.cat(predicted)


def parts(count: int, size: int) -> Sequence[slice]:
    """Divide `count` rows into slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
