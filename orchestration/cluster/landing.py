"""What a worker says of its place, and what further trial it is handed: both go through the store of Ray's head node.

This module imports nothing large, because a worker says where it is before it imports torch.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_put

from orchestration.run.places import Place

PLACES = "erat-places"  # part of that store with the place of each worker, by Ray's id of its actor
PARKED = "erat-parked"  # part of that store that names the parked workers
POLL_SECONDS = 0.5  # between two looks of a parked worker
PLACE = "place"  # key of a report: where the worker has started, as JSON; the first report of a trial of one worker
NEXT = "erat-next"  # part of that store with the parameters of the trial that a worker is to run next


def say_place() -> bool:
    """Say where this worker is, there and to the driver; return whether it may train, once it is no longer parked."""
    said = json.dumps(asdict(place()))
    _internal_kv_put(str(ray.get_runtime_context().get_actor_id()), said.encode(), namespace=PLACES)
    tune.report({"epoch": 0, "val_accuracy": None, "best_val_accuracy": None, PLACE: said})
    return not was_parked(str(tune.get_context().get_trial_id()))


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
    _internal_kv_put(_entry(worker), json.dumps(parameters).encode(), namespace=NEXT)


def handed(worker: str) -> dict[str, Any] | None:
    """Return the parameters of the trial that this worker is to run next, once; None if there is none.

    Args:
        worker: Tune's id of the worker's trial.
    """
    found = _internal_kv_get(_entry(worker), namespace=NEXT)
    if found is None:
        return None
    _internal_kv_del(_entry(worker), namespace=NEXT)
    parameters: dict[str, Any] = json.loads(found)
    return parameters


# A worker that has started where its trial must not run is parked: it does nothing, so that nothing else starts at that
# place. The driver says so, and ends it, by an entry in the store of the cluster's head.


def park(worker: str) -> None:
    """Have a worker do nothing until `unpark`; called by the driver before the worker asks.

    Args:
        worker: Tune's id of the worker's trial.
    """
    _internal_kv_put(_entry(worker), b"", namespace=PARKED)


def unpark(worker: str) -> None:
    """Let a worker that was parked end."""
    _internal_kv_del(_entry(worker), namespace=PARKED)


def was_parked(worker: str) -> bool:
    """Return whether this worker was parked, once it is no more; called by the worker when the driver knows its place.

    Args:
        worker: Tune's id of the worker's trial.
    """
    parked = False
    while _internal_kv_exists(_entry(worker), namespace=PARKED):
        parked = True
        time.sleep(POLL_SECONDS)
    return parked


def _entry(worker: str) -> str:
    """Return the name under which the store of the cluster's head keeps something for a worker of this program."""
    return f"{ray.get_runtime_context().get_job_id()}/{worker}"
