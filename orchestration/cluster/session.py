"""Connects to Ray: starts or joins it, and finds out what its nodes have."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray._private import ray_constants, state
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_put
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from erat.config import RunConfig
from erat.errors import UserError
from orchestration.cluster import parts
from orchestration.cluster.autoscaling import Demand, autoscales
from orchestration.cluster.nodes import Node, look, problem, token
from orchestration.cluster.starting import patiently
from orchestration.run import resources as counting
from orchestration.run.places import Place
from orchestration.run.preemption import prepare
from orchestration.storage.workspace import Workspace

POLL_SECONDS = 0.5
SURVEY_SECONDS = 60.0
JOIN_SECONDS = 10.0  # how long the nodes of a cluster that has just been started may take to join
ANSWER_SECONDS = 30.0  # how long the autoscaler of such a cluster may take until its first report
SAY_SECONDS = 60.0  # between two lines on what is waited for
TOKEN_HINT = (
    "a cluster that was started with a token lets in only who has it: RAY_AUTH_MODE=token, and the same token in "
    "~/.ray/auth_token or the file of RAY_AUTH_TOKEN_PATH"
)
PARKED = "erat-parked"  # part of the store of the cluster's head that names the parked workers


@contextmanager
def connection(address: str | None, *, cores: int | None = None) -> Iterator[None]:
    """Connect to Ray while the block runs: to the cluster at `address`, or to a new one on this machine.

    Args:
        address: the address of a cluster; none: start Ray on this machine.
        cores: number of cores that a new Ray uses; none: all.

    Raises:
        UserError: no cluster answers at `address`, or Ray does not start here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # so that the figures of an epoch arrive soon
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    options["runtime_env"] = {"worker_process_setup_hook": _setup()}
    if address is None:
        options |= {
            "num_cpus": cores,
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,  # enough, because workers read the image sets from the store
        }
    else:
        check_reachable(address)
        options["address"] = address
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints messages about its processes, and standard output is reserved for results.
    with redirect_stdout(sys.stderr), nullcontext() if address else _on_loopback():
        try:
            with _own_sigterm():
                patiently(lambda: ray.init(**options))
        except Exception as error:  # Ray has no common class for what may go wrong here
            place = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
            lines = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{place}: {lines[0][:300]}{f'; {TOKEN_HINT}' if address else ''}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _setup() -> Callable[[], None]:
    """Return what Ray calls in every process that it starts; it raises nothing, because such a process would end."""
    packed = parts.pack()
    if not packed:
        return prepare

    def prepare_with_parts() -> None:
        prepare()
        parts.expect(packed)

    return prepare_with_parts


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray that is started in the block listen on 127.0.0.1 only, which is its default on Windows and macOS only.

    Ray reads the switch for this when it is imported; the processes that it starts read it again.
    """
    switch = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(switch), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[switch], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        os.environ.pop(switch)
        if before[0] is not None:
            os.environ[switch] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the program's handler for SIGTERM after the block, because Ray replaces it by its own when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_reachable(address: str) -> None:
    """Try to connect to the port before Ray does, because Ray would retry for a minute.

    Raises:
        UserError: `address` is not an address, or nothing answers there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"no Ray cluster at {address}: {reason}; start one with `ray start --head`") from error


def longest_wait() -> float:
    """Return how many seconds a study waits for room, in which no trial can run, until it gives up: `ERAT_PATIENCE`.

    Raises:
        UserError: `ERAT_PATIENCE` is not a positive number.
    """
    given = os.environ.get("ERAT_PATIENCE", "600")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"ERAT_PATIENCE must be a number of seconds above 0, got {given!r}")
    return seconds


def fitting(resources: Mapping[str, float], workers: int, fewest: int | None = None) -> int:
    """Return how many trials fit on the nodes that the cluster has now; 0 if not even one does.

    All resources of a worker must be on one node. What runs at the moment does not count.

    Args:
        resources: resource -> amount that each worker needs.
        workers: number of workers of a trial.
        fewest: number of workers with which a trial can do if it must; none: all.
    """
    return counting.trials(resources, workers, fewest, _nodes())


def by_node(resources: Mapping[str, float]) -> dict[str, int]:
    """Return how many workers have room on each node that the cluster has now, by Ray's id of the node."""
    return {node["NodeID"]: counting.places(resources, node["Resources"]) for node in ray.nodes() if node["Alive"]}


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def devices(resources: Mapping[str, float]) -> str:
    """Return as text on which device each worker trains that needs these resources, on the connected cluster."""
    return counting.words(resources, sum(node.get("GPU", 0) for node in _nodes()))


def slots(
    resources: Mapping[str, float],
    workers: int,
    fewest: int | None = None,
    *,
    patience: float = 0,
    what: str = "a trial",
    demand: Demand | None = None,
) -> int:
    """Return how many trials fit on the cluster at the same time, as soon as one does; see `fitting`.

    A cluster that is too small is waited for as long as `ERAT_PATIENCE` says if it has an autoscaler, which adds nodes.

    Args:
        resources: resource -> amount that each worker needs.
        workers: number of workers of a trial.
        fewest: number of workers with which a trial can do if it must; none: all.
        patience: seconds to wait for nodes that have not joined yet; 0: nothing is waited for, also no autoscaler.
        what: what needs these resources, for the message.
        demand: what the autoscaler was asked for, and is asked for again while it is waited for.

    Raises:
        UserError: not even one trial fits.
    """
    began, said = time.monotonic(), -SAY_SECONDS
    growing: bool | None = None
    while not (fit := fitting(resources, workers, fewest)):
        waited = time.monotonic() - began
        if patience and not growing:
            growing = autoscales()
        limit = _patience(growing, patience)
        if waited >= limit:
            raise UserError(_too_small(resources, workers, what, limit, growing))
        if growing and waited - said >= SAY_SECONDS:
            said = waited
            so_far = f"waiting for the cluster's autoscaler, {waited:.0f} of {limit:.0f} s"
            warnings.warn(f"{room(resources, workers, what)}: {so_far}", stacklevel=2)
        if growing and demand is not None:
            demand.renew()
        time.sleep(POLL_SECONDS)
    return fit


