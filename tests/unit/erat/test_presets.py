"""Tests what presets decide by the data set, the schedule and the defense, and that earlier editions stay known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from erat.config import build
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Phase, Task
from erat.defenses.options import ERATOptions
from erat.defenses.viewing import Views
from erat.errors import UserError
from orchestration.study.grids import load_grid, specification
from orchestration.study.spec import StudySpec

NETWORK = nn.Identity()


@pytest.mark.parametrize(("epochs", "warmup", "expected"), [(16, 3, 6.5), (10, 3, 3.5), (60, 3, 16.0), (2, 3, 0.0)])
@pytest.mark.parametrize("defense", ["erat", "dividemix", "unicon", "mspl"])
def test_the_demo_s_ramp_ends_in_the_middle_of_the_epochs_after_the_warm_up(
    defense: str, epochs: int, warmup: int, expected: float
) -> None:
    given = {"defense.name": defense, "train.epochs": epochs, "defense.warmup_epochs": warmup}
    assert build("demo", given).flat()["defense.ramp_epochs"] == expected
    assert build("paper", given).flat()["defense.ramp_epochs"] == 16


@pytest.mark.parametrize(
    ("data", "labels", "rate", "expected"),
    [
        ("cifar10", "symmetric", 0.2, 0.0),
        ("cifar10", "symmetric", 0.4, 25.0),
        ("cifar10", "instance", 0.2, 0.0),
        ("cifar10", "asymmetric", 0.4, 0.0),
        ("cifar100", "symmetric", "0.2", 25.0),
        ("cifar100", "symmetric", 0.6, 150.0),
        ("tiny-imagenet", "symmetric", 0.2, 150.0),
    ],
)
def test_dividemix_trusts_unlabelled_samples_by_the_rate(data: str, labels: str, rate: Any, expected: float) -> None:
    given = {"data.name": data, "corruption.labels": labels, "corruption.rate": rate, "defense.name": "dividemix"}
    assert build("paper", given).flat()["defense.lambda_u"] == expected


def test_figure_4_gives_dividemix_the_weight_of_each_rate() -> None:
    only = {"defense": ["dividemix"], "kind": ["symmetric"], "corruption": ["up"]}
    spec = specification(load_grid("figure4"), "paper", {}, only=only)
    weights = [spec.config(run).flat()["defense.lambda_u"] for run in spec.runs]
    assert weights == [0, 0, 25, 25, 25], "rates 0, 0.2, 0.4, 0.6, 0.8"


def test_strong_views_are_cropped_and_flipped_where_a_mirrored_image_keeps_its_class() -> None:
    for preset in ("demo", "paper", "official"):
        for data, expected in (("mnist", False), ("cifar10", True), ("tiny-imagenet", True)):
            assert build(preset, {"data.name": data}).flat()["defense.strong_crop"] is expected
    assert build("paper", {"data.flip": False}).flat()["defense.strong_crop"] is False
    assert build("paper", {"defense.strong_crop": False}).flat()["defense.strong_crop"] is False


@pytest.mark.parametrize("crop", [True, False])
def test_without_the_policy_a_strong_view_is_what_lies_beneath_it(crop: bool) -> None:
    images, labels = torch.rand(6, 3, 16, 16), torch.zeros(6, dtype=torch.int64)
    task = Task(6, 2, True, lambda offset: nn.Linear(1, 1))

    def draws() -> BatchRandom:
        return BatchRandom(torch.Generator().manual_seed(0))

    options = ERATOptions(policy="cifar10", weak="erase")
    beneath = weak_view(images, (random := draws()), kind="crop", flip=True) if crop else images
    random = random if crop else draws()
    found = Views(options, task, crop=crop).strong(images, draws(), NETWORK, labels)
    assert torch.equal(found, strong_view(beneath, random, policy="cifar10"))
    without = Views(options.model_copy(update={"strong": False}), task, crop=crop)
    kind = "crop" if crop else "erase"
    assert torch.equal(
        without.strong(images, draws(), NETWORK, labels), weak_view(images, draws(), kind=kind, flip=True)
    )


def test_a_step_has_its_number_of_unlabelled_images() -> None:
    phase = Phase(torch.arange(9), torch.arange(9))
    assert phase.unlabelled_size(64, 4) == 64
    for ratio, shares, expected in ((1.25, 1, 80), (0.5, 3, 30), (0.01, 4, 4)):
        assert Phase(phase.labelled, phase.unlabelled, unlabelled_ratio=ratio).unlabelled_size(64, shares) == expected


def test_unicon_as_published() -> None:
    flat = build("official", {"defense.name": "unicon", "data.name": "tiny-imagenet"}).flat()
    expected: dict[str, Any] = {"defense.lambda_u": 50, "defense.mixup_alpha": 0.5, "train.lr": 0.005}
    expected |= {"defense.projection": "linear", "defense.unlabelled_batch": "published"}
    assert {key: flat[key] for key in expected} == expected
    assert build("official", {"defense.name": "unicon"}).flat()["defense.lambda_u"] == 30
    assert build("paper", {"defense.name": "unicon"}).flat()["defense.projection"] == "mlp"


def test_the_paper_crafts_as_authors_do_and_the_demo_in_minutes() -> None:
    for kind in ("uhp", "uap"):
        given = {"corruption.data": kind}
        assert build("paper", given).flat()["corruption.images_per_class"] == 256
        assert build("demo", given).flat()["corruption.images_per_class"] == 16
    with pytest.raises(UserError, match="vgg12"):
        build("demo", {"corruption.data": "l2c", "corruption.victim": "vgg12"})
    own = {preset: build(preset, {"corruption.data": "l2c"}).corruption.own() for preset in ("paper", "demo")}
    keys = ("unet", "victim", "victim_epochs")
    assert [own["paper"][key] for key in keys] == ["official", "vgg11", 20]
    assert [own["demo"][key] for key in keys] == ["plain", "small", 1]


@pytest.mark.parametrize("defense", ["erat", "at", "unicon", "dividemix"])
def test_a_study_of_earlier_presets_keeps_its_runs(defense: str) -> None:
    """The ledger of a version before editions has none; its runs keep their digests, with a warm-up for all as well."""
    given = {"train.epochs": 10, "defense.warmup_epochs": 2}
    run = {"defense.name": defense, "train.seed": 0}
    new = StudySpec.listing("mine", "", [run, {"defense.name": "ce"}], "demo", given)
    content = new.content()
    assert content.pop("edition") == 2
    old = StudySpec.of(content)
    plain = {"defense.ramp_epochs": 16, "defense.warmup_epochs": 2}
    at = {"defense.warmup_epochs": 0, "defense.epsilon_ramp": 0}
    expected = build("demo", {"train.epochs": 10} | run | (at if defense == "at" else plain))
    assert old.config(run).digest() == expected.digest() != new.config(run).digest()
    assert "edition" not in old.content()
    assert StudySpec.of(new.content()).config(run) == new.config(run)
