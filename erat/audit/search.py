"""Searches for the perturbation budgets that suit an image set, by accuracy on validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from erat.audit.crossfit import judge, probabilities
from erat.audit.settings import customary_budgets, robust_settings
from erat.data.types import ImageSet
from erat.engine.evaluation import accuracy, attacked_predictions
from erat.engine.report import EpochReport

SCALES = (0.25, 0.5, 1.0, 2.0)  # factors on the customary budgets; the paper's Fig. 5 spans the same range


def search_budgets(
    images: ImageSet,
    held_out: torch.Tensor,
    overrides: Mapping[str, Any],
    trusted: ImageSet | None,
    on_epoch: Callable[[float, EpochReport], None],
) -> dict[float, float]:
    """Return the validation accuracy, in [0, 1], for each scale of the budgets.

    The trusted images serve for validation. Without any, the held-out images serve, with their given labels and under
    attack within the customary budgets: without the attack, a network that has learnt a poison would do best.

    Args:
        held_out: bool (N,), images that no network of the search is trained on.
        overrides: dotted keys of the configuration, kept at every scale.
        trusted: images whose labels are known to be right, or none.
        on_epoch: called with the scale and the report of each epoch.
    """
    reached = {}
    for scale in SCALES:
        config = robust_settings(images, overrides, scale=scale)
        _, defense = judge(config, images, held_out, partial(on_epoch, scale))
        device = next(defense.parameters()).device
        if trusted is not None:
            predicted = probabilities(defense, trusted.images.to(device)).argmax(1).cpu()
            reached[scale] = accuracy(trusted.labels, predicted)
        else:
            subject = images.take(held_out.nonzero().squeeze(1))
            attacked = attacked_predictions(defense, subject.to(device), customary_budgets(images)).cpu()
            reached[scale] = accuracy(subject.labels, attacked)
    return reached
