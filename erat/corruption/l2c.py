"""L2C, learning to confuse (Feng, Cai, Zhou, NeurIPS 2019): a generator whose perturbations make training go astray.

Each trial trains a new victim on perturbed images. At every step of it a copy of the generator is changed such that one
gradient step of the victim on perturbed images would leave it worse on clean ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from erat.attacks.norms import l2_step
from erat.attacks.pgd import frozen
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.models.small import small
from erat.models.unet import UNet

BATCH = 64
RATE = 0.01  # alpha, of the victim: of its plain steps, and of the one that is looked ahead
HELD_OUT = 0.1  # share of the images that judges the generators and is trained on by nobody

Weights = list[Tensor]


class LearningToConfuse(kinds.L2C, DataCorruption):
    """Per image, from one generator; the one kept is that whose victim knew least of the held-out clean images."""

    def perturb(self, craft: Craft) -> Tensor:
        generator = _settled(_Confusion(craft).learn(), craft)
        with frozen(generator), torch.no_grad():
            return torch.cat([_perturbation(generator, batch, craft) for batch in craft.images.split(1000)])


class _Confusion:
    """The trials of one crafting."""

    def __init__(self, craft: Craft) -> None:
        self.craft = craft
        order = torch.randperm(len(craft.images), generator=craft.generator).to(craft.images.device)
        held_out = max(1, round(HELD_OUT * len(order)))
        self.val, self.part = order[:held_out], order[held_out:]
        channels, size = craft.images.shape[1], craft.images.shape[-1]
        with torch.random.fork_rng(devices=[]):  # all weights are drawn from the order's generator, below
            victim, generator = small(craft.num_classes, channels, size), UNet(channels, craft.options["width"])
        # Victims differ in their weights alone, so one module serves all of them.
        self.victim = _without_running_statistics(victim).to(craft.images.device)
        self.generator = _drawn(generator, craft).to(craft.images.device)

    def learn(self) -> nn.Module:
        """The best generator of all trials. One more victim is trained than generators, to judge the last of them."""
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
        """Train a new victim on the generator's images, and `learning` against it; its accuracy on held-out images."""
        craft = self.craft
        victim = _drawn(self.victim, craft)
        weights = [parameter.detach() for parameter in victim.parameters()]
        order = self.part[torch.randperm(len(self.part), generator=craft.generator).to(self.part.device)]
        for chosen in order.split(BATCH):
            if len(chosen) < min(BATCH, len(order)):
                break  # a rest of few images has poor batch statistics
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


def _confuse(
    victim: nn.Module,
    weights: Weights,
    images: Tensor,
    moved: Tensor,
    labels: Tensor,
    learning: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise CE(theta'; x), where theta' = theta - alpha grad CE(theta; x + delta), by one step of the generator."""
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
    """<direction, d CE / d weights>, exact, as a number that can itself be differentiated by `images`.

    Forward-mode differentiation carries the direction through the network once. The customary way, the gradient with
    its graph kept and then a second backward pass through it, gives the same at a higher price.
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
    """d CE / d weights, mean over the batch."""
    leaves = [weight.detach().requires_grad_(True) for weight in weights]
    return list(torch.autograd.grad(F.cross_entropy(_logits(network, leaves, images), labels), leaves))


def _stepped(weights: Weights, gradient: Weights) -> Weights:
    return [weight - RATE * grad for weight, grad in zip(weights, gradient, strict=True)]


def _settled(generator: nn.Module, craft: Craft) -> nn.Module:
    """The generator with running statistics that are the mean over all images.

    While it learnt, and while its victims judged it, it went by each batch's own; what a few trials leave running
    behind them is far from these.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over the batches that follow
    # Shuffled: sets often stand class by class, and a batch of one class varies less than one of all.
    order = torch.randperm(len(craft.images), generator=craft.generator).to(craft.images.device)
    with torch.no_grad():
        for chosen in order.split(BATCH):
            generator(craft.images.index_select(0, chosen))
    return generator


def _perturbation(generator: nn.Module, images: Tensor, craft: Craft) -> Tensor:
    """epsilon * g(x); under l_2 g(x) is brought to norm 1 first."""
    values: Tensor = generator(images)
    return craft.epsilon * (l2_step(values) if craft.norm == "l2" else values)


class BatchStatistics(nn.BatchNorm2d):
    """BatchNorm by the batch at hand alone, written out.

    A victim lives for one pass, so running statistics would be of no use. And torch's own kernel may not be used here:
    its forward-mode derivative takes the batch's mean and variance for constants when it is differentiated once more.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Shape (B, C, H, W) in and out."""
        centred = images - images.mean((0, 2, 3), keepdim=True)
        scale = (centred.square().mean((0, 2, 3)) + self.eps).rsqrt() * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _without_running_statistics(network: nn.Module) -> nn.Module:
    """The same network with `BatchStatistics` for its BatchNorm."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, BatchStatistics(module.num_features, module.eps, track_running_stats=False))
        else:
            _without_running_statistics(module)
    return network


def _drawn(network: nn.Module, craft: Craft) -> nn.Module:
    """The same network with its layers' weights drawn anew from the order's generator (He's normal; biases zero)."""
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
