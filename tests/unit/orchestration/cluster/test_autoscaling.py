"""Tests what is read from the reports of Ray's autoscalers, and what they are asked for. Needs no cluster.

The reports have the form of those that Ray 2.60 gave; tests/e2e/test_growing_ray.py asks a real autoscaler.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.cluster import autoscaling
from orchestration.cluster.autoscaling import RENEW_SECONDS, Demand, autoscales

HEAD = "ab" * 28


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaling.ray, "nodes", lambda: [{"NodeID": HEAD}])


class TestTheFirstAutoscaler:
    @pytest.mark.parametrize(
        ("seen", "answer"),
        [
            (None, None),
            ({}, None),
            ({"active_nodes": {}}, None),
            ({"active_nodes": {f"node_{HEAD}": 1}}, False),
            ({"active_nodes": {"ray.head.default": 1}}, True),
            ({"active_nodes": {"node_gpu": 1}}, True),
            ({"active_nodes": {}, "pending_launches": {"small": 2}}, True),
            ({"active_nodes": {}, "pending_nodes": [["10.0.0.2", "small", "uninitialized"]]}, True),
            ({"active_nodes": {}, "failed_nodes": [["10.0.0.2", "small"]]}, True),
        ],
        ids=["no report", "empty", "no node", "by hand", "head", "a name like an id", "launches", "pending", "failed"],
    )
    def test_its_report(
        self, seen: dict[str, Any] | None, answer: bool | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report = None if seen is None else json.dumps({"time": 1.0, "autoscaler_report": seen}).encode()
        monkeypatch.setattr(autoscaling, "is_autoscaler_v2", lambda fetch_from_server: False)
        monkeypatch.setattr(autoscaling, "_internal_kv_get", lambda key: report)
        assert autoscales() is answer

    def test_a_head_that_has_just_been_started_has_not_reported_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(autoscaling, "is_autoscaler_v2", lambda fetch_from_server: False)
        monkeypatch.setattr(autoscaling, "_internal_kv_get", lambda key: b'{"load_metrics_report": {}}')
        assert autoscales() is None


class TestTheSecondAutoscaler:
    @pytest.mark.parametrize(
        ("version", "types", "more", "answer"),
        [
            (None, [f"node_{HEAD}"], {}, None),
            ("0", ["headgroup"], {}, None),
            ("2", [f"node_{HEAD}"], {}, False),
            ("2", ["headgroup"], {}, True),
            ("2", [f"node_{HEAD}"], {"pending_launches": ["small"]}, True),
            ("2", [f"node_{HEAD}"], {"pending_nodes": ["small"]}, True),
            ("2", [f"node_{HEAD}"], {"failed_launches": ["small"]}, True),
        ],
        ids=["no report", "not yet", "by hand", "head", "launches", "pending", "failed"],
    )
    def test_its_report(
        self, version: str, types: list[str], more: dict[str, Any], answer: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        idle = [SimpleNamespace(ray_node_type_name=name) for name in types]
        lists = {"pending_launches": [], "pending_nodes": [], "failed_launches": [], "active_nodes": []} | more
        status = SimpleNamespace(stats=SimpleNamespace(autoscaler_version=version), idle_nodes=idle, **lists)
        monkeypatch.setattr(autoscaling, "is_autoscaler_v2", lambda fetch_from_server: True)
        monkeypatch.setattr(autoscaling, "get_cluster_status", lambda address: status)
        monkeypatch.setattr(
            autoscaling.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379")
        )
        assert autoscales() is answer


def test_without_a_connection_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unconnected(fetch_from_server: bool) -> bool:
        raise AssertionError("GCS client is not available")

    monkeypatch.setattr(autoscaling, "is_autoscaler_v2", unconnected)
    assert autoscales() is None


class TestDemand:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
        made: list[list[dict[str, float]]] = []
        monkeypatch.setattr(autoscaling.ray.autoscaler.sdk, "request_resources", lambda bundles: made.append(bundles))
        monkeypatch.setattr(autoscaling, "_refused", lambda bundles: False)
        return made

    @pytest.mark.parametrize("most", [1, 2, 5, 23, 24, 40])
    def test_the_most_that_is_not_refused_is_found(
        self, most: int, asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ray's second autoscaler adds no node at all for a request that is larger than the cluster may become."""
        now = [0.0]
        monkeypatch.setattr(autoscaling.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(autoscaling, "_refused", lambda bundles: bundles > most and now[0] - since() >= 5)

        def since() -> float:
            return times[-1] if times else 0.0

        times: list[float] = []
        demand = Demand({"CPU": 1.0}, 1)
        for now[0] in range(300):
            before = len(asked)
            demand.ask(24)
            times += [now[0]] * (len(asked) - before)
        assert len(asked[-1]) == min(most, 24)
        first = next(index for index, bundles in enumerate(asked) if len(bundles) <= most)
        assert times[first] <= 5 * 5, "some nodes are added soon"
        demand.ask(1)
        assert len(asked[-1]) == 1

    def test_nothing_is_accepted_and_one_trial_stays_asked_for(
        self, asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(autoscaling, "_refused", lambda bundles: True)
        demand = Demand({"CPU": 99.0}, 1)
        for _ in range(10):
            demand.ask(4)
        assert [len(bundles) for bundles in asked] == [4, 2, 1]

    def test_the_head_is_asked_once_a_minute_after_a_request_was_accepted(
        self, asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trials wait for its answer. But one that comes late, even then, is heard."""
        now, most, looks = [0.0], 3, []

        def refused(bundles: int) -> bool:
            looks.append(now[0])
            return bundles > most

        monkeypatch.setattr(autoscaling.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(autoscaling, "_refused", refused)
        demand = Demand({"CPU": 1.0}, 1)
        for now[0] in range(100):
            demand.ask(3 if now[0] < 40 else 2)
        settled = int(autoscaling.SETTLE_SECONDS)
        assert looks == list(range(1, settled + 1)), "each second until it counts as accepted; so do fewer"
        most = 1
        for now[0] in range(100, 103):
            demand.ask(2)
        assert [len(bundles) for bundles in asked] == [3, 2, 1]

    def test_it_is_as_many_bundles_as_workers(self, asked: list[list[dict[str, float]]]) -> None:
        Demand({"CPU": 2.0, "GPU": 0.0}, 1).ask(3)
        Demand({"CPU": 1.0, "GPU": 0.5}, 4).ask(2)
        assert asked == [[{"CPU": 2.0}] * 3, [{"CPU": 1.0, "GPU": 0.5}] * 8]

    def test_the_same_is_asked_again_only_after_a_minute(
        self, asked: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(autoscaling.time, "monotonic", lambda: now[0])
        demand = Demand({"CPU": 1.0}, 1)
        for now[0], trials in ((0, 2), (1, 2), (2, 3), (3, 3), (2 + RENEW_SECONDS, 3)):
            demand.ask(trials)
        assert [len(bundles) for bundles in asked] == [2, 3, 3]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), None], ids=["Ctrl-C", "error", "end"])
    def test_it_is_withdrawn_at_the_end(self, error: BaseException | None, asked: list[list[dict[str, float]]]) -> None:
        def study() -> None:
            with Demand({"CPU": 1.0}, 1).held() as demand:
                demand.ask(2)
                if error is not None:
                    raise error

        if error is None:
            study()
        else:
            with pytest.raises(type(error)):
                study()
        assert asked == [[{"CPU": 1.0}] * 2, []]

    def test_who_asked_for_nothing_withdraws_nothing(self, asked: list[list[dict[str, float]]]) -> None:
        """Otherwise a study on this machine's own Ray, or one that failed at once, would withdraw another one's."""
        with Demand({"CPU": 1.0}, 1).held():
            pass
        assert not asked

    def test_a_cluster_that_cannot_be_asked_ends_no_study(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(bundles: Any) -> None:
            raise RuntimeError("the head is gone")

        monkeypatch.setattr(autoscaling, "_refused", lambda bundles: False)
        monkeypatch.setattr(autoscaling.ray.autoscaler.sdk, "request_resources", broken)
        with pytest.warns(UserWarning, match="the cluster's autoscaler cannot be asked for nodes: the head is gone"):
            Demand({"CPU": 1.0}, 1).ask(1)
