"""What Ray Tune runs for a trial. The module imports little: a worker that dies later has said where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune

from orchestration.cluster.landing import say_place


def trainable(resources: Mapping[str, float], workers: int) -> Any:
    """Return the function that Tune calls for each trial, with the resources that it needs."""
    from orchestration.cluster.execution import SLIVER, run_parallel_trial

    if workers == 1:
        return tune.with_resources(_tune_trial, {k: v for k, v in resources.items() if v})
    return tune.with_resources(run_parallel_trial, {"CPU": SLIVER})


def _tune_trial(parameters: dict[str, Any]) -> None:
    """Say where this worker is, and then execute trials; see `orchestration.cluster.execution.run_trials`."""
    if say_place():
        from orchestration.cluster.execution import run_trials

        run_trials(parameters)
