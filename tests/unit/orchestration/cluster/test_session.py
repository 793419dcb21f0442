"""Tests how many trials fit on a cluster: a worker needs all of its resources on one node."""

from __future__ import annotations

from typing import Any

import pytest

from erat.errors import UserError
from orchestration.cluster import session


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace Ray's list of nodes with a list that the test fills."""
    known: list[dict[str, Any]] = []
    monkeypatch.setattr(session.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in known])
    return known


def test_places_are_counted_node_by_node(nodes: list[dict[str, Any]]) -> None:
    nodes += [{"CPU": 3.0}, {"CPU": 3.0}, {"memory": 1e9}]
    assert session.slots({"CPU": 1.0, "GPU": 0.0}, 1) == 6
    assert session.slots({"CPU": 2.0}, 1) == 2, "the third core of each is no place for two"
    assert session.slots({"CPU": 1.0}, 4) == 1
    with pytest.raises(UserError, match=r"a trial needs 4 CPU, the cluster has 6 CPU on 3 nodes: lower train.workers"):
        session.slots({"CPU": 4.0}, 1)


def test_a_gpu_is_shared_by_fractions(nodes: list[dict[str, Any]]) -> None:
    nodes += [{"CPU": 8.0, "GPU": 2.0}]
    assert session.slots({"CPU": 1.0, "GPU": 0.25}, 1) == 8
    assert session.slots({"CPU": 1.0, "GPU": 0.5}, 2) == 2
    with pytest.raises(UserError, match="a trial needs 4 CPU, 4 GPU, the cluster has 8 CPU, 2 GPU: "):
        session.slots({"CPU": 1.0, "GPU": 1.0}, 4)


def test_an_elastic_trial_makes_do_with_fewer(nodes: list[dict[str, Any]]) -> None:
    nodes += [{"CPU": 2.0}]
    assert session.slots({"CPU": 1.0}, 4, 2) == 1
    assert session.slots({"CPU": 1.0}, 1, 1) == 2
    with pytest.raises(UserError, match="a trial needs 8 CPU"):
        session.slots({"CPU": 1.0}, 8, 4)


def test_nodes_that_join_late_are_waited_for(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.time, "sleep", lambda seconds: nodes.append({"CPU": 1.0}))
    assert session.slots({"CPU": 1.0}, 3, patience=60) == 1
    assert len(nodes) == 3


def test_room_says_what_is_needed_and_free(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes += [{"CPU": 2.0}, {"CPU": 2.0}]
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": 1.0})
    assert session.room({"CPU": 1.0, "GPU": 0.0}, 2) == "a trial needs 2 CPU, free are 1 of 4 CPU on 2 nodes"
