"""Tests samplers and pruners of one's own: registered by a decorator, or by an installed package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from erat import temporary_registrations
from erat.errors import UserError
from orchestration import Abilities, Observation, Pruner, register_pruner, register_sampler
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.search.pruners import Halving
from orchestration.search.simulate import simulate
from orchestration.study.ledger import Ledger
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.study.rungs import rungs_of
from orchestration.study.settings import with_settings
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from tests.public import installed

ROOT = Path(__file__).parents[4]
CONTENT: dict[str, Any] = {
    "name": "own",
    "about": "",
    "parameters": {"defense.eta": {"low": 0, "high": 1}, "defense.selector": {"choices": ["rebalance", "mixture"]}},
    "window": 2,
}


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    with temporary_registrations(SAMPLERS, PRUNERS):
        yield


class Walk:
    """Goes up in steps of a hundredth from the best trial so far."""

    abilities = Abilities(ranges=1, conditions=False, objectives=1)

    def __init__(self, distributions: Mapping[str, Any], *, seed: int, **more: Any) -> None:
        self.keys, self.best, self.tried = list(distributions), (0.0, 0.0), dict[int, float]()

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        self.tried[number] = params["defense.eta"]

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        values = dict(known) if known else {"defense.eta": round(self.best[1] + 0.01 * number, 10)}
        self.given(number, values)
        return {"defense.selector": "mixture"} | values

    def tell(self, number: int, observation: Observation) -> None:
        if observation.best_val_accuracy is not None:
            self.best = max(self.best, (observation.best_val_accuracy, self.tried[number]))


class Impatient(Pruner):
    """Stops every other trial after an epoch."""

    def stops(self, epoch: int, best: float, reference: Any) -> bool:
        return len(reference) % 2 == 1


def test_a_space_can_choose_them(tmp_path: Path) -> None:
    register_sampler("walk", Walk)
    register_pruner("impatient")(Impatient)
    spec = StudySpec(parse_space(CONTENT | {"sampler": "walk", "pruner": "impatient"}, "own.yaml"), "demo", {})
    queue = make_queue(
        spec, 5, "own", Ledger(tmp_path / "ledger.jsonl"), make_sampler(spec), on_proposed=lambda trial: None
    )
    course = simulate(queue, 2, lambda trial: 1.0, lambda trial: [trial.params["defense.eta"]] * trial.epochs)
    assert [trial.params["defense.eta"] for trial in course.trials] == [0.0, 0.01, 0.02, 0.03, 0.05]
    assert [trial.status for trial in course.trials] == ["done", "done", "done", "stopped", "done"]


def test_what_it_cannot_search_is_refused() -> None:
    register_sampler("walk", Walk)
    choices = {"defense.selector": CONTENT["parameters"]["defense.selector"]}
    with pytest.raises(UserError, match="sampler walk needs at least 1 ranges of numbers, got none; this space can be"):
        StudySpec(parse_space(CONTENT | {"sampler": "walk", "parameters": choices}, "own.yaml"), "demo", {})


@pytest.mark.parametrize(
    ("register", "name", "part", "words"),
    [
        (register_sampler, "tpe", Walk, "sampler 'tpe' is registered twice: orchestration.search.samplers:TPE and"),
        (register_sampler, "My Walk", Walk, "the name of a sampler must be lower-case letters"),
        (register_sampler, "walk", Impatient, "sampler 'walk' must be a class with given, propose and tell, got"),
        (register_pruner, "impatient", Walk, r"pruner 'impatient' must be a subclass of orchestration\.Pruner, got"),
        (register_pruner, "none", Impatient, "the name of a pruner must be .* and not none; got 'none'"),
    ],
    ids=["taken", "malformed", "no-sampler", "no-pruner", "none"],
)
def test_what_is_none_is_refused(register: Any, name: str, part: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        register(name, part)


def test_abilities_of_another_type_are_refused() -> None:
    class Wrong(Walk):
        abilities = "any"  # type: ignore[assignment]

    with pytest.raises(UserError, match="the abilities of sampler 'wrong' must be an Abilities, got"):
        register_sampler("wrong", Wrong)


def test_those_that_come_with_the_project_cannot_be_replaced() -> None:
    register_pruner("impatient", Impatient)
    register_pruner("impatient", Impatient, replace=True)
    with pytest.raises(UserError, match="pruner 'median' comes with erat and cannot be replaced"):
        register_pruner("median", Impatient, replace=True)


def test_a_pruner_that_reads_rungs_gets_those_of_the_schedule(tmp_path: Path) -> None:
    @register_pruner("half")
    class Half(Halving):
        def promoted(self, best: Mapping[int, float]) -> set[int]:
            return set(sorted(best, key=lambda number: -best[number])[: len(best) // 2])

    content = CONTENT | {"sampler": "random", "pruner": "half", "block": 4}
    spec = StudySpec(parse_space(content, "own.yaml"), "demo", {"train.epochs": 60})
    assert spec.space.rungs == rungs_of(spec.base) != []
    assert spec.trial(0, "optuna", {"defense.eta": 0.1, "defense.selector": "mixture"}).rungs == tuple(spec.space.rungs)
    queue = make_queue(
        spec, 4, "own", Ledger(tmp_path / "ledger.jsonl"), make_sampler(spec), on_proposed=lambda trial: None
    )
    course = simulate(queue, 4, lambda trial: 1.0, lambda trial: [trial.params["defense.eta"]] * trial.epochs)
    ended = [trial.status for trial in course.trials]
    assert (len(ended), ended.count("done")) == (4, 4 // 2 ** len(spec.space.rungs)), "half go on from each rung"
    unread = parse_space(CONTENT | {"pruner": "half", "grace": 0.3}, "own.yaml")
    with pytest.warns(UserWarning, match=r"the pruner half makes no use of grace, got 0\.3"):
        with_settings(unread)


def test_settings_that_no_pruner_has_are_refused() -> None:
    class Wrong(Pruner):
        settings = ("patience",)

    with pytest.raises(UserError, match="the settings of pruner 'wrong' must be names out of grace, rungs, block, got"):
        register_pruner("wrong", Wrong)


def test_an_installed_package_brings_some(tmp_path: Path) -> None:
    code = """
    from orchestration import Abilities, register_pruner, register_sampler

    register_sampler("far", "far:Far", known="far:KNOWN")
    register_pruner("near", "far:Near")
    KNOWN = Abilities(ranges=2)
    """
    folder = installed(tmp_path / "site", "far", code, "far")
    asked = (
        "import sys; from orchestration.study.registries import PRUNERS, SAMPLERS\n"
        "print(SAMPLERS.abilities('far').ranges, 'near' in PRUNERS, 'optuna' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=ROOT,
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 True False False\n", done.stderr
