"""Tests memory: counted tensor by tensor, predicted to the same number, and saved by computing activations twice."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vision_transformer import EncoderBlock

from erat.config import RunConfig, build
from erat.data.loading import load
from erat.data.types import CorruptedSet
from erat.defenses.base import Clock
from erat.defenses.perturbation import Perturber
from erat.engine.memory import BATCH, MB, DataShape, LiveBytes, data_shape, predict
from erat.engine.recompute import checkpoint_activations
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.models.wideresnet import WideBlock
from orchestration.study import estimate

Make = Callable[..., Any]
DEVICES = ("cpu", "meta")
CLASSES, SIZE = 4, 14
TWICE = "train.checkpoint_activations"


class TestLiveBytes:
    @pytest.mark.parametrize("device", DEVICES)
    def test_a_storage_counts_once_until_its_last_view_is_gone(self, device: str) -> None:
        with LiveBytes() as live:
            whole = torch.empty(1000, device=device)
            part = whole[10:].view(10, 99)
            assert (live.now, live.peak) == (4000, 4000)
            del whole
            assert live.now == 4000
            del part
            assert (live.now, live.peak) == (0, 4000)

    @pytest.mark.parametrize("device", DEVICES)
    def test_the_peak_is_what_lives_at_the_same_time(self, device: str) -> None:
        with LiveBytes() as live:
            x = torch.empty(100, device=device)
            for _ in range(5):
                x = x + 1
        assert (live.now, live.peak) == (400, 800)

    @pytest.mark.parametrize("device", DEVICES)
    def test_what_was_there_before_is_not_counted(self, device: str) -> None:
        before = torch.empty(100, 3, device=device)
        with LiveBytes() as live:
            before.t()[0].add_(1)
            before.mul_(2)
        assert live.peak == 0

    @pytest.mark.parametrize("device", DEVICES)
    def test_what_backward_needs_is_alive(self, device: str) -> None:
        weight = torch.empty(100, device=device, requires_grad=True)
        with LiveBytes() as live:
            total = (weight * 2).exp().sum()  # exp keeps its result
            assert live.now == 400 + 4
            (grad,) = torch.autograd.grad(total, weight)
            del total
            assert live.now == grad.nbytes
        assert live.peak > 800

    def test_several_results_and_none(self) -> None:
        with LiveBytes() as live:
            parts = torch.empty(6, 5).sort(dim=1)
            torch.empty(3).fill_(1)
            assert live.now == parts.values.nbytes + parts.indices.nbytes


def shape_of(data: CorruptedSet) -> DataShape:
    train = data.train
    return DataShape(len(train), len(data.val), len(data.test), train.channels, train.size, train.num_classes)


def measured_step(config: RunConfig, data: CorruptedSet) -> int:
    """Return the largest amount that the second step of the first epoch and of the last epoch hold."""
    trainer, peaks = Trainer(config, data), []
    for clock in (Clock(0), Clock(config.train.epochs - 1)):
        steps = trainer.steps(trainer.plan(clock), clock)
        next(steps)
        with LiveBytes() as live:
            next(steps)
        peaks.append(live.peak)
    return max(peaks)


def measured_scoring(config: RunConfig, data: CorruptedSet) -> int:
    trainer = Trainer(config, data)
    with LiveBytes() as live:
        trainer.predict_test()
        trainer._val_accuracy()
        trainer.plan(Clock(2))
    return live.peak


@pytest.fixture(scope="module")
def data(make_data: Make) -> CorruptedSet:
    made: CorruptedSet = make_data(240, classes=CLASSES, size=SIZE)
    return made


class TestPredicted:
    @pytest.mark.parametrize(
        "options",
        [
            *({}, {"defense.name": "ce"}, {"defense.adversarial": False}),
            {"train.epochs": 1},
            *(
                pytest.param({key: value}, marks=pytest.mark.slow)
                for key, value in {
                    "defense.warm_start": True,
                    "defense.uniform": False,
                    "defense.norms": "linf,l2,l1,l0",
                    "defense.selection": False,
                    "defense.strong": False,
                    "defense.random_start": True,
                    "defense.pgd_precision": "bf16",
                    "defense.pgd_scale": 0.5,
                    "train.precision": "bf16",
                    "train.channels_last": True,
                }.items()
            ),
        ],
        ids=str,
    )
    def test_a_step_needs_what_was_predicted(self, options: dict[str, Any], make_config: Make, data: Any) -> None:
        config = make_config({"data.image_size": SIZE, "train.batch_size": 32} | options)
        predicted, measured = predict(config, shape_of(data)).step, measured_step(config, data)
        # Of the same sizes; some draws on the host differ, and how many images an operation of a view is applied to.
        assert predicted == pytest.approx(measured, rel=0.02)

    @pytest.mark.parametrize(
        ("model", "twice"),
        [
            pytest.param("resnet18", True, marks=pytest.mark.slow),
            pytest.param("resnet18", False, marks=pytest.mark.slow),
            pytest.param("vgg11", False, marks=pytest.mark.slow),
        ],
    )
    def test_of_larger_networks_too(self, model: str, twice: bool, make_config: Make, data: Any) -> None:
        options = {"model.name": model, "train.batch_size": 8, "defense.steps": 1, TWICE: twice}
        config = make_config({"data.image_size": SIZE} | options)
        predicted, measured = predict(config, shape_of(data)).step, measured_step(config, data)
        assert predicted == pytest.approx(measured, rel=0.02)

    @pytest.mark.parametrize("objective", ["clean", "perturbed"])
    def test_scoring_needs_what_was_predicted(self, objective: str, make_config: Make, make_data: Make) -> None:
        large = make_data(1500, size=8)
        config = make_config({"val.objective": objective, "defense.warmup_epochs": 0})
        predicted, measured = predict(config, shape_of(large)).scoring, measured_scoring(config, large)
        assert predicted == pytest.approx(measured, rel=0.03)

    @pytest.mark.slow
    def test_attacked_validation_is_counted_and_needs_no_more_than_a_step(
        self, make_config: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would need more in the batches of the scoring pass, because an attack keeps activations."""
        shape = DataShape(5000, 1000, 1000, 1, 8, CLASSES)
        clean, perturbed = (predict(make_config({"val.objective": o}), shape) for o in ("clean", "perturbed"))
        assert perturbed.step == clean.step
        assert perturbed.working == clean.working
        monkeypatch.setattr("erat.engine.evaluation.ATTACK_BATCH", 1000)
        large = predict(make_config({"val.objective": "perturbed", "val.seed": 1}), shape)
        assert large.scoring > clean.scoring
        assert large.working == large.gradients + large.scoring

    def test_what_stays(self, make_config: Make, data: CorruptedSet) -> None:
        config = make_config({"data.image_size": SIZE})
        trainer, memory = Trainer(config, data), predict(config, shape_of(data))
        weights = sum(parameter.nbytes for parameter in trainer.defense.parameters())
        assert memory.parameters == memory.gradients == memory.optimizer == weights
        assert memory.buffers == sum(buffer.nbytes for buffer in trainer.defense.buffers())
        assert memory.total == 2 * weights + memory.buffers + memory.data + memory.working
        assert memory.megabytes == memory.total / MB
        assert predict(make_config({"train.momentum": 0}), shape_of(data)).optimizer == 0

    def test_the_data_to_the_byte(self, make_config: Make, data: CorruptedSet) -> None:
        parts = (data.train, data.val, data.test)
        exact = sum(part.images.nbytes + part.labels.nbytes for part in parts)
        assert predict(make_config(), shape_of(data)).data == exact

    @pytest.mark.slow
    def test_what_is_kept_of_every_image(self, make_config: Make, data: CorruptedSet) -> None:
        with_start, without = (
            predict(make_config({"defense.warm_start": on}), shape_of(data)).buffers for on in (True, False)
        )
        assert with_start - without == 2 * data.train.images.numel()

    @pytest.mark.slow
    def test_larger_batches_need_more(self, make_config: Make, data: CorruptedSet) -> None:
        small, large = (predict(make_config({"train.batch_size": b}), shape_of(data)).step for b in (32, 64))
        assert large == pytest.approx(2 * small, rel=0.05)

    @pytest.mark.slow
    def test_workers_share_a_batch(self, make_config: Make, data: CorruptedSet) -> None:
        one, two = (
            predict(make_config({"train.batch_size": b, "train.workers": w}), shape_of(data))
            for b, w in ((32, 1), (64, 2))
        )
        assert two.step == pytest.approx(one.step, rel=0.02)
        assert two.data == one.data

    def test_an_exchange_of_gradients_may_need_most(self, make_config: Make, data: CorruptedSet) -> None:
        options = {"model.name": "resnet18", "train.batch_size": 2, "train.workers": 2, "defense.name": "ce"}
        memory = predict(make_config(options), shape_of(data))
        assert memory.step == 2 * memory.gradients

    def test_it_leaves_the_random_generators_alone(self, make_config: Make, data: CorruptedSet) -> None:
        before = torch.get_rng_state()
        predict(make_config(), shape_of(data))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_step_that_waits_for_the_device_cannot_be_predicted(
        self, make_config: Make, data: CorruptedSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Perturber.forward
        monkeypatch.setattr(Perturber, "forward", lambda self, network, images, *_: images.sum().item() and original)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            predict(make_config(), shape_of(data))


class TestPaperScale:
    @pytest.mark.slow
    def test_its_preset_in_a_few_times_the_time_of_the_demo_s_and_without_its_data(self) -> None:
        predict(build("demo"))  # what torch does once is no part of either time
        clock = [time.process_time()]  # of this process, because other programs may keep the cores busy
        for preset in ("demo", "paper"):
            memory = predict(build(preset))
            clock.append(time.process_time())
        demo, paper = clock[1] - clock[0], clock[2] - clock[1]
        assert paper < 10 * demo
        assert memory.data == 60_000 * (3 * 32 * 32 + 8)
        assert memory.parameters == pytest.approx(4 * 21.28e6, rel=1e-3)
        assert 2000 * MB < memory.step < 4000 * MB
        assert memory.step > memory.scoring

    @pytest.mark.slow
    def test_computing_twice_saves_most_of_a_deep_network_s_step(self) -> None:
        options = {"data.image_size": 32, "model.name": "resnet18", "data.name": "cifar10"}
        once, twice = (predict(build("paper", options | {TWICE: on})) for on in (False, True))
        print(f"resnet18, 64 + 64 images: a step needs {once.step / MB:.0f} MB, computing twice {twice.step / MB:.0f}")
        assert twice.step < 0.6 * once.step
        assert (twice.scoring, twice.data, twice.network) == (once.scoring, once.data, once.network)

    @pytest.mark.slow
    def test_half_precision_saves_near_half(self) -> None:
        basis = {"model.name": "resnet18", "defense.name": "ce"}
        whole, half = (predict(build("paper", basis | {"train.precision": p})).step for p in ("fp32", "bf16"))
        assert 0.45 * whole < half < 0.65 * whole


class TestDataShape:
    def test_digits_as_they_are_read(self) -> None:
        config = build("demo", {"data.image_size": None})
        train, test = load(config.data)
        shape = data_shape(config)
        assert shape == DataShape(3600, 400, len(test), train.channels, train.size, train.num_classes)
        assert len(train) == 4000

    @pytest.mark.needs_cifar10
    @pytest.mark.skipif("CIFAR10_ROOT" not in os.environ, reason="CIFAR10_ROOT names no folder with the real CIFAR-10")
    def test_cifar10_as_it_is_read(self) -> None:
        config = build("paper", {"data.root": os.environ["CIFAR10_ROOT"]})
        train, test = load(config.data)
        assert data_shape(config) == DataShape(45_000, 5_000, len(test), 3, train.size, train.num_classes)

    def test_a_limit_and_a_size(self) -> None:
        shape = data_shape(build("paper", {"data.limit": 1000, "data.image_size": 64, "val.fraction": 0.2}))
        assert shape == DataShape(800, 200, 10_000, 3, 64, 10)

    def test_other_sets_are_read(self, toy: Any) -> None:
        options = {"data.name": "toy", "data.image_size": None, "model.name": "small"}
        assert data_shape(build("demo", options)) == DataShape(108, 12, 40, 1, 8, 4)

    def test_a_set_that_cannot_be_read_says_so(self) -> None:
        with pytest.raises(UserError, match=r"data\.root"):
            data_shape(build("demo", {"data.name": "folder"}))


class TestOncePerSort:
    @pytest.fixture
    def predicted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunConfig]]:
        seen: list[RunConfig] = []
        estimate._predicted.cache_clear()
        monkeypatch.setattr(estimate, "predict", lambda config: seen.append(config) or config)
        yield seen
        estimate._predicted.cache_clear()

    def test_what_changes_no_size_is_not_predicted_again(self, predicted: list[RunConfig]) -> None:
        for other in (
            {},
            {"train.seed": 3},
            {"train.lr": 0.2},
            {"defense.eta": 0.9},
            {"defense.epsilon_2": 0.3},
            {"corruption.data": "urp"},
            {"corruption.labels": "instance"},
            {"val.seed": 3},
        ):
            estimate.memory(build("demo", other))
        assert len(predicted) == 1

    def test_what_does_is(self, predicted: list[RunConfig]) -> None:
        others: list[dict[str, Any]] = [
            {},
            {"defense.name": "ce"},
            {"defense.uniform": False},
            {"defense.warm_start": True},
            {"model.name": "resnet18"},
            {"data.limit": 500},
            {"data.image_size": 28},
            {"train.batch_size": 32},
            {"train.workers": 2},
            {"train.precision": "bf16"},
            {TWICE: True},
            {"val.objective": "perturbed"},
        ]
        for other in others:
            estimate.memory(build("demo", other))
            kept = predicted[-1].flat()
            assert all(kept[key] == value for key, value in other.items())
        assert len(predicted) == len(others)


