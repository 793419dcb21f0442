"""Applies image operations to a whole batch at once, with a magnitude for each image.

All functions are pure: input images are float32 NCHW in [0,1] with 1 or 3 channels, on any device, and are not
modified; output images have the same shape and range. A magnitude is a tensor of shape (N,) on the same device.

Images need not lie on the 8-bit grid (adversarial ones do not). For those that do, the result equals that of the 8-bit
kernels of torchvision to within one grey level, because results are not cut to whole levels here after each operation.
Operations that count or mask levels (equalize, posterize) first round to the nearest level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

MAX_LEVEL = 255

# --- geometric: matrices on the host, then one resampling of all images -------------------------------------------
#
# A matrix maps a pixel of the result to the pixel of the source from which it is read, both in pixels from the centre
# of the image, x to the right and y down. Magnitudes here are float64 on the CPU: rounding to float32 only at the end
# keeps the nearest pixel the same as in a computation with Python floats.


def shear_x_matrix(magnitude: Tensor, height: int, width: int) -> Tensor:
    """Return matrices that shear along x by `magnitude` pixels per row, the upper edge fixed: float32, (N, 2, 3)."""
    matrix = _identity(len(magnitude))
    matrix[:, 0, 1] = magnitude
    matrix[:, 0, 2] = magnitude * (height / 2)
    return matrix.float()


def shear_y_matrix(magnitude: Tensor, height: int, width: int) -> Tensor:
    """Return matrices that shear along y by `magnitude` pixels per column, the left edge fixed: float32, (N, 2, 3)."""
    matrix = _identity(len(magnitude))
    matrix[:, 1, 0] = magnitude
    matrix[:, 1, 2] = magnitude * (width / 2)
    return matrix.float()


def translate_x_matrix(magnitude: Tensor, height: int, width: int) -> Tensor:
    """Return matrices that shift right by whole pixels, `magnitude` cut towards zero: float32, (N, 2, 3)."""
    matrix = _identity(len(magnitude))
    matrix[:, 0, 2] = -magnitude.trunc()
    return matrix.float()


def translate_y_matrix(magnitude: Tensor, height: int, width: int) -> Tensor:
    """Return matrices that shift down by whole pixels, `magnitude` cut towards zero: float32, (N, 2, 3)."""
    matrix = _identity(len(magnitude))
    matrix[:, 1, 2] = -magnitude.trunc()
    return matrix.float()


def rotate_matrix(magnitude: Tensor, height: int, width: int) -> Tensor:
    """Return matrices that rotate about the centre by `magnitude` degrees, counter-clockwise: float32, (N, 2, 3)."""
    angle = magnitude.deg2rad()
    matrix = _identity(len(magnitude))
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix.float()


def _identity(n: int) -> Tensor:
    return torch.eye(2, 3, dtype=torch.float64).repeat(n, 1, 1)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample each image by its own matrix: nearest pixel, black outside the source.

    Args:
        images: shape (N, C, H, W).
        matrices: float32, shape (N, 2, 3), from result to source in pixels from the centre.
    """
    height, width = images.shape[-2:]
    # grid_sample takes source positions as -1..1 from edge to edge. The operations come in the order of torchvision's
    # affine map of float32 numbers, so that positions half-way between two pixels mostly fall on the same side.
    rows = torch.stack((matrices[:, 0] / (width / 2), matrices[:, 1] / (height / 2)), dim=1)
    of_x, of_y, offset = rows[..., None, None].unbind(2)
    x = _centred(width, images.device)
    y = _centred(height, images.device).unsqueeze(-1)
    grid = torch.addcmul(y * of_y, x, of_x).add_(offset)
    # The grid is no matrix product, because reduced-precision modes (TF32, autocast) would move it by whole pixels.
    return grid_sample(images, grid.movedim(1, -1), mode="nearest", padding_mode="zeros", align_corners=False)


def _centred(size: int, device: torch.device) -> Tensor:
    """Return the positions of pixel centres from the centre of the image: -(size-1)/2 .. (size-1)/2, shape (size,)."""
    return torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2


