"""Tests every defense on two workers: both have the same selection and bits, which are one worker's where possible.

One pair of processes trains all defenses and records what happened; the tests read the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from erat.config import RunConfig, load_config
from erat.data.types import CorruptedSet
from erat.defenses import mixmatch
from erat.defenses.base import Clock, EpochPlan
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.registry import DEFENSES
from tests import two_workers
from tests.two_workers import Record, configurations, joined, on_two_workers

# On a network without batch statistics. Batches of 16 samples give shares of 8, a whole block of mixup's neighbours.
RUNS: dict[str, dict[str, Any]] = {name: {"defense.name": name} for name in DEFENSES.names()} | {
    "at both norms": {"defense.name": "at", "defense.norms": "both"},
    "iss ueraser": {"defense.name": "iss", "defense.strong": True, "defense.worst_of": 2},
    "ueraser with JPEG": {"defense.name": "ueraser_max", "defense.worst_epochs": 1, "defense.view_jpeg": 10},
    "erat jsd": {"defense.name": "erat", "defense.selector": "jsd"},
    "erat beyond": {
        "defense.name": "erat",
        "defense.cluster_epochs": 1,
        "defense.clusters": 2,
        "defense.align": True,
        "defense.teacher": 0.9,
        "defense.confidence": 0.3,
    },
    "erat neighbours": {
        "defense.name": "erat",
        "defense.cluster_epochs": 1,
        "defense.clusters": 2,
        "defense.cluster_by": "neighbours",
    },
    "dividemix in turn": {"defense.name": "dividemix", "defense.splits": "in_turn"},
    "dividemix wo prior": {"defense.name": "dividemix", "defense.adversarial": True},
    "unicon wo prior": {"defense.name": "unicon", "defense.contrastive_weight": 0.0},
}
SHARED: dict[str, Any] = {"model.name": "smooth", "train.epochs": 2, "train.lr": 0.02}
SELECTING = [name for name in RUNS if RUNS[name]["defense.name"] in ("erat", "dividemix", "unicon", "mspl")]
# What each worker computes over its own share: MixMatch's prior penalty, UNICON's contrastive term, MSPL's term and its
# prototypes. These agree with one worker only in parts.
PER_WORKER = ["dividemix", "dividemix in turn", "unicon", "mspl"]
EXACT = [name for name in RUNS if name not in PER_WORKER]


@contextmanager
def set_up(name: str) -> Iterator[None]:
    """Set the prior penalty to zero for runs without it."""
    if "wo prior" not in name:
        yield
        return
    with mock.patch.object(mixmatch, "prior_penalty", lambda logits: 0 * logits.sum()):
        yield


def train(config: RunConfig, data: CorruptedSet) -> Record:
    """Train a run, and return each epoch's plan, each step's terms and the gradients along which it steps."""
    trainer = Trainer(config, data, Ranks.current())
    plans: list[tuple[Any, Any]] = []
    gradients: list[list[Tensor]] = []
    terms: list[tuple[str, dict[str, float]]] = []
    plan, step, update = trainer.plan, trainer._optimizer.step, trainer._update

    def recorded_plan(clock: Clock) -> EpochPlan:
        made = plan(clock)
        plans.append((made.selected, made.predicted))
        return made

    def recorded_step() -> None:
        gradients.append([p.grad.clone() for p in trainer.defense.networks.parameters() if p.grad is not None])
        step()

    def recorded_update(*arguments: Any) -> Any:
        made = update(*arguments)
        terms.append((arguments[0].phase, {key: float(value) for key, value in made.figures().items()}))
        return made

    trainer.plan = recorded_plan  # type: ignore[method-assign]
    trainer._optimizer.step = recorded_step  # type: ignore[method-assign, assignment]
    trainer._update = recorded_update  # type: ignore[method-assign]
    reports = list(trainer.run())
    return {
        "plans": plans,
        "gradients": gradients,
        "terms": terms,
        "history": [[report.train_loss, report.val_accuracy, report.test_accuracy] for report in reports],
        "selection": [[report.noise_caught, report.caught_per_class, report.labelled_per_class] for report in reports],
        "state": {name: value.clone() for name, value in trainer.defense.state_dict().items()},
        "predictions": trainer.predict_test(),
    }


def work(rank: int, folder: Path) -> None:
    """Do everything that one of the two processes does."""
    with joined(rank, folder) as data:
        seen: Record = {}
        for name in RUNS:
            with set_up(name):
                seen[name] = train(load_config(folder / f"{name}.json"), data)
        torch.save(seen, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(96)


@pytest.fixture(scope="module")
def both(
    data: CorruptedSet, make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> list[Record]:
    """Return the records of the two workers."""
    configs = configurations(make_config, RUNS, 2, **SHARED)
    return on_two_workers(work, tmp_path_factory.mktemp("workers"), data, configs)


@pytest.fixture(scope="module")
def alone(data: CorruptedSet, make_config: Callable[..., RunConfig]) -> Callable[[str], Record]:
    """Return the record of the same run on one worker."""
    of = two_workers.alone(train, configurations(make_config, RUNS, 1, **SHARED), data)

    def set_up_of(name: str) -> Record:
        with set_up(name):
            return of(name)

    return set_up_of


def differences(name: str, both: list[Record], alone: Record) -> list[float]:
    """Return for each step's gradient the largest difference between two workers and one."""
    mine, theirs = both[0][name]["gradients"], alone["gradients"]
    assert len(mine) == len(theirs) > 0
    pairs = [list(zip(ours, one, strict=True)) for ours, one in zip(mine, theirs, strict=True)]
    return [max(float((ours - one).abs().max()) for ours, one in step) for step in pairs]


