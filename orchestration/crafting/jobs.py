"""Crafts corrupted sets ahead of training: in this process, or as Ray tasks beside runs whose sets are ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from erat.config import RunConfig
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data.types import CorruptedSet
from erat.training import threads
from orchestration.crafting.sets import _set_key, by_images, missing_sets, placed, set_name
from orchestration.storage.workspace import Workspace

Told = Callable[[str, str, int, int], None]  # name of a set, what is done of it, how much is done, of how much


def _tasks(missing: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return the tasks of a cluster: groups of sets that share images, each set with the device that crafts it."""
    return [[placed(config) for config in group] for group in by_images(missing)]


def _store(config: RunConfig, workspace: Workspace) -> Store:
    return workspace.sharing(config.storage.path).store()


def craft_here(config: RunConfig, workspace: Workspace, told: Told) -> CorruptedSet:
    """Return the corrupted set of a configuration, and craft it in this process if it is not in the store."""
    with threads(config):
        return corrupted_set(config, _store(config, workspace), partial(told, set_name(config)))


def craft_on_cluster(configs: Sequence[RunConfig], workspace: Workspace, address: str, told: Told) -> None:
    """Craft on the cluster at `address` the sets that these configurations need and the store lacks.

    As many sets are crafted at the same time as the cluster has resources for.

    Raises:
        UserError: no cluster answers, a node cannot craft, or a task has raised this error.
    """
    from orchestration.cluster import crafting, session

    groups = _tasks(missing_sets(configs, workspace))
    if not groups:
        return
    with session.connection(address):
        session.check_nodes(workspace.sharing(configs[0].storage.path))
        crafting.craft_sets(groups, workspace, lambda index, *progress: told(set_name(groups[index][0]), *progress))


class Crafting:
    """Crafts sets on Ray while runs whose sets are ready are trained.

    Args:
        missing: one configuration for each set that the store lacks.
        workspace: the workspace whose store gets the sets.
    """

    def __init__(self, missing: Sequence[RunConfig], workspace: Workspace) -> None:
        self._groups, self._workspace = _tasks(missing), workspace
        self._waiting = set(range(len(self._groups)))
        self._error: BaseException | None = None

    @contextmanager
    def running(self, told: Told) -> Iterator[None]:
        """Craft on the connected cluster while the block runs; sets that are not done at its end are left undone."""
        if not self._groups:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._craft, args=(told, over.is_set), name="crafting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _craft(self, told: Told, given_up: Callable[[], bool]) -> None:
        from orchestration.cluster import crafting

        def named(index: int, what: str, done: int, total: int) -> None:
            told(set_name(self._groups[index][0]), what, done, total)

        try:
            crafting.craft_sets(self._groups, self._workspace, named, self._waiting.discard, given_up)
        except BaseException as error:  # raised again by the gate when the next run is asked for
            self._error = error

    def gate(self, baselines: Sequence[RunConfig], points: Sequence[RunConfig]) -> Callable[[int], bool]:
        """Return a gate, a function that says whether the run of a number may begin.

        A baseline may begin once its set is ready, any other run once the sets of all points are ready. The gate raises
        any error that crafting has raised.

        Args:
            baselines: the configurations of the first runs, numbered from 0.
            points: configurations that need every set that the search can ask for.
        """
        groups = {_set_key(config): index for index, group in enumerate(self._groups) for config in group}
        own = [groups.get(_set_key(config)) for config in baselines]
        searched = {groups.get(_set_key(config)) for config in points}

        def ready(number: int) -> bool:
            if self._error is not None:
                raise self._error
            return own[number] not in self._waiting if number < len(own) else not searched & self._waiting

        return ready
