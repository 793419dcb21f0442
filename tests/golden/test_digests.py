"""Tests the digests that name runs and crafted sets: what an earlier version stored under a name is found again.

`digests.json` was written by `python -m tests.golden.test_digests`: for the corruptions when their settings were fields
of one section, for all other keys, one by one, later. Cases may be added, none may change. Where a preset has other
values now, a case gives those of before, so that what was stored then is found; cases that begin with "now" do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erat.config import RunConfig, build, content_digest
from erat.corruption.pipeline import _image_parameters, _label_parameters
from erat.corruption.source import Traits
from erat.keys import all_keys, has_key
from erat.presets import PRESETS, values_before
from erat.registry import DATASETS
from erat.variants import defense_names, expand

FILE = Path(__file__).with_name("digests.json")
SETS = ("mnist", "cifar10", "cifar100", "tiny-imagenet", "folder")
LATER_SETS = ("fashion-mnist", "kmnist", "svhn", "stl10", "gtsrb", "medmnist")
# Every kind with its defaults, and with each option that only this kind has.
POISONS: dict[str, dict[str, Any]] = {
    "none": {"data": "none"},
    "urp": {"data": "urp"},
    "urp, linf, 4/255": {"data": "urp", "norm": "linf", "epsilon": "4/255", "share": 0.5},
    "uhp": {"data": "uhp"},
    "uhp, 7 steps": {"data": "uhp", "steps": 7, "source_epochs": 3, "seed": 2},
    "uhp, 9 a class": {"data": "uhp", "images_per_class": 9},
    "uap": {"data": "uap"},
    "uap, 7 steps": {"data": "uap", "steps": 7, "source": "vgg11"},
    "up": {"data": "up"},
    "up, per image": {"data": "up", "granularity": "sample", "steps": 9},
    "ap": {"data": "ap"},
    "ap, 7 steps": {"data": "ap", "steps": 7, "norm": "linf"},
    "aa": {"data": "aa"},
    "aa, standard": {"data": "aa", "attack": "standard", "steps": 11},
    "l2c": {"data": "l2c"},
    "l2c, small": {"data": "l2c", "steps": 3, "width": 9, "lr": 0.01},
    "l2c, official": {"data": "l2c", "unet": "official"},
    "l2c, three passes of vgg11": {"data": "l2c", "victim": "vgg11", "victim_epochs": 3},
    "l2c, with what is no use": {"data": "l2c", "attack": "standard", "source": "vgg11", "width": 9},
    "ops": {"data": "ops"},
    "ops, 3 pixels": {"data": "ops", "epsilon": 3},
    "lsp": {"data": "lsp"},
    "lsp, linf": {"data": "lsp", "norm": "linf"},
    "lsp, 5 patches": {"data": "lsp", "patches": 5},
    "ar": {"data": "ar"},
    "ar, linf": {"data": "ar", "norm": "linf"},
    "cuda": {"data": "cuda"},
    "cuda, 0.5": {"data": "cuda", "blur": 0.5},
    "urp, l1": {"data": "urp", "norm": "l1"},
    "ap, l0": {"data": "ap", "norm": "l0"},
    "tue": {"data": "tue"},
    "tue, 7 passes": {"data": "tue", "steps": 7},
    "pil": {"data": "pil"},
    "pil, brief": {"data": "pil", "steps": 7, "linear_epochs": 3},
    "rem": {"data": "rem"},
    "rem, brief": {"data": "rem", "steps": 7, "descents": 3, "draws": 2, "attack_steps": 2, "attack_share": 0.25},
    "rem, mirrored": {"data": "rem", "norm": "l2", "flip": True},
    "adaptive": {"data": "adaptive"},
    "adaptive, to others": {"data": "adaptive", "policy": "svhn", "epsilon_inf": 0.02, "epsilon_2": 0.3},
    "urp, with what is no use": {"data": "urp", "attack": "standard", "steps": 7, "lr": 0.1, "width": 9},
}
LABELS: dict[str, dict[str, Any]] = {
    "none": {"labels": "none"},
    "symmetric": {"labels": "symmetric", "rate": 0.4},
    "asymmetric": {"labels": "asymmetric", "rate": 0.3, "exact": False},
    "instance": {"labels": "instance", "generator": "pdn"},
    "annotator": {"labels": "annotator", "rate": 0.4},
    "bound": {"labels": "bound", "rate": 0.4},
    "first": {"labels": "symmetric", "rate": 0.4, "coupling": "labels_first"},
    "overlapping": {"labels": "symmetric", "rate": 0.4, "share": 0.5, "coupling": "overlap", "overlap": 0.5},
    "annotator of urp": {"data": "urp", "rate": 0.4, "coupling": "annotator", "share": 0.5},
    "bound to uap": {"data": "uap", "rate": 0.4, "coupling": "bound"},
}
# A key, and a value that makes another run of the demo with ERAT, with whatever else the key needs.
KEYS: dict[str, dict[str, Any]] = {
    "data.image_size": {"data.image_size": 20},
    "data.limit": {"data.limit": 700},
    "data.test_fraction": {"data.test_fraction": 0.3},
    "data.flip": {"data.flip": True},
    "data.fingerprint": {"data.fingerprint": "f" * 64},
    "model.name": {"model.name": "vgg11"},
    "val.fraction": {"val.fraction": 0.25},
    "val.objective": {"val.objective": "perturbed"},
    "val.seed": {"val.seed": 3},
    "val.trusted": {"val.trusted": False},
    "train.accumulate": {"train.accumulate": 2},
    "train.batch_size": {"train.batch_size": 32},
    "train.channels_last": {"train.channels_last": True},
    "train.checkpoint_activations": {"train.checkpoint_activations": True},
    "train.compile": {"train.compile": True},
    "train.cuda_graphs": {"train.cuda_graphs": True, "train.compile": True},
    "train.epochs": {"train.epochs": 7},
    "train.gamma": {"train.gamma": 0.2},
    "train.lr": {"train.lr": 0.03},
    "train.lr_batch": {"train.lr_batch": 32},
    "train.lr_rule": {"train.lr_rule": "sqrt"},
    "train.milestones": {"train.milestones": [2, 5]},
    "train.momentum": {"train.momentum": 0.8},
    "train.precision": {"train.precision": "bf16"},
    "train.schedule": {"train.schedule": "cosine"},
    "train.seed": {"train.seed": 3},
    "train.sync_batchnorm": {"train.sync_batchnorm": False},
    "train.weight_decay": {"train.weight_decay": 0.001},
    "train.workers": {"train.workers": 2},
    "corruption.include_self": {"corruption.include_self": True},
    "corruption.source_weights_digest": {
        "corruption.data": "uhp",
        "corruption.source_weights": "/weights.pt",
        "corruption.source_weights_digest": "0123456789abcdef",
    },
    "corruption.labels_file_digest": {
        "data.name": "cifar10",
        "corruption.labels": "human-worst",
        "corruption.labels_file": "/labels.pt",
        "corruption.labels_file_digest": "0123456789abcdef",
    },
    "defense.squeeze": {"defense.squeeze": "grayscale"},
    "defense.jpeg_quality": {"defense.jpeg_quality": 20, "defense.squeeze": "jpeg"},
    "defense.bits": {"defense.bits": 3, "defense.squeeze": "bits"},
    "defense.adversarial": {"defense.adversarial": False},
    "defense.norms": {"defense.norms": "l2"},
    "defense.epsilon_l1": {"defense.norms": "linf,l2,l1", "defense.epsilon_l1": 1.5},
    "defense.epsilon_l0": {"defense.norms": "l0", "defense.epsilon_l0": 4},
    "defense.epsilon_ssim": {"defense.norms": "ssim", "defense.epsilon_ssim": 0.2},
    "defense.epsilon_wasserstein": {"defense.norms": "linf,wasserstein", "defense.epsilon_wasserstein": 0.1},
    "defense.epsilon_lpips": {"defense.norms": "linf,lpips", "defense.epsilon_lpips": 0.1},
    "defense.norm_draw": {"defense.norm_draw": "weighted"},
    "defense.uniform": {"defense.uniform": False},
    "defense.epsilon_inf": {"defense.epsilon_inf": 0.02},
    "defense.epsilon_2": {"defense.epsilon_2": 0.4},
    "defense.steps": {"defense.steps": 4},
    "defense.step_ratio": {"defense.step_ratio": 0.3},
    "defense.random_start": {"defense.random_start": True},
    "defense.l2_update": {"defense.l2_update": "literal"},
    "defense.consistency": {"defense.consistency": False},
    "defense.warm_start": {"defense.warm_start": True},
    "defense.pgd_precision": {"defense.pgd_precision": "bf16"},
    "defense.pgd_scale": {"defense.pgd_scale": 0.5},
    "defense.weak": {"defense.weak": "crop"},
    "defense.strong": {"defense.strong": False},
    "defense.policy": {"defense.policy": "svhn"},
    "defense.worst_of": {"defense.worst_of": 3},
    "defense.selector": {"defense.selector": "errors"},
    "defense.score": {"defense.score": "ce"},
    "defense.eta": {"defense.eta": 0.3},
    "defense.rebalance": {"defense.rebalance": False},
    "defense.rate": {"defense.rate": "literal"},
    "defense.threshold": {"defense.threshold": 0.6, "defense.selector": "mixture"},
    "defense.jsd_log": {"defense.jsd_log": "e", "defense.selector": "jsd"},
    "defense.jsd_high": {"defense.jsd_high": 0.6, "defense.selector": "jsd"},
    "defense.jsd_filter": {"defense.jsd_filter": 4.0, "defense.selector": "jsd"},
    "defense.quota": {"defense.quota": "published", "defense.selector": "jsd"},
    "defense.selection": {"defense.selection": False},
    "defense.select_every": {"defense.select_every": 2},
    "defense.lambda_u": {"defense.lambda_u": 5.0},
    "defense.ramp_epochs": {"defense.ramp_epochs": 2.5},
    "defense.reduction": {"defense.reduction": "sum"},
    "defense.warmup_epochs": {"defense.warmup_epochs": 1},
    "defense.cluster_epochs": {"defense.cluster_epochs": 3},
    "defense.clusters": {"defense.clusters": 4, "defense.cluster_epochs": 3},
    "defense.cluster_by": {"defense.cluster_by": "neighbours", "defense.cluster_epochs": 3},
    "defense.align": {"defense.align": True},
    "defense.teacher": {"defense.teacher": 0.9},
    "defense.confidence": {"defense.confidence": 0.7},
    "defense.epsilon_ramp": {"defense.name": "at", "defense.epsilon_ramp": 3.0},
    "defense.strong_crop": {"defense.strong_crop": True},
    "defense.projection": {"defense.name": "unicon", "defense.projection": "linear"},
    "defense.unlabelled_batch": {"defense.name": "unicon", "defense.unlabelled_batch": "published"},
    "defense.criterion": {"defense.name": "ce", "defense.criterion": "elr"},
    "defense.elr_weight": {"defense.name": "ce", "defense.criterion": "elr", "defense.elr_weight": 2.0},
    "defense.elr_momentum": {"defense.name": "ce", "defense.criterion": "elr", "defense.elr_momentum": 0.5},
    "defense.alpha": {"defense.name": "dat", "defense.alpha": 0.01},
    "defense.beta": {"defense.name": "dat", "defense.beta": 2.0},
    "defense.discrepancy": {"defense.name": "dat", "defense.discrepancy": "published"},
    "defense.exchange": {"defense.name": "dividemix", "defense.exchange": "joint"},
    "defense.splits": {"defense.name": "dividemix", "defense.splits": "in_turn"},
    "defense.temperature": {"defense.name": "dividemix", "defense.temperature": 0.7},
    "defense.mixup_alpha": {"defense.name": "dividemix", "defense.mixup_alpha": 2.0},
    "defense.confidence_penalty": {"defense.name": "dividemix", "defense.confidence_penalty": True},
    "defense.contrastive_weight": {"defense.name": "unicon", "defense.contrastive_weight": 0.05},
    "defense.contrastive_temperature": {"defense.name": "unicon", "defense.contrastive_temperature": 0.2},
    "defense.momentum": {"defense.name": "mspl", "defense.momentum": 0.9},
    "defense.worst_epochs": {"defense.name": "ueraser_max", "defense.worst_epochs": 3},
    "defense.view_jpeg": {"defense.name": "ueraser_max", "defense.view_jpeg": 20},
    "defense.prototype_temperature": {"defense.name": "mspl", "defense.prototype_temperature": 0.3},
}
# Where a run lies and what it runs on, which its digest does not know; the rest is in POISONS, LABELS and the names.
ELSEWHERE = {"data.root", "data.download", "corruption.source_weights", "corruption.labels_file", "storage.path"}
ELSEWHERE |= {
    "resources.cpu",
    "resources.gpu",
    "resources.device",
    "resources.min_workers",
    "train.checkpoint_every",
    "defense.name",
    "data.name",
}


def _keys(corruption: dict[str, Any]) -> dict[str, Any]:
    return {f"corruption.{key}": value for key, value in corruption.items()}


def _cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return (name, preset, overrides) of every case."""
    for name, preset, overrides in _asked():
        yield name, preset, _before(preset, overrides) | overrides
    for preset in PRESETS:
        for data in (*LATER_SETS, "cifar10") if preset == "medium" else ("mnist", "cifar10", "tiny-imagenet"):
            for name in ("at", "dividemix", "erat", "unicon"):
                yield f"now, {preset}, {data}, {name}", preset, {"data.name": data, "defense.name": name}
            for kind in ("uhp", "l2c"):
                yield f"now, {preset}, {data}, {kind}", preset, {"data.name": data, "corruption.data": kind}


