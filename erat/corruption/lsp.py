"""LSP, linearly separable perturbations (Yu et al., "Availability Attacks Create Shortcuts", KDD 2022).

Each image gets coloured patches that scikit-learn's `make_classification` draws for its class: a linear rule on the
patches tells all classes apart, so that a network need not look at what an image shows.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import make_classification  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from erat.attacks.norms import l2_norm, per_image
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import by_part
from erat.errors import UserError

CLASS_SEP = 10.0  # distance of the classes' centres, whose samples have a standard deviation of a few units


class LinearlySeparable(kinds.LSP, DataCorruption):
    """Linearly separable perturbations: of norm exactly epsilon, under l_2, or with a largest value of epsilon."""

    def perturb(self, craft: Craft) -> Tensor:
        """Draw the colours of the patches of every image, and enlarge them to its size."""
        channels, height, width = craft.images.shape[1:]
        patches = craft.options["patches"]
        colours_NCpp = torch.from_numpy(_features(craft, channels * patches**2)).view(-1, channels, patches, patches)

        def enlarged(part: slice) -> Tensor:
            pattern = F.interpolate(colours_NCpp[part], (height, width), mode="nearest")
            size = l2_norm(pattern) if craft.norm == "l2" else pattern.abs().flatten(1).amax(1)
            return pattern * per_image(craft.epsilon / size)

        return by_part(craft, "patches", enlarged)


def _features(craft: Craft, count: int) -> NDArray[np.float64]:
    """Return so many features of each image, float64 (N, count), drawn around the centre of its class.

    Raises:
        UserError: the features have fewer corners than there are classes, which are put at corners of a cube.
    """
    if craft.num_classes > 2**count:
        raise UserError(
            f"corruption.patches must give at least {(craft.num_classes - 1).bit_length()} values for "
            f"{craft.num_classes} classes, got {craft.options['patches']}, which give {count}"
        )
    labels = craft.labels.cpu().numpy()
    most = int(np.bincount(labels, minlength=craft.num_classes).max())
    drawn, classes = make_classification(
        n_samples=craft.num_classes * (most + 1),  # one more each: the library's division of them may round down
        n_features=count,
        n_informative=count,
        n_redundant=0,
        n_repeated=0,
        n_classes=craft.num_classes,
        n_clusters_per_class=1,
        class_sep=CLASS_SEP,
        flip_y=0.0,
        shuffle=False,
        random_state=int(torch.randint(2**31, (), generator=craft.generator)),
    )
    features = np.empty((len(labels), count))
    for label in range(craft.num_classes):
        mine = labels == label
        features[mine] = drawn[classes == label][: mine.sum()]
    return features


LSP = LinearlySeparable()
