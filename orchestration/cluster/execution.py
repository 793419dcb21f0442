"""Executes a run on Ray: as a Tune trial in one worker, or on several data-parallel workers of Ray Train."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
import ray.train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from erat.config import RunConfig
from erat.engine.report import EpochReport
from erat.errors import is_storage_fault, storage_words
from erat.result import RunResult, summarise
from orchestration.cluster.session import hide_other_devices, node_workspace, place, was_parked
from orchestration.run.directory import ENDS, METRICS, RunDirectory, left_over
from orchestration.run.execute import execute_run
from orchestration.run.preemption import training
from orchestration.run.resources import needs
from orchestration.run.retries import DEVICE_FAULT
from orchestration.storage.lease import LeaseLostError, session_words
from orchestration.storage.workspace import Workspace

# The driver of a data-parallel trial only waits for its workers. It takes this share of a core, and each worker takes
# that much less, so that the driver and its workers together fit on a machine that has exactly the workers' cores.
SLIVER = 0.01


# Key of a report: all figures of the epoch, sealed as JSON, which only the driver opens. The test accuracy is among
# them, by which nothing must be chosen: a searcher, scheduler or sampler can use numbers of a report, and this is none.
FIGURES = "figures"
PLACE = "place"  # key of a report: where the worker has started, as JSON; the first report of a trial of one worker
STORAGE_FAULT = "storage_fault"  # key of a report: the storage cannot be written; the trial resumes once it can


def trainable(resources: Mapping[str, float], workers: int) -> Any:
    """Return the function that Tune calls for each trial, with the resources that it needs."""
    if workers == 1:
        return tune.with_resources(_tune_trial, {k: v for k, v in resources.items() if v})
    return tune.with_resources(_tune_parallel_trial, {"CPU": SLIVER})


def _report(history: Sequence[EpochReport]) -> dict[str, Any]:
    """Return the report of an epoch: the figures that Tune may see, and those that only the driver opens."""
    best = max(report.val_accuracy for report in history)
    figures = {name: value for name, value in asdict(history[-1]).items() if not isinstance(value, list)}
    return _figures(history[-1].epoch, history[-1].val_accuracy, best) | {FIGURES: json.dumps(figures)}


def _figures(epoch: int, val_accuracy: float | None, best_val_accuracy: float | None) -> dict[str, Any]:
    """Return the figures of a run that Tune may see: not the test accuracy, by which nothing must be chosen."""
    return {"val_accuracy": val_accuracy, "best_val_accuracy": best_val_accuracy, "epoch": epoch}


def _tune_trial(parameters: dict[str, Any]) -> None:
    """Execute one run in a Tune worker. `tune.report` returns when the driver has seen the report.

    Raises:
        RuntimeError: the worker's GPU has failed. This process cannot use it any more, and must not get another trial.
    """
    hide_other_devices()
    tune.report(_figures(0, None, None) | {PLACE: json.dumps(asdict(place()))})
    if was_parked(str(tune.get_context().get_trial_id())):
        return
    config = RunConfig.model_validate_json(parameters["config"])
    workspace = node_workspace(config, parameters["workspace"])
    directory = RunDirectory(workspace, config.digest())

    def on_epoch(history: Sequence[EpochReport]) -> bool:
        tune.report(_report(history))
        return not directory.asked_to_stop(parameters["stop_request"])

    with training():
        ended = _report_end(
            lambda: execute_run(
                config,
                workspace,
                on_epoch=on_epoch,
                pause_after=parameters["pause_after"],
                session=parameters["session"],
            )
        )
    if ended is not None and (ended.error or "").startswith(DEVICE_FAULT):
        raise RuntimeError(ended.error)


def _tune_parallel_trial(parameters: dict[str, Any]) -> None:
    """Execute one run on several data-parallel workers, from a Tune trial."""
    config, workspace = RunConfig.model_validate_json(parameters["config"]), Workspace(Path(parameters["workspace"]))
    request, pause_after, session = (parameters[key] for key in ("stop_request", "pause_after", "session"))
    _report_end(lambda: run_parallel(config, workspace, request, pause_after, [TuneReportCallback()], session))


def _report_end(run: Callable[[], RunResult]) -> RunResult | None:
    """Execute a run, report once more at its end, and return its result; None if the storage cannot be written.

    A trial without any report (of a run that another study had finished, or that failed at once) would end the whole
    study. Tune need not know how the trial ended, because the driver reads that from the directory of the run. The one
    exception is a storage that cannot be written, where the run can leave nothing to read.
    """
    try:
        result = run()
    except OSError as error:
        if not is_storage_fault(error):
            raise
        tune.report(_figures(0, None, None) | {STORAGE_FAULT: f"{storage_words(error)} (on {socket.gethostname()})"})
        return None
    tune.report(_figures(result.epochs, result.val_accuracy, result.best_val_accuracy))
    return result


def run_parallel(
    config: RunConfig,
    workspace: Workspace,
    stop_request: str,
    pause_after: int | None = None,
    callbacks: list[Any] | None = None,
    session: str = "",
) -> RunResult:
    """Execute one run on `train.workers` workers through Ray Train and return its result, even if it failed.

    Args:
        workspace: the workspace of the driver.
        stop_request: the run stops after the epoch in which a file of this name appears in its directory.
        pause_after: as for `execute_run`.
        callbacks: callbacks of Ray Train, called with each report.
        session: as for `execute_run`; "": the workers of this call use words of their own.

    Raises:
        LeaseLostError: the run was taken over by another worker.
        OSError: the storage that the workers write to is full, read-only or unreachable.
    """
    workers, fewest = config.train.workers, config.resources.min_workers or config.train.workers
    wanted = needs(config)
    per_worker = {"CPU": wanted["CPU"] - SLIVER} | ({"GPU": wanted["GPU"]} if wanted["GPU"] else {})
    workspace, cell = workspace.sharing(config.storage.path), config.digest()
    shared = workspace.storage
    trainer = TorchTrainer(
        _parallel_worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "workspace": str(workspace.root),
            "stop_request": stop_request,
            "pause_after": pause_after,
            "session": session or session_words("train", workspace.root),
        },
        torch_config=_OnTheNodesNetwork(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers if fewest == workers else (fewest, workers),  # type: ignore[arg-type]
            use_gpu=wanted["GPU"] > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            # A new name each time, because Ray would resume a run of the same name from Ray's state, not from ours.
            name=f"{cell}-{time.time_ns()}",
            storage_path=str(workspace.ray / "train") if shared is None else shared.for_ray()[1],
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
    directory = RunDirectory(workspace, cell)
    directory.fetch(*ENDS, METRICS)
    result = directory.read_result()
    if result is not None and left_over(result, pause_after):
        result = None
    if result is None and error is not None:
        result = replace(summarise(cell, "failed", directory.read_metrics()), error=error)
        directory.keep_result(result)
    return result or RunResult(cell, "failed", error="the workers died and left no result")


def _what_failed(failure: ray.train.TrainingFailedError) -> str | None:
    """Return one line about the first worker that raised an error; none if workers only died.

    Raises:
        OSError: a worker could not write.
        LeaseLostError: the first worker lost the run to one that has nothing to do with this call.
    """
    causes = [getattr(error, "_base_exc", error) for error in getattr(failure, "worker_failures", {}).values()]
    causes = [getattr(cause, "cause", None) or cause for cause in causes]
    for cause in causes:  # what the others then raise is only that the first worker has left them
        if is_storage_fault(cause) or isinstance(cause, LeaseLostError):
            raise cause
    for cause in causes:
        if not isinstance(cause, ray.exceptions.RayError):
            return f"{type(cause).__name__}: {cause}".splitlines()[0]
    controller = getattr(failure, "controller_failure", None)
    return None if controller is None else str(controller).splitlines()[0]


def _choose_interface(apart: bool) -> None:
    """Make gloo use the network on which Ray knows this node, unless the environment names an interface.

    By itself, gloo uses the address to which the name of the machine resolves, often one of the loopback.

    Args:
        apart: whether the workers have several addresses; if not, the loopback is used, which nobody outside can reach.
    """
    here = ray.util.get_node_ip_address() if apart else "127.0.0.1"
    for name, addresses in psutil.net_if_addrs().items():
        if here in [entry.address for entry in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """The backend of Ray Train, with gloo on the network of `_choose_interface`."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        addresses = set(worker_group.execute(ray.util.get_node_ip_address))
        worker_group.execute(_choose_interface, len(addresses) > 1)
        super().on_start(worker_group, backend_config)


class _OnTheNodesNetwork(TorchConfig):
    """The configuration of the process group of a data-parallel trial."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


def _parallel_worker(parameters: dict[str, Any]) -> None:
    """Execute the share of one data-parallel worker, for which Ray Train has set up the process group."""
    hide_other_devices()
    config = RunConfig.model_validate_json(parameters["config"])
    workspace = node_workspace(config, parameters["workspace"])
    directory = RunDirectory(workspace, config.digest())

    def on_epoch(history: Sequence[EpochReport]) -> bool:
        ray.train.report(_report(history))
        return not directory.asked_to_stop(parameters["stop_request"])

    with training():
        execute_run(
            config,
            workspace,
            on_epoch=on_epoch,
            pause_after=parameters["pause_after"],
            session=parameters["session"],
        )
