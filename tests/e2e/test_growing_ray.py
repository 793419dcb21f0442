"""Tests clusters whose nodes come and go: one with Ray's autoscaler, and one to which nodes are added by hand.

The autoscaler is Ray's own, with its provider for tests, whose nodes are processes of this machine.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import psutil
import pytest
import ray
import ray.util
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.cluster_utils import Cluster

from orchestration import cli
from orchestration.cluster import autoscaling, session
from orchestration.cluster.autoscaling import Demand, autoscales
from orchestration.commands import console
from orchestration.search.tune import QueueSearcher
from tests.e2e.commands import Said

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEMORY = 100 * 2**20  # bytes of a node's object store
PLAIN = [
    "defense.name=ce",
    "corruption.data=none",
    "corruption.labels=none",
    "data.limit=600",
    "train.batch_size=16",
]
SPACE = """
name: rates
about: learning rates
proposals: 0
baselines:
  - {train.lr: 0.1}
  - {train.lr: 0.05}
  - {train.lr: 0.02}
  - {train.lr: 0.01}
"""
WAITS = "a trial needs {} CPU, free are 0 of 0 CPU on 1 node: waiting for the cluster's autoscaler, "
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "small": {
        "resources": {"CPU": 1, "object_store_memory": MEMORY},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
}


def command(address: str, workspace: Path, *words: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("ERAT_HOME", str(workspace))
        with redirect_stdout(out), redirect_stderr(err):
            code = console.guarded(lambda: cli.app([*words, "--address", address], standalone_mode=False))
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "rates.yaml").write_text(SPACE)
    return str(tmp_path / "rates.yaml")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that fills with (slots, trials that Tune has) each time when the cluster was counted."""
    seen: list[tuple[int, int]] = []
    resize = QueueSearcher.resize

    def noted(search: QueueSearcher, fit: int, room: Mapping[str, int] | None = None) -> None:
        resize(search, fit, room)
        seen.append((search.slots, len(search._running)))

    monkeypatch.setattr(QueueSearcher, "resize", noted)
    return seen


# --- an autoscaler ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["first"])
def growing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a head without cores, whose autoscaler adds up to two nodes of one core, and return its address.

    The parameter is "first" or "second", for Ray's autoscalers.

    `ray.cluster_utils.AutoscalingCluster` would end all other Ray processes of this machine.
    """
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    second = request.param == "second"
    # Ray's package lacks the defaults that the second autoscaler reads for this provider, unless it is an external one.
    place = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}"
    kind = {"type": "external", "module": place} if second else {"type": "fake_multinode"}
    provider = kind | {
        "launch_multiple": second,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    content = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": NODE_TYPES,
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    } | {f"{name}_commands": [] for name in commands}
    file = tmp_path / "autoscaler.json"
    file.write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setenv("RAY_FAKE_CLUSTER", "1")
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        patch.setenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING", FAKE_HEAD_NODE_ID)
        if second:
            patch.setenv("RAY_enable_autoscaler_v2", "1")
            patch.setenv("RAY_CLOUD_INSTANCE_ID", FAKE_HEAD_NODE_ID)
            patch.setenv("RAY_NODE_TYPE_NAME", "ray.head.default")
        options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        cluster = Cluster(
            initialize_head=True,
            head_node_args=options | {"gcs_server_port": port, "autoscaling_config": str(file)},
        )
    monitor = psutil.Process(cluster.head_node.all_processes["monitor"][0].process.pid)
    yield cluster.address
    nodes = monitor.children(recursive=True)  # the nodes that the autoscaler has started outlive it
    cluster.shutdown()
    for process in nodes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(nodes, timeout=20)


def test_an_empty_cluster_grows_for_a_study_and_shrinks_after_it(
    growing: str, space: str, tmp_path: Path, held: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", 300.0)  # this machine may be busy
    with pytest.warns(UserWarning, match=WAITS.format(1)):
        said = command(growing, tmp_path / "workspace", "sweep", "--space", space, *PLAIN, "train.epochs=12", "--json")
    assert said.code == 0, said.err
    assert [run["status"] for run in said.json["runs"]] == ["done"] * 4
    assert max(slots for slots, _ in held) == 2, "a second node was asked for, and was counted when it had come"

    # The request was withdrawn: the nodes are taken away, although nobody waits for that.
    with session.connection(growing):
        assert autoscales() is True
        give_up = time.monotonic() + 300
        while session.fitting({"CPU": 1.0}, 1) and time.monotonic() < give_up:
            time.sleep(0.5)
        assert session.fitting({"CPU": 1.0}, 1) == 0

    monkeypatch.setenv("ERAT_PATIENCE", "4")
    with pytest.warns(UserWarning, match=WAITS.format(3)):
        said = command(growing, tmp_path / "workspace", "train", *PLAIN, "train.epochs=1", "resources.cpu=3")
    assert said.code == 2
    assert "a trial needs 3 CPU, the cluster has 0 CPU after 4 s, and its autoscaler has" in said.err.splitlines()[-1]


@pytest.mark.parametrize("growing", ["second"], indirect=True)
def test_the_second_autoscaler_gives_what_it_has(growing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses a request that is larger than the cluster may become; two nodes are the most here."""
    monkeypatch.setattr(session, "ANSWER_SECONDS", 300.0)
    monkeypatch.setattr(autoscaling, "SETTLE_SECONDS", 4.0)  # it looks once a second here
    one, give_up = {"CPU": 1.0}, time.monotonic() + 400
    with session.connection(growing):
        with Demand(one, 1).held() as demand:
            demand.ask(7)
            with pytest.warns(UserWarning, match=WAITS.format(1)):
                assert session.slots(one, 1, patience=10, demand=demand) == 1
            while session.fitting(one, 1) < 2 and time.monotonic() < give_up:
                demand.renew()
                time.sleep(0.5)
            assert session.fitting(one, 1) == 2
        while session.fitting(one, 1) and time.monotonic() < give_up:
            time.sleep(0.5)
        assert session.fitting(one, 1) == 0, "the request was withdrawn"


# --- nodes that come and go by hand ----------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Start a head without cores and a node with one core."""
    options = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    made = Cluster(initialize_head=True, head_node_args=options)
    made.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield made
    made.shutdown()


def test_trials_begin_on_a_node_that_comes_and_no_more_than_fit_when_it_has_gone(
    cluster: Cluster, space: str, tmp_path: Path, held: list[tuple[int, int]]
) -> None:
    """With --max-concurrent, when Tune itself does not hold back a trial. Ray adds nodes from the main thread only."""
    words = ("sweep", "--space", space, "--max-concurrent", "2", *PLAIN, "train.epochs=20", "--json")
    told: list[Said] = []
    study = threading.Thread(target=lambda: told.append(command(cluster.address, tmp_path / "workspace", *words)))
    study.start()

    def wait_for(slots: int, trials: int) -> None:
        give_up = time.monotonic() + 400
        while held[-1:] != [(slots, trials)]:
            assert study.is_alive() and time.monotonic() < give_up, (held[-5:], told and told[0].err)
            time.sleep(0.1)

    wait_for(1, 1)
    second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    wait_for(2, 2)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(1, 1)
    study.join()
    [said] = told
    assert said.code == 0, said.err
    assert [run["status"] for run in said.json["runs"]] == ["done"] * 4
