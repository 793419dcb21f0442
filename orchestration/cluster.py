"""Ray itself: starting or joining it, what it has, and how a cell runs on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
import ray.train
from ray import tune
from ray._private import ray_constants
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from erat.config import RunConfig
from erat.corruption.pipeline import corrupted_set
from erat.engine.report import EpochReport
from erat.errors import UserError, is_storage_fault, storage_words
from orchestration.crafting_progress import CraftProgress
from orchestration.home import Home
from orchestration.leaving import prepare, training
from orchestration.nodes import Node, look, problem, token
from orchestration.trial import ENDS, CellResult, keep_result, read_metrics, read_result, run_cell, summarise, threads

# A data-parallel trial's driver only waits for its workers. It takes this sliver of a core, and each worker leaves
# one, so that driver and workers fit together on a machine with exactly the workers' cores.
SLIVER = 0.01
POLL_SECONDS = 0.5
SURVEY_SECONDS = 60.0
JOIN_SECONDS = 10.0  # that nodes of a cluster which was just started may take to join
STORAGE_FAULT = "storage_fault"  # in a report: the storage cannot be written; the trial goes on once it can


@contextmanager
def connection(address: str | None, *, cores: int | None = None) -> Iterator[None]:
    """Ray for the time of the block: the cluster at `address`, or one of our own on this machine.

    Raises:
        UserError: nothing answers at `address`.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")  # how soon an epoch's figures arrive
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    options["runtime_env"] = {"worker_process_setup_hook": prepare}
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


def survey(home: Home) -> list[Node]:
    """Every living node of the connected cluster, with what it has and sees."""
    with token(home) as word:
        task = ray.remote(look)
        asked = []
        for found in ray.nodes():
            if found["Alive"]:
                there = NodeAffinitySchedulingStrategy(found["NodeID"], soft=False)
                sight = task.options(num_cpus=0, scheduling_strategy=there).remote(str(home.root), home.place, word)
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


def check_nodes(home: Home) -> None:
    """Ask every node before anything is trained on it.

    Raises:
        UserError: one lacks the project or has another version of a package, or does not see the storage.
    """
    for node in survey(home):
        if (said := problem(node)) is not None:
            raise UserError(said)


def room(resources: Mapping[str, float], workers: int) -> str:
    """What a trial needs and what is free, for a person who waits."""
    have, free, nodes = ray.cluster_resources(), ray.available_resources(), [n for n in ray.nodes() if n["Alive"]]
    wanted = {kind: amount * workers for kind, amount in resources.items() if amount}
    need = ", ".join(f"{amount:g} {kind}" for kind, amount in wanted.items())
    left = ", ".join(f"{free.get(kind, 0):g} of {have.get(kind, 0):g} {kind}" for kind in wanted)
    return f"a trial needs {need}, free are {left} on {len(nodes)} node{'s' * (len(nodes) != 1)}"


def trainable(resources: Mapping[str, float], workers: int) -> Any:
    """The function that Tune calls for each trial, with what it needs."""
    if workers == 1:
        return tune.with_resources(_tune_trial, {k: v for k, v in resources.items() if v})
    return tune.with_resources(_tune_parallel_trial, {"CPU": SLIVER})


