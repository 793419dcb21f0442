"""An audit for tests of its page: a real folder of images and real conclusions, from judgements that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erat.audit.audit import WAYS, conclude, plan
from erat.audit.robustness import Hold
from erat.audit.settings import plain_settings, robust_settings
from orchestration.audit.copies import copy_groups
from orchestration.audit.execute import Findings, _read

CLASSES = ("ant", "bee & <wasp>", "=crab")


def audited(root: Path, count: int = 30, wrong: int = 4, name: str = "audit-own") -> Findings:
    """Write a folder of images, `wrong` of which lie in the folder of another class, and return its audit.

    Args:
        root: where the folder is made.
        count: number of images.
        wrong: how many of them are misfiled.
        name: name of the report.
    """
    draw = np.random.RandomState(0)
    for row in range(count):
        true = row % len(CLASSES)
        given = (true + 1) % len(CLASSES) if row < wrong else true
        pixels = np.clip(draw.randint(0, 60, (12, 12)) + 80 * true, 0, 255).astype(np.uint8)
        path = root / CLASSES[given] / f"{row:02d}-{true}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.open(sorted((root / CLASSES[2]).iterdir())[-1]).save(root / CLASSES[0] / "copy-2.png")
    collection, _ = _read({"data.root": str(root), "data.image_size": 12})
    images = collection.images
    settings: dict[str, Any] = {"train.epochs": 2, "defense.warmup_epochs": 1}
    robust = robust_settings(images, settings)
    audited = plan(images, robust, plain_settings(robust), 2)
    shown = [CLASSES[int(Path(name).stem[-1])] for name in collection.names]
    true = torch.tensor([images.class_names.index(name) for name in shown])
    probs = torch.full((len(true), len(CLASSES)), 0.02).scatter(1, true[:, None], 0.96)
    parts: list[dict[str, Any]] = []
    for fold in range(2):
        inside = audited.fold == fold
        part: dict[str, Any] = {way: probs[inside][None].expand(2, -1, -1).clone() for way in WAYS}
        parts.append(part | {"washed": dict.fromkeys(WAYS, true[inside])})
    reached = {"robust": 0.9, "plain": 0.4}
    holds = [Hold("none", 0.0, reached, 10), Hold("linf", 0.03, reached, 10)]
    selected = torch.ones(len(true), dtype=torch.bool)
    defense: Any = None  # the page needs none
    copies = copy_groups(collection, None)
    return Findings(name, collection, None, conclude(audited, parts), holds, defense, selected, {}, 12.0, copies)
