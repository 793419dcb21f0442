"""Tests what the trainer may expect of every defense: all registered ones, all variants, some options of each."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Update
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.registry import DEFENSES
from erat.variants import defense_names
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.workspace import Workspace

OPTIONS: dict[str, dict[str, Any]] = {name: {"defense.name": name} for name in defense_names()} | {
    # Every way to select and every way to perturb, each in a defense whose default is another.
    "erat mixture": {"defense.selector": "mixture"},
    "erat errors": {"defense.selector": "errors"},
    "erat worst of 2": {"defense.worst_of": 2},
    "erat class mixture": {"defense.selector": "class_mixture"},
    # The third epoch is judged by the network again.
    "erat beyond": {
        "defense.cluster_epochs": 1,
        "defense.clusters": 2,
        "defense.align": True,
        "defense.teacher": 0.9,
        "defense.confidence": 0.3,
        "defense.warm_start": True,
    },
    "erat neighbours": {"defense.cluster_epochs": 1, "defense.clusters": 2, "defense.cluster_by": "neighbours"},
    "dividemix rebalance": {"defense.name": "dividemix", "defense.selector": "rebalance"},
    "dividemix in turn": {"defense.name": "dividemix", "defense.splits": "in_turn"},
    "dividemix wo Uni": {
        "defense.name": "dividemix",
        "defense.adversarial": True,
        "defense.norms": "both",
        "defense.uniform": False,
    },
    "unicon published": {
        "defense.name": "unicon",
        "defense.splits": "in_turn",
        "defense.jsd_log": "e",
        "defense.quota": "published",
    },
    "dat published": {"defense.name": "dat", "defense.discrepancy": "published"},
    "dat adversarial": {"defense.name": "dat", "defense.adversarial": True},
    "ueraser early": {"defense.name": "ueraser_max", "defense.worst_of": 2, "defense.worst_epochs": 1},
    "ueraser with JPEG": {"defense.name": "ueraser_max", "defense.worst_of": 2, "defense.view_jpeg": 10},
    "mspl wo AT": {"defense.name": "mspl", "defense.adversarial": False},
}

# What puts together parts that registered defenses and the options named here have too is left to the slow tests.
QUICK = {*DEFENSES.names(), "erat mixture", "erat beyond", "erat neighbours", "dividemix rebalance", "mspl wo AT"}
pytestmark = pytest.mark.parametrize(
    "options",
    [pytest.param(value, id=key, marks=() if key in QUICK else pytest.mark.slow) for key, value in OPTIONS.items()],
)

Options = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A training from beginning to end in one process, and the state before it and after each epoch."""

    trainer: Trainer
    reports: list[EpochReport]
    states: list[dict[str, Tensor]]

    @property
    def expected(self) -> list[dict[str, Any]]:
        return [figures(report) for report in self.reports]


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(48)


@pytest.fixture
def config(make_config: Callable[..., RunConfig], options: Options) -> RunConfig:
    return make_config(options)


@pytest.fixture
def trainer(config: RunConfig, data: CorruptedSet) -> Trainer:
    return Trainer(config, data)


@pytest.fixture(scope="module")
def wholes(data: CorruptedSet) -> Callable[[str], Whole]:
    """Return a function that trains a configuration, given as JSON, and remembers it: no test changes what it reads."""

    @cache
    def train(text: str) -> Whole:
        torch.manual_seed(0)
        trainer = Trainer(RunConfig.model_validate_json(text), data)
        states, reports = [state(trainer)], []
        for report in trainer.run():
            reports.append(report)
            states.append(state(trainer))
        return Whole(trainer, reports, states)

    return train


@pytest.fixture
def whole(wholes: Callable[[str], Whole], config: RunConfig) -> Whole:
    return wholes(config.model_dump_json())


@pytest.fixture(scope="module")
def pieces(data: CorruptedSet, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Trainer, Path]]:
    """Return a function that trains each epoch in a trainer of its own: the last of these, and their folder."""

    @cache
    def train(text: str) -> tuple[Trainer, Path]:
        config, folder = RunConfig.model_validate_json(text), tmp_path_factory.mktemp("pieces")
        for _ in range(config.train.epochs):
            trainer = Trainer(config, data, folder=folder)
            torch.manual_seed(trainer.epochs_done)  # another process has another global random state
            next(trainer.run())
        return trainer, folder

    return train


def updates(trainer: Trainer) -> Iterator[tuple[Batch, Clock, Update]]:
    """Yield every update of the first epoch (a warm-up, for defenses that have one) and of the third."""
    for clock in (Clock(0), Clock(2)):
        for phase in trainer.defense.plan_epoch(clock, trainer._train).phases:
            for batch, at in trainer._batches.of(phase, clock):
                for update in phase.turns[at.step % len(phase.turns)]:
                    yield replace(batch, update=update.name), at, update


