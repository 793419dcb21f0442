"""Compares candidates for an ERAT beyond the paper on ten draws of instance noise over the embedded digits.

`python -m tests.benchmarks.plus --draws 0-9 --setting clean,uhp --candidates erat,oracle,align` trains what is missing
in `--results` and prints a table. A draw is the seed of the corruption and of the training. Each run takes about a
minute on one core (three to four with a poison), and a row is written as soon as its run has ended, so that a
comparison that is interrupted goes on when it is repeated. Candidates are chosen by validation accuracy; test accuracy
is only reported.

The oracle is the ceiling of every selection: the same network and loss, with exactly the right labels selected. It
reads the true labels, and therefore exists in this file only.

`--features` trains no run: it prints how well clusters of images, and clusters of features that a network learned from
the images without any label (NT-Xent), agree with the true classes.

`--names` trains no run either: it prints what share of the images gets its true class as a name, by pixels and by
neighbours, for the labels of the draw itself and for those of another draw of the noise (its number plus 10) on the
same images. How to name was chosen on these other ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from erat.config import RunConfig, build
from erat.corruption.labels import make_label_noise
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data.augment.views import strong_view, weak_view
from erat.data.fingerprint import Fingerprints
from erat.data.random import BatchRandom
from erat.data.types import ImageSet, to_float
from erat.defenses.clusters import graph_clusters, image_clusters, named, thumbnails
from erat.defenses.selector import Split
from erat.losses import contrastive
from erat.models import build_model
from erat.models.heads import Projecting
from erat.training import Training, threads

# All that a preset or a data set would fill in, so that no change of theirs reaches these numbers.
BASE: dict[str, Any] = {
    "data.name": "mnist",
    "data.image_size": 14,
    "data.flip": False,
    "val.fraction": 0.1,
    "val.trusted": True,
    "model.name": "small",
    "corruption.labels": "instance",
    "corruption.rate": 0.6,
    "corruption.generator": "cores",
    "defense.warmup_epochs": 3,
    "defense.ramp_epochs": 16.0,
    "defense.lambda_u": 25.0,
    "defense.eta": 0.1,
    "defense.weak": "erase",
    "defense.strong_crop": False,
    "defense.policy": "digits",
    "defense.epsilon_inf": 0.1,
    "defense.epsilon_2": 1.0,
    "train.epochs": 16,
    "train.batch_size": 64,
    "train.lr": 0.1,
    "train.schedule": "onecycle",
    "resources.cpu": 1,
    "resources.device": "cpu",
}
SOURCE = {"corruption.source": "small", "corruption.source_epochs": 12}
SETTINGS: dict[str, dict[str, Any]] = {
    "clean": {"corruption.data": "none", "defense.adversarial": False},
    "uhp": {"corruption.data": "uhp", "corruption.norm": "l2", "corruption.epsilon": 1.25, **SOURCE},
    "up": {"corruption.data": "up", "corruption.norm": "linf", "corruption.epsilon": 0.1, "corruption.source": "small"},
}
CLUSTERS = {"defense.cluster_epochs": 3}
ALIGN = {"defense.align": True}
GRAPH = CLUSTERS | {"defense.clusters": 2, "defense.cluster_by": "neighbours"}
TEACHER = {"defense.teacher": 0.99}
FAST = {"defense.steps": 1, "defense.step_ratio": 0.5, "defense.warm_start": True, "defense.consistency": False}
CANDIDATES: dict[str, dict[str, Any]] = {
    "erat": {},
    "oracle": {},
    # One part each
    "align": ALIGN,
    "clusters": CLUSTERS,
    "teacher": TEACHER,
    "confidence": {"defense.confidence": 0.7},
    "class_mixture": {"defense.selector": "class_mixture"},
    "fast": FAST,
    # Together
    "clusters+align": CLUSTERS | ALIGN,
    "coarse+align": CLUSTERS | {"defense.clusters": 2} | ALIGN,
    "graph+align": GRAPH | ALIGN,
    "graph+align+fast": GRAPH | ALIGN | FAST,
    "clusters+align+teacher": CLUSTERS | ALIGN | TEACHER,
    "clusters+align+fast": CLUSTERS | ALIGN | FAST,
}
COLUMNS = ("setting", "candidate", "draw", "val_accuracy", "test_accuracy", "precision", "seconds", "options")


class Oracle(nn.Module):
    """A selector that selects exactly the right labels."""

    labelled: Tensor

    def __init__(self, right: Tensor) -> None:
        super().__init__()
        self.register_buffer("labelled", right)

    def forward(self, probs: Sequence[Tensor], labels: Tensor) -> Split:
        """Return the right labels, whatever the networks say."""
        return Split(self.labelled, self.labelled.float())


def configuration(setting: str, candidate: str, draw: int) -> RunConfig:
    """Return the configuration of one run."""
    seeds = {"corruption.seed": draw, "train.seed": draw}
    return build("demo", BASE | SETTINGS[setting] | CANDIDATES[candidate] | seeds, quiet=True)


def run(setting: str, candidate: str, draw: int, store: Store) -> dict[str, Any]:
    """Train, and return a row of the results: accuracies and precision in percent, of the last epoch."""
    config = Fingerprints()(configuration(setting, candidate, draw))
    began = time.perf_counter()
    with threads(config):
        training = Training(config, store)
        if candidate == "oracle":
            data = training.data
            training.trainer.defense.selector = Oracle(data.train.labels == data.true_labels)
        for history, _ in training.epochs():
            last = history[-1]
    return {
        "setting": setting,
        "candidate": candidate,
        "draw": draw,
        "val_accuracy": 100 * last.val_accuracy,
        "test_accuracy": 100 * last.test_accuracy,
        "precision": 100 * (last.selection_precision or 0),
        "seconds": time.perf_counter() - began,
        "options": " ".join(f"{key.removeprefix('defense.')}={value}" for key, value in CANDIDATES[candidate].items()),
    }


def main() -> None:
    """Train the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plus", description=__doc__)
    parser.add_argument("--draws", default="0-9", help="seeds, such as 0-9 or 1,2,5")
    parser.add_argument("--setting", default="clean", help=f"which of {', '.join(SETTINGS)}")
    parser.add_argument("--candidates", default="erat,oracle", help=f"which of {', '.join(CANDIDATES)}")
    parser.add_argument("--folder", type=Path, default=Path("runs/plus"), help="where crafted sets are kept")
    parser.add_argument("--results", type=Path, default=Path("docs/data/erat-beyond.csv"), help="what was measured")
    parser.add_argument("--features", action="store_true", help="compare clusters in place of training")
    parser.add_argument("--names", action="store_true", help="name the images of clusters in place of training")
    asked = parser.parse_args()
    for names, known in ((asked.setting, SETTINGS), (asked.candidates, CANDIDATES)):
        for name in names.split(","):
            if name not in known:
                parser.error(f"unknown name {name!r}; allowed: {', '.join(known)}")
    torch.set_num_threads(1)
    store = Store(asked.folder)
    if asked.features or asked.names:
        for setting in asked.setting.split(","):
            for draw in numbers(asked.draws):
                (likeness if asked.features else names_of_clusters)(setting, draw, store)
        return
    found = pd.read_csv(asked.results) if asked.results.exists() else pd.DataFrame(columns=COLUMNS)
    for setting in asked.setting.split(","):
        for candidate in asked.candidates.split(","):
            for draw in numbers(asked.draws):
                if ((found.setting == setting) & (found.candidate == candidate) & (found.draw == draw)).any():
                    continue
                row = run(setting, candidate, draw, store)
                print(row, flush=True)
                # Read again: another process may have added rows meanwhile.
                found = pd.read_csv(asked.results) if asked.results.exists() else found
                found = pd.concat([found, pd.DataFrame([row])]) if len(found) else pd.DataFrame([row])
                asked.results.parent.mkdir(parents=True, exist_ok=True)
                found.to_csv(asked.results, index=False, float_format="%.2f")
    Console().print(table(found))


