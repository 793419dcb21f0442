"""Presets: named starting points of configurations.

`demo` runs in minutes on a laptop; `medium` is a harder set at about ten times the work, for tables without a GPU;
`paper` is the paper's setting; `official` combines the paper's data with the network and the schedule with which each
defense was published.

A preset is a function of the overrides, because a few of its values depend on the data set that the user chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Values = dict[str, Any]


def demo(overrides: Mapping[str, Any]) -> Values:
    """Return the values of a demonstration.

    It uses real MNIST digits at 14 x 14 pixels, a class-wise poison that strong views do not remove, and 60 % wrong
    labels.
    """
    values = _short(overrides, data="mnist", network="small", drawings=("mnist",))
    return values | ({"data.image_size": 14} if overrides.get("data.name", "mnist") == "mnist" else {})


def medium(overrides: Mapping[str, Any]) -> Values:
    """Return the values of a table between `demo` and `paper`: 10,000 images of 28 x 28, a network of 0.3 M weights.

    The data set is Fashion-MNIST; images of another set are resized to 28 x 28. Fashion-MNIST and KMNIST have the
    budgets of the digits in `demo`.
    """
    values = _short(overrides, data="fashion-mnist", network="medium", drawings=("fashion-mnist", "kmnist"))
    return values | {"data.limit": 10_000, "data.image_size": 28}


def _short(overrides: Mapping[str, Any], *, data: str, network: str, drawings: Sequence[str]) -> Values:
    """Return what `demo` and `medium` share: a schedule of 16 epochs, UHP and symmetric noise unless said otherwise.

    Args:
        overrides: dotted key -> value, which come on top.
        data: the data set.
        network: the backbone, also of the network that poisons are crafted against.
        drawings: the data sets that have the larger budgets of `_DIGITS`.
    """
    values: Values = {
        "data.name": data,
        "model.name": network,
        "corruption.data": "uhp",
        "corruption.source": network,
        "corruption.source_epochs": 12,
        "corruption.labels": "symmetric",
        "corruption.rate": 0.6,
        "defense.name": "erat",
        "defense.warmup_epochs": 3,
        "train.epochs": 16,
        "train.lr": 0.1,
        "train.schedule": "onecycle",
    } | _erat_views(overrides)
    values |= _following_the_schedule(overrides, values)
    kind = overrides.get("corruption.data", "uhp")
    budget = _DIGITS.get(str(kind), {}) if overrides.get("data.name", data) in drawings else {}
    if overrides.get("corruption.norm") in (None, budget.get("corruption.norm")):
        values |= budget
    return values | _BRIEFLY.get(str(kind), {})


def _following_the_schedule(overrides: Mapping[str, Any], values: Values) -> Values:
    """Return the lengths of `demo` and `medium` that follow from the number of epochs of the run.

    The weight of the unlabelled loss reaches its full size in the middle of the epochs after the warm-up, as the
    paper's ramp of 16 epochs ends long before its hundredth. AT begins with clean epochs, and its budget grows: two and
    six epochs of the demo's 16.
    """
    epochs = _count(overrides.get("train.epochs", values["train.epochs"]))
    if str(overrides.get("defense.name")) == "at":
        return {"defense.warmup_epochs": min(2, epochs // 8), "defense.epsilon_ramp": min(6.0, 3 * epochs / 8)}
    warmup = _count(overrides.get("defense.warmup_epochs", values["defense.warmup_epochs"]))
    return {"defense.ramp_epochs": min(16.0, max(0, epochs - warmup) / 2)}


def _count(value: Any) -> int:
    """Return a number of epochs as given; 0 if it is none, which the configuration refuses with a message."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _erat_views(overrides: Mapping[str, Any]) -> Values:
    """Return whether ERAT's strong views are cropped and flipped: left open, it follows from the data set."""
    return {"defense.strong_crop": None} if str(overrides.get("defense.name", "erat")) == "erat" else {}


# What a processor crafts in minutes: of L2C fewer trials of a narrow generator, of the others less of everything.
_BRIEFLY: dict[str, Values] = {
    "l2c": {"corruption.steps": 12, "corruption.width": 16, "corruption.lr": 1e-3},
    "tue": {"corruption.steps": 10},
    "rem": {
        "corruption.steps": 100,
        "corruption.descents": 5,
        "corruption.draws": 1,
        "corruption.attack_steps": 3,
    },
    "adaptive": {"corruption.steps": 50, "corruption.descents": 4, "corruption.draws": 1},
}