# --- photometric --------------------------------------------------------------------------------------------------


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Multiply by 1 + magnitude; -1 gives black."""
    return images.mul(_per_image(1 + magnitude)).clamp_(max=1)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from the image's own grey version (towards it if the magnitude is negative)."""
    if images.shape[1] == 1:
        return images.clone()
    return _away_from(_grey(images), images, magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from the image's mean grey."""
    grey = images if images.shape[1] == 1 else _grey(images)
    return _away_from(grey.mean(dim=(1, 2, 3), keepdim=True), images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from a 3x3 blur (centre 5/13, its eight neighbours 1/13 each); border pixels are unchanged."""
    height, width = images.shape[-2:]
    result = images.clone()
    if height <= 2 or width <= 2:
        return result
    inner = result[:, :, 1:-1, 1:-1]
    # The box sum in two directions is faster than a depthwise convolution with so few channels.
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = box.add_(inner, alpha=4).div_(13)
    inner.copy_(_away_from(blurred, inner, magnitude))
    return result


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the `magnitude` (a whole number 0..8) highest bits of the 8-bit level."""
    step = _per_image(torch.exp2(8 - magnitude).round_())  # exp2 need not be exact on every device
    return _levels(images).div_(step).floor_().mul_(step).div_(MAX_LEVEL)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels that are at or above the threshold `magnitude`."""
    # Thresholds of 1/3 and 2/3 are exactly the levels 85 and 170. Lowering them by a hundredth of a level makes sure
    # that rounding does not exclude pixels at the threshold.
    threshold = _per_image(magnitude - 0.01 / MAX_LEVEL)
    # |1 - x| if inverted, else |0 - x|: several times faster than a choice per pixel.
    return (images >= threshold).to(images.dtype).sub_(images).abs_()


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to the full range; a channel of one value is unchanged. The magnitude is unused."""
    low = images.amin(dim=(2, 3), keepdim=True)
    spread = images.amax(dim=(2, 3), keepdim=True).sub_(low)
    flat = spread == 0
    return images.sub(low.masked_fill_(flat, 0)).div_(spread.masked_fill_(flat, 1))


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Flatten each channel's histogram of 8-bit levels, as PIL does. The magnitude is unused."""
    n, channels, height, width = images.shape
    # PIL spreads all pixels but those of the highest level over 255 steps. It leaves a channel unchanged that has less
    # than one pixel per step, which is so for every channel of a tiny image.
    if height * width <= MAX_LEVEL:
        return images.clone()
    channel_count = n * channels
    levels = _levels(images).reshape(channel_count, height * width).int()
    # One flat index for all channels: bin 256 k + l is level l of channel k.
    first_bin = torch.arange(channel_count, device=images.device).unsqueeze_(1) * (MAX_LEVEL + 1)
    bins = (levels + first_bin).flatten()
    counts = levels.new_zeros(channel_count * (MAX_LEVEL + 1))
    counts = counts.scatter_add_(0, bins, counts.new_ones(1).expand_as(bins)).view(channel_count, -1)
    below = counts.cumsum(dim=1, dtype=torch.int32).sub_(counts).float()
    of_highest = counts.gather(1, levels.amax(dim=1, keepdim=True).long())
    # Divisions in float32 are faster than in integers, and exact after floor for counts below 2^23.
    step = (height * width - of_highest).float().div_(MAX_LEVEL).floor_()
    table = below.add_((step / 2).floor_()).div_(step.clamp(min=1)).floor_().clamp_(max=MAX_LEVEL)
    table = torch.where(step > 0, table, torch.arange(MAX_LEVEL + 1.0, device=images.device)).div_(MAX_LEVEL)
    return table.flatten().index_select(0, bins).view_as(images)


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """Turn x into 1 - x. The magnitude is unused."""
    return 1 - images


MATRICES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "shear_x": shear_x_matrix,
    "shear_y": shear_y_matrix,
    "translate_x": translate_x_matrix,
    "translate_y": translate_y_matrix,
    "rotate": rotate_matrix,
}

PHOTOMETRIC_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}


def _per_image(values: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, 1, 1), so that the values are broadcast over images."""
    return values.view(-1, 1, 1, 1)


def _away_from(reference: Tensor, images: Tensor, magnitude: Tensor) -> Tensor:
    """Return images + magnitude * (images - reference), clamped to [0,1]: magnitude -1 gives the reference."""
    return torch.addcmul(images, images - reference, _per_image(magnitude)).clamp_(0, 1)


def _levels(images: Tensor) -> Tensor:
    """Return the nearest 8-bit level, 0..255, as float32 in a new tensor."""
    return images.mul(MAX_LEVEL).round_()


def _grey(images: Tensor) -> Tensor:
    """Return the luma of colour images, (N, 3, H, W) -> (N, 1, H, W), in [0,1], cut to levels as 8-bit kernels do."""
    red, green, blue = _levels(images).unbind(1)
    luma = red.mul_(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma.floor_().div_(MAX_LEVEL).unsqueeze_(1)
