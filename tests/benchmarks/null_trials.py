"""What orchestration costs by itself: trials that train nothing, through Ray, the ledger and MLflow.

python -m tests.benchmarks.null_trials --trials 2000            two slots of one node
python -m tests.benchmarks.null_trials --trials 2000 --nodes 8  two slots on each of eight nodes on this machine
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from ray.cluster_utils import Cluster

from erat.config import RunConfig
from erat.files import write_atomic
from orchestration.cluster import execution
from orchestration.search import launch
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

CORES = 2  # of a node


def null_trial(parameters: dict[str, Any]) -> None:
    """A trainer that returns at once: one epoch's row and a result, as the real one leaves them."""
    config, workspace = RunConfig.model_validate_json(parameters["config"]), Workspace(Path(parameters["workspace"]))
    folder = workspace.run_directory(config.digest())
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "artifacts" / "environment.json", b"{}")
    row = {"epoch": 1, "train_loss": 1.0, "val_accuracy": 0.5, "test_accuracy": 0.5, "epoch_seconds": 0.0}
    result = {"cell": config.digest(), "status": "done", "epochs": 1, "val_accuracy": 0.5, "best_val_accuracy": 0.5}
    result |= {"final_test_accuracy": 0.5, "best_val_test_accuracy": 0.5, "val_history": [0.5]}
    write_atomic(folder / "metrics.jsonl", json.dumps(row).encode() + b"\n")
    write_atomic(folder / "result.json", json.dumps(result).encode())
    tune.report({"val_accuracy": 0.5, "best_val_accuracy": 0.5, "epoch": 1})


def measured(trials: int, nodes: int) -> dict[str, Any]:
    """Run them; seconds, megabytes and what was left on the disk."""
    spec = StudySpec.listing(
        "null",
        "",
        [{"train.seed": seed} for seed in range(trials)],
        "demo",
        {"data.limit": 200, "corruption.data": "none", "corruption.labels": "none"},
    )
    # In the place of the trainer; everything around it is what a sweep runs.
    execution._tune_trial = null_trial
    with TemporaryDirectory() as folder, _nodes(nodes) as address, redirect_stdout(sys.stderr):
        workspace = Workspace(Path(folder))
        began = time.monotonic()
        end = launch.run_study("null", spec, 0, workspace, Ledger(workspace.ledger), address=address)
        seconds = time.monotonic() - began
        assert all(row.status == "done" for row in end.driver.trials)
        ended = sorted(_ended(workspace))
        few = max(2, len(ended) // 10)
        return {
            "trials": trials,
            "nodes": nodes,
            "seconds": round(seconds, 1),
            "seconds_per_trial": round(seconds / trials, 3),
            "seconds_per_trial_first_tenth": round(mean(_gaps(ended[:few])), 3),
            "seconds_per_trial_last_tenth": round(mean(_gaps(ended[-few:])), 3),
            "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "ledger_mb": round(workspace.ledger.stat().st_size / 1e6, 2),
            "mlflow_mb": round(workspace.mlflow_database.stat().st_size / 1e6, 2),
            "home_mb": round(sum(file.stat().st_size for file in workspace.root.rglob("*") if file.is_file()) / 1e6, 1),
        }


@contextmanager
def _nodes(count: int) -> Iterator[str | None]:
    """A cluster of so many nodes on this machine; none for one: the sweep then starts Ray itself."""
    if count == 1:
        yield None
        return
    options: dict[str, Any] = {"num_cpus": CORES, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    try:
        for _ in range(count - 1):
            made.add_node(**options)
        made.wait_for_nodes()
        yield made.address
    finally:
        made.shutdown()


def _ended(workspace: Workspace) -> list[float]:
    events = map(json.loads, workspace.ledger.read_text().splitlines())
    return [event["time"] for event in events if event["event"] == "done"]


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(measured(arguments.trials, arguments.nodes)))
