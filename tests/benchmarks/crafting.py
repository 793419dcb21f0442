"""Crafting against the forward and backward passes that it is made of, on the embedded digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.config import build
from erat.corruption import l2c, up
from erat.corruption.base import Craft
from erat.corruption.kinds import UniversalOptions
from erat.corruption.samplewise import BATCH
from erat.data.loading import load
from erat.data.types import to_float
from erat.models import build_model
from erat.models.small import small
from erat.models.unet import UNet
from erat.registry import CORRUPTIONS
from tests.benchmarks.harness import Comparison, Work

IMAGES, WIDTH = 1000, 8
STEPS = {"ap": 10, "aa": 10, "uhp": 100, "uap": 100, "up": 4, "l2c": 1}


def comparisons() -> Iterator[Comparison]:
    """One line per kind and granularity that needs a network."""
    cases = [("ap", "sample"), ("aa", "sample"), ("uhp", "class"), ("uap", "class"), ("up", "class"), ("up", "sample")]
    for kind, granularity in [*cases, ("l2c", "sample")]:
        order = _order(kind, granularity)
        raw, passes = _raw(kind, order)
        yield Comparison(
            f"craft {kind} {granularity}-wise",
            "its raw passes",
            1.15,
            partial(_prepare, kind, order, raw),
            note=passes,
        )


def _prepare(kind: str, order: Callable[[], Craft], raw: Work) -> tuple[Work, Work]:
    return lambda: CORRUPTIONS[kind].perturb(order()), raw


def _order(kind: str, granularity: str) -> Callable[[], Craft]:
    """The same order anew each time, for all 14 x 14 digits' classes."""
    train, _ = load(build("demo", {"data.limit": IMAGES}).data)
    images = to_float(train.images)
    network = _network()

    def order() -> Craft:
        return Craft(
            images=images,
            labels=train.labels,
            num_classes=10,
            norm=CORRUPTIONS[kind].norm,
            epsilon=0.1 if CORRUPTIONS[kind].norm == "linf" else 1.0,
            granularity=granularity,
            generator=torch.Generator().manual_seed(0),
            build=_network,
            source=lambda: network,
            options={**CORRUPTIONS[kind].Options().own(), "steps": STEPS[kind], "width": WIDTH, "lr": 1e-3},
        )

    return order


def _network() -> nn.Module:
    return build_model("small", 10, 1, 14, [0.13], [0.31], seed=0)


def _raw(kind: str, order: Callable[[], Craft]) -> tuple[Work, str]:
    """The passes of a crafting with nothing between them, and what they are in words."""
    craft, network = order(), _network()
    steps = STEPS[kind]
    chunks = [(craft.images[i], craft.labels[i]) for i in torch.arange(IMAGES).split(BATCH)]
    if kind in ("ap", "aa"):
        count = steps + (kind == "aa")
        words = f"{count} x (forward + input gradient) an image"
        return lambda: _input_passes(network, [pair for pair in chunks for _ in range(count)]), words
    if kind in ("uhp", "uap"):
        size = UniversalOptions.added["images_per_class"] * 10
        batch = (craft.images[:size], craft.labels[:size])
        return lambda: _input_passes(network, [batch] * steps), f"{steps} x (forward + input gradient) of {size} images"
    if kind == "up":
        return _raw_up(craft, network)
    return _raw_l2c(craft)


def _raw_up(craft: Craft, network: nn.Module) -> tuple[Work, str]:
    rounds: list[int] = []  # it stops when the poisoned images are learnt
    CORRUPTIONS["up"].perturb(replace(craft, progress=lambda what, done, total: rounds.append(done)))
    batches = [(craft.images[i], craft.labels[i]) for i in torch.arange(IMAGES).split(up.BATCH)]
    times = 1 if craft.granularity == "class" else up.SAMPLE_STEPS

    def work() -> None:
        training = cycle(batches)
        for _ in rounds:
            for images, labels in islice(training, up.TRAIN_STEPS):
                network.train()
                F.cross_entropy(network(images), labels).backward()
            _input_passes(network, [pair for pair in batches for _ in range(times)])
            with torch.no_grad(), frozen(network):
                for part in craft.images.split(1000):
                    network(part)

    once = f"{up.TRAIN_STEPS} training passes of {up.BATCH}, {times} x (forward + input gradient), 1 forward"
    return work, f"{len(rounds)} x ({once})"


def _raw_l2c(craft: Craft) -> tuple[Work, str]:
    """Per batch: the generator once with and once without gradients; the victim thrice, and once in forward mode."""
    victim = l2c._without_running_statistics(small(10, 1, 14))
    weights = [parameter.detach() for parameter in victim.parameters()]
    learning, still = UNet(1, WIDTH), UNet(1, WIDTH)
    part = torch.arange(round(l2c.HELD_OUT * IMAGES), IMAGES)
    batches = [i for i in part.split(l2c.BATCH) if len(i) == l2c.BATCH]

    def work() -> None:
        for chosen in batches:
            images, labels = craft.images[chosen], craft.labels[chosen]
            moved = learning(images)
            for _ in range(3):
                gradient = l2c._gradient(victim, weights, images, labels)
            derivative = l2c.directional_derivative(victim, weights, gradient, moved, labels)
            torch.autograd.grad(derivative, list(learning.parameters()))
            with torch.no_grad():
                still(images)
        for chosen in batches:  # one more victim judges the last generator
            l2c._gradient(victim, weights, craft.images[chosen], craft.labels[chosen])
            with torch.no_grad():
                still(craft.images[chosen])
        with frozen(still), torch.no_grad():
            still(craft.images)

    return work, "a batch: generator 2 forward, 1 backward; victim 3 forward + weight gradient, 1 forward-mode"


def _input_passes(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with frozen(network):
        for images, labels in batches:
            point = images.detach().requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(network(point), labels, reduction="sum"), point)