def likeness(setting: str, draw: int, store: Store) -> None:
    """Print purity of clusters of images and of NT-Xent features, and the share of images that they name rightly."""
    data = corrupted_set(Fingerprints()(configuration(setting, "erat", draw)), store)
    images, labels, true = to_float(data.train.images), data.train.labels, data.true_labels
    classes = data.train.num_classes
    rows = {"images": thumbnails(images)} | {f"NT-Xent, {e} epochs": made for e, made in contrasted(images, draw)}
    for name, each in rows.items():
        clusters = image_clusters(each, 8 * classes)
        counts = torch.bincount(clusters * classes + true, minlength=8 * classes * classes).view(-1, classes)
        purity = 100 * float(counts.amax(1).sum()) / len(true)
        right = 100 * float((named(clusters, labels, classes).argmax(1) == true).double().mean())
        print(f"{setting}, draw {draw}, {name}: purity {purity:.1f} %, named rightly {right:.1f} %", flush=True)


def names_of_clusters(setting: str, draw: int, store: Store) -> None:
    """Print the share of images that are named rightly, by the draw's own labels and by those of another draw."""
    plain, data = (
        corrupted_set(Fingerprints()(configuration(each, "erat", draw)), store) for each in ("clean", setting)
    )
    true, classes = data.true_labels, data.train.num_classes
    subject = ImageSet(plain.train.images, true, plain.train.class_names)
    rows = thumbnails(to_float(data.train.images))
    ways = {f"{count} by pixels": image_clusters(rows, count * classes) for count in (8, 2)}
    ways["2 by neighbours"] = graph_clusters(rows, classes, 2)
    for seed in (draw, draw + 10):
        labels = make_label_noise("instance", subject, rate=BASE["corruption.rate"], seed=seed).labels
        for name, clusters in ways.items():
            right = 100 * float((named(clusters, labels, classes).argmax(1) == true).double().mean())
            print(f"{setting}, images {draw}, labels {seed}, {name}: named rightly {right:.1f} %", flush=True)


