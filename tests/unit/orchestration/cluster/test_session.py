"""Tests how many trials fit on a cluster: a worker needs all of its resources on one node."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from erat.config import build
from erat.errors import UserError
from orchestration.cluster import session
from orchestration.run.places import Place
from orchestration.run.resources import needs


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace Ray's list of nodes with a list that the test fills."""
    known: list[dict[str, Any]] = []
    monkeypatch.setattr(session.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in known])
    monkeypatch.setattr(session, "autoscales", lambda: False)
    return known


class Clock:
    """A clock that goes on only when somebody sleeps; `then` is what happens meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Callable[[float], None] = lambda now: None) -> None:
        self.now, self.then = 0.0, then
        monkeypatch.setattr(session.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(session.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then(self.now)


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


def test_places_are_counted_without_complaint(nodes: list[dict[str, Any]]) -> None:
    assert session.fitting({"CPU": 1.0}, 1) == 0
    nodes += [{"CPU": 3.0}, {"CPU": 2.0}]
    assert [session.fitting({"CPU": 1.0}, workers) for workers in (1, 2, 5, 6)] == [5, 2, 1, 0]
    assert session.fitting({"CPU": 1.0}, 8, 4) == 1


class TestAClusterThatGrows:
    """Tests who waits for nodes, how long, and what is said meanwhile."""

    @pytest.fixture(autouse=True)
    def free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session.ray, "cluster_resources", dict)
        monkeypatch.setattr(session.ray, "available_resources", dict)
        monkeypatch.setenv("ERAT_PATIENCE", "150")

    def test_an_empty_one_is_waited_for(self, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch, lambda now: nodes.append({"CPU": 2.0}) if now == 130 else None)
        monkeypatch.setattr(session, "autoscales", lambda: clock.now >= 5 or None)
        with pytest.warns(UserWarning, match="waiting for the cluster's autoscaler") as said:
            assert session.slots({"CPU": 1.0}, 1, patience=10) == 2
        assert clock.now == 130
        need = "a trial needs 1 CPU, free are 0 of 0 CPU on 0 nodes: waiting for the cluster's autoscaler, "
        assert [str(each.message) for each in said] == [f"{need}{seconds} of 150 s" for seconds in (5, 65, 125)]

    def test_it_is_given_up_in_one_line(self, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        nodes += [{"CPU": 1.0}]
        clock = Clock(monkeypatch)
        monkeypatch.setattr(session, "autoscales", lambda: True)
        line = (
            r"^a trial needs 2 CPU, the cluster has 1 CPU after 150 s, and its autoscaler has added none that fits .*$"
        )
        with pytest.warns(UserWarning, match="waiting"), pytest.raises(UserError, match=line):
            session.slots({"CPU": 1.0}, 2, patience=10)
        assert clock.now == 150

    @pytest.mark.parametrize(("answer", "patience", "waited"), [(False, 10, 10), (None, 10, 30), (True, 0, 0)])
    def test_without_an_autoscaler_it_is_not(
        self, answer: bool, patience: float, waited: float, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that has not reported yet is waited for a little longer; Ray on this machine is not waited for."""
        clock = Clock(monkeypatch)
        monkeypatch.setattr(session, "autoscales", lambda: answer)
        with pytest.raises(UserError, match="a trial needs 1 CPU, the cluster has 0 CPU"):
            session.slots({"CPU": 1.0}, 1, patience=patience)
        assert clock.now == waited

    @pytest.mark.parametrize(("known_at", "answer"), [(0, False), (4, False), (4, True), (99, True)])
    def test_a_head_that_has_just_begun_is_asked_until_it_knows(
        self, known_at: float, answer: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)
        monkeypatch.setattr(session, "autoscales", lambda: answer if clock.now >= known_at else None)
        assert session.grows() is (answer and known_at < session.JOIN_SECONDS)
        assert clock.now == min(known_at, session.JOIN_SECONDS)

    @pytest.mark.parametrize("given", ["soon", "0", "-1", "inf", "nan", ""])
    def test_a_patience_is_a_positive_number(self, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ERAT_PATIENCE", given)
        with pytest.raises(UserError, match=f"ERAT_PATIENCE must be a number of seconds above 0, got '{given}'"):
            session.longest_wait()
        monkeypatch.setenv("ERAT_PATIENCE", "1800")
        assert session.longest_wait() == 1800


def test_room_says_what_is_needed_and_free(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes += [{"CPU": 2.0}, {"CPU": 2.0}]
    monkeypatch.setattr(session.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": 1.0})
    assert session.room({"CPU": 1.0, "GPU": 0.0}, 2) == "a trial needs 2 CPU, free are 1 of 4 CPU on 2 nodes"


def test_a_fraction_of_a_gpu_is_of_one_gpu(nodes: list[dict[str, Any]]) -> None:
    """Ray places eight, not int(8 / 0.6) = 13: what is left of each of two GPUs is no place."""
    nodes += [{"CPU": 64.0, "GPU": 8.0}]
    assert session.slots({"CPU": 1.0, "GPU": 0.6}, 1) == 8


def test_a_cluster_without_gpus_says_in_one_line_how_to_do_without(nodes: list[dict[str, Any]]) -> None:
    nodes += [{"CPU": 2.0}]
    line = r"^a trial needs 1 CPU, 1 GPU, the cluster has 2 CPU, 0 GPU: resources.device=cpu trains without a GPU "
    with pytest.raises(UserError, match=line):
        session.slots(needs(build("paper")), 1)
    assert session.slots(needs(build("paper", {"resources.device": "cpu"})), 1) == 2


@pytest.mark.parametrize(("given", "visible"), [([], ""), (["3"], "3")])
def test_a_worker_sees_no_gpu_that_it_did_not_ask_for(
    given: list[str], visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray sets the variable for a worker with GPUs, and leaves it alone for one without."""
    context = SimpleNamespace(
        get_accelerator_ids=lambda: {"GPU": given}, get_node_id=lambda: "abcdef", get_job_id=lambda: "01"
    )
    monkeypatch.setattr(session.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(session.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "3")
    session.hide_other_devices()
    assert [os.environ[f"{kind}_VISIBLE_DEVICES"] for kind in ("CUDA", "HIP")] == [visible] * 2
    assert session.place() == Place("abcdef", "10.0.0.7", tuple(given))


def test_a_parked_worker_waits_until_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: set[tuple[str, str]] = set()
    monkeypatch.setattr(session.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(session, "_internal_kv_put", lambda key, value, namespace: entries.add((namespace, key)))
    monkeypatch.setattr(session, "_internal_kv_del", lambda key, namespace: entries.discard((namespace, key)))
    monkeypatch.setattr(session, "_internal_kv_exists", lambda key, namespace: (namespace, key) in entries)
    clock = Clock(monkeypatch, lambda now: session.unpark("a") if now >= 5 else None)
    session.park("a")
    assert not session.was_parked("b")
    assert clock.now == 0
    assert session.was_parked("a")
    assert clock.now == 5
    assert not entries
