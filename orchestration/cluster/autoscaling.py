"""Talks to the autoscaler of a Ray cluster: whether there is one, and how much a study wants of it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.autoscaler.sdk
import ray.exceptions
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get

RENEW_SECONDS = 60.0  # a request is repeated after this time, because another study's end withdraws it
SETTLE_SECONDS = 15.0  # after this time a request that was not refused counts as accepted; Ray looks every 5 s


def autoscales() -> bool | None:
    """Return whether the connected cluster adds nodes when they are wanted; None if that is not known (yet).

    Ray has no public function for this. But every head reports what its autoscaler sees, some seconds after its start.
    On a cluster that was started by hand the autoscaler only watches, and there the type of each node is its name. With
    KubeRay and Ray's second autoscaler, nodes have other types on a cluster of fixed size too: it counts as growing.
    """
    try:
        # The cached answer is refreshed, because it may be of an earlier cluster, and requests depend on it.
        second = is_autoscaler_v2(fetch_from_server=True)
        moving, types = _seen_by_the_second() if second else _seen_by_the_first()
    except (AssertionError, RuntimeError, ValueError, ray.exceptions.RayError):
        # The head does not answer, or it is reached through Ray Client, or Ray has another version.
        return None
    by_hand = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return True if moving else bool(types - by_hand) if types else None


def _seen_by_the_first() -> tuple[bool, set[str]]:
    """Return whether Ray's first autoscaler starts nodes (or failed to), and the types of the nodes that it sees."""
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    seen: dict[str, Any] = report.get("autoscaler_report") or {}
    moving = any(seen.get(key) for key in ("pending_nodes", "pending_launches", "failed_nodes"))
    return moving, set(seen.get("active_nodes") or {})


def _seen_by_the_second() -> tuple[bool, set[str]]:
    """Return the same for Ray's second autoscaler."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if not int(status.stats.autoscaler_version or 0):
        return False, set()  # it has not reported yet
    moving = bool(status.pending_launches or status.pending_nodes or status.failed_launches)
    return moving, {node.ray_node_type_name for node in [*status.active_nodes, *status.idle_nodes]}


def _refused(bundles: int) -> bool:
    """Return whether the autoscaler finds that the cluster can never hold so many bundles, for which it was asked.

    The first autoscaler then adds as many nodes as it may, and says nothing; the second one adds none.
    """
    if not is_autoscaler_v2():
        return False
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    refused = reply.autoscaling_state.infeasible_cluster_resource_constraints
    return any(sum(request.count for request in each.resource_requests) == bundles for each in refused)


class Demand:
    """What a study wants of an autoscaling cluster; without an autoscaler, nobody reads it.

    The cluster has one demand: of two studies, the one that has asked last. If the autoscaler refuses a demand as too
    large, a smaller one is made, until the largest is found that it accepts.

    Args:
        resources: resource -> amount that each worker needs.
        workers: number of workers of a trial.
    """

    def __init__(self, resources: Mapping[str, float], workers: int) -> None:
        self._bundle = {kind: amount for kind, amount in resources.items() if amount}
        self._workers = workers
        self._wanted = 0
        self._asked, self._when = 0, -RENEW_SECONDS
        self._accepted = 0  # most trials for which the cluster was asked and that were not refused
        self._too_many: int | None = None  # fewest trials that were refused

    def ask(self, trials: int) -> None:
        """Ask for a cluster on which so many trials can run at the same time.

        The request counts what runs already, and holds until the next one.
        """
        self._wanted = trials
        self.renew()

    def renew(self) -> None:
        """Ask again, if the last request was refused or is old; called every second or so while something is wanted."""
        now = time.monotonic()
        try:
            self._learn(now)
            most = self._wanted if self._too_many is None else max(1, (self._accepted + self._too_many) // 2)
            trials = min(self._wanted, most)
            if trials != self._asked or (trials and now - self._when >= RENEW_SECONDS):
                self._asked, self._when = trials, now
                ray.autoscaler.sdk.request_resources(bundles=[self._bundle] * (trials * self._workers))
        except Exception as error:
            # Without the request the cluster still grows, with the trials that wait for a place.
            warnings.warn(f"the cluster's autoscaler cannot be asked for nodes: {error}", stacklevel=2)

    def _learn(self, now: float) -> None:
        """Learn from the autoscaler's answer whether the last request was too large.

        The answer comes from the cluster's head, and trials wait for it in Tune's loop: once a request counts as
        accepted, this asks only when the request is due to be repeated.
        """
        if not self._asked or (self._asked <= self._accepted and now - self._when < RENEW_SECONDS):
            return
        if _refused(self._asked * self._workers):
            self._too_many, self._accepted = self._asked, min(self._accepted, self._asked - 1)
        elif now - self._when >= SETTLE_SECONDS:
            self._accepted = max(self._accepted, self._asked)

    @contextmanager
    def held(self) -> Iterator[Demand]:
        """Withdraw at the end of the block what was asked in it, also after an error or Ctrl-C."""
        try:
            yield self
        finally:
            self.ask(0)
