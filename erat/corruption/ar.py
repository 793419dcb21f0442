"""AR, autoregressive perturbations (Sandoval-Segura et al., "Autoregressive Perturbations for Data Poisoning", 2022).

Every image gets noise of its own in which each value is a fixed combination of its eight neighbours above and to the
left. The combination tells the class: a filter of 3 x 3, as networks have them, gives zero on the noise of its class
alone. No linear rule on the values themselves sees it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.norms import l2_norm, per_image
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import by_part

MARGIN = 4  # rows and columns that are cut off; the first two hold the noise that a signal starts from
SIGNALS = 3  # signals that coefficients are tried with
CANDIDATES = 256  # coefficients of a channel that are drawn at once
POOL = 1000  # stable coefficients among which those of the classes are chosen; or four for each class, if that is more
MOST_NORM = 50.0  # of a signal that is stable, for CIFAR-10's 3 x 32 x 32 values, as in the authors' code
VALUES = 3 * 32 * 32


class Autoregressive(kinds.AR, DataCorruption):
    """Autoregressive perturbations: of norm exactly epsilon, under l_2, or with a largest value of epsilon."""

    def perturb(self, craft: Craft) -> Tensor:
        """Find coefficients for each class, and draw a signal for each image."""
        channels, height, width = craft.images.shape[1:]
        coefficients = find_coefficients(craft.num_classes, (channels, height, width), craft.generator)
        labels = craft.labels.cpu()

        def signals(part: slice) -> Tensor:
            signal = _signals(coefficients[labels[part]], height, width, craft.generator)
            size = l2_norm(signal) if craft.norm == "l2" else signal.abs().flatten(1).amax(1)
            return signal * per_image(craft.epsilon / size)

        return by_part(craft, "autoregressive signals", signals)


def find_coefficients(num_classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return coefficients for each class, float64 (K, C, 3, 3), of which the last is 0 and the others add up to 1.

    The classes are to be far apart: the filter of each must answer to the signals of all others. One after the other,
    that candidate is taken whose least answer to and from those before it is greatest. (The authors take the first
    candidates whose answers are at least 10, or 3 for a hundred classes, which depends on the size of the images.)

    Args:
        num_classes: K.
        shape: channels, height and width of the images.
        generator: the random generator that is drawn from.
    """
    channels, height, width = shape
    pool = max(POOL, 4 * num_classes)
    drawn = _stable(pool * channels, height, width, generator).view(pool, channels, 3, 3)
    signals = _signals(drawn, height, width, generator)
    signals = signals / per_image(l2_norm(signals))
    chosen = [0]
    apart = torch.full((pool,), torch.inf, dtype=torch.float64)
    while len(chosen) < num_classes:
        last = slice(chosen[-1], chosen[-1] + 1)
        apart = apart.minimum(response(drawn[last], signals)[:, 0]).minimum(response(drawn, signals[last])[0])
        chosen.append(int(apart.index_fill(0, torch.tensor(chosen), -1.0).argmax()))
    return drawn[chosen]


def _stable(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return coefficients of so many single channels, float64 (count, 1, 3, 3), whose signals do not grow."""
    most = MOST_NORM * (height * width / VALUES) ** 0.5  # every channel has an equal part of the norm of all
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        drawn = torch.randn(CANDIDATES, 1, 3, 3, generator=generator, dtype=torch.float64)
        drawn[..., 2, 2] = 0.0
        drawn /= drawn.sum((2, 3), keepdim=True)
        signals = _signals(drawn.repeat_interleave(SIGNALS, 0), height, width, generator)
        norms = l2_norm(signals).view(CANDIDATES, SIGNALS)
        found.append(drawn[((norms <= most) & (norms > 0)).all(1)])  # what is not a number is not at most anything
    return torch.cat(found)[:count]


def response(coefficients_KC33: Tensor, signals_NCHW: Tensor) -> Tensor:
    """Return how much each class's filter answers to each signal: the sum of its positive outputs, shape (N, K)."""
    filters = coefficients_KC33.clone()
    filters[..., 2, 2] = -1.0
    return F.conv2d(signals_NCHW, filters).relu().flatten(2).sum(2)


def _signals(coefficients_NC33: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return one signal for each set of coefficients, float64 (N, C, height, width), not normalised."""
    count, channels = coefficients_NC33.shape[:2]
    shape = (count, channels, height + MARGIN, width + MARGIN)
    signal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return unroll(signal, coefficients_NC33)[..., MARGIN:, MARGIN:]


def unroll(signal_NCHW: Tensor, coefficients_NC33: Tensor) -> Tensor:
    """Replace each value, row by row from the third row and column on, by the combination of those before it.

    One image does not depend on others: the eight products are added in a fixed order.
    """
    height, width = signal_NCHW.shape[2:]
    # Rows and columns first, so that a value of all images is one contiguous piece of memory.
    signal = signal_NCHW.permute(2, 3, 0, 1).contiguous()
    weights = coefficients_NC33.permute(2, 3, 0, 1).contiguous()
    for row in range(height - 2):
        for column in range(width - 2):
            total = weights[0, 0] * signal[row, column]
            for place in range(1, 8):
                i, j = divmod(place, 3)
                total += weights[i, j] * signal[row + i, column + j]
            signal[row + 2, column + 2] = total
    return signal.permute(2, 3, 0, 1)


AR = Autoregressive()
