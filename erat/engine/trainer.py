"""The one training loop. It owns every update, every seed and every checkpoint; defenses only decide what to learn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.config import RunConfig
from erat.data.places import with_fingerprint
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, EpochPlan, LossTerms, Update
from erat.defenses.perturbation import measure_norms
from erat.engine import checkpoint
from erat.engine.assembly import choose_device, defense_for_training
from erat.engine.batches import Batches, TrainingSet
from erat.engine.evaluation import accuracy, attacked_predictions, predictions
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport, reported_numbers, selection_figures
from erat.engine.schedule import learning_rate
from erat.engine.underway import Interrupted, Underway
from erat.engine.writer import CheckpointWriter
from erat.errors import TrainingFailedError, UserError
from erat.registry import DATASETS

ASKED_EVERY = 8  # batches between two checks, for several workers on GPUs, of whether a worker was told to leave


class Trainer:
    """The training of one defense on one corrupted set.

    Args:
        config: the run.
        data: the corrupted set; it is moved to the device here.
        ranks: this worker's place; all workers must be given the same config and data. None: there is only one.
        folder: the folder of the checkpoint; None: no checkpoints are written.
        told_to_leave: called before each epoch and after each batch, on every worker; if it returns true on one worker,
            all of them write the checkpoint and stop.
        kept: called in another thread when a checkpoint has been written; what it raises is raised by `run`.
    """

    def __init__(
        self,
        config: RunConfig,
        data: CorruptedSet,
        ranks: Ranks | None = None,
        folder: Path | None = None,
        told_to_leave: Callable[[], bool] = lambda: False,
        kept: Callable[[], object] = lambda: None,
    ) -> None:
        self.config, self.ranks, self.folder = config, ranks or Ranks(), folder
        self.device = choose_device(config)
        self.history: list[EpochReport] = []
        self._underway: Underway | None = None  # the unfinished epoch of a restored checkpoint
        self._told_to_leave = told_to_leave
        self._leaving = torch.zeros(1, device=self.device)  # share of the workers told to leave, at the last update
        self.data = data
        self._val, self._test = data.val.to(self.device), data.test.to(self.device)
        self.defense = defense_for_training(config, data.train, self.ranks, self.device)
        images = self.defense.prepare(data.train.images.to(self.device))
        labels = data.train.labels.to(self.device)
        self._train = TrainingSet(images, labels, data.train.num_classes, self.ranks, self.defense)
        self._optimizer = torch.optim.SGD(
            self.defense.networks.parameters(),
            lr=config.train.lr,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
            fused=self.device.type == "cuda",
        )
        self._batches = Batches(config.train, self._train, self.ranks)
        self._writer: CheckpointWriter | None = None
        if self.checkpoint_path is not None and self.ranks.first:
            self._writer = CheckpointWriter(self.checkpoint_path, config.train.checkpoint_every, kept)
        self._restore()

    @property
    def epochs_done(self) -> int:
        """Return the number of epochs trained so far, including those before a restart."""
        return len(self.history)

    def run(self) -> Iterator[EpochReport]:
        """Train up to the last epoch, and yield the report of each epoch.

        Checkpoints are written beside the training, at the interval `train.checkpoint_every`, and after the last epoch.
        To stop early, do not ask for another report, and call `keep` for a checkpoint of the last one.

        Raises:
            TrainingFailedError: the loss is no longer finite.
            Interrupted: the training was told to leave; the checkpoint holds all the work done, even inside an epoch.
            OSError: a checkpoint cannot be written.
        """
        try:
            while self.epochs_done < self.config.train.epochs:
                self._leaving.fill_(self._told_to_leave())
                if self.ranks.sum(self._leaving) > 0:
                    self.keep()
                    raise Interrupted(f"told to leave after epoch {self.epochs_done}")
                self.history.append(self._epoch(Clock(self.epochs_done)))
                if self._writer is not None:
                    self._writer.check()
                    if self._writer.is_due(self.epochs_done):
                        self._save()
                yield self.history[-1]
            self.keep()
        finally:  # also where no further report is asked for
            self.settle()

    def keep(self) -> None:
        """Write a checkpoint of the last finished epoch unless there is one, and wait for it.

        Raises:
            OSError: it cannot be written.
        """
        if self._writer is not None:
            if self._writer.epochs != self.epochs_done:
                self._save(last=True)
            self._writer.wait()

    @property
    def overtaken(self) -> bool:
        """Return whether a newer checkpoint, the last one, waits until the one that is being written is done."""
        return self._writer is not None and self._writer.overtaken

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if there is one; `keep` raises an error that it ends with."""
        if self._writer is not None:
            self._writer.settle()

    def predict_test(self) -> Tensor:
        """Return the predicted classes of the clean test images, int64 (N,) on the CPU."""
        return predictions(self.defense, self._test, self.ranks, self._autocast).cpu()

    # -- one epoch ------------------------------------------------------------------------------------------------

    def _epoch(self, clock: Clock) -> EpochReport:
        began = time.perf_counter()
        epoch, self._underway = self._underway or Underway(self.plan(clock)), None
        for batch, terms in self._steps(epoch, clock):
            epoch.add(terms)
            epoch.images += len(batch.images) + len(batch.unlabelled)
        self.ranks.average_buffers(self.defense)
        workers, sums = self.ranks.workers, epoch.sums
        means = {name: float(self.ranks.sum(sums[name])) / (epoch.times[name] * workers) for name in sums}
        loss = means.pop("total")
        if not math.isfinite(loss):
            raise TrainingFailedError(f"the loss became {loss} in epoch {clock.epoch + 1}")
        seconds = epoch.seconds + time.perf_counter() - began
        return EpochReport(
            epoch=clock.epoch + 1,
            train_loss=loss,
            val_accuracy=self._val_accuracy(),
            test_accuracy=accuracy(self.data.test.labels, self.predict_test()),
            epoch_seconds=seconds,
            images_per_second=epoch.images * workers / seconds,
            learning_rate=learning_rate(self.config.train, clock.epoch),
            loss_terms={name: mean for name, mean in means.items() if name not in epoch.noted},
            numbers=reported_numbers(epoch.plan, {name: means[name] for name in means if name in epoch.noted}),
            **selection_figures(epoch.plan, self.data),
        )

    def plan(self, clock: Clock) -> EpochPlan:
        """Return the defense's plan of this epoch: on which samples, and in which phases, it trains."""
        with self._autocast(), record_function("plan"):
            weights = measure_norms(self.defense, clock, self._train)
            plan = self.defense.plan_epoch(clock, self._train)
        return replace(plan, numbers=plan.numbers | weights) if weights else plan

    def steps(self, plan: EpochPlan, clock: Clock) -> Iterator[tuple[Batch, LossTerms]]:
        """Make the updates of an epoch, one for each value requested, and yield the batch and its loss terms."""
        return self._steps(Underway(plan), clock)

    def _steps(self, epoch: Underway, clock: Clock) -> Iterator[tuple[Batch, LossTerms]]:
        """Make the remaining updates of an epoch, yield them as `steps` does, and record the progress in `epoch`."""
        began = time.perf_counter()
        self.defense.train()
        while epoch.phase < len(epoch.plan.phases):
            if epoch.plan.phases[epoch.phase].late:
                with self._autocast():
                    epoch.put(self.defense.late_phase(self._train))
            phase, epoch.order = epoch.plan.phases[epoch.phase], self._batches.order.get_state()
            for batch, at in self._batches.of(phase, clock, epoch.batches):
                for update in phase.turns[at.step % len(phase.turns)]:
                    batch = replace(batch, update=update.name)
                    yield batch, self._update(batch, at, update)
                epoch.batches += 1
                if self._must_leave(epoch.batches):
                    epoch.seconds += time.perf_counter() - began
                    self._leave(epoch)
            epoch.phase, epoch.batches = epoch.phase + 1, 0

    def _must_leave(self, batches: int) -> bool:
        """Return whether a worker was told to leave; the answer is the same on every worker."""
        if self.ranks.workers == 1:
            return self._told_to_leave()
        # On a GPU, reading the flag after each batch would mean waiting for the device each time.
        return (self.device.type == "cpu" or batches % ASKED_EVERY == 0) and bool(self._leaving > 0)

    def _leave(self, epoch: Underway) -> None:
        self.ranks.average_buffers(self.defense)
        if self.ranks.workers > 1:  # each worker resumes from the mean, which keeps the sum over all workers
            epoch.sums = {name: self.ranks.sum(value) / self.ranks.workers for name, value in epoch.sums.items()}
        self._save(epoch, last=True)
        if self._writer is not None:
            self._writer.wait()
        raise Interrupted(f"told to leave in epoch {self.epochs_done + 1}")

    def _update(self, batch: Batch, clock: Clock, update: Update) -> LossTerms:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, clock.time)
        parameters = self._parameters(update)
        self._optimizer.zero_grad(set_to_none=True)
        if self.config.train.cuda_graphs and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        parts = self._batches.parts(batch)
        draws = self._batches.draws.get_state() if len(parts) > 1 else None
        if self.ranks.workers > 1:
            self._leaving.fill_(self._told_to_leave())
        exchange = self.ranks.exchange(parameters, self._leaving)

        def added(parameter: nn.Parameter, grad: Tensor) -> Tensor:
            """Return the gradient of the parts so far, of which `grad` is that of the last one."""
            mean = grad if len(parts) == 1 else grad / len(parts)
            return mean if parameter.grad is None else parameter.grad.add_(mean)

        terms = []
        for number, part in enumerate(parts, 1):
            if draws is not None:
                self._batches.draws.set_state(draws)  # each part draws for the whole batch, as each worker does
            with self._autocast(), record_function("loss"):
                made = self.defense.loss(part, clock)
            travelling = exchange.during(added) if number == len(parts) else nullcontext(False)
            with record_function("backward"), travelling as taken:
                grads = torch.autograd.grad(made.total, parameters, allow_unused=True)
            for parameter, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    parameter.grad = grad if taken else added(parameter, grad)
            terms.append(made if len(parts) == 1 else LossTerms.mean([made]))  # frees the graph of this part
        with record_function("update"):
            exchange.end()
            self._optimizer.step()
            self.defense.updated()
        return terms[0] if len(terms) == 1 else LossTerms.mean(terms)

    def _parameters(self, update: Update) -> list[nn.Parameter]:
        """Return the parameters that this update changes; the optimizer skips those without a gradient."""
        networks = [self.defense.networks[name] for name in update.networks] or [self.defense.networks]
        return [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]

    # -- figures --------------------------------------------------------------------------------------------------

    def _val_accuracy(self) -> float:
        if self.config.val.objective == "perturbed":
            epsilon = DATASETS.facts(self.config.data.name).epsilon
            return accuracy(self._val.labels, attacked_predictions(self.defense, self._val, epsilon, self.ranks))
        return accuracy(self._val.labels, predictions(self.defense, self._val, self.ranks, self._autocast))

    # -- making, saving, restoring --------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def checkpoint_path(self) -> Path | None:
        """Return the path of this run's checkpoint, or None if it keeps none."""
        return self.folder / "checkpoint.pt" if self.folder else None

    @cached_property
    def _name(self) -> str:
        """Return the digest that the checkpoint must have: that of the run.

        For images that were passed in directly and have no known source, it includes their fingerprint.
        """
        config = self.config
        return (config if config.identified else with_fingerprint(config, self.data.train.fingerprint)).digest()

    def _save(self, epoch: Underway | None = None, *, last: bool = False) -> None:
        """Begin to write the checkpoint of the run: after its last epoch, or inside `epoch`, which is under way."""
        if self._writer is None:
            return
        state = {
            "digest": self._name,
            "defense": self.defense.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": self._batches.order.get_state() if epoch is None else epoch.order,
            "draws": self._batches.draws.get_state(),
            "history": [asdict(report) for report in self.history],
            "underway": None if epoch is None else epoch.state(self.defense),
        }
        self._writer.write(self.epochs_done, state, last=last)

    def _restore(self) -> None:
        """Resume from the newest sound checkpoint, if there is one.

        Raises:
            UserError: the checkpoint belongs to another run or does not fit this one, or the workers found different
                ones.
        """
        path = self.checkpoint_path
        state = None if path is None else checkpoint.load_newest(path, self.device)
        if state is not None:
            if state.get("digest") != self._name:
                raise UserError(f"checkpoint {path} is of another run, {state.get('digest')}")
            try:
                self._take_in(state)
            except torch.OutOfMemoryError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UserError(f"checkpoint {path} does not fit this run ({reason}): {checkpoint.ANEW}") from error
            if self._writer is not None:
                self._writer.found(self.epochs_done)
        if self.ranks.workers > 1:
            inside = self._underway
            place = [len(self.history), *((inside.phase + 1, inside.batches) if inside else (0, 0))]
            mine = torch.tensor(place, dtype=torch.float64, device=self.device)
            mean = self.ranks.sum(mine.clone()) / self.ranks.workers
            if self.ranks.sum((mine - mean).abs().sum()) > 0:
                raise UserError(f"the workers' checkpoints {path} differ: {checkpoint.ANEW}")

    def _take_in(self, state: dict[str, Any]) -> None:
        self.defense.load_state_dict(state["defense"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches.order.set_state(state["order"].cpu())
        self._batches.draws.set_state(state["draws"].cpu())
        known = {entry.name for entry in fields(EpochReport)}
        self.history = [EpochReport(**{k: v for k, v in row.items() if k in known}) for row in state["history"]]
        if state.get("underway") is not None:
            self._underway = Underway.restored(state["underway"], self.defense)
