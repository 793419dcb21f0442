"""Tests the training loop: what each step sees and moves, what an epoch reports, how it fails and how it resumes."""

from __future__ import annotations

import errno
import os
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat import files
from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData, Update
from erat.engine import checkpoint
from erat.engine.schedule import learning_rate
from erat.engine.trainer import Trainer
from erat.errors import TrainingFailedError, UserError
from erat.options import DefenseOptions
from erat.registry import DEFENSES

Make = Callable[..., Any]


class RecorderOptions(DefenseOptions):
    name: Literal["recorder"] = "recorder"


class Recorder(Defense):
    """Plain training that records what it is given; tests set the class attributes."""

    Options = RecorderOptions
    plan: EpochPlan | None = None
    spoil: int | None = None  # epoch whose loss is not finite
    batches: list[tuple[Batch, Clock]]

    def __init__(self, options: DefenseOptions, task: Task) -> None:
        super().__init__(options, task)
        self.networks = nn.ModuleDict({"main": task.build(0), "other": task.build(1)})
        self.batches = []

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        return type(self).plan or EpochPlan((Phase(torch.arange(len(data))),))

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        self.batches.append((batch, clock))
        terms = LossTerms()
        for name, network in self.networks.items():
            terms.add(name, F.cross_entropy(network(batch.images), batch.labels), weight=2.0 if name == "other" else 1)
        if clock.epoch == type(self).spoil:
            terms.add("spoilt", torch.tensor(float("nan")))
        return terms


@pytest.fixture
def recorder(register: Make, make_config: Make, make_data: Make) -> Make:
    """Return `recorder({"train.epochs": 2}, plan=...)`.

    It makes a trainer of a new Recorder class on 64 images.
    """

    def make(overrides: dict[str, Any] | None = None, folder: Path | None = None, **attributes: Any) -> Trainer:
        if "recorder" in DEFENSES:
            kind = DEFENSES["recorder"]
        else:
            kind = type("Recorder", (Recorder,), {})
            register(DEFENSES, "recorder", kind)
        for key, value in attributes.items():
            setattr(kind, key, value)
        config = make_config({"defense.name": "recorder", "train.epochs": 1} | (overrides or {}))
        return Trainer(config, make_data(64), folder=folder)

    return make


def weights(trainer: Trainer, network: str = "main") -> list[Tensor]:
    return [value.clone() for value in trainer.defense.networks[network].state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_an_epoch_passes_once_through_the_labelled_set(recorder: Make, make_data: Make) -> None:
    trainer = recorder({"train.batch_size": 12, "train.epochs": 2})
    list(trainer.run())
    seen = trainer.defense.batches
    data = make_data(64)
    assert [len(batch.labels) for batch, _ in seen] == [12] * 10, "five full steps of 64; four samples wait"
    for epoch in (0, 1):
        indices = torch.cat([batch.indices for batch, clock in seen if clock.epoch == epoch])
        assert len(indices.unique()) == 60
    assert not torch.equal(seen[0][0].indices, seen[5][0].indices), "reshuffled"
    for batch, _ in seen:
        assert torch.equal(batch.labels, data.train.labels[batch.indices])
        assert torch.equal((batch.images * 255).round().to(torch.uint8), data.train.images[batch.indices])
        assert len(batch.unlabelled) == len(batch.unlabelled_indices) == 0
        assert batch.unlabelled.shape[1:] == batch.images.shape[1:]
    assert [(clock.step, clock.steps) for _, clock in seen[:5]] == [(step, 5) for step in range(5)]


def test_the_unlabelled_set_cycles_beside_the_labelled_one(recorder: Make) -> None:
    """50 labelled samples make three steps of 16; 14 unlabelled fill 48 places: each occurs three or four times."""
    everything = torch.arange(64)
    plan = EpochPlan((Phase(everything[:50], everything[50:]),))
    trainer = recorder(plan=plan)
    list(trainer.run())
    batches = [batch for batch, _ in trainer.defense.batches]
    assert [(len(batch.images), len(batch.unlabelled)) for batch in batches] == [(16, 16)] * 3
    counts = Counter(torch.cat([batch.unlabelled_indices for batch in batches]).tolist())
    assert set(counts) == set(range(50, 64))
    assert set(counts.values()) == {3, 4}
    order = torch.cat([batch.unlabelled_indices for batch in batches])
    assert order[:14].sort().values.tolist() == list(range(50, 64)), "one after the other"
    assert not torch.equal(order[:14], order[14:28]), "reshuffled each time"
    assert max(torch.cat([batch.indices for batch in batches]).tolist()) < 50
    pixels = (batches[0].unlabelled * 255).round().to(torch.uint8)
    assert torch.equal(pixels, trainer.data.train.images[batches[0].unlabelled_indices])


def test_a_labelled_set_smaller_than_a_batch_is_one_step(recorder: Make) -> None:
    everything = torch.arange(64)
    trainer = recorder(plan=EpochPlan((Phase(everything[:5], everything[5:]),)))
    list(trainer.run())
    ((batch, _),) = trainer.defense.batches
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 3, 4]
    assert len(batch.unlabelled) == 16