class Tower(nn.Module):
    """A few blocks of one kind between an input layer and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            makers: dict[str, Callable[[], nn.Module]] = {
                "basic": lambda: BasicBlock(8, 8),
                "bottleneck": lambda: Bottleneck(8, 2),
                "wide": lambda: WideBlock(8, 8, 1),
                "encoder": lambda: EncoderBlock(2, 8, 16, 0.1, 0.0),
            }
            self.flat = kind == "encoder"
            self.entrance = nn.Conv2d(1, 8, 3, padding=1)
            self.blocks = nn.Sequential(*(makers[kind]() for _ in range(3)))
            self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.entrance(images)
        features = features.flatten(2).mT if self.flat else features
        features = self.blocks(features)
        logits: Tensor = self.head(features.mean(1) if self.flat else features.mean((2, 3)))
        return logits


KINDS = ("basic", "bottleneck", "wide", "encoder")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % CLASSES


def three_steps(network: nn.Module, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    images, labels = batch
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)  # for dropout
        for _ in range(3):
            # Two passes, each of which moves the statistics.
            loss = F.cross_entropy(network(images), labels) + F.cross_entropy(network(1 - images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses


def assert_same_bits(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", KINDS)
class TestCheckpointActivations:
    def test_three_steps_end_at_the_same_bits(self, kind: str, batch: Any) -> None:
        once, twice = Tower(kind), Tower(kind)
        checkpoint_activations(twice)
        assert_same_bits(once, twice)
        assert all(map(torch.equal, three_steps(once, batch), three_steps(twice, batch)))
        assert_same_bits(once, twice)
        counts = [value for name, value in once.state_dict().items() if name.endswith("num_batches_tracked")]
        assert all(count == 6 for count in counts)
        assert bool(counts) == (kind != "encoder")

    def test_a_step_holds_less(self, kind: str, batch: Any) -> None:
        peaks = []
        for on in (False, True):
            network = Tower(kind)
            if on:
                checkpoint_activations(network)
            with LiveBytes() as live:
                three_steps(network, batch)
            peaks.append(live.peak)
        assert peaks[1] < 0.75 * peaks[0]

    def test_only_a_training_pass_computes_twice(self, kind: str, batch: Any) -> None:
        images, labels = batch
        network, passes = Tower(kind), []
        checkpoint_activations(network)
        first = next(m for m in network.blocks[0].modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm))
        first.register_forward_hook(lambda *_: passes.append(1))

        def count(training: bool, grad: bool) -> int:
            passes.clear()
            network.train(training)
            with torch.set_grad_enabled(grad):
                loss = F.cross_entropy(network(images.clone().requires_grad_()), labels)
                if grad:
                    loss.backward()
            return len(passes)

        assert count(training=True, grad=True) == 2
        assert count(training=True, grad=False) == 1
        assert count(training=False, grad=True) == 1, "an attack"
        assert count(training=False, grad=False) == 1

    def test_a_copy_is_a_network_of_its_own(self, kind: str, batch: Any) -> None:
        network = Tower(kind)
        checkpoint_activations(network)
        copy, before = deepcopy(network), deepcopy(network.state_dict())
        three_steps(copy, batch)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        three_steps(network, batch)
        assert_same_bits(network, copy)

    def test_a_graph_may_be_walked_again(self, kind: str, batch: Any) -> None:
        images, labels = batch
        network = Tower(kind)
        checkpoint_activations(network)
        if kind == "encoder":
            network.eval()
            for block in network.blocks:
                block.training = True  # without the draws of dropout
        loss = F.cross_entropy(network(images), labels)
        weights = list(network.parameters())
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        second = torch.autograd.grad(loss, weights)
        assert all(map(torch.equal, first, second))
        assert all(norm.momentum == 0.1 for norm in network.modules() if isinstance(norm, nn.BatchNorm2d))


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without(make_config: Make, make_data: Make) -> None:
    data = make_data(64)
    ends = []
    for on in (False, True):
        options = {"model.name": "resnet18", "defense.steps": 1, "train.batch_size": 8, TWICE: on}
        trainer = Trainer(make_config(options), data)
        losses = []
        for clock in (Clock(0), Clock(2)):
            losses += [terms.total.detach() for _, terms in islice(trainer.steps(trainer.plan(clock), clock), 3)]
        ends.append((trainer.defense, losses, trainer.predict_test()))
    (once, losses, answers), (twice, same_losses, same_answers) = ends
    assert len(losses) == 6
    assert all(map(torch.equal, losses, same_losses))
    assert_same_bits(once, twice)
    assert torch.equal(answers, same_answers)


def test_a_network_without_blocks_has_no_use_for_it(make_config: Make, make_data: Make) -> None:
    with pytest.warns(UserWarning, match=r"train\.checkpoint_activations has no use here") as caught:
        Trainer(make_config({TWICE: True}), make_data(32))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(make_config(), make_data(32))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {TWICE: True}, {"train.precision": "bf16"}], ids=str)
def test_a_gpu_needs_what_was_predicted(options: dict[str, Any], make_config: Make, make_data: Make) -> None:
    data = make_data(BATCH, size=32)
    basis = {"model.name": "resnet18", "train.batch_size": 64, "data.image_size": 32, "resources.device": "cuda"}
    config = make_config(basis | {"defense.warmup_epochs": 0, "train.epochs": 1} | options)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in Trainer(config, data).run():
        pass
    measured = torch.cuda.max_memory_allocated() - before
    assert predict(config, shape_of(data)).total == pytest.approx(measured, rel=0.25)
