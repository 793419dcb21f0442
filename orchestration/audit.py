"""The verb `audit`: from a folder to a classifier that holds up, and to what is wrong with the folder.

All that takes long is kept fold by fold in `ERAT_HOME/audits/KEY/`; the same command goes on after an interruption.
The images are only read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erat.audit.audit import Audit, Plan, conclude, examine, hold_up, plan
from erat.audit.crossfit import train_on
from erat.audit.robustness import Hold
from erat.audit.search import SCALES, search_budgets
from erat.audit.settings import plain_settings, robust_settings
from erat.config import build, content_digest, known_keys, unknown_key
from erat.data.base import ImageSet
from erat.data.collection import Collection, read_collection
from erat.data.sets import limit_balanced
from erat.defenses.base import Defense
from erat.engine.checkpoint import load, save
from erat.engine.report import EpochReport
from erat.errors import UserError
from erat.variants import registered
from orchestration.crafting_view import CraftView, craft_view
from orchestration.home import Home
from orchestration.trial import threads

READ = ("data.root", "data.image_size", "data.limit", "data.flip", "data.fingerprint")
SECTIONS = ("defense.", "model.", "train.", "resources.")


@dataclass(frozen=True)
class Findings:
    """All that one audit found out.

    Attributes:
        collection: what was audited; trusted images are not among it.
        checked: the images whose labels are known to be right, or none.
        defense: trained on everything, to be exported; `selected` bool (N,) is its last labelled set.
        searched: scale of the budgets -> validation accuracy; empty without a search.
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

    @property
    def plan(self) -> Plan:
        return self.audit.plan


def run_audit(
    overrides: Mapping[str, Any], home: Home, *, folds: int = 4, search: bool = False, name: str | None = None
) -> Findings:
    """Read, judge fold by fold, conclude, train on everything.

    Args:
        overrides: dotted keys; `data.root` says where the images are.
        search: choose the scale of the budgets on validation data first.
        name: of the report; none: after the folder.

    Raises:
        UserError: nothing to audit, or a key that an audit has no use for.
    """
    started = time.monotonic()
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
    folder = home.root / "audits" / key
    with craft_view(doing="audit") as view, threads(first.robust):
        searched = _search(first, settings, trusted, folder, view) if search else {}
        # The largest of equals, as the paper's Fig. 5 has too small budgets hurt more than too large ones.
        chosen = plans(max(searched, key=lambda scale: (searched[scale], scale))) if searched else first
        parts = [_kept(folder / f"fold-{k}.pt", partial(_fold, chosen, k, view)) for k in range(chosen.folds)]
        audit = conclude(chosen, parts)
        holds = _holds(audit, parts[0]["networks"], trusted, folder, view)
        defense, selected = _final(chosen, folder, view)
    name = name or f"audit-{_stem(collection.root)}-{key[:6]}"
    seconds = time.monotonic() - started
    return Findings(name, collection, checked, audit, holds, defense, selected, searched, seconds)


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
    """(what to audit, what is trusted or none)."""
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


# --- what takes long -------------------------------------------------------------------------------------------------


def _kept(path: Path, make: Any) -> dict[str, Any]:
    """What `make` returns, from `path` if it was made before."""
    if path.exists():
        return load(path, torch.device("cpu"))
    content: dict[str, Any] = make()
    save(path, content)
    return content


def _fold(plan: Plan, number: int, view: CraftView) -> dict[str, Any]:
    def tell(way: str, report: EpochReport) -> None:
        # A name for each way: a bar that has come to its end does not begin again.
        name = f"fold {number + 1} of {plan.folds}, {way}"
        view.show(name, "epoch", report.epoch, plan.config(way).train.epochs)

    return examine(plan, number, tell)


def _search(
    first: Plan, settings: Mapping[str, Any], trusted: ImageSet | None, folder: Path, view: CraftView
) -> dict[float, float]:
    def tell(scale: float, report: EpochReport) -> None:
        view.show(f"budgets x {scale:g}", "epoch", report.epoch, first.robust.train.epochs)

    def make() -> dict[str, Any]:
        reached = search_budgets(first.images, first.fold == 0, settings, trusted, tell)
        return {"accuracy": [reached[scale] for scale in SCALES]}

    return dict(zip(SCALES, _kept(folder / "search.pt", make)["accuracy"], strict=True))


def _holds(
    audit: Audit, networks: Mapping[str, Mapping[str, Tensor]], trusted: ImageSet | None, folder: Path, view: CraftView
) -> list[Hold]:
    def make() -> dict[str, Any]:
        holds = hold_up(audit.plan, audit, networks, trusted, partial(view.show, "robustness", "condition"))
        return {"rows": [[hold.kind, hold.strength, hold.accuracy, hold.images] for hold in holds]}

    return [Hold(*row) for row in _kept(folder / "robustness.pt", make)["rows"]]


def _final(plan: Plan, folder: Path, view: CraftView) -> tuple[Defense, Tensor]:
    """The defense that is trained on everything, and its last labelled set."""
    config = plan.robust

    def tell(report: EpochReport) -> None:
        view.show("all images", "epoch", report.epoch, config.train.epochs)

    trainer = train_on(config, plan.images, tell, folder / "all")
    labelled = getattr(getattr(trainer.defense, "selector", None), "labelled", None)
    everything = torch.ones(len(plan.images), dtype=torch.bool)
    return trainer.defense, everything if labelled is None else labelled.cpu()