def batches(trainer: Trainer) -> Iterator[tuple[Batch, Clock]]:
    return ((batch, clock) for batch, clock, _ in updates(trainer))


def state(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.defense.state_dict().items()}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_same_end(ours: Trainer, theirs: Trainer) -> None:
    """Assert that networks, all other state of the defense, and momenta are equal."""
    assert_same_bits(state(ours), state(theirs))
    steps, other = ours._optimizer.state_dict()["state"], theirs._optimizer.state_dict()["state"]
    assert steps.keys() == other.keys()
    assert all(torch.equal(steps[i]["momentum_buffer"], other[i]["momentum_buffer"]) for i in other)


def figures(report: EpochReport) -> dict[str, Any]:
    """Return a report without the numbers that depend on how busy the machine is."""
    return {key: value for key, value in asdict(report).items() if key not in ("epoch_seconds", "images_per_second")}


def test_three_steps_change_every_network(whole: Whole) -> None:
    assert whole.reports[0].train_loss > 0
    assert torch.tensor(whole.reports[0].train_loss).isfinite()
    before, (first, *_, last) = whole.states[0], whole.states[1:]
    networks = whole.trainer.defense.networks
    for network in networks:
        names = [f"networks.{network}.{name}" for name, _ in networks[network].named_parameters()]
        unchanged = [name for name in names if torch.equal(before[name], first[name])]
        # UNICON's projection learns from unlabelled samples, and a warm-up has none.
        assert all(".projectors." in name for name in unchanged)
    for name, _ in networks.named_parameters():
        assert not torch.equal(before[f"networks.{name}"], last[f"networks.{name}"]), name


def test_what_an_epoch_reports_is_finite_and_has_names_that_every_log_takes(whole: Whole, trainer: Trainer) -> None:
    assert len(whole.reports) == 3
    for report in whole.reports:
        assert report.loss_terms
        for name, value in [*report.loss_terms.items(), *report.numbers.items()]:
            assert re.fullmatch(r"\w[\w.-]*", name), name
            assert type(value) is float and math.isfinite(value), name
        assert json.loads(json.dumps(asdict(report), allow_nan=False)) == asdict(report)
    selects = trainer.defense.plan_epoch(Clock(2), trainer._train).selected is not None
    assert 0 <= report.numbers["label_trust"] <= 1 if selects else report.numbers.keys() <= {"lambda_u"}


def test_going_on_from_a_checkpoint_is_bit_equal(
    pieces: Callable[[str], tuple[Trainer, Path]], whole: Whole, config: RunConfig
) -> None:
    trainer, _ = pieces(config.model_dump_json())
    assert [figures(report) for report in trainer.history] == whole.expected
    assert_same_end(trainer, whole.trainer)


def test_going_on_from_the_checkpoint_before_is_bit_equal(
    pieces: Callable[[str], tuple[Trainer, Path]], whole: Whole, config: RunConfig, data: CorruptedSet, tmp_path: Path
) -> None:
    folder = shutil.copytree(pieces(config.model_dump_json())[1], tmp_path / "run")
    path = folder / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="going on from the one before it"):
        trainer = Trainer(config, data, folder=folder)
    assert trainer.epochs_done == config.train.epochs - 1
    torch.manual_seed(1)  # another process has another global random state
    list(trainer.run())
    assert [figures(report) for report in trainer.history] == whole.expected
    assert_same_end(trainer, whole.trainer)