def test_an_empty_labelled_set_is_a_failure_that_says_so(recorder: Make) -> None:
    trainer = recorder(plan=EpochPlan((Phase(torch.arange(0), torch.arange(64)),)))
    with pytest.raises(TrainingFailedError, match="0 labelled samples are too few"):
        list(trainer.run())


def test_phases_come_in_order_and_tell_their_name(recorder: Make) -> None:
    plan = EpochPlan((Phase(torch.arange(32), name="first"), Phase(torch.arange(32, 64), name="second")))
    trainer = recorder(plan=plan)
    list(trainer.run())
    assert [batch.phase for batch, _ in trainer.defense.batches] == ["first"] * 2 + ["second"] * 2


# --- updates ---------------------------------------------------------------------------------------------------------


def test_an_update_is_plain_sgd(make_config: Make, make_data: Make) -> None:
    """v = g + wd w, then 0.9 v + g + wd w; w -= lr v, with the learning rate of the same step."""
    config = make_config({"defense.name": "ce", "defense.weak": "none", "train.weight_decay": 0.01})
    trainer = Trainer(config, make_data(64))
    (phase,) = trainer.defense.plan_epoch(Clock(0), trainer._train).phases
    weight = list(trainer.defense.networks["main"].parameters())[-2]
    batches = trainer._batches.of(phase, Clock(1))
    velocity: Tensor | float = 0.0
    trainer.defense.train()
    for _ in range(3):
        batch, clock = next(batches)
        (grad,) = torch.autograd.grad(trainer.defense.loss(batch, clock).total, weight)
        velocity = 0.9 * velocity + grad + 0.01 * weight.detach()
        expected = weight.detach() - learning_rate(config.train, clock.time) * velocity
        trainer._update(batch, clock, Update())
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_steps_are_made_in_training_mode(recorder: Make) -> None:
    trainer = recorder()
    trainer.defense.eval()
    before = trainer.defense.state_dict()["networks.main.network.1.running_mean"].clone()
    list(trainer.run())
    assert not torch.equal(before, trainer.defense.state_dict()["networks.main.network.1.running_mean"])


def test_an_update_moves_the_networks_that_it_names_and_tells_its_name(recorder: Make) -> None:
    whole = torch.arange(64)
    trainer = recorder(plan=EpochPlan((Phase(whole, turns=((Update("some", ("other",)),),)),)))
    before, other = weights(trainer), weights(trainer, "other")
    list(trainer.run())
    after = weights(trainer)
    named = [name for name, _ in trainer.defense.networks["main"].named_parameters()]
    for (name, _), old, new in zip(trainer.defense.networks["main"].state_dict().items(), before, after, strict=True):
        assert torch.equal(old, new) or name not in named, "no decay, no momentum; only BatchNorm's statistics move"
    assert not same(other, weights(trainer, "other"))
    assert {batch.update for batch, _ in trainer.defense.batches} == {"some"}


def test_a_step_may_hold_several_updates(recorder: Make) -> None:
    updates = (Update("both"), Update("main", ("main",)))
    trainer = recorder(plan=EpochPlan((Phase(torch.arange(64), turns=(updates,)),)))
    before = weights(trainer), weights(trainer, "other")
    list(trainer.run())
    assert [batch.update for batch, _ in trainer.defense.batches] == ["both", "main"] * 4
    assert torch.equal(trainer.defense.batches[0][0].indices, trainer.defense.batches[1][0].indices)
    assert not same(before[0], weights(trainer))
    assert not same(before[1], weights(trainer, "other"))


