"""Presets: named starting points of configurations.

`demo` runs in minutes on a laptop; `medium` is a harder set at about ten times the work, for tables without a cluster;
`paper` is the paper's setting; `official` combines the paper's data with the
network and the schedule with which each defense was published.

A preset is a function of the overrides, because a few of its values depend on the data set that the user chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Values = dict[str, Any]


def demo(overrides: Mapping[str, Any]) -> Values:
    """Return the values of a demonstration.

    It uses real MNIST digits at 14 x 14 pixels, a class-wise poison that strong views do not remove, and 60 % wrong
    labels.
    """
    values: Values = {
        "data.name": "mnist",
        "model.name": "small",
        "corruption.data": "uhp",
        "corruption.source": "small",
        "corruption.source_epochs": 12,
        "corruption.labels": "symmetric",
        "corruption.rate": 0.6,
        "defense.name": "erat",
        "defense.warmup_epochs": 3,
        "train.epochs": 16,
        "train.lr": 0.1,
        "train.schedule": "onecycle",
    }
    kind = overrides.get("corruption.data", "uhp")
    if overrides.get("data.name", "mnist") == "mnist":
        values["data.image_size"] = 14
        budget = _DIGITS.get(str(kind), {})
        if overrides.get("corruption.norm") in (None, budget.get("corruption.norm")):
            values |= budget
    if kind == "l2c":
        values |= _L2C
    return values


# Fewer trials of a narrow generator, which a processor crafts in minutes.
_L2C: Values = {"corruption.steps": 12, "corruption.width": 16, "corruption.lr": 1e-3}

# Larger budgets for the poisons with which, at the customary budget of the digits, plain training is still too accurate
# for a demonstration.
_DIGITS: dict[str, Values] = {
    "uhp": {"corruption.norm": "l2", "corruption.epsilon": 1.25},
    "urp": {"corruption.norm": "l2", "corruption.epsilon": 2.0},
    "l2c": {"corruption.norm": "linf", "corruption.epsilon": 0.3},
}


def medium(overrides: Mapping[str, Any]) -> Values:
    """Return the values of a table between `demo` and `paper`: 10,000 images of 28 x 28, a network of 0.3 M weights.

    The data set is Fashion-MNIST; larger images of another set are resized. All defenses take the same number of
    epochs. The poison's budget is that at which plain training on Fashion-MNIST is harmed as on the digits of `demo`.
    """
    values: Values = {
        "data.name": "fashion-mnist",
        "data.limit": 10_000,
        "data.image_size": 28,
        "model.name": "medium",
        "corruption.data": "uhp",
        "corruption.source": "medium",
        "corruption.source_epochs": 12,
        "corruption.labels": "symmetric",
        "corruption.rate": 0.6,
        "defense.name": "erat",
        "defense.warmup_epochs": 3,
        "train.epochs": 16,
        "train.lr": 0.1,
        "train.schedule": "onecycle",
    }
    kind = str(overrides.get("corruption.data", "uhp"))
    if overrides.get("data.name", "fashion-mnist") in ("fashion-mnist", "kmnist"):
        budget = _DIGITS.get(kind, {})
        if overrides.get("corruption.norm") in (None, budget.get("corruption.norm")):
            values |= budget
    if kind == "l2c":
        values |= _L2C
    return values


# Epochs of warm-up per data set; the paper does not state that of Tiny-ImageNet.
_WARMUP = {"cifar10": 10, "cifar100": 30, "tiny-imagenet": 15}


def paper(overrides: Mapping[str, Any]) -> Values:
    """Return the paper's setting: CIFAR-10, ResNet-34, SGD with learning rate 0.05, 100 epochs (its Sec. IV-B).

    Each worker asks Ray for one GPU.
    """
    data = str(overrides.get("data.name", "cifar10"))
    return {
        "data.name": data,
        "model.name": "resnet34",
        "corruption.data": "up",
        "corruption.labels": "symmetric",
        "corruption.rate": 0.6,
        "defense.name": "erat",
        "defense.warmup_epochs": _WARMUP.get(data, 10),
        "resources.gpu": 1,
    }


# Network and schedule in the code of each defense's authors. Defenses without an entry (CE, MSPL, ERAT) use those of
# the paper.
_PUBLISHED_WITH: dict[str, Values] = {
    "at": {
        "model.name": "vgg16",
        "train.batch_size": 128,
        "train.epochs": 150,
        "train.lr": 0.1,
        "train.milestones": (100, 125),
    },
    "iss": {
        "model.name": "resnet18",
        "train.batch_size": 128,
        "train.epochs": 60,
        "train.lr": 0.1,
        "train.schedule": "cosine",
    },
    # DAT's Adam and its network of nine convolutions are not available here; SGD at the paper's rate replaces them.
    "dat": {
        "model.name": "resnet18",
        "train.batch_size": 128,
        "train.epochs": 200,
        "defense.discrepancy": "published",
        "defense.beta": 30.0,
    },
    "dividemix": {
        "model.name": "preact_resnet18",
        "train.epochs": 300,
        "train.lr": 0.02,
        "train.milestones": (150,),
    },
    "unicon": {
        "model.name": "preact_resnet18",
        "train.epochs": 350,
        "train.lr": 0.02,
        "train.schedule": "cosine",
        "defense.splits": "in_turn",
        "defense.jsd_log": "e",
        "defense.quota": "published",
    },
}


def official(overrides: Mapping[str, Any]) -> Values:
    """Return the paper's data and corruption with each defense trained as by its own authors.

    No table mixes runs of this preset with runs of `paper`.
    """
    return paper(overrides) | _PUBLISHED_WITH.get(str(overrides.get("defense.name", "erat")), {})


PRESETS: dict[str, Callable[[Mapping[str, Any]], Values]] = {
    "demo": demo,
    "medium": medium,
    "paper": paper,
    "official": official,
}
OF_THE_PAPER = ("paper", "official")  # presets with the paper's data sets