def craft_sets(
    groups: Sequence[Sequence[RunConfig]],
    home: Home,
    told: Callable[[int, str, int, int], None],
    ended: Callable[[int], None] = lambda index: None,
    given_up: Callable[[], bool] = lambda: False,
) -> None:
    """Craft the sets of each group, which share their images, as one Ray task.

    Args:
        told: (index of the group, what, done, total), while the tasks run.
        ended: told of each group whose sets are in the store.
        given_up: asked again and again whether to wait no longer.

    Raises:
        UserError: no node has what a task needs; or from a task. The others end with the connection, and go on from
            where they are when they are asked for again.
    """
    task = ray.remote(_craft_task)
    running: dict[Any, int] = {}
    said = [CraftProgress(group[0], home.sharing(group[0].storage.path)) for group in groups]
    for group in groups:
        needs = {"CPU": group[0].resources.cpu, "GPU": group[0].resources.gpu}
        slots(needs, 1, patience=JOIN_SECONDS, what=f"crafting {group[0].corruption.data}")
    for index, group in enumerate(groups):
        asked = task.options(num_cpus=group[0].resources.cpu, num_gpus=group[0].resources.gpu)
        running[asked.remote([config.model_dump_json() for config in group], str(home.root))] = index
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
        # The other tasks are not cancelled: Ray aborts this process if one ends at that moment. They end with the
        # connection.
        raise error.cause if isinstance(error.cause, UserError | OSError) else error from None


def _craft_task(configs: list[str], root: str) -> list[str]:
    """Craft sets, one after the other, in a Ray worker; the warnings that it gave."""
    wanted = [RunConfig.model_validate_json(config) for config in configs]
    home = _node_home(wanted[0], root)
    said = CraftProgress(wanted[0], home)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for config in wanted:
            with threads(config):
                corrupted_set(config, home.store(), said.write)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def _report(history: Sequence[EpochReport]) -> dict[str, Any]:
    """What Tune may see of a run so far. No test accuracy: what it does not know, it cannot choose by."""
    best = max(report.val_accuracy for report in history)
    return _figures(history[-1].epoch, history[-1].val_accuracy, best)


def _figures(epoch: int, val_accuracy: float | None, best_val_accuracy: float | None) -> dict[str, Any]:
    return {"val_accuracy": val_accuracy, "best_val_accuracy": best_val_accuracy, "epoch": epoch}


def _node_home(config: RunConfig, root: str) -> Home:
    """Where a process on whatever node works."""
    return Home(Path(root)).sharing(config.storage.path).on_this_node()


def _asked_to_stop(home: Home, cell: str, wish: str) -> bool:
    """Whether the driver has left this file in the cell's folder."""
    home.fetch(cell, wish)
    return (home.cell(cell) / wish).exists()


def _tune_trial(parameters: dict[str, Any]) -> None:
    """One cell in a Tune worker. `tune.report` returns when the scheduler has seen the epoch."""
    config = RunConfig.model_validate_json(parameters["config"])
    home, cell = _node_home(config, parameters["home"]), config.digest()

    def on_epoch(history: Sequence[EpochReport]) -> bool:
        tune.report(_report(history))
        return not _asked_to_stop(home, cell, parameters["wish"])

    with training():
        _report_end(lambda: run_cell(config, home, on_epoch=on_epoch))


def _tune_parallel_trial(parameters: dict[str, Any]) -> None:
    """One cell on several data-parallel workers, driven from a Tune trial."""
    config, home = RunConfig.model_validate_json(parameters["config"]), Home(Path(parameters["home"]))
    _report_end(lambda: run_parallel(config, home, parameters["wish"], [TuneReportCallback()]))


def _report_end(run: Callable[[], CellResult]) -> None:
    """Run, and report once more: a trial without any report (a cell that another sweep had finished, one that failed
    at once) ends the whole sweep. How the trial ended Tune need not know, the driver reads it from the cell's folder;
    but for a storage that cannot be written, where nothing can be left to read.
    """
    try:
        result = run()
    except OSError as error:
        if not is_storage_fault(error):
            raise
        tune.report(_figures(0, None, None) | {STORAGE_FAULT: f"{storage_words(error)} (on {socket.gethostname()})"})
        return
    tune.report(_figures(result.epochs, result.val_accuracy, result.best_val_accuracy))


