"""Finds and kills the processes in which Ray Tune runs trials."""

from __future__ import annotations

import psutil
from ray.cluster_utils import Cluster


def workers_of(node: object) -> list[psutil.Process]:
    """Return the processes of a node of `ray.cluster_utils.Cluster` that run trials, or could."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
    names = ("ImplicitFunc", "_tune_trial")
    return [each for each in raylet.children(recursive=True) if any(name in " ".join(each.cmdline()) for name in names)]


def kill_workers(cluster: Cluster) -> list[int]:
    """Kill all such processes of a cluster's head, and return their numbers."""
    found = workers_of(cluster.head_node)
    for process in found:
        process.kill()
    return [process.pid for process in found]
