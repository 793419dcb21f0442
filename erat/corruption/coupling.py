"""Couple the corruption of labels with that of images; beyond the paper, which draws both from clean data.

A coupling changes what one part is made from and leaves the rest as it is: the store then shares the rest with every
other run on these images.

| coupling       | labels                                    | images                                              |
|----------------|-------------------------------------------|-----------------------------------------------------|
| `independent`  | from clean data                           | from clean data                                     |
| `labels_first` | as `independent`                          | crafted for the given labels                        |
| `annotator`    | given by a network that sees the images   | as `independent`                                    |
| `bound`        | of class y + 3 in a share of the images   | drawn to class y + 3                                |
| `overlap`      | as `independent`                          | as `independent`; which of them are used is chosen  |

Symbols: N images, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.corruption.labels import LabelNoise, asymmetric, noise_of
from erat.data.types import ImageSet, to_float
from erat.errors import UserError
from erat.options import SOURCE_EPOCHS, too_little_overlap
from erat.seeding import derive

AWAY = 3  # classes between the class of an image and the one that `bound` makes of it
BATCH = 1000  # images that the annotator looks at together


def bound_to(num_classes: int) -> dict[int, int]:
    """Return the class that `bound` makes of each class: (y + 3) mod K.

    Raises:
        UserError: these are the classes themselves, because there are three or one.
    """
    if AWAY % num_classes == 0:
        raise UserError(f"corruption.coupling=bound needs a number of classes other than 1 and 3, got {num_classes}")
    return {y: (y + AWAY) % num_classes for y in range(num_classes)}


def bound_labels(labels_N: Tensor, num_classes: int, rate: float, seed: int, *, exact: bool) -> LabelNoise:
    """Relabel a share of each class as the class that `bound` makes of it; arguments as in `asymmetric`."""
    return asymmetric(labels_N, num_classes, rate, seed, similar=bound_to(num_classes), exact=exact)


def aimed_at(labels_N: Tensor, num_classes: int, towards: int) -> Tensor:
    """Return the labels for which a poison is crafted so that it draws each image to the class that `bound` asks for.

    Args:
        labels_N: the true classes, int64 (N,).
        num_classes: K.
        towards: the number of classes after the label of an image of the one that the poison draws it to.
    """
    bound_to(num_classes)  # refuses classes that would be drawn to themselves
    return (labels_N + AWAY - towards) % num_classes


def annotator_config(config: RunConfig) -> RunConfig:
    """Return the configuration whose source network is the annotator: another seed, and trained in any case."""
    options = config.corruption
    other = {
        "seed": derive(options.seed, "annotator") % 2**32,
        "source_epochs": options.source_epochs or SOURCE_EPOCHS,
        "source_weights": None,
        "source_weights_digest": None,
    }
    return config.model_copy(update={"corruption": options.model_copy(update=other)})


@torch.no_grad()
def annotated(network: nn.Module, images_NCHW: Tensor, subject: ImageSet, rate: float) -> tuple[LabelNoise, float]:
    """Let a network give the labels of the images that it sees, at the asked rate.

    An annotator errs where it is least sure: the round(rate * N) images whose best wrong class comes nearest to the
    true one, or is furthest above it, get that wrong class; the others keep the true one.

    Args:
        network: maps images to logits (B, K), in eval mode; it was trained on clean images and true labels.
        images_NCHW: the images that the annotator sees, uint8.
        subject: the set with its true labels.
        rate: the share of wrong labels, in [0, 1].

    Returns:
        (the labels; the share of the images whose true class the network names).
    """
    device = next(network.parameters()).device
    logits = torch.cat([network(to_float(part.to(device))).double().cpu() for part in images_NCHW.split(BATCH)])
    true = subject.labels.cpu()[:, None]
    right = logits.gather(1, true).squeeze(1)
    wrong, classes = logits.scatter(1, true, -math.inf).max(1)
    mistaken = (wrong - right).argsort(descending=True, stable=True)[: round(rate * len(subject))]
    given = subject.labels.cpu().clone()
    given[mistaken] = classes[mistaken]
    return noise_of(subject.labels, given.numpy(), subject.num_classes), float((right > wrong).double().mean())


def overlapping(wrong_N: Tensor, share: float, overlap: float, generator: torch.Generator) -> Tensor:
    """Choose which images are poisoned so that they and the mislabelled ones have a given share in common.

    Args:
        wrong_N: which images are mislabelled, bool (N,).
        share: the share of the images that are poisoned.
        overlap: how many are both, as a share of the smaller of the two sets: 0 disjoint, 1 one inside the other.
        generator: the random generator that chooses, on the CPU.

    Returns:
        Which images are poisoned, bool (N,).

    Raises:
        UserError: so many images cannot have so few in common.
    """
    total, poisoned, mislabelled = len(wrong_N), round(share * len(wrong_N)), int(wrong_N.sum())
    most = min(poisoned, mislabelled)
    both, least = round(overlap * most), max(0, poisoned + mislabelled - total)
    if both < least:
        raise too_little_overlap(least / most, share, mislabelled / total, overlap)
    order = torch.randperm(total, generator=generator)
    is_wrong = wrong_N.cpu()[order]
    chosen = torch.cat([order[is_wrong][:both], order[~is_wrong][: poisoned - both]])
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, chosen, True)


def realised(poisoned_N: Tensor, wrong_N: Tensor) -> dict[str, Any]:
    """Return what a manifest says of the images that are poisoned and mislabelled.

    Returns:
        "overlap": how many are both, as a share of the smaller of the two sets, none if that is empty; "poisoned",
        "mislabelled", "both": their shares of all images.
    """
    counts = [int(part.sum()) for part in (poisoned_N, wrong_N, poisoned_N & wrong_N)]
    poisoned, mislabelled, both = (count / max(len(wrong_N), 1) for count in counts)
    overlap = counts[2] / min(counts[:2]) if min(counts[:2]) else None
    return {"overlap": overlap, "poisoned": poisoned, "mislabelled": mislabelled, "both": both}
