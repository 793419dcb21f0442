"""Executes an audit: from a folder of images to a robust classifier, and to what is wrong with the folder.

Results that take long are saved fold by fold in `ERAT_HOME/audits/KEY/`, so that the same command resumes after an
interruption. The images are only read.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from erat.audit.audit import WAYS, Audit, Plan, conclude, examine, hold_up, plan
from erat.audit.crossfit import train_on
from erat.audit.robustness import Hold
from erat.audit.search import SCALES, search_budgets
from erat.audit.settings import plain_settings, robust_settings
from erat.config import build, content_digest
from erat.data.loading import limit_balanced
from erat.data.sources.collection import Collection, read_collection
from erat.data.types import ImageSet
from erat.defenses.base import Defense
from erat.engine.checkpoint import load, save
from erat.engine.report import EpochReport
from erat.errors import TrainingFailedError, UserError
from erat.keys import known_keys, unknown_key
from erat.training import threads
from erat.variants import registered
from orchestration.audit.copies import CopyGroup, copy_groups
from orchestration.audit.plan import (
    EVERYTHING,
    ROBUSTNESS,
    Costs,
    Stage,
    TimeLeft,
    budget_name,
    calibrate,
    fold_name,
    stages,
)
from orchestration.report.crafting import CraftView, craft_view
from orchestration.storage.workspace import Workspace

READ = ("data.root", "data.image_size", "data.limit", "data.flip", "data.fingerprint")
HOLDS = TypeAdapter(list[tuple[str, float, dict[str, float], int]])
SECTIONS = ("defense.", "model.", "train.", "resources.")


@dataclass(frozen=True)
class Findings:
    """The findings of one audit.

    Attributes:
        name: name of the report.
        collection: the audited images, without the trusted ones.
        checked: the trusted images, whose labels are known to be right, or none.
        audit: the findings about the labels and the images.
        holds: accuracies under attack and corruption.
        defense: the defense that was trained on all images, to be exported.
        selected: bool (N,), its last labelled set.
        searched: scale of the budgets -> validation accuracy; empty without a search.
        seconds: how long the audit has taken.
        copies: groups of images that show the same picture, trusted ones too.
    """

    name: str
    collection: Collection
    checked: Collection | None
    audit: Audit
    holds: list[Hold]
    defense: Defense
    selected: Tensor
    searched: dict[float, float]
    seconds: float
    copies: list[CopyGroup]

    @property
    def plan(self) -> Plan:
        return self.audit.plan


@dataclass(frozen=True)
class Prepared:
    """An audit before its training.

    Attributes:
        name, collection, checked: see `Findings`.
        settings: dotted keys of the configuration.
        plans: scale of the budgets -> plan of the audit.
        first: the plan for the customary budgets.
        folder: the folder for results that take long.
        search: whether the scale of the budgets is to be searched for.
    """

    name: str
    collection: Collection
    checked: Collection | None
    settings: dict[str, Any]
    plans: Callable[[float], Plan]
    first: Plan
    folder: Path
    search: bool

    @property
    def trusted(self) -> ImageSet | None:
        return None if self.checked is None else self.checked.images

    def stages(self) -> list[Stage]:
        """Return the stages that are left to do; nothing is timed if only writing is left."""
        nothing = stages(self.first, Costs(0, 0, 0, 0, 0), self.folder, search=self.search, trusted=0)
        if len(nothing) == 1:
            return nothing
        trusted = 0 if self.checked is None else len(self.checked)
        try:
            costs = calibrate(self.first)
        except TrainingFailedError:  # the training itself will report this
            return nothing
        return stages(self.first, costs, self.folder, search=self.search, trusted=trusted)


def prepare(
    overrides: Mapping[str, Any], workspace: Workspace, *, folds: int = 4, search: bool = False, name: str | None = None
) -> Prepared:
    """Read the images and deal them into folds, without writing anything; see `run_audit` for arguments and errors."""
    _check_keys(overrides)
    collection, checked = _read(overrides)
    images, trusted = collection.images, None if checked is None else checked.images
    settings = {key: value for key, value in overrides.items() if key != "data.limit"}
    settings["data.fingerprint"] = collection.fingerprint
    plans = partial(_plan, images, settings, folds)
    first = plans(1.0)
    key = content_digest(
        [images.fingerprint, trusted and trusted.fingerprint, first.robust.identity(), folds, bool(search)]
    )
    name = name or f"audit-{_stem(collection.root)}-{key[:6]}"
    return Prepared(name, collection, checked, settings, plans, first, workspace.root / "audits" / key, search)


def run_audit(
    overrides: Mapping[str, Any], workspace: Workspace, *, folds: int = 4, search: bool = False, name: str | None = None
) -> Findings:
    """Read the images, judge them fold by fold, draw the conclusions, and train on all images.

    Args:
        overrides: dotted keys; `data.root` says where the images are.
        workspace: the workspace, in which results that take long are saved.
        folds: number of folds, at least 2.
        search: choose the scale of the budgets on validation data first.
        name: name of the report; none: made from the name of the folder.

    Raises:
        UserError: there is nothing to audit, or an audit has no use for a key.
    """
    started = time.monotonic()
    ready = prepare(overrides, workspace, folds=folds, search=search, name=name)
    first, trusted, folder = ready.first, ready.trusted, ready.folder
    copies = copy_groups(ready.collection, ready.checked)
    with craft_view(doing="audit") as shown, threads(first.robust):
        view = _Told(shown, TimeLeft(ready.stages()))
        searched = _search(first, ready.settings, trusted, folder, view) if search else {}
        # Of equally good scales the largest, because in the paper's Fig. 5 too small budgets hurt more than too large.
        chosen = ready.plans(max(searched, key=lambda scale: (searched[scale], scale))) if searched else first
        parts = [
            _kept(folder / f"fold-{k}.pt", partial(_fold, chosen, k, view), partial(_is_fold, chosen, k))
            for k in range(chosen.folds)
        ]
        audit = conclude(chosen, parts)
        holds = _holds(audit, parts[0]["networks"], trusted, folder, view)
        defense, selected = _final(chosen, folder, view)
    seconds = time.monotonic() - started
    return Findings(
        ready.name, ready.collection, ready.checked, audit, holds, defense, selected, searched, seconds, copies
    )


class _Told:
    """A view that also shows how much time is left of the whole audit, from the first epoch on."""

    def __init__(self, view: CraftView, left: TimeLeft) -> None:
        self._view, self._left = view, left

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None:
        """Show the progress of a stage."""
        self._view.show(name, what, done, total, left or self._left(name, done, total))


def audited_keys(prepared: Prepared, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys that make this audit what it is, all of them keys that an audit takes."""
    flat = prepared.first.robust.flat() | {"data.limit": overrides.get("data.limit")}
    return {key: value for key, value in flat.items() if key in READ or key.startswith(SECTIONS)}


