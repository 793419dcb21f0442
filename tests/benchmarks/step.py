"""Compares an ERAT step (64 + 64 images) with its raw passes, a naive step, and one with every norm on every image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_project, l2_step
from erat.config import build
from erat.data.loading import load
from erat.data.random import BatchRandom
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Update
from erat.engine.trainer import Trainer
from tests.benchmarks.harness import Comparison, Work

STEPS = 7
CLOCK = Clock(20, 0, 10)  # after warm-up, at full weight of the unlabelled loss
PLAIN = {"defense.strong": False, "defense.weak": "none"}  # no views, because `augment` measures them
NAIVE = "naive: weight gradients in PGD, p(x) at every PGD step, one PGD per norm"
# ResNet-18 at full width costs as much as the passes of a real run; on a CPU its batch must be small to take no hours.
SMALL, LARGE = {"data.image_size": 28}, {"data.image_size": 32, "model.name": "resnet18"}
IMAGES = {"small": 64, "resnet18": 4}  # labelled, and as many unlabelled


def comparisons() -> Iterator[Comparison]:
    """Yield comparisons for the demo's network on digits with 64 + 64 images, and for ResNet-18 with 4 + 4."""
    for size, network in ((SMALL, "small"), (LARGE, "ResNet-18")):
        plain = PLAIN | size
        name = f"ERAT step without views, {network}"
        yield Comparison(name, "its raw passes", 1.05, partial(_pair, step, plain, raw, plain))
        yield Comparison(name, "naive step", 0.65, partial(_pair, step, plain, naive, plain), note=NAIVE)
        yield Comparison(
            f"ERAT step, one norm an image, {network}",
            "every norm on every image",
            0.58,
            partial(_pair, step, size, step, size | {"defense.uniform": False}),
            note="the paper: 17.8 h / 28.1 h = 0.63",
        )


def _pair(
    ours: Callable[[dict[str, Any]], Work], mine: dict[str, Any], theirs: Callable[[dict[str, Any]], Work], other: Any
) -> tuple[Work, Work]:
    return ours(mine), theirs(other)


def trainer(overrides: dict[str, Any]) -> tuple[Trainer, Batch]:
    """Return a trainer on clean digits, and one batch of its data."""
    clean = {"corruption.data": "none", "corruption.labels": "none", "data.limit": 400}
    config = build("demo", clean | overrides)
    train, test = load(config.data)
    made = Trainer(config, CorruptedSet(train, train.labels, test, test))
    made.defense.train()
    first, second = torch.arange(2 * IMAGES[config.model.name]).chunk(2)
    random = BatchRandom(torch.Generator().manual_seed(0))
    return made, Batch(made._images(first), train.labels[first], first, made._images(second), second, random)


def step(overrides: dict[str, Any]) -> Work:
    """Return the step as the trainer makes it, with the optimizer."""
    made, batch = trainer(overrides)
    return lambda: made._update(batch, CLOCK, Update())


def raw(overrides: dict[str, Any]) -> Work:
    """Return the same forward and backward passes with nothing between them."""
    made, batch = trainer(overrides)
    network = made.defense.networks["main"]
    images = torch.cat([batch.images, batch.unlabelled])
    views, labels = images.repeat(3, 1, 1, 1), torch.arange(len(images)) % 10
    parameters = list(network.parameters())

    def work() -> None:
        with frozen(network):
            for _ in range(STEPS):
                point = images.detach().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(network(point), labels), point)
            with torch.no_grad():
                network(batch.unlabelled)
        torch.autograd.grad(F.cross_entropy(network(views), labels.repeat(3)), parameters)

    return work


def naive(overrides: dict[str, Any]) -> Work:
    """Return the step in its simplest form, as a first version would be written."""
    made, batch = trainer(overrides)
    network, optimizer = made.defense.networks["main"], made._optimizer
    options: Any = made.config.defense

    def attack(images: Tensor, labels: Tensor, norm: str) -> Tensor:
        epsilon = options.epsilon_inf if norm == "linf" else options.epsilon_2
        adversarial = images.clone()
        for _ in range(STEPS):
            adversarial = adversarial.detach().requires_grad_(True)
            with torch.no_grad():
                clean = network(images).softmax(1)
            logits = network(adversarial)
            loss = (logits.softmax(1) - clean).square().sum() + F.cross_entropy(logits, labels, reduction="sum")
            network.zero_grad()
            loss.backward()
            grad = adversarial.grad
            assert grad is not None
            if norm == "linf":
                delta = (adversarial + epsilon / 5 * grad.sign() - images).clamp(-epsilon, epsilon)
            else:
                delta = adversarial + epsilon / 5 * l2_step(grad) - images
                delta = l2_project(delta, torch.full((len(images),), epsilon))
            adversarial = (images + delta).clamp(0, 1)
        return adversarial.detach()

    def work() -> None:
        network.eval()
        with torch.no_grad():
            pseudo = network(batch.unlabelled).softmax(1)
        images = torch.cat([batch.images, batch.unlabelled])
        labels = torch.cat([batch.labels, pseudo.argmax(1)])
        linf = batch.random.randint(2, len(images)) == 0
        adversarial = images.clone()
        for norm, chosen in (("linf", linf), ("l2", ~linf)):
            adversarial[chosen] = attack(images[chosen], labels[chosen], norm)
        network.train()
        optimizer.zero_grad()
        loss: Any = 0
        for view in (images, adversarial, adversarial):
            logits = network(view)
            loss = loss + F.cross_entropy(logits[: len(batch.labels)], batch.labels)
            loss = loss + 25 * (logits[len(batch.labels) :].softmax(1) - pseudo).square().mean()
        loss.backward()
        optimizer.step()

    return work
