"""The confirmation of a search: its best trials are repeated with further seeds, because one seed may be lucky."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

from erat.options import SEEDS
from orchestration.study.trial import Trial, confirmation


def confirmations(searched: Iterable[Trial], top: int, seeds: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and dotted keys of the trials that confirm the best ones, the first further seed of each first.

    Args:
        searched: the search's trials, of which those that are done may be confirmed. Of equals, the earlier one is.
        top: number of the best trials that are confirmed.
        seeds: number of seeds of each of them in all.
    """
    done = [(trial.best_val_accuracy, trial) for trial in searched if trial.status == "done"]
    ranked = sorted(
        ((best, trial) for best, trial in done if best is not None and isfinite(best)),
        key=lambda each: (-each[0], each[1].number),
    )
    for repeat in range(1, seeds):
        for _, trial in ranked[:top]:
            seed = (trial.config["train.seed"] + repeat) % SEEDS
            yield confirmation(trial.number, repeat), trial.params | {"train.seed": seed}
