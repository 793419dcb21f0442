"""Tests two Ray nodes that share only a storage (an S3 server that the tests start) and the network.

The tests cover runs over both nodes, a node that dies, a node that is told to leave, and what `doctor` reports.
"""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from erat.config import RunConfig, build
from orchestration import cli
from orchestration.commands import console
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.shared import storage_at
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from tests.e2e.commands import Command, Said
from tests.e2e.sweeps import TWO_RATES
from tests.servers import s3_server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Selection, mixture and perturbations on real digits, in seconds, on a network with batch statistics. There are few
# steps, because a rounding difference in one step grows with every later one.
SHORT = {
    "data.limit": 400,
    "corruption.data": "urp",
    "corruption.rate": 0.3,
    "train.epochs": 2,
    "defense.warmup_epochs": 1,
    "train.batch_size": 32,
    "train.lr": 0.02,
}


def words(options: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in options.items()]


class Nodes:
    """A head without cores, and two nodes with one core each and separate temporary folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=options)
        self.nodes = [self.add(name) for name in "ab"]

    def add(self, name: str) -> Any:
        (self.folder / name).mkdir(exist_ok=True)
        return self.cluster.add_node(
            num_cpus=1, object_store_memory=128 * 2**20, env_vars={"TMPDIR": str(self.folder / name)}
        )

    def processes(self, node: Any) -> list[psutil.Process]:
        """Return the trial workers of a node."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [p for p in raylet.children(recursive=True) if "ray::" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def nodes(place: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    yield made
    made.cluster.shutdown()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("driver") / "workspace")


@pytest.fixture(scope="module")
def command(nodes: Nodes, workspace: Workspace, place: str) -> Iterator[Command]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("ERAT_HOME", str(workspace.root))

        def run(*line: str) -> Said:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = console.guarded(
                    lambda: cli.app([*line, "--address", nodes.cluster.address], standalone_mode=False)
                )
            return Said(code, out.getvalue(), err.getvalue())

        yield run


def alone(options: dict[str, Any], folder: Path) -> tuple[RunConfig, Any, list[dict[str, Any]]]:
    """Train the same run with one worker, in this process."""
    config = build("demo", options)
    result = execute_run(config, Workspace(folder))
    return config, result, RunDirectory(Workspace(folder), config.digest()).read_metrics()


def test_doctor_sees_both_nodes(command: Command, place: str) -> None:
    said = command("doctor", "--storage", place, "--json")
    assert said.code == 0, said.err
    found = said.json["ray"]["nodes"]
    assert len(found) == 3
    assert [node["blind"] for node in found] == [None] * 3
    assert sorted(node["devices"] for node in found) == ["", "1 CPU", "1 CPU"]
    assert len({json.dumps(node["versions"]) for node in found}) == 1
    assert said.err.count("   node ") == 3


def test_a_storage_that_cannot_be_had_is_one_line_before_anything_begins(
    command: Command, workspace: Workspace
) -> None:
    away = "s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    said = command("sweep", "--space", "eta", f"storage.path={away}", "corruption.data=none")
    assert said.code == 2
    assert "cannot be" in said.err.splitlines()[-1]
    assert not workspace.ledger.exists()


def test_more_workers_than_places_is_one_line(command: Command, place: str, workspace: Workspace) -> None:
    said = command("train", *words(SHORT), f"storage.path={place}", "train.workers=4")
    assert said.code == 2
    assert "a trial needs 4 CPU, the cluster has 2 CPU on 3 nodes after 10 s" in said.err.splitlines()[-1]


