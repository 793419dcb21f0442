"""L2C, learning to confuse (Feng, Cai, Zhou, NeurIPS 2019): a generator of perturbations that misdirect training.

Each trial trains a new victim on perturbed images. At every step of the victim, a copy of the generator is updated so
that one gradient step of the victim on perturbed images makes the victim worse on clean ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_step
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.models.unet import UNet
from erat.registry import BACKBONES

BATCH = 64
RATE = 0.01  # alpha, the victim's learning rate, for its own steps and for the step that the generator looks ahead
HELD_OUT = 0.1  # share of the images that is kept out of all training and used to judge the generators

Weights = list[Tensor]


class LearningToConfuse(kinds.L2C, DataCorruption):
    """Learning to confuse: one generator perturbs every image.

    Of all trials, the generator is kept whose victim has the lowest accuracy on the held-out clean images.
    """

    def perturb(self, craft: Craft) -> Tensor:
        """Train the generator, then let it perturb all images, within the budget."""
        generator = _settled(_Confusion(craft).learn(), craft)
        with frozen(generator), torch.no_grad():
            return torch.cat([_perturbation(generator, batch, craft) for batch in craft.images.split(1000)])


class _Confusion:
    """The trials of one crafting: victims and generators trained in turn (a trial here is not a study's trial)."""

    def __init__(self, craft: Craft) -> None:
        self.craft = craft
        order = torch.randperm(len(craft.images), generator=craft.generator).to(craft.images.device)
        held_out = max(1, round(HELD_OUT * len(order)))
        self.val, self.part = order[:held_out], order[held_out:]
        channels, size = craft.images.shape[1], craft.images.shape[-1]
        options = craft.options
        with torch.random.fork_rng(devices=[]):  # all weights are drawn from the craft's own generator, below
            victim = BACKBONES[options["victim"]](craft.num_classes, channels, size)
            generator = UNet(channels, options["width"], official=options["unet"] == "official")
        # Victims differ only in their weights, so one module serves all of them.
        self.victim = _without_running_statistics(victim).to(craft.images.device)
        self.generator = _drawn(generator, craft).to(craft.images.device)

    def learn(self) -> nn.Module:
        """Return the best generator of all trials.

        One more victim is trained than generators, because the last generator needs a victim to be judged by.
        """
        craft, best, best_accuracy, done = self.craft, deepcopy(self.generator.state_dict()), math.inf, 0
        learning = deepcopy(self.generator)
        optimizer = torch.optim.Adam(learning.parameters(), lr=craft.options["lr"])
        if (state := craft.resume()) is not None:
            best, best_accuracy, done = state["best"], state["best_accuracy"], state["done"]
            self.generator.load_state_dict(state["generator_weights"])
            learning.load_state_dict(state["generator_weights"])
            optimizer.load_state_dict(state["optimizer"])
        for trial in range(done, craft.steps + 1):
            last = trial == craft.steps
            accuracy = self._trial(None if last else learning, optimizer)
            if accuracy < best_accuracy:
                best, best_accuracy = deepcopy(self.generator.state_dict()), accuracy
            self.generator.load_state_dict(learning.state_dict())
            craft.keep(
                best=best,
                best_accuracy=best_accuracy,
                generator_weights=self.generator.state_dict(),
                optimizer=optimizer.state_dict(),
                done=trial + 1,
            )
            if not last:
                craft.progress(f"the best leaves a victim {best_accuracy:.1%} right; trial", trial + 1, craft.steps)
        self.generator.load_state_dict(best)
        return self.generator

    def _trial(self, learning: nn.Module | None, optimizer: torch.optim.Optimizer) -> float:
        """Train a new victim on the generator's images and, if given, train `learning` against that victim.

        Returns:
            The victim's accuracy on the held-out clean images, in [0, 1].
        """
        craft = self.craft
        victim = _drawn(self.victim, craft)
        weights = [parameter.detach() for parameter in victim.parameters()]
        for chosen in self._batches():
            images, labels = craft.images.index_select(0, chosen), craft.labels[chosen]
            if learning is not None:
                moved = (images + _perturbation(learning, images, craft)).clamp(0, 1)
                _confuse(victim, weights, images, moved, labels, learning, optimizer)
            with torch.no_grad():
                moved = (images + _perturbation(self.generator, images, craft)).clamp(0, 1)
            weights = _stepped(weights, _gradient(victim, weights, moved, labels))
        with torch.no_grad():
            logits = _logits(victim, weights, craft.images[self.val])
        return float((logits.argmax(1) == craft.labels[self.val]).double().mean())

    def _batches(self) -> Iterator[Tensor]:
        """Yield the indices of the batches of a trial, shuffled anew in each pass over the images."""
        for _ in range(self.craft.options["victim_epochs"]):
            order = torch.randperm(len(self.part), generator=self.craft.generator).to(self.part.device)
            for chosen in self.part[order].split(BATCH):
                if len(chosen) == min(BATCH, len(order)):  # the statistics of a small last batch are poor
                    yield chosen


def _confuse(
    victim: nn.Module,
    weights: Weights,
    images: Tensor,
    moved: Tensor,
    labels: Tensor,
    learning: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise CE(theta'; x), where theta' = theta - alpha grad CE(theta; x + delta), by one step of the generator.

    Args:
        victim: the network of the victim, whose parameters are theta = `weights`.
        images: the clean images x, float (B, C, H, W) in [0, 1].
        moved: the perturbed images x + delta, with the graph that leads to `learning`.
        labels: int64 (B,).
        learning: the generator that is updated.
        optimizer: the optimizer of its parameters.
    """
    ahead = _stepped(weights, _gradient(victim, weights, moved.detach(), labels))
    direction = _gradient(victim, ahead, images, labels)
    # d CE(theta'; x) = -alpha d <direction, grad CE(theta; x + delta)>, so the loss to lower is +alpha < , >.
    loss = RATE * directional_derivative(victim, weights, direction, moved, labels)
    parameters = list(learning.parameters())
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = grad
    optimizer.step()


def directional_derivative(
    network: nn.Module, weights: Weights, direction: Weights, images: Tensor, labels: Tensor
) -> Tensor:
    """Return <direction, d CE / d weights>, exact, as a scalar that can be differentiated with respect to `images`.

    Forward-mode differentiation carries the direction through the network once. The usual way, which keeps the graph of
    the gradient and makes a second backward pass through it, gives the same result at a higher cost.
    """
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(weight, tangent) for weight, tangent in zip(weights, direction, strict=True)]
        logits, change = forward_ad.unpack_dual(_logits(network, dual, images))
        error = logits.softmax(1) - F.one_hot(labels, logits.shape[1])  # d CE / d logits, per image
        derivative: Tensor = (error * change).sum(1).mean()
    return derivative


def _logits(network: nn.Module, weights: Sequence[Tensor], images: Tensor) -> Tensor:
    names = [name for name, _ in network.named_parameters()]
    logits: Tensor = functional_call(network, dict(zip(names, weights, strict=True)), (images,))
    return logits


def _gradient(network: nn.Module, weights: Weights, images: Tensor, labels: Tensor) -> Weights:
    """Return d CE / d weights, by name of the weight, as the mean over the batch."""
    leaves = [weight.detach().requires_grad_(True) for weight in weights]
    return list(torch.autograd.grad(F.cross_entropy(_logits(network, leaves, images), labels), leaves))


def _stepped(weights: Weights, gradient: Weights) -> Weights:
    return [weight - RATE * grad for weight, grad in zip(weights, gradient, strict=True)]


def _settled(generator: nn.Module, craft: Craft) -> nn.Module:
    """Return the generator with running statistics that are the mean over all images.

    During its training, and while its victims judged it, the generator normalised by the statistics of each batch; the
    running statistics that a few trials leave behind are far from those.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the running statistics become the plain mean over the following batches
    # Shuffled, because sets are often sorted by class, and a batch of one class varies less than one of all classes.
    order = torch.randperm(len(craft.images), generator=craft.generator).to(craft.images.device)
    with torch.no_grad():
        for chosen in order.split(BATCH):
            generator(craft.images.index_select(0, chosen))
    return generator


def _perturbation(generator: nn.Module, images: Tensor, craft: Craft) -> Tensor:
    """Return epsilon * g(x), shape (B, C, H, W); under l_2, g(x) is first scaled to norm 1."""
    values: Tensor = generator(images)
    return craft.epsilon * (l2_step(values) if craft.norm == "l2" else values)


class BatchStatistics(nn.BatchNorm2d):
    """BatchNorm by the statistics of the present batch only, written out in elementary operations.

    A victim is trained for a few passes only, so running statistics would be poor. Torch's own kernel cannot be used:
    when its forward-mode derivative is differentiated again, it treats the mean and variance of the batch as constants.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalise `images` per channel; input and output have the shape (B, C, H, W)."""
        centred = images - images.mean((0, 2, 3), keepdim=True)
        scale = (centred.square().mean((0, 2, 3)) + self.eps).rsqrt() * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _without_running_statistics(network: nn.Module) -> nn.Module:
    """Return the same network with every BatchNorm replaced by `BatchStatistics`."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, BatchStatistics(module.num_features, module.eps, track_running_stats=False))
        else:
            _without_running_statistics(module)
    return network


def _drawn(network: nn.Module, craft: Craft) -> nn.Module:
    """Return the same network with the weights of its layers drawn anew from the craft's generator.

    Weights follow He's normal distribution; biases are zero.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                drawn = torch.randn(module.weight.shape, generator=craft.generator) * math.sqrt(2 / fan_in)
                module.weight.copy_(drawn)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
    return network


L2C = LearningToConfuse()
