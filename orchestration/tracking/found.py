"""A run as MLflow has it, to be compared with what the ledger and the run's directory say."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from orchestration.tracking.text import metric_name


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as MLflow has it.

    Attributes:
        run_id: MLflow's id of the run.
        status: MLflow's status of the run, such as "RUNNING".
        tags: its tags.
        params: names of its params.
        metrics: name of a metric -> latest value.
    """

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: Set[str]
    metrics: Mapping[str, float]

    @property
    def is_parent(self) -> bool:
        """Return whether this is the run of a whole study."""
        return "role" in self.tags

    def has(self, tags: Mapping[str, str], params: Collection[str], summary: Mapping[str, float | None]) -> bool:
        """Return whether MLflow has these tags, any params, and these final metrics, and no other error.

        Params are sent together when a run begins. A run of an earlier version lacks those that came later, which is no
        reason to touch it.

        Args:
            tags: tags as MLflow keeps them.
            params: names of the params that it would have today.
            summary: final metrics; those that are not finite numbers do not count.
        """
        numbers = {metric_name(key): value for key, value in summary.items() if value is not None}
        return (
            self.tags.get("error") == tags.get("error")
            and all(self.tags.get(key) == tag for key, tag in tags.items())
            and (bool(self.params) or not params)
            and all(self.metrics.get(key) == value for key, value in numbers.items() if math.isfinite(value))
        )
