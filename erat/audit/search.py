"""A search for the budgets that suit a set of one's own, on validation data."""

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

SCALES = (0.25, 0.5, 1.0, 2.0)  # of the customary budgets; the paper's Fig. 5 spans as much


def search_budgets(
    images: ImageSet,
    held_out: torch.Tensor,
    overrides: Mapping[str, Any],
    trusted: ImageSet | None,
    on_epoch: Callable[[float, EpochReport], None],
) -> dict[float, float]:
    """Scale of the budgets -> validation accuracy, in [0, 1].

    Validation is on the trusted images. Without any it is on the images held out, by their given labels, and attacked
    within the customary budgets: as they are, a network that has learnt a poison would do best.

    Args:
        held_out: bool (N,), images that no network of the search is trained on.
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