def _before(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what the first edition of a preset had, as far as its defense has such keys."""
    given = expand(overrides)
    values = values_before(preset, given)
    return {key: value for key, value in values.items() if has_key(key, str(given.get("defense.name", "erat")))}


def _asked() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for preset in ("demo", "paper", "official"):
        for data in SETS:
            for name, poison in POISONS.items():
                yield f"{preset}, {data}, {name}", preset, {"data.name": data, **_keys(poison)}
            for name, labels in LABELS.items():
                yield f"{preset}, {data}, labels {name}", preset, {"data.name": data, **_keys(labels)}
            for name in defense_names():
                yield f"{preset}, {data}, {name}", preset, {"data.name": data, "defense.name": name}
    for name, overrides in KEYS.items():
        yield f"demo, one key, {name}", "demo", overrides


def _digests(config: RunConfig) -> list[str]:
    """Return the digests of the run, of its images in the store and of its labels there, whatever the set contains."""
    traits = Traits("f" * 64, colour=config.data.name != "mnist")
    images = None if config.corruption.data == "none" else _image_parameters(traits, config)
    return [config.digest(), content_digest(images), content_digest(_label_parameters(traits, config))]


def _all() -> dict[str, list[str]]:
    return {name: _digests(build(preset, keys, quiet=True)) for name, preset, keys in _cases()}


KNOWN: dict[str, list[str]] = json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize("preset", PRESETS)
def test_digests_are_what_they_were(preset: str) -> None:
    cases = {name: (start, keys) for name, start, keys in _cases() if start == preset}
    found = {name: _digests(build(start, keys, quiet=True)) for name, (start, keys) in cases.items()}
    assert found == {name: KNOWN[name] for name in cases}


def test_every_key_is_here_and_makes_another_run() -> None:
    covered = {f"corruption.{key}" for case in (*POISONS.values(), *LABELS.values()) for key in case}
    assert covered | KEYS.keys() | ELSEWHERE == set(all_keys())
    for key, overrides in KEYS.items():
        rest = {other: value for other, value in overrides.items() if other != key}
        if key.endswith("_digest"):
            rest[key] = "f" * 16
        before = _before("demo", overrides)  # in which no other value follows from the key
        mine, other = (build("demo", before | given, quiet=True).identity() for given in (overrides, rest))
        assert mine.get(key) != other.get(key), key
        assert {name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)} == {key}
    assert len({KNOWN[f"demo, one key, {key}"][0] for key in KEYS}) == len(KEYS)


def test_they_are_of_every_set_there_is() -> None:
    assert sorted(SETS + LATER_SETS) == DATASETS.names()
    assert len({digests[0] for digests in KNOWN.values()}) > 400


if __name__ == "__main__":
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(digests)}" for name, digests in _all().items())
    FILE.write_text(f"{{\n{lines}\n}}\n")