def _check_keys(overrides: Mapping[str, Any]) -> None:
    if overrides.get("data.name", "folder") != "folder":
        raise UserError(f"audit is for images of one's own, data.root=PATH; got data.name={overrides['data.name']}")
    known = known_keys(str(overrides.get("defense.name", "erat")))
    for key in overrides:
        if key not in known:
            raise unknown_key(key, known)
        if key != "data.name" and key not in READ and not key.startswith(SECTIONS):
            allowed = ", ".join([*READ, *(f"{section}*" for section in SECTIONS)])
            raise UserError(f"audit has no use for {key}; allowed: {allowed}")
    if registered(str(overrides.get("defense.name", "erat"))) != "erat":
        raise UserError(f"audit trains ERAT or a variant of it, got defense.name={overrides['defense.name']}")
    if overrides.get("train.workers", 1) != 1:
        raise UserError(f"audit needs train.workers=1, got {overrides['train.workers']}")


def _read(overrides: Mapping[str, Any]) -> tuple[Collection, Collection | None]:
    """Read (the images to audit, the trusted images or none)."""
    reading = {key: value for key, value in overrides.items() if key.startswith("data.")}
    config = build("demo", {**reading, "data.name": "folder"}, quiet=True).data
    everything = read_collection(config)
    rows = everything.rows("", "train", "test")
    collection, checked = everything.take(rows), everything.rows("trusted")
    if config.limit is not None:
        kept = limit_balanced(replace(collection.images, rows=None), config.limit).rows
        collection = collection if kept is None else collection.take(kept)
    return collection, everything.take(checked) if len(checked) else None