@pytest.mark.parametrize("schedule", ["step", "onecycle", "cosine"])
def test_every_step_has_the_learning_rate_of_its_time(recorder: Make, schedule: str) -> None:
    overrides = {"train.schedule": schedule, "train.epochs": 3, "train.milestones": (1,), "train.lr": 0.01}
    trainer = recorder(overrides)
    used: list[float] = []
    step = trainer._optimizer.step

    def recorded() -> None:
        used.append(trainer._optimizer.param_groups[0]["lr"])
        step()

    trainer._optimizer.step = recorded
    list(trainer.run())
    assert used == [learning_rate(trainer.config.train, i / 4) for i in range(12)]


def test_the_two_networks_start_apart_and_a_seed_starts_others(recorder: Make) -> None:
    trainer = recorder()
    first = trainer.defense.networks["main"].network[0].weight
    assert not torch.equal(first, trainer.defense.networks["other"].network[0].weight)
    assert same(weights(trainer), weights(recorder()))
    assert not torch.equal(first, recorder({"train.seed": 1}).defense.networks["main"].network[0].weight)


def test_a_defense_prepares_the_images_once(register: Make, make_config: Make, make_data: Make) -> None:
    calls: list[int] = []

    class Darkened(Recorder):
        def prepare(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            assert images.dtype == torch.uint8
            return images // 2

    register(DEFENSES, "recorder", Darkened)
    data = make_data(64)
    trainer = Trainer(make_config({"defense.name": "recorder", "train.epochs": 2}), data)
    list(trainer.run())
    assert calls == [64]
    assert isinstance(trainer.defense, Darkened)
    assert max(batch.images.max().item() for batch, _ in trainer.defense.batches) <= 127.01 / 255
    assert data.train.images.max() > 127, "the set itself stays"


# --- reports ---------------------------------------------------------------------------------------------------------


def test_the_report_of_an_epoch(recorder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = recorder({"train.epochs": 2})
    totals: list[LossTerms] = []
    update = trainer._update

    def recorded(*arguments: Any) -> LossTerms:
        totals.append(update(*arguments))
        return totals[-1]

    monkeypatch.setattr(trainer, "_update", recorded)
    reports = list(trainer.run())
    assert [report.epoch for report in reports] == [1, 2]
    for i, report in enumerate(reports):
        mine = totals[4 * i : 4 * i + 4]
        for name in ("main", "other"):
            mean = sum(terms.terms[name][1].item() for terms in mine) / 4
            assert report.loss_terms[name] == pytest.approx(mean, rel=1e-5), "unweighted"
        assert report.train_loss == pytest.approx(report.loss_terms["main"] + 2 * report.loss_terms["other"], rel=1e-5)
        assert report.learning_rate == learning_rate(trainer.config.train, i)
        assert report.images_per_second == pytest.approx(64 / report.epoch_seconds)
    test = trainer.data.test
    assert reports[-1].test_accuracy == (trainer.predict_test() == test.labels).double().mean().item()


def test_selection_figures_are_counts_of_given_labels_against_true_ones(recorder: Make) -> None:
    """The first 16 of 64 have the next class's label: 48 are right. 8 wrong and 24 right ones are selected."""
    mask = torch.zeros(64, dtype=torch.bool)
    mask[8:40] = True
    everything = torch.arange(64)
    trainer = recorder(plan=EpochPlan((Phase(everything[mask], everything[~mask]),), selected=mask))
    (report,) = list(trainer.run())
    assert report.selection_precision == 24 / 32
    assert report.selection_recall == 24 / 48
    assert report.labelled_fraction == 0.5
    # Classes alternate, so that the 24 right samples are six of each class, and the eight wrong ones two of each, by
    # any label.
    assert report.labelled_per_class == [8, 8, 8, 8]
    assert report.correct_per_class == [6, 6, 6, 6]


def test_without_a_selection_everything_counts_as_labelled(recorder: Make) -> None:
    (report,) = list(recorder().run())
    assert (report.selection_precision, report.selection_recall, report.labelled_fraction) == (0.75, 1.0, 1.0)


def swapped_tests(data: CorruptedSet) -> CorruptedSet:
    return replace(data, test=replace(data.test, labels=data.test.labels.flip(0)))


@pytest.mark.parametrize("name", ["erat", "ce"])
def test_test_labels_and_true_labels_influence_nothing(make_config: Make, make_data: Make, name: str) -> None:
    config, data = make_config({"defense.name": name}), make_data(48)
    plain = Trainer(config, data)
    swapped = Trainer(config, replace(swapped_tests(data), true_labels=data.true_labels.flip(0)))
    ours, theirs = list(plain.run()), list(swapped.run())
    assert same(weights(plain), weights(swapped))
    assert [report.val_accuracy for report in ours] == [report.val_accuracy for report in theirs]
    assert [report.train_loss for report in ours] == [report.train_loss for report in theirs]
    assert [report.test_accuracy for report in ours] != [report.test_accuracy for report in theirs]


def test_validation_images_influence_no_weight(make_config: Make, make_data: Make) -> None:
    data = make_data(48)
    plain, other = Trainer(make_config(), data), Trainer(make_config(), replace(data, val=data.test))
    list(plain.run()), list(other.run())
    assert same(weights(plain), weights(other))


# --- failing, stopping, going on -------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_fails_and_names_the_epoch(recorder: Make, tmp_path: Path) -> None:
    trainer = recorder({"train.epochs": 3}, folder=tmp_path, spoil=1)
    with pytest.raises(TrainingFailedError, match=r"^the loss became nan in epoch 2$"):
        list(trainer.run())
    assert trainer.epochs_done == 1
    assert recorder({"train.epochs": 3}, folder=tmp_path).epochs_done == 1, "the last good epoch is what is kept"


def test_a_run_that_blows_up_by_itself(make_config: Make, make_data: Make) -> None:
    config = make_config({"defense.name": "ce", "train.lr": 1e6, "train.schedule": "step"})
    with pytest.raises(TrainingFailedError, match=r"^the loss became (nan|inf) in epoch [12]$"):
        list(Trainer(config, make_data(64)).run())


def test_stopping_is_not_asking_for_more(recorder: Make, tmp_path: Path) -> None:
    trainer = recorder({"train.epochs": 3}, folder=tmp_path)
    next(trainer.run())
    assert trainer.epochs_done == 1
    assert trainer.checkpoint_path.exists()
    again = recorder({"train.epochs": 3}, folder=tmp_path)
    assert again.epochs_done == 1
    assert again.history == trainer.history
    assert [report.epoch for report in again.run()] == [2, 3]
    assert list(recorder({"train.epochs": 3}, folder=tmp_path).run()) == [], "done is done"


def test_another_run_s_checkpoint_is_refused(recorder: Make, tmp_path: Path) -> None:
    list(recorder(folder=tmp_path).run())
    with pytest.raises(UserError, match="is of another run"):
        recorder({"train.seed": 1}, folder=tmp_path)


def flip(path: Path, at: float = 0.5) -> None:
    """Change one byte, at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone"])
def test_a_damaged_checkpoint_costs_an_epoch(recorder: Make, tmp_path: Path, damage: str) -> None:
    whole = recorder({"train.epochs": 4}, folder=tmp_path / "whole")
    list(whole.run())
    for _, _ in zip(range(3), recorder({"train.epochs": 4}, folder=tmp_path).run(), strict=False):
        pass
    path = tmp_path / "checkpoint.pt"
    if damage == "flipped":
        flip(path)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="going on from the one before it") as told:
        again = recorder({"train.epochs": 4}, folder=tmp_path)
    assert [str(warning.message).count("\n") for warning in told] == [0]
    assert again.epochs_done == 2
    assert [report.epoch for report in again.run()] == [3, 4]
    assert [report.train_loss for report in again.history] == [report.train_loss for report in whole.history]
    ours, theirs = again.defense.state_dict(), whole.defense.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_sound_checkpoint_a_run_starts_anew(recorder: Make, tmp_path: Path) -> None:
    list(recorder({"train.epochs": 2}, folder=tmp_path).run())
    for path in (tmp_path / "checkpoint.pt", tmp_path / "previous-checkpoint.pt"):
        flip(path)
    with pytest.warns(UserWarning, match="starting anew") as told:
        assert recorder({"train.epochs": 2}, folder=tmp_path).epochs_done == 0
    assert [str(warning.message).count("\n") for warning in told] == [0]


def test_a_checkpoint_that_does_not_fit_is_one_line_that_says_what_to_do(recorder: Make, tmp_path: Path) -> None:
    trainer = recorder(folder=tmp_path)
    checkpoint.save(tmp_path / "checkpoint.pt", {"digest": trainer.config.digest(), "defense": {"x": 1}})
    with pytest.raises(UserError, match="delete it to start this run anew") as caught:
        recorder(folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path: Path, recorder: Make) -> None:
    list(recorder(folder=tmp_path).run())
    torch.save({"digest": Clock(0)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "checkpoint.pt", torch.device("cpu"))
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"digest": Clock(0)}))
    for name in ("checkpoint.pt", "bare.pt"):
        (tmp_path / name).replace(tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="it holds pickled code, which is not run") as caught:
            recorder(folder=tmp_path)  # and no other state in its place
        assert "\n" not in str(caught.value)


def test_every_byte_of_a_checkpoint_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"x": torch.arange(3), "y": 1})
    assert torch.load(path, weights_only=True)["y"] == 1, "torch reads it as any other file"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(checkpoint.DamagedCheckpointError):
            checkpoint.load(path, torch.device("cpu"))


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    torch.save({"x": 1}, tmp_path / "state.pt")
    assert checkpoint.load(tmp_path / "state.pt", torch.device("cpu")) == {"x": 1}


def test_a_checkpoint_is_not_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *more: opened.append(mode) or real(self, mode, *more))
    for _ in range(2):
        checkpoint.save(tmp_path / "state.pt", {"x": torch.zeros(9)}, keep_previous=True)
    assert opened == ["wb", "wb"]


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    files.write_atomic(path, b"old")
    checkpoint.save(tmp_path / "state", {"x": 1})

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, b"new")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "state", {"x": 2})
    assert path.read_bytes() == b"old"
    assert checkpoint.load(tmp_path / "state", torch.device("cpu")) == {"x": 1}
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["file", "state"]


# --- the machine -----------------------------------------------------------------------------------------------------


def test_global_generators_are_neither_read_nor_moved(make_config: Make, make_data: Make) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = Trainer(make_config(), make_data(48))
    list(first.run())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_a_missing_cuda_device_is_said(make_config: Make, make_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"resources.device=cuda.*allowed: cpu, auto"):
        Trainer(make_config({"resources.device": "cuda"}), make_data(48))


@pytest.mark.parametrize("options", [{"train.precision": "bf16"}, {"train.channels_last": True}])
def test_precision_and_memory_format_change_the_numbers_little(
    make_config: Make, make_data: Make, options: dict[str, Any]
) -> None:
    base = {"defense.name": "ce", "train.lr": 0.01}
    plain, other = Trainer(make_config(base), make_data(48)), Trainer(make_config(base | options), make_data(48))
    ours, theirs = list(plain.run())[-1], list(other.run())[-1]
    assert theirs.train_loss == pytest.approx(ours.train_loss, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in other.defense.parameters())


def test_a_config_of_the_run_is_what_the_trainer_keeps(make_config: Callable[..., RunConfig], make_data: Make) -> None:
    config = make_config()
    trainer = Trainer(config, make_data(48))
    assert trainer.config is config
    assert trainer.checkpoint_path is None
    assert trainer.epochs_done == 0


# --- switches of speed -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)  # a C++ compiler runs for each network, beside whatever else runs
def test_a_compiled_network_learns_the_same(make_config: Callable[..., Any], make_data: Callable[..., Any]) -> None:
    """The exception is rounding; names in the checkpoint stay, so that a run resumes with the switch or without it."""
    data = make_data(64)
    plain, compiled = (Trainer(make_config({"train.compile": on, "train.epochs": 2}), data) for on in (False, True))
    losses = [[report.train_loss for report in trainer.run()] for trainer in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert list(plain.defense.state_dict()) == list(compiled.defense.state_dict())


def test_cuda_graphs_need_compilation(make_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^train\.cuda_graphs needs train\.compile=true, got false$"):
        make_config({"train.cuda_graphs": True})


@pytest.mark.slow
def test_cuda_graphs_on_the_cpu_are_warned_of(make_config: Callable[..., Any], make_data: Callable[..., Any]) -> None:
    config = make_config({"train.cuda_graphs": True, "train.compile": True, "resources.device": "cpu"})
    with pytest.warns(UserWarning, match="no use on the CPU"):
        Trainer(config, make_data(64))


def test_a_damaged_checkpoint_does_not_become_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for number in (1, 2):
        checkpoint.save(path, {"x": number}, keep_previous=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="going on from the one before it"):
        assert checkpoint.load_newest(path, torch.device("cpu")) == {"x": 1}
    checkpoint.save(path, {"x": 3}, keep_previous=True)
    assert checkpoint.load(files.previous(path), torch.device("cpu")) == {"x": 1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (OSError(errno.EMFILE, "Too many open files"), UserError),
    ],
)
def test_what_passes_says_nothing_against_a_checkpoint(
    fault: Exception, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "state.pt", {"x": 1})

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind) as caught:
        checkpoint.load_newest(tmp_path / "state.pt", torch.device("cpu"))
    assert "delete" not in str(caught.value)
