"""Tests ERAT's options beyond the paper: clusters of images, aligned classes, the teacher and the confidence mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.config import RunConfig, build
from erat.data.augment.views import weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Clock, Task
from erat.defenses.clusters import FIRM_POWER, SIDE, SIZES, graph_clusters, image_clusters, named, thumbnails
from erat.defenses.erat import ERAT
from erat.defenses.options import ERATOptions
from erat.defenses.selector import Selector, clean_posterior
from erat.defenses.shared_options import SelectorOptions
from erat.defenses.teacher import Teacher
from erat.errors import UserError
from erat.losses import consistency
from erat.selection import balanced, scores
from tests.batches import batch

CLASSES = 4
EPSILON: dict[str, Any] = {"epsilon_inf": 0.1, "epsilon_2": 1.0, "policy": "cifar10"}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, CLASSES))


def defense(samples: int = 40, **options: Any) -> ERAT:
    return ERAT(ERATOptions(**(EPSILON | options)), Task(samples, CLASSES, False, network))


@dataclass
class Data:
    """Images of classes that look different, of which the whole of class 0 but a third wears the label 1."""

    images: Tensor
    labels: Tensor
    num_classes: int = CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, function: Any) -> Tensor:
        with torch.no_grad():
            made: Tensor = function(self.images)
        return made


@pytest.fixture
def data() -> Data:
    draw = torch.Generator().manual_seed(0)
    patterns, true = torch.rand(CLASSES, 1, 8, 8, generator=draw), torch.arange(40) % CLASSES
    labels = true.clone()
    labels[(true == 0).nonzero().flatten()[:7]] = 1
    return Data((patterns[true] + 0.05 * torch.randn(40, 1, 8, 8, generator=draw)).clamp(0, 1), labels)


# --- balanced classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_balanced_classes_are_equally_frequent_and_rows_sum_to_one(power: float) -> None:
    probs = (3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))).softmax(1) * torch.tensor(
        [9.0, 3, 1, 1, 1]
    )
    probs = probs / probs.sum(1, keepdim=True)
    made, weights = balanced(probs, power)
    torch.testing.assert_close(made.sum(1), torch.ones(60))
    torch.testing.assert_close(made.mean(0), torch.full((5,), 0.2), rtol=2e-3, atol=0)
    assert made.dtype == weights.dtype == torch.float32
    assert float(weights.mean()) == pytest.approx(1)
    rows = ((probs.double() + 1e-3) ** power) * weights
    torch.testing.assert_close(made, (rows / rows.sum(1, keepdim=True)).float())
    assert weights[0] == weights.min()


def test_balanced_classes_stay_as_they_are() -> None:
    probs = torch.eye(4).repeat(3, 1) * 0.7 + 0.075
    made, weights = balanced(probs)
    torch.testing.assert_close(made, (probs + 1e-3) / (1 + 4e-3))
    torch.testing.assert_close(weights, torch.ones(4))


def test_a_class_that_nobody_predicts_gets_its_share() -> None:
    made, _ = balanced(torch.tensor([[0.9, 0.1], [1.0, 0.0]]).repeat(5, 1))
    assert made.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert made[0, 1] > 0.5 > made[1, 1]


# --- clusters --------------------------------------------------------------------------------------------------------


def test_a_cluster_is_named_by_its_own_label_though_another_leads_in_it() -> None:
    clusters = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    labels = torch.tensor([0] * 4 + [1] * 6 + [1] * 8 + [0] * 2 + [2] * 10)
    assert named(clusters, labels, 3).argmax(1).tolist() == [0] * 10 + [1] * 10 + [2] * 10
    counts = torch.stack([F.one_hot(labels[clusters == c], 3).sum(0) for c in range(3)])
    assert counts.argmax(1).tolist() == [1, 1, 2], "the majority merges two clusters"


def test_clusters_are_those_of_the_images_and_the_same_in_each_call(data: Data) -> None:
    found = image_clusters(data.map(thumbnails), CLASSES)
    assert found.dtype == torch.int64
    true = torch.arange(40) % CLASSES
    assert all(len(found[true == k].unique()) == 1 for k in range(CLASSES))
    assert len(found.unique()) == CLASSES
    assert torch.equal(found, image_clusters(data.map(thumbnails), CLASSES))


def test_neighbours_hold_a_long_class_together_which_pixels_cut() -> None:
    """Two rings on a sphere, one above the other: nearest neighbours are of the same ring, the far side is not."""
    angle = torch.arange(80) * (2 * torch.pi / 80)
    ring = torch.stack([0.94 * angle.cos(), 0.94 * angle.sin()], 1)
    rows = torch.cat([torch.cat([ring, torch.full((80, 1), height)], 1) for height in (-0.34, 0.34)])
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    true = (order >= 80).long()
    by_graph, by_pixels = graph_clusters(rows[order], 2, 1), image_clusters(rows[order], 2)
    assert by_graph.dtype == torch.int64
    assert by_graph.shape == (SIZES, 160)
    assert all(torch.equal(found, true) or torch.equal(found, 1 - true) for found in by_graph)
    assert 0.4 < float((by_pixels == true).double().mean()) < 0.6
    assert torch.equal(by_graph, graph_clusters(rows[order], 2, 1))


def test_neighbours_find_all_of_many_separate_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    true = torch.arange(480) % 12
    rows = torch.rand(12, 200, generator=draw)[true] + 0.01 * torch.randn(480, 200, generator=draw)
    found = graph_clusters(rows, 12, 1)[0]
    assert sorted(len(true[found == k].unique()) for k in range(12)) == [1] * 12
    assert len(set(zip(found.tolist(), true.tolist(), strict=True))) == 12


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("alike", [True, False])
def test_places_in_the_graph_of_a_few_images_or_of_equal_ones(count: int, alike: bool) -> None:
    rows = torch.ones(count, 5) if alike else torch.rand(count, 5, generator=torch.Generator().manual_seed(0))
    found = graph_clusters(rows, 4, 8)
    assert found.shape == (SIZES, count)
    assert int(found.min()) >= 0
    assert [int(each.max()) < most for each, most in zip(found, (4, 13, 23, 32), strict=True)] == [True] * SIZES


def test_names_are_averaged_over_the_numbers_of_clusters() -> None:
    draw = torch.Generator().manual_seed(0)
    labels, clusters = torch.randint(3, (90,), generator=draw), torch.randint(5, (2, 90), generator=draw)
    counts = torch.ones(2, 5, 3, dtype=torch.float64)
    for size in range(2):
        counts[size].index_put_((clusters[size], labels), torch.ones(90, dtype=torch.float64), accumulate=True)
    shares = counts / counts.sum(2, keepdim=True)
    expected, _ = balanced((shares[0][clusters[0]] + shares[1][clusters[1]]) / 2, FIRM_POWER)
    torch.testing.assert_close(named(clusters, labels, 3), expected)
    assert torch.equal(named(clusters[:1], labels, 3), named(clusters[0], labels, 3))


@pytest.mark.parametrize("count", [3, 50])
def test_fewer_images_than_clusters_or_images_that_are_all_equal(count: int) -> None:
    found = image_clusters(torch.ones(count, 5), 32)
    assert found.shape == (count,)
    assert 0 <= int(found.min()) <= int(found.max()) < 32


def test_large_images_are_shrunk() -> None:
    assert thumbnails(torch.rand(2, 3, 64, 64)).shape == (2, 3 * SIDE**2)
    small = torch.rand(2, 3, 14, 14)
    assert torch.equal(thumbnails(small), small.flatten(1))


def test_clusters_judge_in_their_epochs_and_the_network_after_them(data: Data) -> None:
    model = defense(warmup_epochs=1, cluster_epochs=2, clusters=1).eval()
    judged: list[Tensor] = []
    model.selector.register_forward_pre_hook(lambda _, arguments: judged.append(arguments[0][0]))
    assert bool((model.clusters == -1).all())
    for epoch in (1, 2, 3):
        model.plan_epoch(Clock(epoch), data)
    clusters = image_clusters(data.map(thumbnails), CLASSES)
    assert torch.equal(model.clusters, clusters)
    expected = named(clusters, data.labels, CLASSES)
    assert torch.equal(judged[0], expected)
    assert torch.equal(judged[1], expected)
    assert torch.equal(judged[2], data.map(model.networks["main"]).softmax(1))
    model.clusters.fill_(0)  # as from a checkpoint: they are not made again
    model.plan_epoch(Clock(2), data)
    assert torch.equal(judged[3], named(model.clusters, data.labels, CLASSES))


@pytest.mark.parametrize("by", ["pixels", "neighbours"])
def test_the_option_says_by_what_images_are_clustered(data: Data, by: str) -> None:
    model = defense(warmup_epochs=0, cluster_epochs=1, clusters=3, cluster_by=by).eval()
    model.plan_epoch(Clock(0), data)
    rows = data.map(thumbnails)
    by_graph = by == "neighbours"
    assert torch.equal(model.clusters, graph_clusters(rows, CLASSES, 3) if by_graph else image_clusters(rows, 12))
    model.clusters.fill_(1)  # as from a checkpoint: they are not made again
    model.plan_epoch(Clock(0), data)
    assert bool((model.clusters == 1).all())


def test_a_kind_of_clusters_needs_clusters() -> None:
    with pytest.raises(UserError, match=r"defense\.cluster_by=neighbours needs defense\.cluster_epochs above 0, got 0"):
        build("demo", {"defense.cluster_by": "neighbours"})


def test_clusters_select_right_labels_of_a_class_that_mostly_wears_another(data: Data) -> None:
    mask = defense(warmup_epochs=0, cluster_epochs=1, clusters=1).eval().plan_epoch(Clock(0), data).selected
    assert mask is not None
    true = torch.arange(40) % CLASSES
    assert bool((data.labels == true)[mask].all())
    assert int((mask & (true == 0)).sum()) == 3


# --- aligned scores and pseudo-labels --------------------------------------------------------------------------------


def test_aligned_scores_and_pseudo_labels(data: Data) -> None:
    model = defense(warmup_epochs=0, align=True).eval()
    judged: list[Tensor] = []
    model.selector.register_forward_pre_hook(lambda _, arguments: judged.append(arguments[0][0]))
    plan = model.plan_epoch(Clock(0), data)
    probs = data.map(model.networks["main"]).softmax(1)
    expected, weights = balanced(probs)
    assert torch.equal(judged[0], expected)
    assert torch.equal(model.balance, weights)
    assert "balance" in model.state_dict()
    assert plan.predicted is not None
    assert torch.equal(plan.predicted, probs.argmax(1)), "what the network itself predicts"
    given = batch(4)
    view = weak_view(given.unlabelled, BatchRandom(torch.Generator().manual_seed(0)), kind="erase", flip=False)
    with torch.no_grad():
        rows = model.networks["main"](view).softmax(1) * weights
    torch.testing.assert_close(model._pseudo_labels(given), rows / rows.sum(1, keepdim=True))


# --- teacher ---------------------------------------------------------------------------------------------------------


def test_a_teacher_is_the_running_mean_of_weights_and_statistics_and_learns_nothing() -> None:
    student = network(0)
    teacher = Teacher(student, 0.75)
    first = {name: value.clone() for name, value in student.state_dict().items()}
    assert not list(teacher.parameters())
    assert teacher.state_dict().keys() == {f"network.{name}" for name in first}
    with torch.no_grad():
        for value in student.state_dict().values():
            value += 1
    teacher.follow(student)
    for name, value in teacher.network.state_dict().items():
        expected = first[name] + (0.25 if value.is_floating_point() else 1)
        torch.testing.assert_close(value, expected)


def apart(model: ERAT) -> float:
    """Return how far the teacher's weights are from the network's, as a sum over all weights."""
    assert model.teacher is not None
    theirs, mine = model.teacher.network.state_dict(), dict(model.networks["main"].named_parameters())
    return sum(float(F.l1_loss(theirs[name], weight.detach(), reduction="sum")) for name, weight in mine.items())


def test_a_teacher_scores_guesses_and_follows(data: Data) -> None:
    model = defense(warmup_epochs=0, teacher=0.5).eval()
    assert model.teacher is not None
    with torch.no_grad():
        for weight in model.networks.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    plan, given = model.plan_epoch(Clock(0), data), batch(4)
    assert plan.predicted is not None
    assert torch.equal(plan.predicted, data.map(model.teacher).argmax(1))
    view = weak_view(given.unlabelled, BatchRandom(torch.Generator().manual_seed(0)), kind="erase", flip=False)
    with torch.no_grad():
        theirs, own = (judge(view).softmax(1) for judge in (model.teacher, model.networks["main"]))
    guessed = model._pseudo_labels(given)
    torch.testing.assert_close(guessed, theirs)
    assert not torch.allclose(guessed, own)
    distance = apart(model)
    model.updated()
    after = apart(model)
    assert after == pytest.approx(distance / 2, rel=1e-4)


# --- confidence ------------------------------------------------------------------------------------------------------


def test_consistency_of_some_rows_is_a_mean_over_all() -> None:
    logits, target = torch.randn(4, 3), torch.full((4, 3), 1 / 3)
    kept = torch.tensor([True, False, False, True])
    assert torch.equal(consistency(logits, target, kept_N=torch.ones(4, dtype=torch.bool)), consistency(logits, target))
    for reduction in ("mean", "sum"):
        torch.testing.assert_close(
            consistency(logits, target, reduction, kept), consistency(logits[kept], target[kept], reduction) / 2
        )


@pytest.mark.parametrize("uniform", [True, False])
def test_only_confident_pseudo_labels_teach(uniform: bool) -> None:
    options: dict[str, Any] = {"warmup_epochs": 0, "ramp_epochs": 0.0, "uniform": uniform}
    sure = defense(**options)._pseudo_labels(batch(4)).amax(1)
    limit = float(sure.sort().values[3] - 1e-4)
    plain, all_of_them, some, none = (
        defense(**options, confidence=confidence).eval().loss(batch(4), Clock(0)).terms
        for confidence in (0.0, 0.01, limit, 1.0)
    )
    for name, (_, value) in plain.items():
        assert torch.equal(all_of_them[name][1], value)
        if name.startswith("unlabelled"):
            assert none[name][1].item() == 0
            assert 0 < some[name][1].item() < value.item()
        else:
            assert torch.equal(none[name][1], value)


# --- a mixture for each class ----------------------------------------------------------------------------------------


def test_each_class_has_a_mixture_of_its_own() -> None:
    """Class 1 is hard: even its right labels have larger losses than the wrong ones of class 0."""
    given = torch.cat([torch.linspace(0.90, 0.99, 20), torch.linspace(0.4, 0.45, 20)])
    given = torch.cat([given, torch.linspace(0.2, 0.25, 20), torch.linspace(0.001, 0.002, 20)])
    labels = torch.tensor([0] * 40 + [1] * 40)
    probs = torch.stack([given, 1 - given], 1)
    probs[40:] = probs[40:].flip(1)
    task = Task(80, 2, False, lambda seed: nn.Identity())
    options = {"name": "any", "selector": "class_mixture"}
    split = Selector(SelectorOptions(**options), task)([probs], labels)
    assert split.mask.tolist() == ([True] * 20 + [False] * 20) * 2
    losses = scores(probs, labels, "ce")
    assert torch.equal(split.trust, torch.cat([clean_posterior(losses[:40]), clean_posterior(losses[40:])]))
    assert int((clean_posterior(losses)[40:60] > 0.5).sum()) == 20
    assert int((clean_posterior(losses)[20:40] > 0.5).sum()) == 20, (
        "one mixture for all believes wrong labels of class 0"
    )


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["align", "cluster_epochs", "teacher"])
def test_ways_to_judge_labels_need_a_selection(key: str) -> None:
    value = {"align": True, "cluster_epochs": 1, "teacher": 0.5}[key]
    with pytest.raises(UserError, match=rf"defense\.{key}=\S+ needs defense\.selection=true, got false"):
        build("demo", {f"defense.{key}": value, "defense.selection": False})


def test_what_is_off_is_no_part_of_the_identity() -> None:
    keys = {f"defense.{key}" for key in ("align", "cluster_epochs", "clusters", "cluster_by", "teacher", "confidence")}
    off: RunConfig = build("demo")
    assert keys <= off.flat().keys()
    assert not keys & off.identity().keys()
    assert "defense.align" in build("demo", {"defense.align": True}).identity()


def test_the_papers_erat_has_no_state_of_these_options() -> None:
    names = defense().state_dict().keys()
    assert not {name for name in names if name.startswith(("balance", "clusters", "teacher"))}