def test_a_run_that_pauses_and_is_promoted_is_bit_equal(
    make_config: Callable[..., RunConfig],
    data: CorruptedSet,
    options: Options,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run pauses after one epoch, and then after two; the third is its last."""
    config = make_config(options | {"data.fingerprint": "0" * 16})
    made = replace(data, manifest={"labels": {}, "images": {}})
    monkeypatch.setattr("erat.training.corrupted_set", lambda *_: made)
    workspace = Workspace(tmp_path)
    run = RunDirectory(workspace, config.digest())
    for pause_after, status, epochs in [(1, "paused", 1), (2, "paused", 2), (None, "done", 3)]:
        torch.manual_seed(epochs)  # another process has another global random state
        result = execute_run(config, workspace, pause_after=pause_after)
        assert (result.status, result.epochs) == (status, epochs)
    rows = [EpochReport(**row) for row in run.read_metrics()]
    assert [figures(report) for report in rows] == json.loads(json.dumps(whole.expected))
    assert_same_end(Trainer(config, made, folder=run.path), whole.trainer)
    weights = torch.load(run.artifacts / "model.pt", weights_only=True)
    assert_same_bits(weights, whole.trainer.defense.networks.state_dict())


@pytest.mark.slow
def test_going_on_inside_an_epoch_is_bit_equal(
    whole: Whole, config: RunConfig, data: CorruptedSet, tmp_path: Path
) -> None:
    """The trainer is told to stop after each batch, in every phase."""
    left = 0
    while True:
        told = chain([False], repeat(True))
        trainer = Trainer(config, data, folder=tmp_path, told_to_leave=partial(next, told))
        torch.manual_seed(left)
        try:
            list(trainer.run())
            break
        except Interrupted:
            left += 1
    assert left > config.train.epochs  # both inside epochs and at their ends
    assert [figures(report) for report in trainer.history] == whole.expected
    assert_same_end(trainer, whole.trainer)


def test_a_loss_touches_neither_gradients_nor_flags_nor_weights(trainer: Trainer) -> None:
    defense = trainer.defense.train()
    modules = list(defense.modules())
    for module in modules[::3]:
        module.training = False
    parameters = list(defense.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number)
    parameters[0].requires_grad_(False)
    flags = [module.training for module in modules]
    weights = [parameter.detach().clone() for parameter in parameters]
    for batch, clock in batches(trainer):
        defense.loss(batch, clock)
    assert [module.training for module in modules] == flags
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    for number, (parameter, weight) in enumerate(zip(parameters, weights, strict=True)):
        assert parameter.grad is not None
        assert bool((parameter.grad == number).all())
        assert torch.equal(parameter, weight)


def test_a_loss_is_made_of_scalars_that_teach(trainer: Trainer) -> None:
    for batch, clock in batches(trainer):
        terms = trainer.defense.loss(batch, clock)
        assert terms.terms
        assert all(value.shape == () and bool(value.isfinite()) for _, value in terms.terms.values())
        assert terms.total.requires_grad


def test_a_loss_leaves_the_batch_as_it_is(trainer: Trainer) -> None:
    for batch, clock in batches(trainer):
        before = [getattr(batch, name).clone() for name in ("images", "labels", "unlabelled")]
        trainer.defense.loss(batch, clock)
        assert all(
            torch.equal(old, getattr(batch, name))
            for old, name in zip(before, ("images", "labels", "unlabelled"), strict=True)
        )
        assert not batch.images.requires_grad


def test_no_unlabelled_samples_at_all(trainer: Trainer) -> None:
    for batch, clock, update in updates(trainer):
        alone = replace(batch, unlabelled=batch.unlabelled[:0], unlabelled_indices=batch.unlabelled_indices[:0])
        total = trainer.defense.loss(alone, clock).total
        assert total.isfinite()
        parameters = trainer._parameters(update)
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
        assert all(bool(grad.isfinite().all()) for grad in grads if grad is not None)


def test_a_set_of_a_single_class(config: RunConfig, data: CorruptedSet) -> None:
    given = replace(data.train, labels=torch.full_like(data.train.labels, 2))
    reports = list(Trainer(config, replace(data, train=given)).run())
    assert all(torch.tensor(report.train_loss).isfinite() for report in reports)
    assert reports[-1].labelled_per_class[2] > 0


def test_a_plan_covers_the_data_and_says_what_it_selected(trainer: Trainer) -> None:
    for epoch in range(3):
        plan = trainer.defense.plan_epoch(Clock(epoch), trainer._train)
        assert plan.phases
        for phase in plan.phases:
            rest = phase.unlabelled if phase.unlabelled is not None else torch.empty(0, dtype=torch.int64)
            both = torch.cat([phase.labelled, rest])
            assert both.dtype == torch.int64
            assert len(both.unique()) == len(both), "no sample is labelled and unlabelled, nor twice"
            assert int(both.min()) >= 0
            assert int(both.max()) < len(trainer._train)
            assert len(phase.labelled) > 0
        if plan.selected is not None:
            assert plan.selected.dtype == torch.bool
            assert plan.selected.shape == (len(trainer._train),)
            assert plan.selected.device.type == "cpu"


def test_an_answer_is_one_logit_per_class(trainer: Trainer, data: CorruptedSet) -> None:
    with torch.no_grad():
        assert trainer.defense.eval().predict(data.test.images[:5].float() / 255).shape == (5, 4)
        assert trainer.defense.predict(data.test.images[:1].float() / 255).shape == (1, 4)


def test_a_seed_decides_every_bit(
    make_config: Callable[..., RunConfig], whole: Whole, config: RunConfig, data: CorruptedSet, options: Options
) -> None:
    def train(seed: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        torch.manual_seed(1)  # another process has another global random state
        trainer = Trainer(make_config(options | {"train.seed": seed}), data)
        reports = [figures(next(trainer.run())) for _ in range(2)]
        return state(trainer), reports

    seed = config.train.seed
    (again, reports), (other, others) = train(seed), train(seed + 1)
    assert_same_bits(again, whole.states[2])
    assert reports == whole.expected[:2]
    assert reports != others
    assert any(not torch.equal(again[name], other[name]) for name in again)
