"""Tests what a sweep is, what its name means, and what it records of its trials, without Ray and MLflow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from erat.config import build
from erat.errors import UserError
from erat.result import RunResult
from orchestration.cli import parse_overrides
from orchestration.report.files import write_files
from orchestration.report.results import best_json, confirmed_json, result_json
from orchestration.report.summary import paste_command
from orchestration.run.places import Place
from orchestration.run.retries import DEATHS, Retry
from orchestration.search.driver import StudyDriver
from orchestration.search.observations import Observation
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import load_space, parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial, confirmation
from tests.tracked import Untracked
from tests.trials import make_trial

ETA = "defense.eta"
DEMO, PAPER = build("demo"), build("paper")


def space(**changes: Any) -> Any:
    content = {
        "name": "mine",
        "about": "a test",
        "parameters": {ETA: {"low": 0, "high": 1}},
        "points": [{ETA: 0.1}, {ETA: 0.7}],
        "baselines": [{"defense.name": "ce"}],
    }
    return parse_space(content | changes, "mine.yaml")


RAMP = {"defense.ramp_epochs": DEMO.flat()["defense.ramp_epochs"]}  # which follows from the epochs unless it is given


def spec(preset: str = "demo", overrides: Mapping[str, Any] | None = None, **changes: Any) -> StudySpec:
    return StudySpec(space(**changes), preset, dict(overrides or {}))


class TestSpecification:
    def test_what_is_searched_cannot_be_set_as_well(self) -> None:
        with pytest.raises(UserError, match=rf"{ETA} is what the space mine searches; it cannot be set as well"):
            spec(overrides={ETA: 0.3})

    @pytest.mark.parametrize("key", ["defense.etta", "corruption.rat", "nothing"])
    def test_an_unknown_key_is_refused_with_what_there_is(self, key: str) -> None:
        with pytest.raises(UserError, match=f"unknown key '{key}'"):
            spec(overrides={key: 1})

    def test_a_defense_must_have_what_is_searched(self) -> None:
        with pytest.raises(UserError, match=f"searches {ETA}, which ce lacks"):
            spec(overrides={"defense.name": "ce"})
        searched = {"train.lr": {"low": 0.01, "high": 0.1}}
        assert spec(overrides={"defense.name": "ce"}, parameters=searched, points=[]).base.defense.name == "ce"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"baselines": [{"defense.nam": "ce"}]}, "unknown key 'defense.nam'"),
            ({"baselines": [{"defense.name": "cee"}]}, "unknown defense 'cee'"),
            ({"baselines": [{"defense.steps": 0}]}, "defense.steps"),
            ({"points": [{ETA: 1.5}]}, "defense.eta"),
            ({"points": [], "parameters": {ETA: {"low": 0, "high": 2}}}, "defense.eta"),
            ({"points": [], "parameters": {"train.lr": {"low": 0, "high": 1}}}, "train.lr"),
            ({"points": [], "parameters": {"defense.steps": {"low": 1, "high": 10}}}, "defense.steps.*integer"),
            ({"points": [], "parameters": {"defense.rebalance": {"low": 0, "high": 1}}}, "defense.rebalance"),
        ],
    )
    def test_settings_that_make_no_run_are_refused_before_anything_runs(
        self, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UserError, match=words) as caught:
            spec(**changes)
        assert "\n" not in str(caught.value)

    def test_a_trial_is_the_base_with_its_values_on_top(self) -> None:
        made = spec(overrides={"train.epochs": 5, "corruption.rate": 0.4})
        config = made.config({ETA: 0.3})
        assert config == build("demo", {"train.epochs": 5, "corruption.rate": 0.4, ETA: 0.3})

    def test_a_baseline_of_another_defense_drops_what_was_meant_for_the_first(self) -> None:
        made = spec(overrides={"defense.lambda_u": 5, "defense.warmup_epochs": 1, "train.epochs": 5})
        config = made.config({"defense.name": "ce"})
        assert config == build("demo", {"defense.name": "ce", "train.epochs": 5})

    def test_a_baseline_of_the_same_defense_keeps_it(self) -> None:
        config = spec(overrides={"defense.lambda_u": 5}).config({"defense.adversarial": False})
        assert config == build("demo", {"defense.lambda_u": 5, "defense.adversarial": False})


class TestManySeeds:
    """Tests what keeps a study of 100,000 listed runs small: its settings are few."""

    RUNS: ClassVar[list[dict[str, Any]]] = [
        {"defense.name": name, "train.seed": seed} for name in ("ce", "erat") for seed in range(5)
    ]

    def test_a_setting_is_built_once_whatever_the_number_of_its_seeds(self) -> None:
        made = StudySpec.listing("mine", "a test", self.RUNS, "demo", {})
        trials = [made.trial(number, "baseline", params) for number, params in enumerate(self.RUNS)]
        assert len(made._configs) == 2
        assert [trial.config for trial in trials] == [made.config(params).flat() for params in self.RUNS]
        assert [trial.cell for trial in trials] == [build("demo", params).digest() for params in self.RUNS]

    @pytest.mark.parametrize("seed", [-1, "x", None])
    @pytest.mark.parametrize("place", [0, 3, 9])
    def test_a_seed_that_is_none_is_refused_wherever_it_stands(self, seed: Any, place: int) -> None:
        runs = [dict(run) for run in self.RUNS]
        runs[place]["train.seed"] = seed
        with pytest.raises(UserError, match=r"train\.seed"):
            StudySpec.listing("mine", "a test", runs, "demo", {})


class TestKind:
    """Tests that the kind of a study is decided once and shown accordingly everywhere."""

    def test_what_is_searched_beside_its_runs_is_a_search(self) -> None:
        made = spec()
        assert (made.kind, made.search, made.runs) == ("search", made.space, [{"defense.name": "ce"}])
        assert made.points == [{ETA: 0.1}, {ETA: 0.7}]
        assert made.known_ahead(1) == [("baseline", {"defense.name": "ce"}), ("paper", {ETA: 0.1})]
        assert (made.size(0), made.size(5)) == (1, 6)

    @pytest.mark.parametrize(
        ("runs", "kind"),
        [
            ([{"defense.name": "ce"}, {"defense.name": "erat"}], "matrix"),
            ([{}, {"defense.adversarial": False}], "matrix"),
            ([{"defense.name": "at", "defense.norms": norm} for norm in ("linf", "l2")], "matrix"),
            ([{"train.seed": seed} for seed in (0, 1)], "list"),
            ([{"defense.name": "ce", "corruption.data": kind} for kind in ("none", "up")], "list"),
            ([{"defense.name": "erat_inf"}, {"defense.norms": "linf"}], "list"),
        ],
        ids=["defenses", "ablation", "norms", "seeds", "corruptions", "one-defense-under-two-names"],
    )
    def test_listed_runs_of_several_defenses_are_a_matrix(self, runs: list[dict[str, Any]], kind: str) -> None:
        made = StudySpec.listing("mine", "a test", runs, "demo", {})
        assert (made.kind, made.search, made.runs, made.points) == (kind, None, runs, [])
        assert StudySpec.of(json.loads(json.dumps(made.content()))).kind == kind

    def test_the_ledger_has_a_list_in_the_form_that_it_always_had(self) -> None:
        made = StudySpec.listing("mine", "a test", [{"train.seed": 1}], "demo", {})
        fixed = {"parameters": {}, "points": [], "proposals": 0, "generation": 2, "grace": 0.5}
        assert made.content()["space"] == {"name": "mine", "about": "a test", **fixed, "baselines": [{"train.seed": 1}]}


class TestIdentity:
    def test_how_the_overrides_were_written_does_not_count(self) -> None:
        written = spec(overrides={"corruption.epsilon": "1/4", "train.epochs": DEMO.train.epochs})
        assert written.identity() == spec(overrides={"corruption.epsilon": 0.25}).identity()

    def test_neither_do_places_and_machines(self) -> None:
        assert spec(overrides={"data.root": "/elsewhere", "resources.gpu": 0.5}).identity() == spec().identity()

    @pytest.mark.parametrize(
        "other",
        [
            spec(overrides={"train.epochs": 5}),
            spec(preset="paper"),
            spec(grace=0.25),
            spec(points=[{ETA: 0.1}]),
            spec(baselines=[]),
            spec(parameters={ETA: {"low": 0, "high": 0.9}}),
        ],
    )
    def test_what_decides_the_trials_counts(self, other: StudySpec) -> None:
        assert other.identity() != spec().identity()

    @pytest.mark.parametrize("name", ["budgets", "eta", "lambda", "joint"])
    def test_it_comes_back_from_the_ledger(self, name: str, workspace: Workspace) -> None:
        made = StudySpec(load_space(name), "demo", {"corruption.epsilon": "8/255", "data.limit": None})
        register(Ledger(workspace.ledger), "a", made, trials=3)
        back = StudySpec.of(Ledger(workspace.ledger).studies["a"].spec)
        assert back == made
        assert back.identity() == made.identity()


class TestNames:
    def test_the_same_sweep_is_entered_once_and_extended(self, workspace: Workspace) -> None:
        ledger = Ledger(workspace.ledger)
        for trials in (4, 4, 3):
            register(ledger, "a", spec(), trials)
        assert len(workspace.ledger.read_text().splitlines()) == 1
        register(ledger, "a", spec(overrides={"train.epochs": DEMO.train.epochs}), 9)
        assert Ledger(workspace.ledger).studies["a"].trials == 9

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (spec(overrides={"train.epochs": 5, **RAMP}), f"train.epochs was {DEMO.train.epochs}, is 5"),
            (
                spec(overrides={"train.epochs": 5, "train.seed": 1, **RAMP}),
                f"train.epochs was {DEMO.train.epochs}, is 5 and 1 more",
            ),
            (spec(preset="paper"), f"corruption.data was {DEMO.corruption.data}, is {PAPER.corruption.data}"),
            (spec(grace=0.25), "its search space differs"),
        ],
    )
    def test_a_name_in_use_is_refused_and_what_differs_is_named(
        self, other: StudySpec, words: str, workspace: Workspace
    ) -> None:
        ledger = Ledger(workspace.ledger)
        register(ledger, "a", spec(), 4)
        before = workspace.ledger.read_bytes()
        with pytest.raises(UserError) as caught:
            register(ledger, "a", other, 4)
        assert words in str(caught.value)
        assert "'a'" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert workspace.ledger.read_bytes() == before


class TestPaste:
    """Tests that the command in a summary runs exactly the run that it stands beside."""

    @pytest.mark.parametrize("preset", ["demo", "paper"])
    @pytest.mark.parametrize(
        "overrides",
        [
            {},
            {"corruption.epsilon": "8/255", "corruption.data": "urp"},
            {"data.limit": None, "val.trusted": False, "train.milestones": [30, 40], "train.weight_decay": 1e-05},
        ],
    )
    def test_it_gives_the_same_digest(self, preset: str, overrides: dict[str, Any]) -> None:
        made = StudySpec(load_space("joint"), preset, overrides)
        point = made.space.scaled_points(made.base.data.name)[0]
        proposal = {
            "defense.epsilon_inf": 0.02938471625,
            "defense.epsilon_2": 0.1000000001,
            ETA: 7.483490817e-05,
            "defense.lambda_u": 12.0,
        }
        for params in (point, proposal):
            row = made.trial(0, "paper", params)
            words = shlex.split(paste_command(row, made.preset, made.overrides))
            assert words[:5] == ["python", "orchestrate.py", "train", "--preset", preset]
            assert build(preset, parse_overrides(words[5:])).digest() == row.cell


class FakeTracker(Untracked):
    """A tracker that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.uri = "fake"

    def start_run(self, cell: str, config: Mapping[str, Any], **options: Any) -> str:
        self.calls.append(("start", cell, options["parent"], options["sweep"], options["source"]))
        return f"run-{cell}"

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        self.calls.append(("epoch", run_id, epoch, row["val_accuracy"]))

    def finish(
        self,
        run_id: str,
        status: str,
        summary: Mapping[str, Any],
        artifacts: Any = None,
        error: Any = None,
        tags: Any = None,
    ) -> None:
        assert not tags, "there are no rungs here"
        self.calls.append(("finish", run_id, status, dict(summary), artifacts, error))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]


