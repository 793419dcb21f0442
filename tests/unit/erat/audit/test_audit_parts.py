"""Tests the parts of an audit: folds, joint opinion, label quality, noise, poisoning tests, robustness, settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erat.audit.audit import conclude, plan
from erat.audit.crossfit import train_on
from erat.audit.folds import deal
from erat.audit.poisoning import GAP_THRESHOLD, SEPARABILITY_THRESHOLD, poison_test, separability, washed
from erat.audit.quality import (
    above_chance,
    as_sure_as,
    estimate_noise,
    issues,
    joint_opinion,
    label_quality,
    mean_scores,
    suggestions,
)
from erat.audit.robustness import robustness
from erat.audit.settings import customary_budgets, plain_settings, robust_settings
from erat.corruption.base import quantize
from erat.data.types import ImageSet
from erat.engine.checkpoint import save
from erat.errors import UserError
from erat.robustness.common import corrupt
from orchestration.audit.execute import _kept


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax(*shape: int, seed: int = 0, times: float = 2.0) -> Tensor:
    return (times * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).softmax(-1)


# --- folds -----------------------------------------------------------------------------------------------------------


def test_every_class_is_spread_over_the_folds_and_copies_stay_together() -> None:
    labels = torch.tensor([0] * 40 + [1] * 11 + [2] * 5)
    copies = [[0, 41, 52], [3, 4]]
    fold = deal(labels, 5, copies, seeded())
    for k, least in ((0, 7), (1, 1), (2, 0)):
        counts = torch.bincount(fold[labels == k], minlength=5)
        assert int(counts.min()) >= least
        assert int(counts.max() - counts.min()) <= 3
    for group in copies:
        assert len(set(fold[group].tolist())) == 1
    assert int(fold.min()) == 0 and int(fold.max()) == 4
    assert not torch.equal(fold, deal(labels, 5, copies, seeded(1)))


@pytest.mark.parametrize("folds", [0, 1, 7])
def test_folds_out_of_range(folds: int) -> None:
    with pytest.raises(UserError, match=rf"folds must be in \[2, 6\] for 6 images, got {folds}"):
        deal(torch.zeros(6, dtype=torch.int64), folds, [], seeded())


# --- quality ---------------------------------------------------------------------------------------------------------


def test_as_sure_as_keeps_every_order_and_reaches_the_confidence() -> None:
    probs = softmax(200, 5)
    for confidence in (0.4, 0.6, 0.95):
        surer = as_sure_as(probs, confidence)
        assert float(surer.max(1).values.mean()) == pytest.approx(confidence, abs=1e-4)
        assert torch.equal(surer.argsort(1), probs.argsort(1))
        assert torch.allclose(surer.sum(1), torch.ones(200, dtype=torch.float64))


def test_joint_opinion_is_the_mean_of_equally_sure_predictions() -> None:
    robust, plain = softmax(3, 50, 4, seed=1, times=4), softmax(3, 50, 4, seed=2, times=1)
    labels = robust.mean(0).argmax(1)
    plain[:, torch.arange(50), labels] += 2  # both know the labels equally well
    plain = plain / plain.sum(2, keepdim=True)
    joint = joint_opinion(robust, plain, labels)
    other = 2 * joint - robust
    for epoch in range(3):
        confidence = float(robust[epoch].max(1).values.mean())
        assert float(other[epoch].max(1).values.mean()) == pytest.approx(confidence, abs=1e-4)
        assert torch.equal(other[epoch].argmax(1), plain[epoch].argmax(1))


def test_who_knows_no_more_than_chance_has_no_say() -> None:
    labels = torch.arange(40) % 4
    knowing = torch.eye(4, dtype=torch.float64)[labels][None] * 0.8 + 0.05
    silent = torch.eye(4, dtype=torch.float64)[torch.zeros_like(labels)][None]
    assert above_chance(knowing[0], labels) == 0.75
    assert above_chance(silent[0], labels) == 0.0
    assert torch.allclose(joint_opinion(knowing, silent, labels), knowing)
    only_plain = joint_opinion(silent, knowing, labels)
    assert torch.equal(only_plain.argmax(2), labels[None])


def test_label_quality_is_the_papers_score_over_epochs() -> None:
    labels = torch.tensor([0, 1])
    probs = torch.tensor([[[1.0, 0, 0], [1, 0, 0]], [[0, 1, 0], [1, 0, 0]]])
    assert mean_scores(probs, labels).tolist() == [1.0, 2.0]
    assert label_quality(mean_scores(probs, labels)).tolist() == [0.5, 0.0]


def test_suggestions_keep_the_given_label_on_a_tie() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.5, 0.5]])
    suggested, probability = suggestions(probs, torch.tensor([1, 0, 0]))
    assert suggested.tolist() == [1, 1, 0]
    assert probability.tolist() == pytest.approx([0.5, 0.6, 0.5])


def test_issues_are_clear_disagreements() -> None:
    labels = torch.tensor([0, 0, 0])
    probs = torch.tensor([[0.1, 0.9], [0.48, 0.52], [0.7, 0.3]], dtype=torch.float64)
    assert issues(probs, mean_scores(probs[None], labels), labels).tolist()[0] is True
    assert issues(probs, mean_scores(probs[None], labels), labels).tolist()[2] is False


def test_noise_is_counted_per_class_that_is_shown() -> None:
    believed, given = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 2])
    noise = estimate_noise(believed, given, 4)
    assert noise.rate == pytest.approx(2 / 6)
    assert noise.transition[0].tolist() == [0.75, 0.25, 0, 0]
    assert noise.transition[3].tolist() == [0, 0, 0, 1], "of a class that nothing shows nothing is known"
    assert noise.given.tolist() == [3, 2, 1, 0]
    assert noise.estimated.tolist() == [4, 2, 0, 0]


# --- poisoning -------------------------------------------------------------------------------------------------------


def plainly(count: int = 240, *, classes: int = 4, seed: int = 0) -> ImageSet:
    """Make smooth pictures that say nothing about the class."""
    labels = torch.arange(count) % classes
    coarse = torch.rand(count, 1, 4, 4, generator=seeded(seed))
    pixels = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear")
    return ImageSet((255 * pixels).round().to(torch.uint8), labels, tuple("abcd"[:classes]))


def poisoned(images: ImageSet, epsilon: float = 0.08) -> ImageSet:
    signs = torch.randint(2, (images.num_classes, 1, 12, 12), generator=seeded(5)) * 2.0 - 1
    pixels = quantize(images.images, epsilon * signs[images.labels], "linf", epsilon)
    return replace(images, images=pixels)


def test_separability_finds_a_class_wise_pattern_and_nothing_in_clean_pictures() -> None:
    clean = plainly()
    assert abs(separability(clean.images, clean.labels, 4)) < 0.15
    dirty = poisoned(clean)
    assert separability(dirty.images, dirty.labels, 4) > 0.8
    natural = clean.images // 2 + (40 * clean.labels.to(torch.uint8))[:, None, None, None]
    assert abs(separability(natural, clean.labels, 4)) < 0.15, "what tells a class beside its pixels is no perturbation"
    shuffled = clean.labels[torch.randperm(len(clean), generator=seeded(3))]
    assert abs(separability(dirty.images, shuffled, 4)) < 0.15, "the pattern must be that of the label"


def test_poison_test_says_what_it_found() -> None:
    clean = plainly()
    right, sure = clean.labels, torch.ones(len(clean), dtype=torch.bool)
    wrong = (right + 1) % 4
    nothing = poison_test(clean, right, sure, {"plain": right, "robust": right}, {"plain": right, "robust": right})
    assert (nothing.poisoned, nothing.gap.value) == (False, 0.0)
    falls = poison_test(clean, right, sure, {"plain": right, "robust": right}, {"plain": wrong, "robust": right})
    assert falls.gap.value == 1.0 and falls.gap.found and falls.poisoned and not falls.separability.found
    both = poison_test(clean, right, sure, {"plain": right, "robust": right}, {"plain": wrong, "robust": wrong})
    assert not both.gap.found, "what both lose is the washing's fault"
    pattern = poison_test(poisoned(clean), right, sure, *[{"plain": right, "robust": right}] * 2)
    assert pattern.separability.found and pattern.poisoned and not pattern.gap.found
    few = poison_test(clean, right, sure & (torch.arange(240) < 50), *[{"plain": right, "robust": right}] * 2)
    assert few.images == 50 and not few.poisoned
    none = poison_test(clean, right, ~sure, *[{"plain": right, "robust": right}] * 2)
    assert none.images == 0 and not none.poisoned
    assert 0 < GAP_THRESHOLD < 1 and 0 < SEPARABILITY_THRESHOLD < 1


@pytest.mark.parametrize("dirty", [True, False])
def test_plain_training_has_no_say_where_a_perturbation_carries_the_labels(dirty: bool) -> None:
    given = plainly()
    true = given.labels.clone()
    true[:120] = (true[:120] + 1) % 4  # half of the labels are wrong, and the perturbation follows them
    images = poisoned(given) if dirty else given
    robust = robust_settings(images, {"train.epochs": 2})
    audited = plan(images, robust, plain_settings(robust), 2)
    eye = torch.eye(4) * 0.8 + 0.05
    parts = []
    for fold in range(2):
        rows = audited.fold == fold
        said = {"robust": eye[true[rows]][None], "plain": eye[given.labels[rows]][None]}
        fallen = {"robust": true[rows], "plain": given.labels[rows]}
        parts.append({**said, "washed": fallen})
    audit = conclude(audited, parts)
    assert audit.disagree and audit.alone == dirty == audit.poisoning.poisoned
    wrong = true != given.labels
    assert torch.equal(audit.issue, wrong) if dirty else not audit.issue.any()


def test_washing_leaves_few_levels() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert washed(images).unique().tolist() == [0, 85, 170, 255]


# --- robustness and settings -----------------------------------------------------------------------------------------


def test_common_corruptions_do_what_they_say() -> None:
    images = torch.randint(0, 256, (40, 1, 16, 16), generator=seeded()).to(torch.uint8)
    clean = images.float() / 255
    assert torch.equal(corrupt(images, "none", 0), clean)
    grey = torch.full((4, 1, 64, 64), 128, dtype=torch.uint8)
    assert float(corrupt(grey, "noise", 0.1, seed=1).std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(corrupt(grey, "noise", 0.1, seed=1), corrupt(grey, "noise", 0.1, seed=2))
    strong, weak = corrupt(images, "blur", 1.0), corrupt(images, "blur", 0.4)
    assert strong.std() < weak.std() < clean.std()
    rough, fine = corrupt(images, "jpeg", 10), corrupt(images, "jpeg", 95)
    assert (rough - clean).abs().mean() > 2 * (fine - clean).abs().mean()


def test_robustness_attacks_harder_with_larger_budgets(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(96, seed=1)
    budgets = {"defense.epsilon_inf": 0.05, "defense.epsilon_2": 0.5, "defense.policy": "svhn", "data.flip": False}
    config = robust_settings(images, {"train.epochs": 4, "defense.warmup_epochs": 1, **budgets})
    trained = train_on(config, images).defense
    told: list[tuple[int, int]] = []
    holds = robustness(
        {"it": trained}, make_images(60, seed=3), {"linf": 0.1, "l2": 1.0}, 0, lambda *at: told.append(at)
    )
    assert told[-1][0] == told[-1][1] == len(holds)
    clean = next(hold for hold in holds if hold.kind == "none").accuracy["it"]
    linf = [hold.accuracy["it"] for hold in holds if hold.kind == "linf"]
    assert [hold.strength for hold in holds if hold.kind == "linf"] == pytest.approx([0.025, 0.05, 0.1, 0.2])
    assert clean > 0.8
    assert clean >= linf[0] >= linf[-1] and linf[-1] < clean
    assert {hold.kind for hold in holds} == {"none", "linf", "l2", "noise", "blur", "jpeg"}


def test_few_of_many_images_are_attacked_and_of_every_class(
    make_images: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(60, classes=3, seed=3)
    by_class = images.take(images.labels.argsort(stable=True))  # in the order in which the files of a folder are read
    trained = train_on(robust_settings(by_class, {"train.epochs": 1, "defense.warmup_epochs": 1}), by_class).defense
    attacked: list[Tensor] = []

    def noted(defense: Any, subject: ImageSet, norm: str, epsilon: float) -> Tensor:
        attacked.append(subject.labels)
        return subject.labels

    monkeypatch.setattr("erat.audit.robustness.attacked_classes", noted)
    monkeypatch.setattr("erat.audit.robustness.MOST_ATTACKED", 12)
    robustness({"it": trained}, by_class, {"linf": 0.1, "l2": 1.0}, 0)
    assert all(torch.bincount(labels, minlength=3).tolist() == [4, 4, 4] for labels in attacked)


def test_settings_follow_the_size_of_the_set() -> None:
    def of(count: int, channels: int, size: int) -> ImageSet:
        return ImageSet(
            torch.zeros(count, channels, size, size, dtype=torch.uint8), torch.arange(count) % 2, ("a", "b")
        )

    small, large = robust_settings(of(60, 1, 28)), robust_settings(of(5000, 3, 64))
    assert small.train.epochs > large.train.epochs
    assert (small.train.batch_size, large.train.batch_size) == (16, 64)
    assert (small.train.lr, large.train.lr) == (0.025, 0.1)
    assert (small.model.name, large.model.name) == ("small", "resnet18")
    assert (small.data.flip, large.data.flip) == (False, True)
    assert customary_budgets(of(2, 1, 28)) == {"linf": 0.1, "l2": 2.0}
    assert customary_budgets(of(2, 3, 32))["l2"] == 0.5
    grey = replace(of(2, 1, 32), images=torch.full((2, 1, 32, 32), 90, dtype=torch.uint8))
    assert customary_budgets(grey)["linf"] == pytest.approx(8 / 255), "a grey photograph is no ink"
    halved = robust_settings(of(60, 1, 28), scale=0.5)
    assert halved.flat()["defense.epsilon_inf"] == 0.05
    own = robust_settings(of(60, 1, 28), {"train.epochs": 3, "defense.epsilon_inf": 0.3, "model.name": "vgg11"})
    assert (own.train.epochs, own.flat()["defense.epsilon_inf"], own.model.name) == (3, 0.3, "vgg11")
    plain = plain_settings(own)
    assert (plain.defense.name, plain.train, plain.model) == ("ce", own.train, own.model)


# --- what is kept of an audit ----------------------------------------------------------------------------------------


def test_a_stored_part_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    path, made = tmp_path / "part.pt", []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"rows": [1]}

    def kept() -> dict[str, Any]:
        return _kept(path, make, lambda content: content["rows"] == [1])

    assert kept() == kept() == {"rows": [1]}
    assert len(made) == 1
    for damage in (lambda: path.write_bytes(b"\0" * 100), lambda: save(path, {"rows": [2]}), lambda: save(path, {})):
        damage()
        with pytest.warns(UserWarning, match=rf"^{path} is damaged: it is made again$"):
            assert kept() == {"rows": [1]}
    assert len(made) == 4
