"""Ray itself: starting or joining it, what it has, and how a cell runs on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from erat.config import RunConfig
from erat.errors import UserError
from orchestration.cluster import parts
from orchestration.cluster.nodes import Node, look, problem, token
from orchestration.run.preemption import prepare
from orchestration.storage.workspace import Workspace

POLL_SECONDS = 0.5
SURVEY_SECONDS = 60.0
JOIN_SECONDS = 10.0  # that nodes of a cluster which was just started may take to join


@contextmanager
def connection(address: str | None, *, cores: int | None = None) -> Iterator[None]:
    """Ray for the time of the block: the cluster at `address`, or one of our own on this machine.

    Raises:
        UserError: nothing answers at `address`.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # how soon an epoch's figures arrive
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    options["runtime_env"] = {"worker_process_setup_hook": _setup()}
    if address is None:
        options |= {
            "num_cpus": cores,
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,  # nothing large travels: sets are read from the store
        }
    else:
        check_reachable(address)
        options["address"] = address
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints what befalls its processes; standard output is for results.
    with redirect_stdout(sys.stderr), nullcontext() if address else _on_loopback():
        try:
            with _own_sigterm():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            place = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
            raise UserError(f"{place}: {str(error).splitlines()[0]}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _setup() -> Callable[[], None]:
    """What Ray calls in every process that it starts. It raises nothing: such a process would end, again and again."""
    packed = parts.pack()
    if not packed:
        return prepare

    def prepare_with_parts() -> None:
        prepare()
        parts.expect(packed)

    return prepare_with_parts


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started meanwhile listens on 127.0.0.1 alone, as by itself it does only on Windows and macOS.

    The switch for that is read when Ray is imported; the processes that it starts read it anew.
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
    """Ray's start puts its own end in the place of what the program does on SIGTERM; that is put back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_reachable(address: str) -> None:
    """Ask the port before Ray does, which would retry for a minute.

    Raises:
        UserError: not an address, or nobody there.
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


def slots(
    resources: Mapping[str, float],
    workers: int,
    fewest: int | None = None,
    *,
    patience: float = 0,
    what: str = "a trial",
) -> int:
    """How many trials fit on the cluster side by side. A worker needs all that it needs on one node.

    Args:
        fewest: workers with which a trial makes do where it must; none: all.
        patience: seconds to wait for nodes that have yet to join.
        what: needs these resources, for a person.

    Raises:
        UserError: not even one does.
    """
    wanted = {kind: amount for kind, amount in resources.items() if amount}
    give_up = time.monotonic() + patience
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        places = sum(min(int(node.get(kind, 0) / amount) for kind, amount in wanted.items()) for node in nodes)
        if places >= (fewest or workers):
            return max(1, places // workers)
        if time.monotonic() >= give_up:
            break
        time.sleep(POLL_SECONDS)
    need = ", ".join(f"{amount * workers:g} {kind}" for kind, amount in wanted.items())
    got = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in wanted)
    on = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    waited = f" after {patience:.0f} s" if patience else ""
    raise UserError(f"{what} needs {need}, the cluster has {got}{on}{waited}: lower train.workers or resources.cpu/gpu")


def survey(workspace: Workspace) -> list[Node]:
    """Every living node of the connected cluster, with what it has and sees."""
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
                # A module that is missing there is told at the end of a long text.
                lines = [line for line in str(error).splitlines() if line.strip()]
                node.silent = f"cannot run this project ({lines[-1].strip()[:200]}): install it there"
    return [node for node, _ in asked]


def check_nodes(workspace: Workspace) -> None:
    """Ask every node before anything is trained on it.

    Raises:
        UserError: one lacks the project or has another version of a package, or does not see the storage.
    """
    for node in survey(workspace):
        if (said := problem(node)) is not None:
            raise UserError(said)


def room(resources: Mapping[str, float], workers: int) -> str:
    """What a trial needs and what is free, for a person who waits."""
    have, free, nodes = ray.cluster_resources(), ray.available_resources(), [n for n in ray.nodes() if n["Alive"]]
    wanted = {kind: amount * workers for kind, amount in resources.items() if amount}
    need = ", ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    left = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}" for kind in wanted)
    return f"a trial needs {need}, free are {left} on {len(nodes)} node{'s' * (len(nodes) != 1)}"


def node_workspace(config: RunConfig, root: str) -> Workspace:
    """Where a process on whatever node works."""
    return Workspace(Path(root)).sharing(config.storage.path).on_this_node()


def description() -> dict[str, Any]:
    """Nodes and resources of the cluster that is connected."""
    resources = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ("CPU", "GPU")}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {"version": ray.__version__, "nodes": len(nodes), **resources}