def grows() -> bool:
    """Return whether an autoscaler adds nodes to the cluster; a head that has just begun is given `JOIN_SECONDS`."""
    give_up = time.monotonic() + JOIN_SECONDS
    while (answer := autoscales()) is None and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
    return bool(answer)


def _patience(growing: bool | None, joining: float) -> float:
    """Return how many seconds nodes are waited for, given what is known of an autoscaler."""
    if not joining:
        return 0.0
    return longest_wait() if growing else joining if growing is False else max(joining, ANSWER_SECONDS)


def _too_small(resources: Mapping[str, float], workers: int, what: str, waited: float, growing: bool | None) -> str:
    nodes = _nodes()
    wanted = {kind: amount for kind, amount in resources.items() if amount}
    need = ", ".join(f"{amount * workers:g} {kind}" for kind, amount in wanted.items())
    got = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in wanted)
    on = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    after = f" after {waited:.0f} s" if waited else ""
    grew = ", and its autoscaler has added none that fits (ERAT_PATIENCE sets how long it may take)" if growing else ""
    without = bool(resources.get("GPU")) and not any(node.get("GPU") for node in nodes)
    mend = "lower train.workers or resources.cpu/gpu"
    if without:
        mend = "resources.device=cpu trains without a GPU (a study that has begun: repeat its command with that)"
    return f"{what} needs {need}, the cluster has {got}{on}{after}{grew}: {mend}"


def survey(workspace: Workspace) -> list[Node]:
    """Inspect every living node of the connected cluster; a node that does not answer is returned with the reason."""
    with token(workspace) as word:
        task = ray.remote(look)
        asked = []
        for found in ray.nodes():
            if found["Alive"]:
                there = NodeAffinitySchedulingStrategy(found["NodeID"], soft=False)
                sight = task.options(num_cpus=0, scheduling_strategy=there).remote(
                    str(workspace.root), workspace.place, word
                )
                asked.append((Node(found["NodeManagerAddress"], found["Resources"]), sight))
        ray.wait([sight for _, sight in asked], num_returns=len(asked), timeout=SURVEY_SECONDS)
        for node, sight in asked:
            try:
                node.sight = ray.get(sight, timeout=0)
            except ray.exceptions.GetTimeoutError:
                node.silent = f"started no process within {SURVEY_SECONDS:.0f} s"
            except ray.exceptions.RayError as error:
                # The last line of a long text names a module that is missing there.
                lines = [line for line in str(error).splitlines() if line.strip()]
                node.silent = f"cannot run this project ({lines[-1].strip()[:200]}): install it there"
    return [node for node, _ in asked]


def check_nodes(workspace: Workspace) -> None:
    """Check every node before anything is trained on it.

    Raises:
        UserError: a node lacks the project, has another version of a package, or does not see the storage.
    """
    for node in survey(workspace):
        if (said := problem(node)) is not None:
            raise UserError(said)


def room(resources: Mapping[str, float], workers: int, what: str = "a trial") -> str:
    """Return as text what a trial needs and what is free, for a person who waits."""
    have, free, nodes = ray.cluster_resources(), ray.available_resources(), [n for n in ray.nodes() if n["Alive"]]
    wanted = {kind: amount * workers for kind, amount in resources.items() if amount}
    need = ", ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    left = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}" for kind in wanted)
    return f"{what} needs {need}, free are {left} on {len(nodes)} node{'s' * (len(nodes) != 1)}"


def hide_other_devices() -> None:
    """Hide all GPUs from this worker if Ray gave it none; must be called before CUDA is first used in the process.

    Ray limits a worker to the GPUs that it was given, but leaves all of them visible to one that asked for none.
    """
    if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def place() -> Place:
    """Return where this worker runs."""
    context = ray.get_runtime_context()
    devices = context.get_accelerator_ids().get("GPU") or []
    return Place(context.get_node_id(), ray.util.get_node_ip_address(), tuple(sorted(devices)))


def place_of_death(error: BaseException | None) -> Place | None:
    """Return on which node a worker died, by Ray's error; None if it is no such error, or Ray does not know."""
    if not isinstance(error, ray.exceptions.RayActorError) or not error.actor_id:
        return None
    found = state.actors(error.actor_id).get("Address") or {}
    return Place(found["NodeID"], found["IPAddress"]) if found.get("NodeID") else None


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
    return f"{ray.get_runtime_context().get_job_id()}/{worker}"


def node_workspace(config: RunConfig, root: str) -> Workspace:
    """Return the workspace in which a process works, on any node."""
    return Workspace(Path(root)).sharing(config.storage.path).on_this_node()


def description() -> dict[str, Any]:
    """Return the version of Ray and the nodes and resources of the connected cluster."""
    resources = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ("CPU", "GPU")}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {"version": ray.__version__, "nodes": len(nodes), **resources}