def _plan(images: ImageSet, settings: Mapping[str, Any], folds: int, scale: float) -> Plan:
    robust = robust_settings(images, settings, scale=scale)
    return plan(images, robust, plain_settings(robust), folds)


def _stem(root: Path) -> str:
    words = "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "-" for char in root.stem)
    return words.strip("-_")[:40] or "images"


# --- work that takes long, saved in files ----------------------------------------------------------------------------


def _kept(path: Path, make: Callable[[], dict[str, Any]], sound: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what `make` returns, read from `path` if saved before; what is damaged or not `sound` is made again."""
    if path.exists():
        try:
            content = load(path, torch.device("cpu"))
            if sound(content):
                return content
        except (UserError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            pass
        warnings.warn(f"{path} is damaged: it is made again", stacklevel=2)
    content = make()
    save(path, content)
    return content


def _is_fold(plan: Plan, number: int, part: Mapping[str, Any]) -> bool:
    """Return whether a stored fold holds what `examine` returns for it; a missing or odd entry may also raise."""
    images, classes = int((plan.fold == number).sum()), plan.images.num_classes
    return all(
        part[way].dtype == torch.float32
        and part[way].shape[1:] == (images, classes)
        and bool(part[way].isfinite().all())
        and part["washed"][way].dtype == torch.int64
        and part["washed"][way].shape == (images,)
        and (number > 0 or isinstance(part["networks"][way], Mapping))
        for way in WAYS
    )


def _fold(plan: Plan, number: int, view: CraftView) -> dict[str, Any]:
    def tell(way: str, report: EpochReport) -> None:
        # Each training has its own name, because a progress bar that has reached its end does not begin again.
        view.show(fold_name(plan, number, way), "epoch", report.epoch, plan.config(way).train.epochs)

    return examine(plan, number, tell)


def _search(
    first: Plan, settings: Mapping[str, Any], trusted: ImageSet | None, folder: Path, view: CraftView
) -> dict[float, float]:
    def tell(scale: float, report: EpochReport) -> None:
        view.show(budget_name(scale), "epoch", report.epoch, first.robust.train.epochs)

    def make() -> dict[str, Any]:
        reached = search_budgets(first.images, first.fold == 0, settings, trusted, tell)
        return {"accuracy": [reached[scale] for scale in SCALES]}

    def sound(content: dict[str, Any]) -> bool:
        reached = content["accuracy"]
        return len(reached) == len(SCALES) and all(isinstance(share, float) and 0 <= share <= 1 for share in reached)

    return dict(zip(SCALES, _kept(folder / "search.pt", make, sound)["accuracy"], strict=True))


def _holds(
    audit: Audit, networks: Mapping[str, Mapping[str, Tensor]], trusted: ImageSet | None, folder: Path, view: CraftView
) -> list[Hold]:
    def make() -> dict[str, Any]:
        holds = hold_up(audit.plan, audit, networks, trusted, partial(view.show, ROBUSTNESS, "condition"))
        return {"rows": [[hold.kind, hold.strength, hold.accuracy, hold.images] for hold in holds]}

    def sound(content: dict[str, Any]) -> bool:
        return len(HOLDS.validate_python(content["rows"])) > 0

    return [Hold(*row) for row in _kept(folder / "robustness.pt", make, sound)["rows"]]


def _final(plan: Plan, folder: Path, view: CraftView) -> tuple[Defense, Tensor]:
    """Train a defense on all images and return (the defense, its last labelled set, bool (N,))."""
    config = plan.robust

    def tell(report: EpochReport) -> None:
        view.show(EVERYTHING, "epoch", report.epoch, config.train.epochs)

    trainer = train_on(config, plan.images, tell, folder / "all")
    labelled = getattr(getattr(trainer.defense, "selector", None), "labelled", None)
    everything = torch.ones(len(plan.images), dtype=torch.bool)
    return trainer.defense, everything if labelled is None else labelled.cpu()
