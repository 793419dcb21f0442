"""Tests a sweep on a cluster with a node on which every worker dies: each trial ends once, that node is excluded."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from orchestration import cli
from orchestration.commands import console
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BAD = ROOT / "tests" / "bad_place"
SPACE = """
name: learning-rates
about: eight learning rates
proposals: 0
baselines:
  - {train.lr: 0.1}
  - {train.lr: 0.09}
  - {train.lr: 0.08}
  - {train.lr: 0.07}
  - {train.lr: 0.06}
  - {train.lr: 0.05}
  - {train.lr: 0.04}
  - {train.lr: 0.03}
"""
SHORT = ("defense.name=ce", "corruption.data=none", "corruption.labels=none", "data.limit=1000", "train.epochs=16")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two nodes with a GPU each, as Ray counts them. On one of them every trial's worker dies."""
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 128 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=options)
    path = os.pathsep.join([str(BAD), os.environ.get("PYTHONPATH", "")])
    made.add_node(num_cpus=1, num_gpus=1, object_store_memory=128 * 2**20)
    made.add_node(
        num_cpus=1, num_gpus=1, object_store_memory=128 * 2**20, env_vars={"PYTHONPATH": path, "BAD_GPU": "any"}
    )
    yield made
    made.shutdown()


@pytest.mark.filterwarnings("ignore:trial .*; it goes on")
def test_it_is_excluded_and_every_trial_ends_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Workspace(tmp_path / "home")
    monkeypatch.setenv("ERAT_HOME", str(home.root))
    (tmp_path / "space.yaml").write_text(SPACE)
    line = ["sweep", "--space", str(tmp_path / "space.yaml"), "--name", "bad", *SHORT, "resources.gpu=1", "--json"]
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.warns(UserWarning, match="is excluded: 3 trials died there"),
    ):
        code = console.guarded(lambda: cli.app([*line, "--address", cluster.address], standalone_mode=False))
    assert code == 0, err.getvalue()
    assert "2 trials at a time, each worker on 1 GPU of 2" in err.getvalue()
    runs = json.loads(out.getvalue().splitlines()[-1])["runs"]
    assert [run["status"] for run in runs] == ["done"] * 8
    events = [json.loads(text) for text in home.ledger.read_text().splitlines()]
    assert sorted(event["cell"] for event in events if event["event"] == "done") == sorted(run["cell"] for run in runs)
    ((where, why),) = Ledger(home.ledger).studies["bad"].out.items()
    assert where.startswith("GPU 0 of node ")
    assert why.startswith("3 trials died there")
    deaths = err.getvalue().count("; it goes on")
    print(f"{deaths} deaths")
