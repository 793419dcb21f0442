"""Hold the training set on the device, and make the batches of an epoch from it: each worker's share, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.freezing import frozen
from erat.data.random import BatchRandom
from erat.data.types import to_float
from erat.defenses.base import Batch, Clock, Phase
from erat.devices import to_device
from erat.engine.evaluation import map_images
from erat.engine.parallel import Ranks
from erat.errors import TrainingFailedError
from erat.sections import TrainConfig
from erat.seeding import generator


@dataclass
class TrainingSet:
    """The training set on the device, as a defense sees it (`TrainingData`)."""

    images: Tensor
    labels: Tensor
    num_classes: int
    ranks: Ranks
    networks: nn.Module

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, function: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
        images = self.images if rows is None else self.images[to_device(rows, self.images.device)]
        with frozen(self.networks), torch.no_grad():
            return map_images(images, function, self.ranks)


class Batches:
    """The batches of this worker, from two random streams that are the same on every worker.

    Args:
        config: the size of a batch, the parts in which a worker takes its share, and the seed.
        data: the training set.
        ranks: this worker's place.

    Attributes:
        order: the stream that orders the samples.
        draws: the stream for views and attacks.
    """

    def __init__(self, config: TrainConfig, data: TrainingSet, ranks: Ranks) -> None:
        self._config, self._data, self._ranks = config, data, ranks
        self._device = data.images.device
        self.order = generator(config.seed, "order")
        self.draws = generator(config.seed, "draws")

    def of(self, phase: Phase, clock: Clock, done: int = 0) -> Iterator[tuple[Batch, Clock]]:
        """Yield this worker's share of each global batch after the first `done`, with the clock of its step.

        Every worker draws the same order of samples and takes its own part of each batch.

        Raises:
            TrainingFailedError: the labelled samples are fewer than the shares into which a batch is divided.
        """
        size = min(self._config.batch_size, len(phase.labelled))
        shares = self._ranks.workers * self._config.accumulate
        size -= size % shares
        if size == 0:
            raise TrainingFailedError(f"{len(phase.labelled)} labelled samples are too few for {shares} shares")
        steps = len(phase.labelled) // size
        labelled = phase.labelled[torch.randperm(len(phase.labelled), generator=self.order)]
        others = phase.unlabelled_size(self._config.batch_size, shares)
        unlabelled = self._cycle(phase.unlabelled, steps * others)
        random = BatchRandom(self.draws, self._ranks.rank, self._ranks.workers)
        for step in range(done, steps):
            with record_function("batch"):
                mine = self._share(labelled[step * size : (step + 1) * size])
                other = self._share(unlabelled[step * others :][:others])
                batch = Batch(
                    images=self._images(mine),
                    labels=self._data.labels[mine],
                    indices=mine,
                    unlabelled=self._images(other),
                    unlabelled_indices=other,
                    random=random,
                    phase=phase.name,
                )
            yield batch, Clock(clock.epoch, step, steps)

    def parts(self, batch: Batch) -> list[Batch]:
        """Split a worker's share of a batch into `train.accumulate` parts, as that many times more workers would do."""
        count = self._config.accumulate
        if count == 1:
            return [batch]
        fields = ("images", "labels", "indices", "unlabelled", "unlabelled_indices")
        pieces = {name: getattr(batch, name).tensor_split(count) for name in fields}
        return [
            replace(
                batch,
                **{name: pieces[name][number] for name in fields},
                random=BatchRandom(self.draws, self._ranks.rank * count + number, self._ranks.workers * count),
            )
            for number in range(count)
        ]

    def _cycle(self, indices: Tensor | None, count: int) -> Tensor:
        """Return `count` indices, int64, that go through all of `indices` repeatedly, reshuffled for each pass."""
        if indices is None or len(indices) == 0:
            return torch.empty(0, dtype=torch.int64)
        rounds = -(-count // len(indices))
        return torch.cat([indices[torch.randperm(len(indices), generator=self.order)] for _ in range(rounds)])[:count]

    def _share(self, indices: Tensor) -> Tensor:
        size = len(indices) // self._ranks.workers
        return to_device(indices[self._ranks.rank * size : (self._ranks.rank + 1) * size], self._device)

    def _images(self, indices: Tensor) -> Tensor:
        images = to_float(self._data.images.index_select(0, indices))  # for bytes many times faster than [indices]
        return images.contiguous(memory_format=torch.channels_last) if self._config.channels_last else images
