"""Measure the memory of a training step while it runs, or predict it without training.

The prediction runs the defense's own code on fake tensors, which have shapes but no content: every tensor is counted
and nothing is computed. It does not include memory outside torch's tensors, which is the workspaces of convolutions,
the allocator's rounding and the device's own context, nor what `train.compile` saves by fusing or `train.cuda_graphs`
keeps.

Shape suffixes: N samples, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from erat.attacks.freezing import frozen
from erat.config import RunConfig
from erat.data.facts import SetShape
from erat.data.loading import load
from erat.data.random import BatchRandom
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Batch, Clock, Defense, Phase, Update
from erat.engine.assembly import Build, make_defense, network_builder
from erat.engine.evaluation import BATCH, attacked_predictions, map_images
from erat.options import DataConfig
from erat.registry import DATASETS
from erat.seeding import generator

MB = 2**20  # the unit of `peak_memory_mb` in a run's result

# --- counted ---------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the live tensors made inside it (`now`) and their maximum so far (`peak`).

    Each storage counts once, however many views it has, until the last reference to it is gone, be it a variable or
    the graph of the backward pass. This works on any device, and for tensors without content.

    It also counts `flops`, the floating-point operations of all calls, by torch's own formulas.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        from torch.utils.flop_counter import flop_registry  # imported here because it loads slowly

        self._formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := self._formulas.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        made = {id(storage): storage for storage in _storages(result) if id(storage) not in self._alive}
        if made:
            given = {id(storage) for storage in _storages((args, kwargs))}  # a view of an existing tensor is not new
            for key in made.keys() - given:
                self._count(key, made[key])
        return result

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def freed(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


# --- predicted -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataShape:
    """The traits of a data set on which memory depends.

    Attributes:
        train, val, test: the numbers of training, validation and test images.
        channels: the number of channels.
        size: the height and width of the images in pixels.
        num_classes: the number of classes.
    """

    train: int
    val: int
    test: int
    channels: int
    size: int
    num_classes: int

    @property
    def image(self) -> tuple[int, int, int]:
        """Return the shape of an image, (C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Return the bytes of all three parts on the device: uint8 pixels and int64 labels."""
        return (self.train + self.val + self.test) * (self.channels * self.size**2 + 8)


def data_shape(config: RunConfig) -> DataShape:
    """Return the shape of a run's data. A set whose facts do not include its shape is read to determine it.

    Raises:
        UserError: the set cannot be read.
    """
    source = _source_shape(config.data)
    train = min(source.train, config.data.limit or source.train)
    val = round(config.val.fraction * train)
    size = config.data.image_size or source.size
    return DataShape(train - val, val, source.test, source.channels, size, source.num_classes)


@cache
def _source_shape(config: DataConfig) -> SetShape:
    known = DATASETS.facts(config.name).shape
    if known is not None:
        return known
    train, test = load(config)
    return SetShape(len(train), len(test), train.channels, train.size, train.num_classes)


@dataclass(frozen=True)
class MemoryEstimate:
    """The predicted bytes of the tensors on one worker's device.

    Attributes:
        parameters: the weights of all networks.
        buffers: the statistics of the networks, and the state that the defense keeps for each sample.
        gradients: the gradients of the weights, which are also part of `step`.
        optimizer: the momentum.
        data: the training, validation and test images and labels.
        step: the peak during one update: batch, views, perturbations, activations and gradients.
        scoring: the peak, in addition to the gradients, while whole sets are scored in batches of 1000.
        flops: the number of floating-point operations (not bytes) in the updates of one epoch after the warm-up, as if
            all samples kept their labels.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    data: int
    step: int
    scoring: int
    flops: int = 0

    @property
    def network(self) -> int:
        """Return the bytes that are in use all the time, without the data."""
        return self.parameters + self.buffers + self.optimizer

    @property
    def working(self) -> int:
        """Return the bytes that are added at the peak.

        While sets are scored, the gradients of the last step are still in memory.
        """
        return max(self.step, self.gradients + self.scoring)

    @property
    def total(self) -> int:
        """Return the bytes that are in use at the peak."""
        return self.network + self.data + self.working

    @property
    def megabytes(self) -> float:
        """Return `total` in units of `MB` (2**20 bytes)."""
        return self.total / MB


def predict(config: RunConfig, shape: DataShape | None = None) -> MemoryEstimate:
    """Predict the memory that a run will need, without using its data.

    The only real computation is the scores of two images, which a plan needs. The fake tensors pretend to be on the
    CPU and not on torch's `meta` device, which has no autocast and uses the slow path of attention.

    Args:
        config: the run.
        shape: the shape of the data; None: that of the configured data set.

    Raises:
        UserError: the data cannot be read, or the network does not support such images.
    """
    shape = shape or data_shape(config)
    mean, std = [0.5] * shape.channels, [0.25] * shape.channels
    build = _copying(network_builder(config, shape.num_classes, shape.image, mean, std))
    epochs = config.train.epochs
    plans, row_bytes = _plans(config, shape, build, {0, epochs // 2, epochs - 1})
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        defense = make_defense(config, shape.train, shape.num_classes, shape.image, build)
    _fake(defense, mode)
    weights = [parameter for parameter in defense.networks.parameters() if parameter.requires_grad]
    trained = _nbytes(weights)
    # Workers have their gradients in buckets, and each for a moment beside its bucket. Accumulated gradients are in
    # memory at the same time as those of the present part.
    steps = [2 * trained] if config.train.workers > 1 else []
    counted = [_step(defense, config, shape, *plan) for plan in plans]
    kept = trained if config.train.accumulate > 1 else 0
    steps += [live.peak + kept for live in counted]
    last = max(epoch for *_, epoch in plans)
    work = sum(live.flops / len(phase.turns) for live, (phase, _, at) in zip(counted, plans, strict=True) if at == last)
    parts = max(1, shape.train // config.train.batch_size) * config.train.workers * config.train.accumulate
    return MemoryEstimate(
        parameters=_nbytes(defense.parameters()),
        buffers=_nbytes(defense.buffers()),
        gradients=trained,
        optimizer=trained if config.train.momentum else 0,
        data=shape.nbytes,
        step=max(steps),
        scoring=_scoring(defense, config, shape) + row_bytes * shape.train,
        flops=round(work * parts),
    )


def _copying(build: Build) -> Build:
    """Wrap `build` so that each network is initialised once, with real content even in fake mode, and then copied.

    Each network is needed twice, for the plan and for the count, and a defense may modify the one that it gets.
    """
    made = cache(build)

    def copied(offset: int) -> nn.Module:
        with unset_fake_temporarily():
            return deepcopy(made(offset))

    return copied


def _fake(defense: Defense, mode: FakeTensorMode) -> None:
    """Replace all parameters and buffers by fake tensors, which have no content."""
    for module in defense.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None and not isinstance(value, FakeTensor):
                    table[name] = mode.from_tensor(value)  # type: ignore[assignment,unused-ignore]


class _FewImages:
    """A small stand-in for the training data (`TrainingData`) from which a defense can make a plan.

    Its labels are real, and two images stand for all.
    """

    def __init__(self, shape: DataShape, count: int, networks: nn.Module) -> None:
        self.labels, self.num_classes = torch.arange(count) % shape.num_classes, shape.num_classes
        self._networks = networks
        self._images = torch.rand(2, shape.channels, shape.size, shape.size, generator=generator(0, "memory"))
        self.row_bytes = 0

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, function: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
        with frozen(self._networks), torch.no_grad():
            results = function(self._images)
        self.row_bytes = max(self.row_bytes, results[0].nbytes)
        count = len(self) if rows is None else len(rows)
        return results[torch.arange(count) // self.num_classes % len(results)]


def _plans(
    config: RunConfig, shape: DataShape, build: Build, epochs: set[int]
) -> tuple[list[tuple[Phase, Update, int]], int]:
    """Return the different updates of these epochs and the bytes that scoring keeps for each sample.

    An update is given as (phase, update, epoch in which it occurs).
    """
    # Not the size of the real training set: the state that a defense keeps for every sample is allocated here.
    few = max(32, 2 * shape.num_classes)
    defense = make_defense(config, few, shape.num_classes, shape.image, build)
    data = _FewImages(shape, few, defense.networks)
    found = {}
    for epoch in sorted(epochs):
        for phase in defense.plan_epoch(Clock(epoch), data).phases:
            for update in phase.updates:
                found[phase.name, update, _has_unlabelled(phase)] = (phase, update, epoch)
    return list(found.values()), data.row_bytes


def _has_unlabelled(phase: Phase) -> bool:
    return phase.unlabelled is not None and len(phase.unlabelled) > 0


def _step(defense: Defense, config: RunConfig, shape: DataShape, phase: Phase, update: Update, epoch: int) -> LiveBytes:
    """Count the memory and operations of one update, made in the same way as by the trainer."""
    shares = config.train.workers * config.train.accumulate
    labelled = min(config.train.batch_size, shape.train) // shares
    others = phase.unlabelled_size(config.train.batch_size, shares)
    unlabelled = others // shares if _has_unlabelled(phase) else 0
    networks = [defense.networks[name] for name in update.networks] or [defense.networks]
    weights = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    defense.train()
    live = LiveBytes()
    with live:
        batch = Batch(
            images=_images(defense, config, shape, labelled),
            labels=_made(defense, labelled, dtype=torch.int64),
            indices=_made(defense, labelled, dtype=torch.int64),
            unlabelled=_images(defense, config, shape, unlabelled),
            unlabelled_indices=_made(defense, unlabelled, dtype=torch.int64),
            random=BatchRandom(generator(0, "memory"), 0, shares),
            phase=phase.name,
            update=update.name,
        )
        with _autocast(config):
            terms = defense.loss(batch, Clock(epoch))
        torch.autograd.grad(terms.total, weights, allow_unused=True)
    return live


def _scoring(defense: Defense, config: RunConfig, shape: DataShape) -> int:
    """Return the peak bytes of scoring one batch."""
    pixels = (shape.channels, shape.size, shape.size)
    count = min(BATCH, max(shape.train, shape.test))
    images = _made(defense, count, *pixels, dtype=torch.uint8)
    live = LiveBytes()
    with frozen(defense), live:
        with torch.no_grad(), _autocast(config):
            map_images(images, lambda batch: defense.predict(batch).softmax(1))
        if config.val.objective == "perturbed":
            val = images[: shape.val]
            labels = _made(defense, len(val), dtype=torch.int64)
            epsilon = DATASETS.facts(config.data.name).epsilon
            attacked_predictions(defense, ImageSet(val, labels, ("",) * shape.num_classes), epsilon)
    return live.peak


def _images(defense: Defense, config: RunConfig, shape: DataShape, count: int) -> Tensor:
    images = to_float(_made(defense, count, shape.channels, shape.size, shape.size, dtype=torch.uint8))
    return images.contiguous(memory_format=torch.channels_last) if config.train.channels_last else images


def _made(defense: Defense, *shape: int, dtype: torch.dtype) -> Tensor:
    """Return a fake tensor of this shape and type."""
    return next(defense.parameters()).new_empty(shape, dtype=dtype)


def _autocast(config: RunConfig) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if config.train.precision == "bf16" else nullcontext()


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