def run_parallel(config: RunConfig, home: Home, wish: str, callbacks: list[Any] | None = None) -> CellResult:
    """Train one cell on `train.workers` workers through Ray Train and return its result, failed or not.

    Args:
        home: the driver's.
        wish: the run stops after the epoch in which a file of this name appears in the cell's folder.
        callbacks: of Ray Train, told of each report.

    Raises:
        OSError: what the workers write to is full, read-only or away.
    """
    workers, fewest = config.train.workers, config.resources.min_workers or config.train.workers
    per_worker = {"CPU": config.resources.cpu - SLIVER} | (
        {"GPU": config.resources.gpu} if config.resources.gpu else {}
    )
    home, cell = home.sharing(config.storage.path), config.digest()
    shared = home.storage
    trainer = TorchTrainer(
        _parallel_worker,
        train_loop_config={"config": config.model_dump_json(), "home": str(home.root), "wish": wish},
        torch_config=_OnTheNodesNetwork(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if fewest == workers else (fewest, workers),  # type: ignore[arg-type]
            use_gpu=config.resources.gpu > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            # A name of its own each time: a run of the same name would be taken up from Ray's state, not from ours.
            name=f"{cell}-{time.time_ns()}",
            storage_path=str(home.ray / "train") if shared is None else shared.for_ray()[1],
            storage_filesystem=None if shared is None else shared.for_ray()[0],
            failure_config=ray.train.FailureConfig(max_failures=1, controller_failure_limit=2),  # type: ignore[call-arg]
            callbacks=callbacks or [],
        ),
    )
    error: str | None = None
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as failure:
        error = _what_failed(failure)
    home.fetch(cell, *ENDS, "metrics.jsonl")
    result = read_result(home.cell(cell))
    if result is None and error is not None:
        result = summarise(cell, "failed", read_metrics(home.cell(cell)))
        result.error = error
        keep_result(home, result)
    return result or CellResult(cell, "failed", error="the workers died and left no result")


def _what_failed(failure: ray.train.TrainingFailedError) -> str | None:
    """One line of the first worker that failed of itself; none if they only died.

    Raises:
        OSError: a worker could not write.
    """
    for error in getattr(failure, "worker_failures", {}).values():
        cause = getattr(error, "_base_exc", error)
        cause = getattr(cause, "cause", None) or cause
        if is_storage_fault(cause):
            raise cause
        if not isinstance(cause, ray.exceptions.RayError):
            return f"{type(cause).__name__}: {cause}".splitlines()[0]
    controller = getattr(failure, "controller_failure", None)
    return None if controller is None else str(controller).splitlines()[0]


def _choose_interface(apart: bool) -> None:
    """Have gloo talk through the network on which Ray knows this node, unless the environment names one.

    By itself it takes the address that the machine's name has, which on many machines is one of the loopback.

    Args:
        apart: the workers have several addresses; else the loopback will do, and nobody outside hears of them.
    """
    here = ray.util.get_node_ip_address() if apart else "127.0.0.1"
    for name, addresses in psutil.net_if_addrs().items():
        if here in [entry.address for entry in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray Train's own, on that network."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        addresses = set(worker_group.execute(ray.util.get_node_ip_address))
        worker_group.execute(_choose_interface, len(addresses) > 1)
        super().on_start(worker_group, backend_config)


class _OnTheNodesNetwork(TorchConfig):
    """The process group of a data-parallel trial."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


def _parallel_worker(parameters: dict[str, Any]) -> None:
    """What each data-parallel worker runs. Ray Train has set up the process group."""
    config = RunConfig.model_validate_json(parameters["config"])
    home, cell = _node_home(config, parameters["home"]), config.digest()

    def on_epoch(history: Sequence[EpochReport]) -> bool:
        ray.train.report(_report(history))
        return not _asked_to_stop(home, cell, parameters["wish"])

    with training():
        run_cell(config, home, on_epoch=on_epoch)


def description() -> dict[str, Any]:
    """Nodes and resources of the cluster that is connected."""
    resources = {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ("CPU", "GPU")}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {"version": ray.__version__, "nodes": len(nodes), **resources}