def sizes(alone: Record) -> list[float]:
    return [max(float(gradient.abs().max()) for gradient in step) for step in alone["gradients"]]


def mean_terms(name: str, both: list[Record], step: int) -> dict[str, float]:
    """Return the terms, averaged over both workers."""
    first, second = (seen[name]["terms"][step][1] for seen in both)
    return {key: (first[key] + second[key]) / 2 for key in first}


def first_selecting_step(alone: Record) -> int:
    return next(step for step, (phase, _) in enumerate(alone["terms"]) if phase == "train")


# --- both workers ----------------------------------------------------------------------------------------------------


def test_every_defense_is_here() -> None:
    assert {options["defense.name"] for options in RUNS.values()} == set(DEFENSES.names())


@pytest.mark.parametrize("name", RUNS)
def test_both_workers_hold_the_same_bits(both: list[Record], name: str) -> None:
    mine, other = both[0][name], both[1][name]
    for key, value in mine["state"].items():
        assert torch.equal(value, other["state"][key]), key
    assert mine["history"] == other["history"]
    assert mine["selection"] == other["selection"]
    assert torch.equal(mine["predictions"], other["predictions"])
    for ours, theirs in zip(mine["gradients"], other["gradients"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SELECTING)
def test_both_workers_select_the_same(both: list[Record], name: str) -> None:
    plans = [seen[name]["plans"] for seen in both]
    assert [selected is None for selected, _ in plans[0]] == [True, False], "a warm-up comes first"
    for mine, other in zip(*(worker[-1] for worker in plans), strict=True):
        assert torch.equal(mine, other)
    assert 16 <= int(plans[0][-1][0].sum()) < 96


@pytest.mark.parametrize("name", [name for name in RUNS if name not in SELECTING])
def test_without_a_selection_nothing_is_selected_on_either(both: list[Record], name: str) -> None:
    assert [seen[name]["plans"] for seen in both] == [[(None, None)] * 2] * 2


# --- as one worker ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_two_workers_step_along_one_worker_s_gradient(
    both: list[Record], alone: Callable[[str], Record], name: str
) -> None:
    """The exception is a sign step of an attack that rounding flips at times, which moves one pixel of one image."""
    found = sorted(differences(name, both, alone(name)))
    print(f"{name}: gradients of up to {max(sizes(alone(name))):.1e} differ by {found[-1]:.1e}")
    # DAT's steps against its second head move little.
    assert min(sizes(alone(name))) > (1e-4 if name == "dat" else 1e-2)
    attacked = RUNS[name]["defense.name"] in ("at", "erat") or RUNS[name].get("defense.adversarial", False)
    assert max(found[:-2] if attacked else found) < 1e-5
    assert found[-1] < 1e-3
    for key, value in alone(name)["state"].items():
        torch.testing.assert_close(both[0][name]["state"][key], value, rtol=0, atol=1e-5)
    history = torch.tensor(alone(name)["history"])
    torch.testing.assert_close(torch.tensor(both[0][name]["history"]), history, rtol=1e-5, atol=1e-5)
    assert both[0][name]["selection"] == alone(name)["selection"]


@pytest.mark.parametrize("name", [name for name in SELECTING if name != "mspl"])
def test_two_workers_select_what_one_does(both: list[Record], alone: Callable[[str], Record], name: str) -> None:
    for mine, theirs in zip(both[0][name]["plans"][-1], alone(name)["plans"][-1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("name", "gradient", "weight"),
    # At most a twentieth of the gradient's size, or a half: the contrastive term has half as many samples to
    # distinguish.
    [("dividemix", 0.05, 1e-4), ("dividemix in turn", 0.05, 1e-4), ("unicon", 0.5, 1e-3)],
)
def test_mixmatch_differs_by_what_each_worker_takes_over_its_own_share(
    both: list[Record], alone: Callable[[str], Record], name: str, gradient: float, weight: float
) -> None:
    """They do not differ in the warm-up, nor in the terms that are means over samples."""
    one, found = alone(name), differences(name, both, alone(name))
    start = first_selecting_step(one)
    assert max(found[:start]) < 1e-5
    relative = [difference / size for difference, size in zip(found[start:], sizes(one)[start:], strict=True)]
    state = {key: value for key, value in one["state"].items() if key.startswith("networks.")}
    off = max(float((both[0][name]["state"][key] - value).abs().max()) for key, value in state.items())
    print(f"{name}: gradients differ by up to {max(relative):.1e} of their largest number, weights by {off:.1e}")
    assert 1e-5 < max(relative) < gradient
    assert off < weight
    terms, expected = mean_terms(name, both, start), one["terms"][start][1]
    for key in ("labelled", "unlabelled"):
        assert terms[key] == pytest.approx(expected[key], rel=1e-4)
    assert terms["prior"] > expected["prior"], "halves lie further from the prior than the whole"
    if "contrastive" in terms:
        assert terms["contrastive"] < expected["contrastive"], "fewer to be told apart from"


def test_mspl_s_labels_cost_the_same_and_the_terms_of_its_prototypes_do_not(
    both: list[Record], alone: Callable[[str], Record]
) -> None:
    terms, expected = mean_terms("mspl", both, 0), alone("mspl")["terms"][0][1]
    assert terms["labelled"] == pytest.approx(expected["labelled"], rel=1e-5)
    assert terms["contrastive"] < expected["contrastive"]
    assert terms["prototypes"] != pytest.approx(expected["prototypes"], rel=1e-5)


def test_both_workers_prototypes_are_averaged(both: list[Record]) -> None:
    """Each worker's prototypes have unit length, but their mean does not."""
    norms = both[0]["mspl"]["state"]["prototypes"].norm(dim=2)
    assert bool((norms > 0.5).all())
    assert bool((norms <= 1 + 1e-6).all())