@pytest.mark.parametrize("defense", ["erat", "dividemix"])
def test_two_nodes_train_what_one_worker_does(
    defense: str, command: Command, place: str, workspace: Workspace, tmp_path: Path
) -> None:
    """With each worker on another node, the selection is the same, and the accuracy is the same except for rounding."""
    options = SHORT | {"defense.name": defense}
    said = command("train", *words(options), "train.workers=2", f"storage.path={place}", "--json")
    assert said.code == 0, said.err
    _, one, rows = alone(options, tmp_path)
    both = RunDirectory(workspace, said.json["cell"]).read_metrics()
    for ours, theirs in zip(both, rows, strict=True):
        # Rounding sometimes flips a sign step of an attack, and the score of one sample may cross the threshold.
        assert ours["labelled_per_class"] == pytest.approx(theirs["labelled_per_class"], abs=2)
    print(defense, [row["labelled_per_class"] for row in both], [row["labelled_per_class"] for row in rows])
    assert both[0]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=1e-3)
    print(defense, [row["train_loss"] for row in both], [row["train_loss"] for row in rows])
    print(defense, said.json["final_test_accuracy"], one.final_test_accuracy)
    assert said.json["final_test_accuracy"] == pytest.approx(one.final_test_accuracy, abs=0.02)
    names = storage_at(place).names(f"cells/{said.json['cell']}")
    assert {"checkpoint.pt", "metrics.jsonl", "result.json", "artifacts/model.pt"} <= set(names)


# --- a node that leaves ----------------------------------------------------------------------------------------------

PLAIN = {
    "defense.name": "ce",
    "corruption.data": "none",
    "corruption.labels": "none",
    "data.limit": 600,
    "train.epochs": 24,
    "train.batch_size": 16,
}


def under_way(workspace: Workspace, sweep: str, epochs: int) -> bool:
    """Return whether every run of the sweep has finished this many epochs."""
    ledger = Ledger(workspace.ledger)
    cells = [p.cell for p in ledger.studies[sweep].proposals.values()] if sweep in ledger.studies else []
    return len(cells) == 2 and all(len(RunDirectory(workspace, cell).read_metrics()) >= epochs for cell in cells)


def disturbed(workspace: Workspace, sweep: str, disturb: Callable[[], None], epochs: int = 3) -> threading.Thread:
    def wait() -> None:
        give_up = time.monotonic() + 600
        while time.monotonic() < give_up and not under_way(workspace, sweep, epochs):
            time.sleep(0.05)
        disturb()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["told to leave", "dies"])
def test_what_ran_on_a_node_goes_on_elsewhere(
    how: str, command: Command, nodes: Nodes, place: str, workspace: Workspace, tmp_path: Path
) -> None:
    space = tmp_path / "two.yaml"
    space.write_text(TWO_RATES)
    seed = "train.seed=1" if how == "dies" else "train.seed=2"
    name = how.replace(" ", "-")

    def disturb() -> None:
        if how == "dies":
            nodes.cluster.remove_node(nodes.nodes[1], allow_graceful=False)
        else:
            for process in nodes.processes(nodes.nodes[1]):
                if "_tune_trial" in " ".join(process.cmdline()) or "ImplicitFunc" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGTERM)

    thread = disturbed(workspace, name, disturb)
    line = ("sweep", "--space", str(space), "--name", name, *words(PLAIN), seed, f"storage.path={place}", "--json")
    expected = (
        r"its worker was told to leave (in|after) epoch \d+" if how == "told to leave" else "the worker died after"
    )
    with pytest.warns(UserWarning, match=expected + r".*; it goes on"):
        said = command(*line)
    thread.join()
    assert said.code == 0, said.err
    for run in said.json["runs"]:
        options = PLAIN | {"train.lr": run["config"]["train.lr"], "train.seed": int(seed[-1])}
        config, one, _ = alone(options, tmp_path)
        assert config.digest() == run["cell"]
        assert (run["status"], run["final_test_accuracy"]) == ("done", one.final_test_accuracy)
        ended = Ledger(workspace.ledger).outcome(run["cell"])
        assert ended is not None
        assert ended.val_history == one.val_history
    if how == "dies":
        nodes.nodes[1] = nodes.add("b")
