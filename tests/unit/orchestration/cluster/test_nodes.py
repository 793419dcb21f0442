"""Tests what every node is checked for before anything is trained on it, and the messages that refuse a node."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from erat.errors import UserError
from orchestration.cluster import nodes
from orchestration.cluster.nodes import Node, Sight, deciding, look, problem, token
from orchestration.storage.workspace import Workspace


@pytest.fixture(params=["a shared folder", "a storage"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    made.root.mkdir()
    return made if request.param == "a shared folder" else made.sharing(str(tmp_path / "shared"))


def node(sight: Sight | None, silent: str | None = None) -> Node:
    return Node("10.0.0.7", {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "memory": 1e9}, sight, silent)


def test_a_node_that_sees_all_has_no_problem(workspace: Workspace) -> None:
    with token(workspace) as word:
        sight = look(str(workspace.root), workspace.place, word)
    assert sight.blind is None
    assert sight.disk_free_gb > 0
    assert problem(node(sight)) is None
    assert node(sight).devices == "8 CPU, 2 GPU, A100"
    left = [path for path in workspace.root.parent.rglob("*") if path.is_file()]
    assert left == [], "probes are taken away"


def test_another_folder_of_the_same_name_is_not_the_driver_s(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    with token(workspace) as word:
        sight = look(elsewhere, None if workspace.place is None else elsewhere, word)
    said = problem(node(sight))
    assert said is not None
    assert said.startswith(f"node 10.0.0.7 ({sight.host}) does not see ")
    assert "storage.path" in said
    assert "\n" not in said


def test_a_folder_that_a_node_may_only_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with token(workspace) as word:
        monkeypatch.setattr(Path, "write_text", _read_only)
        monkeypatch.setattr("orchestration.storage.shared.Storage.write", _read_only)
        sight = look(str(workspace.root), workspace.place, word)
        monkeypatch.undo()
    assert "Read-only file system" in str(sight.blind)


def _read_only(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


def test_a_storage_that_this_machine_cannot_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"the storage .*file cannot be written"),
        token(Workspace(tmp_path).sharing(str(tmp_path / "file"))),
    ):
        pass


@pytest.mark.parametrize("name", [*nodes.PACKAGES, "python", "this project's code"])
def test_another_version_is_named(name: str, workspace: Workspace) -> None:
    with token(workspace) as word:
        sight = look(str(workspace.root), workspace.place, word)
    other = replace(sight, versions=sight.versions | {name: "0.1"})
    assert problem(node(other)) == (
        f"node 10.0.0.7 ({sight.host}) has {name} 0.1, this machine {deciding()[name]}: they must be the same"
    )


def test_a_node_that_does_not_answer() -> None:
    assert problem(node(None, "started no process within 60 s")) == "node 10.0.0.7 started no process within 60 s"


def test_workers_talk_on_the_network_on_which_ray_knows_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds whatever address the machine's name has; `python -m tests.two_nodes` tests it with two addresses."""
    from orchestration.cluster import execution, session

    addresses = {name: entries[0].address for name, entries in psutil.net_if_addrs().items()}
    loopback = next(name for name, address in addresses.items() if address == "127.0.0.1")
    networks = {name: address for name, address in addresses.items() if "." in address}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    execution._choose_interface(apart=False)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    for name, address in networks.items():
        monkeypatch.setattr(session.ray.util, "get_node_ip_address", lambda address=address: address)
        for apart, expected in {True: name, False: loopback}.items():
            monkeypatch.delenv("GLOO_SOCKET_IFNAME")
            execution._choose_interface(apart)
            assert os.environ["GLOO_SOCKET_IFNAME"] == expected
    assert issubclass(execution._OnTheNodesNetwork().backend_cls, execution.TorchConfig().backend_cls)
