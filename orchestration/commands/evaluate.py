"""Implements `evaluate`: attacks and corrupts the test images of a trained run, and writes down what it withstands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

import erat
from erat.attacks.lpips import has_feature_maps, no_feature_maps
from erat.config import content_digest
from erat.data.loading import load as load_images
from erat.data.types import ImageSet
from erat.defenses.base import Defense, Predicting
from erat.engine.checkpoint import load, save
from erat.engine.evaluation import accuracy
from erat.errors import UserError
from erat.files import write_atomic
from erat.records import DamagedError, read_json
from erat.registry import DATASETS
from erat.robustness.common import SEVERITIES, STRENGTHS, corrupted_classes
from erat.robustness.curve import Condition, Evaluation, Protocol, Work, evenly_spaced
from erat.training import threads
from erat.versions import versions
from orchestration.commands.protocol import read_protocol
from orchestration.report.crafting import CraftView, craft_view
from orchestration.report.notation import duration
from orchestration.report.render.spreadsheet import csv_text
from orchestration.report.robustness import (
    Attacked,
    Corrupted,
    Robustness,
    everything_table,
    robustness_figure,
    the_customary,
)
from orchestration.run.environment import environment
from orchestration.run.trained import TrainedRun, find_run
from orchestration.storage.workspace import Workspace

FORM = TypeAdapter(Robustness)
FOLDER, RESULTS, UNDERWAY = "evaluations", "robustness.json", "underway.pt"


@dataclass(frozen=True)
class Asked:
    """What the options of the command ask for; see `read_protocol`.

    Attributes:
        samples: number of test images at most.
        force: whether to evaluate again what has been evaluated.
    """

    threats: str | None
    budgets: Sequence[str]
    attacks: str
    samples: int
    force: bool = False


def evaluate(word: str, asked: Asked, workspace: Workspace) -> tuple[Robustness, list[Path]]:
    """Evaluate a run, or read what an evaluation of the same weights, images, settings and code has found.

    What has been attacked is kept in the run's folder, so that the same command goes on after an interruption.

    Args:
        word: the digest or folder of the run.
        asked: what to do.
        workspace: the workspace of the run.

    Returns:
        (what was found, the files that hold it).

    Raises:
        UserError: there is no such run or it has no trained model, its data cannot be read, or an option is wrong.
    """
    began = time.monotonic()
    run = find_run(word, workspace)
    data = run.config.data
    _, test = load_images(data)
    images = evenly_spaced(test, asked.samples)
    customary = dict(DATASETS.facts(data.name).budgets(data.image_size))
    with threads(run.config):
        defense = run.defense(test.num_classes, tuple(test.images.shape[1:]))
        perceptive = has_feature_maps(Predicting(defense), test.images.shape[1:])
    if not perceptive:
        customary.pop("lpips", None)
    protocol = read_protocol(asked.threats, asked.budgets, asked.attacks, customary=customary, images=images)
    if "lpips" in protocol.budgets and not perceptive:
        raise no_feature_maps("--threats", run.config.model.name)
    identity = _identity(run, images, protocol)
    key = content_digest(identity)
    folder = run.folder / FOLDER / key
    files = [folder / name for name in (RESULTS, "robustness.csv", "robustness.png", "robustness.svg")]
    if not asked.force and (found := _read(files[0], key)) is not None and all(file.is_file() for file in files):
        return found, files
    folder.mkdir(parents=True, exist_ok=True)
    with threads(run.config), craft_view(doing="evaluating") as view:
        images = images.to(next(defense.parameters()).device)
        wrong = corrupted_classes(defense, images.images, "none", 0.0, protocol.seed) != images.labels
        fooled = _fooled(defense, images, protocol, wrong, folder / UNDERWAY, asked.force, view, run.folder.name)
        corrupted = _corrupted(defense, images, protocol.seed)
    found = Robustness(
        cell=run.config.digest(),
        key=key,
        defense=run.config.defense.name,
        network=run.config.model.name,
        data=data.name,
        status=run.result and run.result.status,
        final_test_accuracy=run.result and run.result.final_test_accuracy,
        test_images=len(test),
        images=len(images),
        clean_accuracy=_right(wrong),
        attacked=[
            Attacked(threat=each.threat, budget=each.budget, attack=each.attack, accuracy=_right(mask))
            for each, mask in fooled.items()
        ],
        every_threat=_every_threat(protocol, customary, fooled),
        customary={name: float(size) for name, size in customary.items()},
        corrupted=corrupted,
        identity=identity,
        environment=environment(),
        seconds=time.monotonic() - began,
    )
    write_atomic(folder / "robustness.csv", csv_text(everything_table(found)).encode())
    robustness_figure(found, folder)
    write_atomic(files[0], json.dumps(found.model_dump(), indent=1).encode())
    (folder / UNDERWAY).unlink(missing_ok=True)
    return found, files


def _identity(run: TrainedRun, images: ImageSet, protocol: Protocol) -> dict[str, Any]:
    """Return what decides the figures of an evaluation, but for the rounding of the machine."""
    sources = hashlib.sha256()
    package = Path(erat.__file__).parent
    for file in sorted(package.rglob("*.py")):
        sources.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return {
        "weights": run.weights_digest(),
        "images": images.fingerprint,
        "data": run.config.data.fingerprint,
        "settings": {
            "budgets": {name: list(sizes) for name, sizes in protocol.budgets.items()},
            "attacks": list(protocol.attacks),
            "seed": protocol.seed,
            "severities": list(SEVERITIES),
        },
        "code": {"erat": sources.hexdigest(), **versions("torch", "torchvision", "pyautoattack")},
    }


def _read(file: Path, key: str) -> Robustness | None:
    """Return what an earlier evaluation has found; None if there is none, or its file is damaged."""
    try:
        found = read_json(file, FORM)
    except (OSError, DamagedError):
        return None
    return found if found.key == key else None


def _fooled(
    defense: Defense,
    images: ImageSet,
    protocol: Protocol,
    wrong: Tensor,
    underway: Path,
    force: bool,
    view: CraftView,
    name: str,
) -> dict[Condition, Tensor]:
    """Return which images are fooled under each condition; conditions that were met before are read from a file."""
    masks = {} if force else _known(underway, len(images))
    began = time.monotonic()

    def keep(condition: Condition, fooled: Tensor) -> None:
        masks[str(condition)] = fooled
        save(underway, dict(masks))

    def tell(work: Work) -> None:
        passed = time.monotonic() - began
        left = f"at most {duration(passed * work.ahead / work.spent)} left" if work.spent else ""
        view.show(name, work.what, work.done, work.total, left)

    return Evaluation(defense, images, protocol, dict(masks), keep, tell).fooled(wrong)


def _known(file: Path, count: int) -> dict[str, Tensor]:
    """Return the conditions of an interrupted evaluation; none if its file is missing or damaged."""
    try:
        found = load(file, torch.device("cpu"))
    except UserError:
        return {}
    sound = all(isinstance(mask, Tensor) and mask.dtype == torch.bool and len(mask) == count for mask in found.values())
    return found if sound else {}


def _corrupted(defense: Defense, images: ImageSet, seed: int) -> list[Corrupted]:
    return [
        Corrupted(
            corruption=kind,
            severity=severity,
            strength=strength,
            accuracy=accuracy(images.labels, corrupted_classes(defense, images.images, kind, strength, seed)),
        )
        for kind, strengths in STRENGTHS.items()
        for severity, strength in zip(SEVERITIES, strengths, strict=True)
    ]


def _every_threat(
    protocol: Protocol, customary: Mapping[str, float], fooled: Mapping[Condition, Tensor]
) -> float | None:
    """Return the share of images that nothing fools within the customary budgets; None if one was not tried."""
    masks = []
    for threat, budgets in protocol.budgets.items():
        budget = the_customary(budgets, customary.get(threat))
        if budget is None:
            return None
        masks.append(fooled[Condition(threat, budget, protocol.of(threat)[-1])])
    return _right(torch.stack(masks).any(0))


def _right(wrong: Tensor) -> float:
    """Return the share of images that are not wrong."""
    return float((~wrong).double().mean())
