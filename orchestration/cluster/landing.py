"""What a worker says of its place, and what further trial it is handed: both go through the store of Ray's head node.

This module imports nothing large, because a worker says where it is before it imports torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from orchestration.run.places import Place

PLACES = "erat-places"  # part of that store with the place of each worker, by Ray's id of its actor
NEXT = "erat-next"  # part of that store with the parameters of the trial that a worker is to run next


def say_place() -> None:
    """Put where this worker is into that store."""
    actor = ray.get_runtime_context().get_actor_id()
    _internal_kv_put(str(actor), json.dumps(asdict(place())).encode(), namespace=PLACES)


def place() -> Place:
    """Return where this worker runs."""
    context = ray.get_runtime_context()
    devices = context.get_accelerator_ids().get("GPU") or []
    return Place(context.get_node_id(), ray.util.get_node_ip_address(), tuple(sorted(devices)))


def said_place(actor: str) -> Place | None:
    """Return where a worker said it was; None if it died before it could.

    Args:
        actor: Ray's id of its actor.
    """
    said = _internal_kv_get(actor, namespace=PLACES)
    return None if said is None else place_from(said)


def place_from(said: bytes | str) -> Place:
    """Return a place that a worker has written as JSON."""
    content = json.loads(said)
    return Place(content["node"], content["address"], tuple(content["devices"]))


def hand(worker: str, parameters: dict[str, Any]) -> None:
    """Have a worker run a further trial when its own has ended; called by the driver before the worker asks.

    Args:
        worker: Tune's id of the worker's trial.
        parameters: parameters of the further trial, JSON values.
    """
    _internal_kv_put(entry(worker), json.dumps(parameters).encode(), namespace=NEXT)


def handed(worker: str) -> dict[str, Any] | None:
    """Return the parameters of the trial that this worker is to run next, once; None if there is none.

    Args:
        worker: Tune's id of the worker's trial.
    """
    found = _internal_kv_get(entry(worker), namespace=NEXT)
    if found is None:
        return None
    _internal_kv_del(entry(worker), namespace=NEXT)
    parameters: dict[str, Any] = json.loads(found)
    return parameters


def entry(worker: str) -> str:
    """Return the name under which the store of the cluster's head keeps something for a worker of this program."""
    return f"{ray.get_runtime_context().get_job_id()}/{worker}"