# Larger budgets for the poisons with which, at the customary budget of the digits, plain training is still too accurate
# for a demonstration.
_DIGITS: dict[str, Values] = {
    "uhp": {"corruption.norm": "l2", "corruption.epsilon": 1.25},
    "urp": {"corruption.norm": "l2", "corruption.epsilon": 2.0},
    "l2c": {"corruption.norm": "linf", "corruption.epsilon": 0.3},
    "ops": {"corruption.norm": "l0", "corruption.epsilon": 4.0},
    "lsp": {"corruption.norm": "l2", "corruption.epsilon": 1.0},
    "ar": {"corruption.norm": "l2", "corruption.epsilon": 4.5},
}


# Epochs of warm-up per data set; the paper does not state that of Tiny-ImageNet.
_WARMUP = {"cifar10": 10, "cifar100": 30, "tiny-imagenet": 15}


def paper(overrides: Mapping[str, Any]) -> Values:
    """Return the paper's setting: CIFAR-10, ResNet-34, SGD with learning rate 0.05, 100 epochs (its Sec. IV-B).

    Each worker asks Ray for one GPU.
    """
    data = str(overrides.get("data.name", "cifar10"))
    # AT attacks from the first step, as published.
    warmup = 0 if overrides.get("defense.name") == "at" else _WARMUP.get(data, 10)
    return {
        "data.name": data,
        "model.name": "resnet34",
        "corruption.data": "up",
        "corruption.labels": "symmetric",
        "corruption.rate": 0.6,
        "defense.name": "erat",
        "defense.warmup_epochs": warmup,
        "resources.gpu": 1,
        **_erat_views(overrides),
        **_CRAFTED_WITH.get(str(overrides.get("corruption.data", "up")), {}),
    }


# Lengths and networks of the crafting in the code of each corruption's authors.
_UNIVERSAL: Values = {"corruption.images_per_class": 256}
_CRAFTED_WITH: dict[str, Values] = {
    "uhp": _UNIVERSAL,
    "uap": _UNIVERSAL,
    "l2c": {"corruption.unet": "official", "corruption.victim": "vgg11", "corruption.victim_epochs": 20},
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
    "ueraser_max": {
        "model.name": "resnet18",
        "train.batch_size": 128,
        "train.epochs": 200,
        "train.lr": 0.01,
        "train.milestones": (100, 150),
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
        "defense.projection": "linear",
        "defense.unlabelled_batch": "published",
    },
}
_UNICON_ON_TINY_IMAGENET: Values = {"train.lr": 0.005, "defense.lambda_u": 50.0, "defense.mixup_alpha": 0.5}


def official(overrides: Mapping[str, Any]) -> Values:
    """Return the paper's data and corruption with each defense trained as by its own authors.

    No table mixes runs of this preset with runs of `paper`.
    """
    defense = str(overrides.get("defense.name", "erat"))
    tiny = overrides.get("data.name") == "tiny-imagenet" and defense == "unicon"
    return paper(overrides) | _PUBLISHED_WITH.get(defense, {}) | (_UNICON_ON_TINY_IMAGENET if tiny else {})


PRESETS: dict[str, Callable[[Mapping[str, Any]], Values]] = {
    "demo": demo,
    "medium": medium,
    "paper": paper,
    "official": official,
}
OF_THE_PAPER = ("paper", "official")  # presets with the paper's data sets
EDITION = 2  # of the presets; a study records it, and one that records none is of the first


def values_before(preset: str, overrides: Mapping[str, Any]) -> Values:
    """Return what the first edition of a preset had where the present one has other values, for any defense.

    With these values, given explicitly, a run is the same as it was, and so is its digest. Overrides come on top.

    Args:
        preset: the name of the preset.
        overrides: dotted key -> value, with a variant's name replaced by its defense and settings.
    """
    if preset not in ("demo", "paper", "official"):
        return {}
    values: Values = {
        "defense.ramp_epochs": 16.0,
        "defense.strong_crop": False,
        "defense.projection": "mlp",
        "defense.unlabelled_batch": "equal",
        "corruption.images_per_class": 16,
        "corruption.unet": "plain",
        "corruption.victim": "small",
        "corruption.victim_epochs": 1,
    }
    defense, data = overrides.get("defense.name", "erat"), overrides.get("data.name", "cifar10")
    if defense == "at":
        values |= {"defense.warmup_epochs": 0, "defense.epsilon_ramp": 0.0}
    if preset == "official" and defense == "unicon":
        values |= {"train.lr": 0.02, "defense.lambda_u": 30.0, "defense.mixup_alpha": 4.0}
    if defense == "dividemix":  # the weight did not depend on the rate of the noise
        many = data in ("cifar100", "tiny-imagenet")
        values["defense.lambda_u"] = (
            150.0 if many else 0.0 if overrides.get("corruption.labels") == "asymmetric" else 25.0
        )
    return values
