"""Measures why a poison bites or does not, on the embedded digits: what a linear rule and plain training read from it.

    python -m tests.benchmarks.shortcuts ops:1 ops:4 ar:1 ar:4.5             # a linear rule; a minute a poison
    python -m tests.benchmarks.shortcuts ar:1 ops:1 --grey --train           # on grey digits; plain training too

For each KIND or KIND:BUDGET a line of JSON:

- `alone`: accuracy of a linear rule (multinomial logistic regression) on perturbations that it has not seen, trained
  on those of the other half of the images. Near 1 the perturbation is linearly separable; near 0.1 it is not at all.
- `images`: accuracy on clean test images of a linear rule that is trained on the poisoned images.
- `separability`: the figure of the audit's second poisoning test, which counts above 0.35.
- `cut`: share of the perturbation's squared norm that the range of pixels takes away.
- `ce`: with `--train`, clean test accuracy of plain training, 8 epochs of the demo preset.

`--grey` maps all images from [0, 1] to [0.25, 0.75] first, so that a perturbation is not cut off at black and white.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from erat.audit.poisoning import separability
from erat.config import RunConfig, build
from erat.corruption.pipeline import corrupted_set, poison
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet, to_float
from erat.engine.trainer import Trainer

EPOCHS = 8


def grey(images: ImageSet) -> ImageSet:
    """Return the images with their levels between 64 and 191."""
    return replace(images, images=(64 + images.images.float() / 2).round().clamp(64, 191).to(torch.uint8))


def read(train: Tensor, labels: Tensor, tried: Tensor, right: Tensor) -> float:
    """Return the accuracy on `tried`, (M, D), of a linear rule that is trained on `train`, (N, D)."""
    rule = LogisticRegression(C=10.0, max_iter=300).fit(train.numpy(), labels.numpy())
    return float(rule.score(tried.numpy(), right.numpy()))


def measure(name: str, *, seed: int, on_grey: bool, train: bool, store: Store) -> dict[str, Any]:
    """Craft the poison KIND or KIND:BUDGET and measure what can be read from it."""
    kind, _, budget = name.partition(":")
    keys: dict[str, Any] = {"defense.name": "ce", "corruption.labels": "none", "train.epochs": EPOCHS}
    keys |= {"corruption.data": kind, "corruption.seed": seed} | ({"corruption.epsilon": budget} if budget else {})
    config = build("demo", keys, quiet=True)
    clean = corrupted_set(
        build("demo", keys | {"corruption.data": "none", "corruption.epsilon": None}, quiet=True), store
    )
    if on_grey:
        clean = replace(clean, train=grey(clean.train), val=grey(clean.val), test=grey(clean.test))
    images, manifest = poison(clean.train, config, store)
    values, before = (to_float(pixels).flatten(1) for pixels in (images, clean.train.images))
    delta, labels = values - before, clean.train.labels
    half = torch.arange(len(labels)) % 2 == 0
    row: dict[str, Any] = {
        "poison": name,
        "seed": seed,
        "grey": on_grey,
        "alone": read(delta[half], labels[half], delta[~half], labels[~half]) if delta.any() else None,
        "images": read(values, labels, to_float(clean.test.images).flatten(1), clean.test.labels),
        "separability": separability(images, labels, clean.train.num_classes),
        "mean_norm": manifest.get("mean_norm"),
    }
    if config.corruption.norm == "l2" and config.corruption.epsilon is not None:
        row["cut"] = 1 - float(delta.square().sum(1).mean()) / config.corruption.epsilon**2
    return row | ({"ce": trained(config, replace(clean, train=replace(clean.train, images=images)))} if train else {})


def trained(config: RunConfig, data: CorruptedSet) -> float:
    """Return the clean test accuracy of plain training on the set."""
    return [report.test_accuracy for report in Trainer(config, data).run()][-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each poison that is named, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("poisons", nargs="+", metavar="KIND[:BUDGET]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grey", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "erat-shortcuts")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.poisons:
        row = measure(name, seed=given.seed, on_grey=given.grey, train=given.train, store=Store(given.store))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
