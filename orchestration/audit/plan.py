"""Estimates how long an audit takes: its stages, the cost of their epochs by a short calibration, and the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from erat.audit.audit import WAYS, Plan
from erat.audit.crossfit import JUDGED, probabilities, train_on
from erat.audit.robustness import MOST_ATTACKED, attacked_classes
from erat.audit.search import SCALES
from erat.config import RunConfig, build
from erat.data.types import ImageSet
from erat.defenses.base import Defense
from erat.engine.checkpoint import load
from erat.engine.memory import MB, DataShape, predict
from erat.engine.report import EpochReport
from erat.errors import UserError
from erat.robustness.common import BLUR, JPEG, NOISE
from erat.robustness.curve import APGD_STEPS, SHARES
from orchestration.report.notation import duration

BATCHES = 6  # number of batches on which the calibration trains
STEPS = 3  # number of steps of the attack that is timed
KEPT_LABELS = 0.6  # assumed share of labels that ERAT believes; its later epochs have this share of the steps
ATTACKS, OTHERS = 2 * len(SHARES), 1 + len(NOISE) + len(BLUR) + len(JPEG)  # conditions of the robustness test
TRUST = 0.01  # once this share of the expected time is measured, the measurement counts as much as the calibration
WRITING = 10.0  # seconds for the page and the exported classifier


@dataclass(frozen=True)
class Stage:
    """A part of an audit that takes long.

    Attributes:
        name: the name that is shown.
        kind: "robust", "plain" or "rest"; all stages of a kind are assumed to deviate from their expected time by the
            same factor.
        seconds: the expected time of each epoch, or of each condition.
    """

    name: str
    kind: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """Times in seconds, measured on this machine.

    Attributes:
        warm, late: time per labelled image in an epoch of ERAT before and after it begins to select.
        plain: time per image in an epoch of plain training.
        look: time to predict an image.
        attack: time to attack an image on one network.
    """

    warm: float
    late: float
    plain: float
    look: float
    attack: float


def calibrate(plan: Plan) -> Costs:
    """Train both ways on a few batches of the images, predict and attack some of them, and return the times."""
    count = min(len(plan.images), BATCHES * plan.robust.train.batch_size)
    chosen = plan.images.labels.argsort(stable=True)[torch.arange(count) * len(plan.images) // count]
    few = plan.images.take(chosen)
    selects = {"train.epochs": 4, "defense.warmup_epochs": 2}
    trained, robust = _trained(plan.robust, few, selects)
    _, plain = _trained(plan.plain, few, {"train.epochs": 2})
    device = next(trained.parameters()).device
    images = few.to(device)
    look = _timed(lambda: probabilities(trained, images.images)) / count
    some = images.take(torch.arange(min(count, 64), device=device))
    norm, epsilon = "linf", 0.03  # the time depends on neither
    attack = _timed(lambda: attacked_classes(trained, some, norm, epsilon, steps=STEPS)) / len(some)
    # The first epoch is left out, because it includes work that is done only once.
    return Costs(robust[1], min(robust[2:]), plain[1], look, attack * (APGD_STEPS + 1) / (STEPS + 1))


def _trained(config: RunConfig, few: ImageSet, brief: dict[str, Any]) -> tuple[Defense, list[float]]:
    """Train a defense briefly and return (the defense, the seconds per labelled image in each epoch)."""
    values = {key: value for key, value in config.flat().items() if key != "preset"}
    reports: list[EpochReport] = []
    trainer = train_on(build(config.preset, values | brief, quiet=True), few, reports.append)
    seconds = []
    for report in reports:
        labelled = round(report.labelled_fraction * len(few))
        size = max(1, min(config.train.batch_size, labelled))
        seconds.append(report.epoch_seconds / max(size, labelled // size * size))
    return trainer.defense, seconds


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def stages(plan: Plan, costs: Costs, folder: Path, *, search: bool, trusted: int) -> list[Stage]:
    """Return the stages that are left to do, in order: all stages but those whose result is in `folder`.

    Args:
        costs: times on this machine.
        folder: the folder for results that take long.
        search: whether the scale of the budgets is searched for.
        trusted: number of images whose labels are known to be right.
    """
    count, folds = len(plan.images), plan.folds
    inside = count * (folds - 1) // folds
    outside = count - inside
    todo: list[Stage] = []
    if search and not (folder / "search.pt").exists():
        judged = 2 * outside * costs.look
        epochs = tuple(seconds + judged for seconds in _robust_epochs(plan.robust, costs, inside))
        todo += [Stage(budget_name(scale), "robust", epochs) for scale in SCALES]
    for number in range(folds):
        if not (folder / f"fold-{number}.pt").exists():
            todo += [
                Stage(fold_name(plan, number, way), way, _judged_epochs(plan, way, costs, inside, outside))
                for way in WAYS
            ]
    if not (folder / "robustness.pt").exists():
        subjects = trusted or outside
        looks, attacks = subjects * costs.look, min(subjects, MOST_ATTACKED) * costs.attack
        conditions = [looks] + [attacks] * ATTACKS + [looks] * (OTHERS - 1)
        todo.append(Stage(ROBUSTNESS, "rest", tuple(len(WAYS) * seconds for seconds in conditions)))
    done = _epochs_done(folder / "all" / "checkpoint.pt")
    if epochs := _robust_epochs(plan.robust, costs, count)[done:]:
        todo.append(Stage(EVERYTHING, "robust", epochs))
    return [*todo, Stage("writing", "rest", (WRITING,))]


ROBUSTNESS, EVERYTHING = "robustness", "all images"


def fold_name(plan: Plan, number: int, way: str) -> str:
    """Return the name of a stage that trains without a fold, such as "fold 1 of 4, robust"."""
    return f"fold {number + 1} of {plan.folds}, {way}"


def budget_name(scale: float) -> str:
    """Return the name of a stage that tries a scale of the budgets, such as "budgets x 0.5"."""
    return f"budgets x {scale:g}"


def _robust_epochs(config: RunConfig, costs: Costs, count: int) -> tuple[float, ...]:
    epochs, warmup = config.train.epochs, int(config.flat().get("defense.warmup_epochs", 0))
    selects = bool(config.flat().get("defense.selection", True))
    late = costs.late * (KEPT_LABELS if selects else 1.0)
    return tuple(count * (costs.warm if epoch < warmup else late) for epoch in range(epochs))


def _judged_epochs(plan: Plan, way: str, costs: Costs, inside: int, outside: int) -> tuple[float, ...]:
    """Return the time of each epoch, with two predictions of the held-out images, or three in a judged epoch."""
    epochs = plan.config(way).train.epochs
    training = _robust_epochs(plan.robust, costs, inside) if way == "robust" else (inside * costs.plain,) * epochs
    first = epochs - math.ceil(JUDGED * epochs)
    looks = [(2 if epoch < first else 3) * outside * costs.look for epoch in range(epochs)]
    return tuple(seconds + look for seconds, look in zip(training, looks, strict=True))


def _epochs_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    try:
        return len(load(checkpoint, torch.device("cpu"))["history"])
    except (UserError, LookupError, TypeError):
        return 0  # the training itself will report what is wrong with the checkpoint


class TimeLeft:
    """The time that is left of an audit, corrected by how long its stages have taken so far.

    Args:
        todo: the stages in order; a single one means that only writing is left.
        clock: returns a time in seconds.
    """

    def __init__(self, todo: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self._stages = {stage.name: stage for stage in todo}
        self._done = dict.fromkeys(self._stages, 0)
        self._expected, self._took = dict[str, float](), dict[str, float]()
        self._clock, self._last = clock, clock()

    def __call__(self, name: str, done: int, total: int) -> str:
        """Note the progress of a stage and return the time left in all, as text; empty for a stage that is not known.

        Args:
            name: the name of the stage.
            done, total: epochs or conditions done, and in all.
        """
        if name not in self._stages:
            return ""
        stage, now = self._stages[name], self._clock()
        units = len(stage.seconds) - (total - done)  # without the first epochs of a training that resumes
        passed = sum(stage.seconds[self._done[name] : units])
        self._expected[stage.kind] = self._expected.get(stage.kind, 0.0) + passed
        self._took[stage.kind] = self._took.get(stage.kind, 0.0) + now - self._last
        self._done[name], self._last = units, now
        return f"about {duration(self.seconds)} left in all"

    @property
    def seconds(self) -> float:
        """Return the expected time until the end."""
        return sum(
            self._pace(stage.kind) * sum(stage.seconds[self._done[name] :]) for name, stage in self._stages.items()
        )

    def _pace(self, kind: str) -> float:
        """Return the factor by which a kind of stage takes longer than expected.

        The estimate begins at the factor for all kinds together and approaches the measured one as more is measured:
        both have equal weight once `TRUST` of the expected time of the audit has passed, since one short step says
        little about the others.
        """
        doubt = TRUST * sum(sum(stage.seconds) for stage in self._stages.values())
        if doubt == 0:
            return 1.0
        overall = (sum(self._took.values()) + doubt) / (sum(self._expected.values()) + doubt)
        return (self._took.get(kind, 0.0) + doubt * overall) / (self._expected.get(kind, 0.0) + doubt)


def memory(plan: Plan) -> float | None:
    """Return the MB of tensors at the worst moment, with the images; none if this cannot be predicted."""
    images = plan.images
    count = len(images)
    outside = count - count * (plan.folds - 1) // plan.folds
    shape = DataShape(count, outside, outside, images.channels, images.size, images.num_classes)
    said = 2 * len(WAYS) * math.ceil(JUDGED * plan.robust.train.epochs) * count * images.num_classes * 8
    try:
        most = predict(plan.robust, shape).total  # plain training needs less
    except Exception:  # an audit does not depend on this estimate
        return None
    return (most + images.images.nbytes + said) / MB