def contrasted(images: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Train the small network by NT-Xent on two strong views of each image; yield its features after 3 and 9 epochs."""
    network = Projecting(build_model("small", 10, 1, 14, [float(images.mean())], [float(images.std())], seed), heads=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    draws = torch.Generator().manual_seed(seed)
    random = BatchRandom(draws)
    for epoch in range(1, 10):
        network.train()
        for batch in torch.randperm(len(images), generator=draws).split(64):
            weak = weak_view(images[batch].repeat(2, 1, 1, 1), random, kind="erase", flip=False)
            _, (projected,) = network(strong_view(weak, random, policy="digits"), project=True)
            optimizer.zero_grad()
            first, second = projected.chunk(2)
            contrastive(first, second, 0.2).backward()
            optimizer.step()
        if epoch in (3, 9):
            with torch.no_grad():
                yield epoch, network.eval().features(images)


def numbers(text: str) -> list[int]:
    """Return the numbers in a list of numbers and ranges, such as "0-3,7"."""
    ends = [part.split("-") for part in text.split(",")]
    return [number for first, *last in ends for number in range(int(first), int(last[0] if last else first) + 1)]


def table(found: pd.DataFrame) -> Table:
    """Return a table with a row for each setting and candidate: mean and worst over the draws, in percent."""
    made = Table("setting", "candidate", "draws", "validation", "worst", "test", "worst", "precision", "s", box=None)
    for (setting, candidate), each in found.groupby(["setting", "candidate"], sort=False):
        val, test = each.val_accuracy, each.test_accuracy
        figures = (val.mean(), val.min(), test.mean(), test.min(), each.precision.mean(), each.seconds.mean())
        made.add_row(str(setting), str(candidate), str(len(each)), *(f"{figure:.1f}" for figure in figures))
    return made


if __name__ == "__main__":
    main()
