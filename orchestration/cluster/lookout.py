"""Looks at a cluster beside Tune's loop, in which trials wait: the head of a cluster may take long to answer."""

from __future__ import annotations

from collections.abc import Mapping

from orchestration.cluster import session
from orchestration.cluster.autoscaling import Demand
from orchestration.storage.background import Background


class Lookout:
    """Counts the places of a cluster and tells its autoscaler what is wanted, in a thread of its own.

    Args:
        resources: resource -> amount that each worker needs.
        workers: number of workers of a trial.
        fewest: number of workers with which a trial can do if it must; None: all.
        demand: tells an autoscaling cluster how many trials the study would run; None: nobody is told.
    """

    def __init__(
        self, resources: Mapping[str, float], workers: int, fewest: int | None = None, demand: Demand | None = None
    ) -> None:
        self._resources, self._workers, self._fewest, self._demand = resources, workers, fewest, demand
        self._wanted = 0
        self._seen = self._count()
        self._thread = Background("lookout", self._look)

    def __enter__(self) -> Lookout:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.close()

    def seen(self, wanted: int | None = None) -> tuple[int, dict[str, int]]:
        """Return without waiting what was seen last: for how many trials there is room, in all and on each node.

        If trials have several workers, the room on each node is not counted, and the second part is empty.

        Args:
            wanted: number of trials that the study would run if there were room, which the thread passes on when it
                looks again. None: it does not look again.

        Raises:
            Exception: The error that ended the thread.
        """
        self._thread.check()
        if wanted is not None:
            self._wanted = wanted
            self._thread.wake()
        return self._seen

    def _count(self) -> tuple[int, dict[str, int]]:
        room = session.by_node(self._resources) if self._workers == 1 else {}
        return session.fitting(self._resources, self._workers, self._fewest), room

    def _look(self) -> None:
        self._seen = self._count()
        if self._demand is not None:
            self._demand.ask(self._wanted)
