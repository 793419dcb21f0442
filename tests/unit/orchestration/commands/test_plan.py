"""Tests plans: counts, time and what a run needs, and that a plan changes nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from rich.console import Console

from erat.config import RunConfig, build
from erat.engine.memory import MB, MemoryEstimate
from erat.errors import UserError
from orchestration.cluster import session
from orchestration.commands.plan import Room, find_room, plan, plan_sweep
from orchestration.storage.workspace import Workspace
from orchestration.study import estimate
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as, with_settings
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from tests.five_trials import ETA, TINY, propose, said, spec

ROOM = Room(2, "two")


class TestPlan:
    @pytest.fixture(autouse=True)
    def _one_second_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimate.History, "seconds", lambda self, config: float(config.train.epochs))

    def test_a_fresh_sweep(self, workspace: Workspace, console: Console) -> None:
        content = plan_sweep("a", spec(), 6, workspace, Ledger(workspace.ledger), console, ROOM)
        counts = {key: content[key] for key in ("name", "cells", "done", "failed", "to_do", "to_be_proposed")}
        assert counts == {"name": "a", "cells": 7, "done": 0, "failed": 0, "to_do": 7, "to_be_proposed": 2}
        assert (content["crafted_sets"], content["crafted_sets_missing"]) == (1, 1)
        assert content["device_hours"] == pytest.approx(7 * 4 / 3600)
        # Seven runs of four seconds, two at a time; one of the two proposals may be stopped half-way.
        assert content["seconds"] == [14, 16]
        assert (content["wall_seconds"], content["slots"], content["window"]) == (16, 2, 2)
        assert content["trainings"] == [6.5, 7]
        assert content["disk_free_gb"] > 0
        assert not workspace.ledger.exists()
        assert "preset demo" in said(console)

    def test_one_that_has_begun(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        before = workspace.ledger.read_bytes()
        content = plan_sweep("a", spec(), 5, workspace, ledger, console, ROOM)
        counts = {key: content[key] for key in ("cells", "done", "failed", "to_do", "to_be_proposed")}
        assert counts == {"cells": 6, "done": 2, "failed": 1, "to_do": 3, "to_be_proposed": 1}
        assert workspace.ledger.read_bytes() == before

    def test_what_was_proposed_is_not_to_be_proposed(
        self, workspace: Workspace, ledger: Ledger, console: Console
    ) -> None:
        propose(ledger, spec(), 5, {ETA: 0.77}, "optuna")
        content = plan_sweep("a", spec(), 6, workspace, ledger, console, ROOM)
        assert (content["cells"], content["to_be_proposed"]) == (7, 1)

    def test_fewer_trials_than_points(self, workspace: Workspace, console: Console) -> None:
        content = plan_sweep("a", spec(), 2, workspace, Ledger(workspace.ledger), console, ROOM)
        assert (content["cells"], content["to_be_proposed"]) == (3, 0)

    def test_workers_are_devices(self, workspace: Workspace, console: Console) -> None:
        configs = [build("demo", TINY | {"train.workers": 2})]
        content = plan(configs, workspace, Ledger(workspace.ledger), console)
        assert content["device_hours"] == pytest.approx(2 * 4 / 3600)
        assert content["wall_seconds"] == 4

    def test_each_crafted_set_counts_once(self, workspace: Workspace, console: Console) -> None:
        configs = [
            build("demo", TINY | {"corruption.rate": rate, "train.seed": seed})
            for rate in (0.2, 0.4)
            for seed in (0, 1)
        ]
        content = plan(configs, workspace, Ledger(workspace.ledger), console)
        assert (content["crafted_sets"], content["crafted_sets_missing"]) == (2, 2)


class TestMemory:
    """Tests the memory that is printed for the run that needs most."""

    @pytest.fixture(autouse=True)
    def _one_second_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimate.History, "seconds", lambda self, config: float(config.train.epochs))

    def planned(self, workspace: Workspace, console: Console, *overrides: dict[str, Any]) -> dict[str, Any]:
        configs = [build("demo", TINY | entry) for entry in overrides]
        return plan(configs, workspace, Ledger(workspace.ledger), console)

    def test_it_is_that_of_the_largest_run(self, workspace: Workspace, console: Console) -> None:
        small, large = {"train.batch_size": 16}, {"train.batch_size": 64}
        content = self.planned(workspace, console, small, large, small)
        assert content["memory_mb"] == estimate.memory(build("demo", TINY | large)).megabytes
        assert content["memory_mb"] > estimate.memory(build("demo", TINY | small)).megabytes
        words = f"memory: about {content['memory_mb']:.0f} MB of tensors per worker (network and optimizer 0, data 0, "
        assert words in said(console)

    @pytest.mark.parametrize(
        ("scoring", "words"),
        [
            (0, "about 1.4 GB of tensors per worker (network and optimizer 0.3, data 0.2, a step 0.9)"),
            (1800 * MB, "about 2.4 GB of tensors per worker (network and optimizer 0.3, data 0.2, scoring 1.9)"),
        ],
    )
    def test_what_the_most_goes_to(
        self, scoring: int, words: str, workspace: Workspace, console: Console, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = MemoryEstimate(150 * MB, MB, 150 * MB, 150 * MB, 200 * MB, 920 * MB, scoring)
        monkeypatch.setattr(estimate, "memory", lambda config: memory)
        assert self.planned(workspace, console, {})["memory_mb"] == memory.total / MB
        assert f"  memory: {words}\n" in said(console)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(UserError("no such size"), "no such size"), (RuntimeError("two\nlines"), "two"), (KeyError(), "KeyError")],
    )
    def test_a_plan_does_not_fail_over_it(
        self, error: Exception, reason: str, workspace: Workspace, console: Console, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(config: RunConfig) -> MemoryEstimate:
            raise error

        monkeypatch.setattr(estimate, "memory", fail)
        content = self.planned(workspace, console, {})
        assert content["memory_mb"] is None
        assert content["to_do"] == 1
        assert f"memory: not known ({reason})" in said(console)

    def test_nothing_to_do_needs_none(self, workspace: Workspace, console: Console) -> None:
        assert self.planned(workspace, console)["memory_mb"] is None
        assert "memory: none" in said(console)


class TestTime:
    """Tests the time of a study, with a run of any configuration taking a second an epoch."""

    @pytest.fixture(autouse=True)
    def _one_second_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimate.History, "seconds", lambda self, config: float(config.train.epochs))

    def planned(self, workspace: Workspace, console: Console, slots: int, trials: int, **settings: Any) -> Any:
        content = {"name": "free", "about": "a test", "parameters": {ETA: {"low": 0, "high": 1}}}
        space = with_settings(parse_space(content, "mine.yaml"), **settings)
        made = StudySpec(
            space, "demo", TINY | {"train.epochs": 9, "defense.warmup_epochs": 1, "defense.ramp_epochs": 1}
        )
        return plan_sweep("a", made, trials, workspace, Ledger(workspace.ledger), console, Room(slots, "so many"))

    def test_without_a_pruner_it_is_rounds_of_whole_trainings(self, workspace: Workspace, console: Console) -> None:
        content = self.planned(workspace, console, 8, 24, pruner="none")
        assert content["seconds"] == [27, 27]
        assert content["trainings"] == [24, 24]
        assert "not known ahead" not in said(console)

    def test_a_narrow_window_takes_longer(self, workspace: Workspace, console: Console) -> None:
        assert self.planned(workspace, console, 8, 24, pruner="none", window=1)["seconds"] == [108, 108]

    def test_halving_keeps_a_third_of_each_block(self, workspace: Workspace, console: Console) -> None:
        content = self.planned(workspace, console, 24, 24, pruner="halving", rungs=[3])
        assert content["seconds"] == [9, 9]
        assert content["trainings"] == pytest.approx([16 / 3 + 8, 16 / 3 + 8])
        assert "of each block of 24 proposals the best third goes on from each rung, after epoch 3" in said(console)

    def test_what_the_median_stops_is_a_range(self, workspace: Workspace, console: Console) -> None:
        low, high = self.planned(workspace, console, 4, 24, pruner="median", window=4)["trainings"]
        assert high == 24
        assert 24 * 0.7 < low < 24 * 0.85, "less than half of them, for the first ones have nothing to be compared with"
        assert "what median will stop is not known ahead" in said(console)
        assert "after epoch 4, to none" in said(console)

    def test_confirmations_follow_the_search(self, workspace: Workspace, console: Console) -> None:
        content = self.planned(workspace, console, 6, 6, pruner="none", confirm="3x3")
        assert content["confirmations"] == 6
        assert content["seconds"] == [18, 18]
        assert "then 6 confirmations" in said(console)

    def test_what_is_done_takes_no_time(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        content = plan_sweep("a", spec(), 5, workspace, ledger, console, ROOM)
        assert content["seconds"] == [6, 8]  # three runs of four seconds, of which the proposal may be stopped
        assert content["trainings"] == [2.5, 3]

    def test_the_recorded_window_is_taken(self, workspace: Workspace, console: Console) -> None:
        ledger = Ledger(workspace.ledger)
        register(ledger, "a", begin_as(spec(), 3, 9), 9)
        content = plan_sweep("a", spec(), 9, workspace, ledger, console, Room(64, "many"))
        assert content["window"] == content["settings"]["window"] == 5

    def test_an_extension_is_planned_with_a_window_of_its_own(self, workspace: Workspace, console: Console) -> None:
        ledger = Ledger(workspace.ledger)
        register(ledger, "a", begin_as(spec(), 1, 9), 9)
        before = workspace.ledger.read_bytes()
        content = plan_sweep("a", spec(), 99, workspace, ledger, console, Room(30, "many"))
        assert (content["settings"]["window"], content["window"]) == (2, 60)
        assert "window 2, 60 after 9 trials" in said(console)
        # With the window 2, three proposals would run at a time.
        assert content["trainings"][1] * 4 / 30 <= content["seconds"][1] < content["trainings"][1] * 4 / 10
        assert workspace.ledger.read_bytes() == before


class TestRoom:
    def test_a_number_is_taken_as_it_is(self) -> None:
        assert find_room(build("demo"), None, 64, None).slots == 64
        assert find_room(build("demo"), None, 64, 8).slots == 8

    def test_this_machine_has_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimate, "local_slots", lambda config: 6)
        assert find_room(build("demo"), None, None, None).slots == 6
        assert find_room(build("demo"), None, None, 2).slots == 2

    @pytest.mark.parametrize("there", [True, False])
    def test_a_gpu_that_this_machine_lacks_is_named(self, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: there)
        words = find_room(build("paper"), None, None, None).words
        assert ("lacks the GPU they ask for, resources.device=cpu goes without" in words) is not there
        assert "lacks" not in find_room(build("paper", {"resources.device": "cpu"}), None, None, None).words

    def test_a_cluster_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def slots(resources: dict[str, float], workers: int, fewest: int | None) -> int:
            asked.append((resources, workers, fewest))
            return 24

        monkeypatch.setattr(session, "connection", lambda address: nullcontext(asked.append(address)))
        monkeypatch.setattr(session, "slots", slots)
        room = find_room(build("demo", {"resources.cpu": 2}), "head:6379", None, None)
        assert (room.slots, "head:6379" in room.words) == (24, True)
        assert asked == ["head:6379", ({"CPU": 2.0, "GPU": 0.0}, 1, None)]

    def test_one_of_the_two(self) -> None:
        with pytest.raises(UserError, match="give one"):
            find_room(build("demo"), "head:6379", 4, None)
