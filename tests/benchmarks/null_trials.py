"""What orchestration costs by itself: trials that train nothing, through Ray, the ledger and MLflow.

python -m tests.benchmarks.null_trials --trials 2000             two slots of one node
python -m tests.benchmarks.null_trials --trials 10000 --slots 8  eight slots of one node
python -m tests.benchmarks.null_trials --trials 2000 --nodes 8   two slots on each of eight nodes on this machine

Only the training is left out: the worker says where it is, reports its epoch and its end, and leaves its files as ever.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from ray import tune
from ray.cluster_utils import Cluster

from erat.config import RunConfig
from erat.engine.report import EpochReport
from erat.files import write_atomic
from erat.result import RunResult, summarise
from orchestration.cluster import execution
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import OnEpoch
from orchestration.search import launch
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec


def null_run(config: RunConfig, workspace: Workspace, *, on_epoch: OnEpoch, **_: Any) -> RunResult:
    """Return at once, with one epoch's row and a result, as `execute_run` leaves them."""
    run = RunDirectory(workspace, config.digest())
    run.artifacts.mkdir(parents=True, exist_ok=True)
    write_atomic(run.artifacts / "environment.json", b"{}")
    report = EpochReport(1, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 0.0, 0.0, 0.1)
    run.write_metrics([report])
    on_epoch([report])
    result = summarise(run.cell, "done", [asdict(report)])
    run.keep_result(result)
    return result


def null_trial(parameters: dict[str, Any]) -> None:
    """Execute a trial without its training. Ray's workers get this function by its content, and import the rest."""
    execution.execute_run = null_run
    execution._tune_trial(parameters)


def measured(trials: int, slots: int, nodes: int) -> dict[str, Any]:
    """Run them; seconds, megabytes and what was left on the disk."""
    spec = StudySpec.listing(
        "null",
        "",
        [{"train.seed": seed} for seed in range(trials)],
        "demo",
        {"data.limit": 200, "corruption.data": "none", "corruption.labels": "none"},
    )
    # In the place of the trainer; everything around it is what a sweep runs.
    execution.trainable = lambda resources, workers: tune.with_resources(null_trial, {"CPU": 1})
    with TemporaryDirectory() as folder, _cluster(slots, nodes) as address, redirect_stdout(sys.stderr):
        workspace = Workspace(Path(folder))
        began, used = time.monotonic(), time.process_time()
        end = launch.run_study("null", spec, 0, workspace, Ledger(workspace.ledger), address=address)
        seconds = time.monotonic() - began
        assert all(row.status == "done" for row in end.driver.trials)
        ended = sorted(_ended(workspace))
        few = max(2, len(ended) // 10)
        workers = [sum(each.cpu_times()[:2]) for each in _workers()]
        return {
            "trials": trials,
            "nodes": nodes,
            "slots_of_a_node": slots,
            "seconds": round(seconds, 1),
            "seconds_per_trial": round(seconds / trials, 3),
            "seconds_per_trial_first_tenth": round(mean(_gaps(ended[:few])), 3),
            "seconds_per_trial_last_tenth": round(mean(_gaps(ended[-few:])), 3),
            "driver_processor_seconds_per_trial": round((time.process_time() - used) / trials, 4),
            "workers": len(workers),
            "workers_processor_seconds_per_trial": round(sum(workers) / trials, 4),
            "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "ledger_mb": round(workspace.ledger.stat().st_size / 1e6, 2),
            "mlflow_mb": round(workspace.mlflow_database.stat().st_size / 1e6, 2),
            "home_mb": round(sum(file.stat().st_size for file in workspace.root.rglob("*") if file.is_file()) / 1e6, 1),
        }


@contextmanager
def _cluster(slots: int, nodes: int) -> Iterator[str]:
    """Yield the address of a cluster of so many nodes on this machine, each with so many slots."""
    options: dict[str, Any] = {"num_cpus": slots, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            made.add_node(**options)
        made.wait_for_nodes()
        yield made.address
    finally:
        made.shutdown()


def _workers() -> list[psutil.Process]:
    """Return the processes that have run trials and still live."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if each.cmdline()[:1] and "ImplicitFunc" in each.cmdline()[0]]


def _ended(workspace: Workspace) -> list[float]:
    events = map(json.loads, workspace.ledger.read_text().splitlines())
    return [event["time"] for event in events if event["event"] == "done"]


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=2, help="of each node")
    parser.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(measured(arguments.trials, arguments.slots, arguments.nodes)))