class FakeSampler:
    """A sampler that proposes 0.5."""

    def given(self, number: int, params: Mapping[str, Any]) -> None: ...

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        return {ETA: 0.5}

    def tell(self, number: int, observation: Observation) -> None: ...


class World:
    """A driver whose surroundings are all fake, except for the disk."""

    def __init__(self, workspace: Workspace, total: int = 3, **changes: Any) -> None:
        self.workspace, self.spec, self.tracker = (
            workspace,
            spec(overrides={"train.epochs": 4}, **{"window": 1} | changes),
            FakeTracker(),
        )
        self.ledger = Ledger(workspace.ledger)
        register(self.ledger, "a", self.spec, total)
        self.seen: list[list[str]] = []
        self.status: dict[int, str] = {}
        self.driver = StudyDriver(
            "a",
            self.spec,
            total,
            workspace,
            self.ledger,
            self.tracker,  # type: ignore[arg-type]
            "parent",
            FakeSampler(),
            view=self.view,
        )

    def view(self, changed: list[Trial]) -> None:
        self.status |= {trial.number: trial.status for trial in changed}
        self.seen.append([self.status[number] for number in sorted(self.status)])

    def begin(self, count: int = 1) -> list[dict[str, Any]]:
        """Start the next trials, and return their parameters."""
        started = []
        for _ in range(count):
            trial = self.driver.queue.next()
            assert trial is not None
            started.append(self.driver.trial_parameters(trial))
            self.driver.started(trial.number)
        return started

    def folder(self, number: int) -> Path:
        return self.workspace.run_directory(self.driver.queue.trials[number].cell)

    def epochs(self, number: int, *val_accuracies: float) -> None:
        """Write what a worker writes after its epochs."""
        rows = [
            {
                "epoch": epoch,
                "val_accuracy": value,
                "test_accuracy": value - 0.1,
                "train_loss": 1.0,
                "epoch_seconds": 2.0,
            }
            for epoch, value in enumerate(val_accuracies, start=1)
        ]
        (self.folder(number) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def result(self, number: int, status: str, **fields: Any) -> None:
        figures = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
        done = {"epochs": 4} | dict.fromkeys(figures, 0.5) if status == "done" else {}
        content = {"cell": self.driver.queue.trials[number].cell, "status": status, **done, **fields}
        (self.folder(number) / "result.json").write_text(json.dumps(content))

    def end(self, number: int) -> RunResult:
        result = self.driver.ended(number)
        assert isinstance(result, RunResult)
        return result


@pytest.fixture
def world(workspace: Workspace) -> World:
    return World(workspace)


class TestDriver:
    def test_a_worker_is_given_all_it_needs_in_absolute_terms(self, world: World) -> None:
        point, _, baseline = world.begin(3)
        assert json.loads(point["config"]) == json.loads(world.spec.config({ETA: 0.1}).model_dump_json())
        assert json.loads(baseline["config"])["defense"]["name"] == "ce"
        assert point["stop_request"] == "stop-a"
        assert Path(point["workspace"]) == world.workspace.root
        assert world.workspace.run_directory(point["cell"]).is_dir()

    def test_what_is_proposed_is_on_disk_before_it_runs(self, world: World) -> None:
        world.begin(3)
        proposals = Ledger(world.workspace.ledger).studies["a"].proposals
        assert [(p.number, p.source, p.params) for p in proposals.values()] == [
            (1, "paper", {ETA: 0.1}),
            (2, "paper", {ETA: 0.7}),
            (0, "baseline", {"defense.name": "ce"}),
        ]
        assert proposals[1].cell == world.spec.config({ETA: 0.1}).digest()

    def test_an_epoch_reaches_the_view_and_the_tracker(self, world: World) -> None:
        world.begin(2)
        world.epochs(1, 0.3, 0.5, 0.4)
        world.driver.epoch(1)
        row = world.driver.queue.trials[1]
        assert (row.status, row.epoch, row.epochs, row.val_accuracy, row.best_val_accuracy) == (
            "running",
            3,
            4,
            0.4,
            0.5,
        )
        assert (row.seconds, row.seconds_left) == (6.0, 2.0)
        assert row.final_test_accuracy is None, "test accuracy is for the end"
        assert [call[1:] for call in world.tracker.of("epoch")] == [(1, 0.3), (2, 0.5), (3, 0.4)]
        assert world.seen[-1] == ["running", "running"]

    def test_a_trial_that_is_done(self, world: World) -> None:
        world.begin(2)
        world.epochs(1, 0.3, 0.5, 0.4, 0.4)
        world.result(1, "done", epochs=4, best_val_accuracy=0.5, final_test_accuracy=0.3, train_seconds=8.0)
        outcome = world.end(1)
        kept = Ledger(world.workspace.ledger).outcome(world.driver.queue.trials[1].cell)
        assert kept is not None
        assert RunResult.of(asdict(kept)) == outcome == world.driver.queue.trials[1].result
        run = f"run-{world.driver.queue.trials[1].cell}"
        assert kept.mlflow_run_id == world.driver.queue.trials[1].mlflow_run_id == run
        (_, status, summary, artifacts, error) = world.tracker.of("finish")[-1]
        assert (status, error) == ("done", None)
        assert artifacts == world.folder(1) / "artifacts"
        assert summary["final_test_accuracy"] == 0.3
        assert summary["best_val_accuracy"] == 0.5
        assert world.seen[-1] == ["done", "running"]

    def test_a_trial_that_failed_says_why(self, world: World) -> None:
        world.begin(2)
        world.result(1, "failed", error="TrainingFailedError: the loss became nan in epoch 1")
        assert world.end(1).error == "TrainingFailedError: the loss became nan in epoch 1"
        assert world.tracker.of("finish")[-1][1::3] == ("failed", "TrainingFailedError: the loss became nan in epoch 1")
        assert world.tracker.of("finish")[-1][3] is None, "no artifacts"

    def test_a_trial_goes_on_after_its_worker_died(self, world: World) -> None:
        world.begin(2)
        world.epochs(1, 0.3)
        with pytest.warns(UserWarning, match="trial 1: the worker died after epoch 1; it goes on$"):
            assert isinstance(world.driver.ended(1), Retry)
        assert world.seen[-1] == ["queued", "running"]
        assert world.driver.ledger.outcome(world.driver.queue.trials[1].cell, "a") is None
        assert not world.tracker.of("finish")
        world.driver.started(1)
        world.epochs(1, 0.3, 0.5, 0.5, 0.5)
        world.result(1, "done", epochs=4, final_test_accuracy=0.3)
        assert world.end(1).status == "done"

    def test_memory_is_tried_once_more_among_fewer(self, world: World) -> None:
        world.begin(3)
        place = Place("abcdef0123", "10.0.0.7", ("0",))
        for number in (1, 2):
            assert world.driver.landed(number, place)
        error = "out of memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
        world.result(1, "failed", error=error)
        with pytest.warns(UserWarning, match="memory") as said:
            assert world.driver.ended(1) == Retry("memory", error)
        assert [str(each.message) for each in said] == [
            "GPU 0 of node 10.0.0.7 (abcdef): at most 1 side by side, because memory was short",
            f"trial 1: {error}; it goes on",
        ]
        assert not world.driver.landed(1, place), "trial 2 is there"
        assert world.driver.landed(1, Place("abcdef0123", "10.0.0.7", ("1",)))
        world.driver.places.left_alone(1)
        world.driver.places.left_alone(2)
        assert world.driver.landed(1, place)
        outcome = world.end(1)
        assert outcome.status == "failed"
        assert "Tried to allocate 2 GiB; again with fewer side by side: lower train.batch_size" in str(outcome.error)

    def test_the_fault_of_a_gpu_is_a_death(self, world: World) -> None:
        world.begin(2)
        error = "device fault: AcceleratorError: CUDA error: an illegal memory access was encountered"
        world.result(1, "failed", error=error)
        with pytest.warns(UserWarning, match="illegal memory access was encountered\\); it goes on$"):
            retry = world.driver.ended(1)
        assert isinstance(retry, Retry) and retry.cause == "death"

    def test_what_is_excluded_is_in_the_ledger_until_the_study_is_started_again(self, world: World) -> None:
        world.begin(3)
        places = world.driver.places
        places.resize({"abcdef0123": 2})
        for number in (1, 2, 0):
            assert places.landed(number, Place("abcdef0123", "10.0.0.7", ("1",)))
            with pytest.warns(UserWarning, match="the worker died"):
                assert isinstance(world.driver.ended(number), Retry)
        (where, why) = next(iter(Ledger(world.workspace.ledger).studies["a"].out.items()))
        assert where == "GPU 1 of node 10.0.0.7 (abcdef)"
        assert why == "3 trials died there, the last with: the worker died after epoch 0"
        World(world.workspace)
        assert not Ledger(world.workspace.ledger).studies["a"].out

    def test_the_tracker_knows_of_an_end_before_the_ledger(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A driver killed between the two finds the result again; the tracker treats the repeated end as one."""
        world.begin(2)
        world.result(1, "done", epochs=4)

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(world.ledger, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            world.driver.ended(1)
        assert world.tracker.of("finish")[-1][1] == "done"

    @pytest.mark.filterwarnings("ignore:trial 1")
    @pytest.mark.filterwarnings("ignore:the cluster. at most 1 side by side")
    def test_a_worker_that_dies_every_time_leaves_a_failure(self, world: World) -> None:
        world.begin(2)
        world.epochs(1, 0.3, 0.5)
        verdicts = [world.driver.ended(1) for _ in range(DEATHS - 1)]
        assert all(isinstance(verdict, Retry) for verdict in verdicts)
        outcome = world.end(1)
        assert outcome.status == "failed"
        assert "died after epoch 2, 3 times" in str(outcome.error)
        assert Ledger(world.workspace.ledger).outcome(world.driver.queue.trials[1].cell, "a").status == "failed"  # type: ignore[union-attr]

    def test_a_worker_that_could_not_begin_says_why(self, world: World) -> None:
        world.begin(2)
        (world.folder(1) / "error.txt").write_text("checkpoint x cannot be read: delete it to start this run anew")
        assert world.end(1).error == "checkpoint x cannot be read: delete it to start this run anew"

    def test_a_trial_that_ends_before_it_was_seen_to_start_is_tracked(self, world: World) -> None:
        trial = world.driver.queue.next()
        assert trial is not None
        world.driver.trial_parameters(trial)
        world.result(trial.number, "failed", error="at once")
        world.end(trial.number)
        assert len(world.tracker.of("start")) == len(world.tracker.of("finish")) == 1

    def test_interrupted_trials_are_queued_again(self, world: World) -> None:
        world.begin(2)
        world.result(1, "done")
        world.end(1)
        world.driver.interrupted()
        assert [row.status for row in world.driver.trials] == ["done", "queued"]
        assert world.tracker.of("finish")[-1][:2] == (f"run-{world.driver.queue.trials[2].cell}", "interrupted")
        assert Ledger(world.workspace.ledger).outcome(world.driver.queue.trials[2].cell, "a") is None

    def test_a_trial_finished_elsewhere_is_a_row_and_never_runs(self, workspace: Workspace) -> None:
        made = World(workspace, total=2)
        cell = made.spec.config({ETA: 0.1}).digest()
        reached = RunResult(cell, "done", 4, 0.9, 0.9, 0.8, 0.8, train_seconds=1.0, val_history=[0.9])
        made.ledger.finish(reached, sweep="b", mlflow_run_id="elsewhere")
        made.begin(2)
        assert [(row.number, row.status) for row in made.driver.trials] == [
            (0, "running"),
            (1, "done"),
            (2, "running"),
        ]
        assert made.driver.queue.trials[1].final_test_accuracy == 0.8
        assert made.driver.queue.trials[1].mlflow_run_id == "elsewhere"


class TestStopping:
    def test_what_counts_ends_with_the_epoch_in_which_it_was_decided(self, world: World) -> None:
        """Data-parallel workers may have gone further when they notice the stop; the result must not show how far."""
        world.begin(2)
        world.driver.stop(1, 2)
        world.driver.stop(1, 3)
        world.epochs(1, 0.1, 0.3, 0.9)
        world.result(1, "stopped", epochs=3, best_val_accuracy=0.9)
        outcome = world.end(1)
        assert outcome.status == "stopped"
        assert outcome.val_history == [0.1, 0.3]
        assert (outcome.epochs, outcome.best_val_accuracy) == (2, 0.3)
        assert outcome.final_test_accuracy == pytest.approx(0.2)
        assert world.tracker.of("finish")[-1][1] == "stopped"

    def test_even_where_the_workers_had_come_to_the_end(self, world: World) -> None:
        world.begin(2)
        world.driver.stop(1, 3)
        world.epochs(1, 0.1, 0.2, 0.3, 0.9)
        world.result(1, "done", epochs=4, best_val_accuracy=0.9)
        outcome = world.end(1)
        assert (outcome.status, outcome.best_val_accuracy) == ("stopped", 0.3)

    def test_it_holds_in_this_sweep_alone(self, world: World) -> None:
        (parameters,) = world.begin()
        world.driver.stop(1, 2)
        assert (world.folder(1) / parameters["stop_request"]).exists()
        world.epochs(1, 0.1, 0.2)
        world.result(1, "stopped")
        world.end(1)
        assert not (world.folder(1) / parameters["stop_request"]).exists(), "another try must not stop at once"
        ledger = Ledger(world.workspace.ledger)
        assert ledger.outcome(parameters["cell"], "a").status == "stopped"  # type: ignore[union-attr]
        assert ledger.outcome(parameters["cell"], "b") is None

    def test_grace_is_a_share_of_the_epochs(self, workspace: Workspace) -> None:
        for grace, first in [(0.5, 2), (0.0, 1), (1.0, None)]:
            pruner = World(Workspace(workspace.root / str(grace)), grace=grace).driver.queue.pruner
            stopping = (epoch for epoch in range(1, 5) if pruner.stops(epoch, 0.1, np.array([0.5])))
            assert next(stopping, None) == first


class TestResults:
    def test_a_run_as_json_has_the_promised_keys(self) -> None:
        promised = "cell status config final_test_accuracy best_val_test_accuracy val_accuracy train_seconds"
        assert result_json(make_trial()).keys() == {*promised.split(), "mlflow_run_id", "error"}

    def test_the_best_is_no_baseline_and_says_what_was_searched(self) -> None:
        rows = [
            make_trial(0, "b", {}, source="baseline", status="done", best_val_accuracy=0.99),
            make_trial(1, "c", {ETA: 0.1}, source="paper", status="done", best_val_accuracy=0.5),
            make_trial(2, "d", {ETA: 0.2}, status="stopped", best_val_accuracy=0.9),
        ]
        chosen = best_json(rows)
        assert chosen is not None
        assert (chosen["number"], chosen["params"], chosen["cell"]) == (1, {ETA: 0.1}, "c")
        assert best_json(rows[:1]) is None

    def test_the_best_is_the_best_mean_and_says_its_seeds(self) -> None:
        def seed(number: int, repeat: int, val: float) -> Trial:
            trial = make_trial(
                confirmation(number, repeat) if repeat else number,
                f"c{number}{repeat}",
                {ETA: number / 10},
                source="confirm" if repeat else "optuna",
                status="done",
                best_val_accuracy=val,
                final_test_accuracy=0.5,
                config={"train.seed": repeat},
            )
            return replace(trial, seeds=2 if repeat else 1)

        rows = [seed(1, 0, 0.99), seed(2, 0, 0.9), seed(1, 1, 0.5), seed(2, 1, 0.8)]
        chosen = best_json(rows)
        assert chosen is not None
        assert (chosen["number"], chosen["params"]) == (2, {ETA: 0.2})
        assert chosen["confirmed"]["val_accuracy_mean"] == pytest.approx(0.85)
        assert (chosen["confirmed"]["seeds"], chosen["confirmed"]["seeds_done"]) == ([0, 1], 2)
        assert [each["number"] for each in confirmed_json(rows)["confirmed"]] == [2, 1]
        assert confirmed_json(rows[:2]) == {}
        assert (result_json(rows[3])["confirms"], result_json(rows[3])["seed"]) == (2, 1)

    def test_the_report_lies_in_its_folder(self, world: World) -> None:
        world.begin(3)
        for number in range(3):
            world.epochs(number, 0.1, 0.2, 0.3, 0.4)
            world.result(number, "done", epochs=4, best_val_accuracy=0.4, final_test_accuracy=0.3)
            world.end(number)
        folder = world.workspace.report("a")
        files = write_files(world.spec, world.driver.trials, folder)
        assert all(Path(file).parent == folder for file in files)
        assert {"summary.md", "summary.csv", "spec.json"} <= {file.name for file in folder.iterdir()}
        assert any(file.endswith(".png") for file in files)
        assert json.loads((folder / "spec.json").read_text()) == world.spec.content()
        assert len((folder / "summary.csv").read_text().splitlines()) == 4
