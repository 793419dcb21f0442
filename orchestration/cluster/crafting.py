"""Crafts corrupted sets as Ray tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions
import ray.train

from erat.config import RunConfig
from erat.corruption.pipeline import corrupted_set
from erat.errors import UserError
from erat.training import threads
from orchestration.cluster.progress import CraftProgress
from orchestration.cluster.session import JOIN_SECONDS, POLL_SECONDS, hide_other_devices, node_workspace, slots
from orchestration.run.resources import needs
from orchestration.storage.workspace import Workspace


def craft_sets(
    groups: Sequence[Sequence[RunConfig]],
    workspace: Workspace,
    told: Callable[[int, str, int, int], None],
    ended: Callable[[int], None] = lambda index: None,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Craft the sets of each group, which share their images, as one Ray task.

    Args:
        groups: configurations, one per set.
        workspace: the workspace of the driver.
        told: called with (index of the group, what is done, steps done, steps in all) while the tasks run.
        ended: called with the index of each group whose sets are all in the store.
        given_up: called repeatedly; returns whether to stop waiting.

    Raises:
        UserError: no node has the resources that a task needs, or a task failed. The other tasks end with the
            connection to Ray, and resume from their saved state when they are started again.
    """
    task = ray.remote(_craft_task)
    running: dict[Any, int] = {}
    said = [CraftProgress(group[0], workspace.sharing(group[0].storage.path)) for group in groups]
    for index, group in enumerate(groups):
        wanted = needs(group[0])
        asked = task.options(num_cpus=wanted["CPU"], num_gpus=wanted["GPU"])
        running[asked.remote([config.model_dump_json() for config in group], str(workspace.root))] = index
    # The tasks come first, because an autoscaler adds nodes for tasks that wait.
    for group in groups:
        slots(needs(group[0]), 1, patience=JOIN_SECONDS, what=f"crafting {group[0].corruption.data}")
    try:
        while running and not given_up():
            over, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for index in running.values():
                if (progress := said[index].read()) is not None:
                    told(index, *progress)
            for reference in over:
                for warning in ray.get(reference):
                    warnings.warn(warning, stacklevel=2)
                index = running.pop(reference)
                said[index].remove()
                ended(index)
    except ray.exceptions.RayTaskError as error:
        # The other tasks are not cancelled, because Ray aborts this process if one ends at that moment. They end with
        # the connection.
        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None


def _craft_task(configs: list[str], root: str) -> list[str]:
    """Craft sets, one after the other, in a Ray worker, and return the warnings."""
    hide_other_devices()
    wanted = [RunConfig.model_validate_json(config) for config in configs]
    workspace = node_workspace(wanted[0], root)
    said = CraftProgress(wanted[0], workspace)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for config in wanted:
            with threads(config):
                corrupted_set(config, workspace.store(), said.write)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
