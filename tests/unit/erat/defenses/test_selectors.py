"""Tests which labels are believed: by DivideMix's mixture, UNICON's divergence, MSPL's errors, and ERAT with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from erat.defenses.base import Clock, Task
from erat.defenses.dividemix import DivideMix, DivideMixOptions
from erat.defenses.erat import ERAT, ERATOptions
from erat.defenses.selector import Selector, SelectorOptions, Split, _at_least, clean_posterior
from erat.defenses.unicon import Unicon, UniconOptions
from erat.selection import divergence, divergence_cutoff, scores

SELECTORS = ("rebalance", "mixture", "class_mixture", "jsd", "errors")


def select(kind: str, probs: Tensor, labels: Tensor, **options: Any) -> Split:
    chosen: Any = {"name": "any", "selector": kind} | options
    task = Task(len(labels), probs.shape[1], False, lambda seed: nn.Identity())
    split: Split = Selector(SelectorOptions(**chosen), task)([probs], labels)
    return split


def predictions(given: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return class probabilities with `given` for each label and the rest on the class after it."""
    probs = torch.zeros(len(labels), classes)
    rows = torch.arange(len(labels))
    probs[rows, labels] = given
    probs[rows, (labels + 1) % classes] = 1 - given
    return probs


# --- DivideMix: a mixture of two Gaussians ---------------------------------------------------------------------------


def losses(low: tuple[float, float], high: tuple[float, float]) -> Tensor:
    """Draw 60 losses from one Gaussian, then 40 from another, each given as (mean, deviation)."""
    draw = np.random.default_rng(0)
    return torch.from_numpy(np.concatenate([draw.normal(*low, 60), draw.normal(*high, 40)]))


APART, OVERLAPPING = losses((0.4, 0.1), (2.5, 0.4)), losses((1.0, 0.5), (2.2, 0.6))


def expectation_maximisation(losses_N: Tensor) -> NDArray[np.float64]:
    """Return the posterior of the smaller mean.

    The start is 2-means from both ends; then there are at most ten rounds of EM, until the gain is below 1e-2.
    """
    x = losses_N.double().numpy()
    x = (x - x.min()) / (x.max() - x.min())
    centres = np.array([0.0, 1.0])
    for _ in range(100):
        nearest = np.abs(x[:, None] - centres).argmin(1)
        centres = np.array([x[nearest == k].mean() for k in (0, 1)])
    share_NM = np.eye(2)[nearest]

    def fit() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        count = share_NM.sum(0)
        mean = share_NM.T @ x / count
        return count / len(x), mean, (share_NM * (x[:, None] - mean) ** 2).sum(0) / count + 5e-4

    def joint() -> NDArray[np.float64]:
        density: NDArray[np.float64] = weight * norm.pdf(x[:, None], mean, np.sqrt(variance))
        return density

    weight, mean, variance = fit()
    before = -np.inf
    for _ in range(10):
        density = joint()
        share_NM = density / density.sum(1, keepdims=True)
        weight, mean, variance = fit()
        likelihood = np.log(density.sum(1)).mean()
        if abs(likelihood - before) < 1e-2:
            break
        before = likelihood
    density = joint()
    posterior: NDArray[np.float64] = (density / density.sum(1, keepdims=True))[:, mean.argmin()]
    return posterior


@pytest.mark.parametrize("values", [APART, OVERLAPPING], ids=["apart", "overlapping"])
def test_the_posterior_is_that_of_em(values: Tensor) -> None:
    np.testing.assert_allclose(clean_posterior(values).numpy(), expectation_maximisation(values), atol=1e-5)


def test_the_posterior_is_that_of_bayes_rule_on_scikit_learn_s_mixture() -> None:
    x = ((OVERLAPPING - OVERLAPPING.min()) / (OVERLAPPING.max() - OVERLAPPING.min())).numpy()[:, None]
    fit = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
    clean = int(fit.means_.argmin())
    deviation = np.sqrt(fit.covariances_[:, 0, 0])
    joint = fit.weights_ * norm.pdf(x, fit.means_[:, 0], deviation)
    np.testing.assert_allclose(clean_posterior(OVERLAPPING).numpy(), joint[:, clean] / joint.sum(1), atol=1e-5)


def test_small_losses_are_clean_in_any_order_and_scale() -> None:
    posterior = clean_posterior(APART)
    assert posterior.dtype == torch.float32
    assert posterior[:60].min() > 0.99
    assert posterior[60:].max() < 0.01
    torch.testing.assert_close(clean_posterior(APART.flip(0)).flip(0), posterior, atol=1e-5, rtol=0)
    torch.testing.assert_close(clean_posterior(7 * APART + 3), posterior, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_equal_losses_tell_nothing_and_all_are_believed(value: float) -> None:
    assert clean_posterior(torch.full((9,), value)).tolist() == [1.0] * 9
    split = select("mixture", torch.full((9, 3), 1 / 3), torch.arange(9) % 3)
    assert bool(split.mask.all())
    assert split.trust.tolist() == [1.0] * 9
    assert [len(part) for part in split.indices()] == [9, 0]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_a_label_is_believed_above_the_threshold(threshold: float) -> None:
    labels = torch.arange(100) % 4
    probs = predictions((-OVERLAPPING.float().clamp_min(0)).exp(), labels, 4)
    split = select("mixture", probs, labels, threshold=threshold)
    posterior = clean_posterior(scores(probs, labels, "ce"))
    assert torch.equal(split.trust, posterior)
    assert torch.equal(split.mask, posterior > threshold)
    assert 30 < int(split.mask.sum()) < 90


def test_a_higher_threshold_believes_fewer() -> None:
    labels = torch.arange(100) % 4
    probs = predictions((-OVERLAPPING.float().clamp_min(0)).exp(), labels, 4)
    counts = [int(select("mixture", probs, labels, threshold=value).mask.sum()) for value in (0.05, 0.5, 0.95)]
    assert counts[0] > counts[1] > counts[2]


# --- who judges for whom ---------------------------------------------------------------------------------------------


class Row(nn.Module):
    """A layer that returns the logarithm of one row of the image."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, self.row].log()


def written(row: int) -> nn.Module:
    """Return a network whose predictions are stored in a row of the image."""
    last = nn.Linear(2, 2, bias=False)
    nn.init.eye_(last.weight)
    return nn.Sequential(Row(row), last)


class Written:
    """Training data that contain the predictions of two networks."""

    num_classes = 2

    def __init__(self, first: Tensor, second: Tensor, labels: Tensor) -> None:
        self.labels = labels
        self.images = torch.stack([predictions(first, labels, 2), predictions(second, labels, 2)], 1)[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    @torch.no_grad()
    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(self.images)


LABELS = torch.arange(12) % 2
# The networks' belief in the given label: "main" doubts the last six, "peer" every third.
MAIN = torch.tensor([0.95, 0.9, 0.92, 0.94, 0.91, 0.93, 0.05, 0.1, 0.08, 0.06, 0.09, 0.07])
PEER = torch.tensor([0.07, 0.9, 0.95, 0.06, 0.91, 0.93, 0.05, 0.94, 0.9, 0.08, 0.96, 0.97])


def options(kind: Any, **more: Any) -> Any:
    return kind(**({"policy": "cifar10", "lambda_u": 25.0, "confidence_penalty": False, "warmup_epochs": 0} | more))


def test_each_network_learns_from_the_split_of_its_peer() -> None:
    model = DivideMix(options(DivideMixOptions), Task(12, 2, False, written))
    data = Written(MAIN, PEER, LABELS)
    plan = model.plan_epoch(Clock(0), data)
    main, peer = plan.phases
    assert [[update.networks for update in phase.updates] for phase in plan.phases] == [[("main",)], [("peer",)]]
    assert main.labelled.tolist() == [1, 2, 4, 5, 7, 8, 10, 11], "peer's word"
    assert main.unlabelled is not None
    assert main.unlabelled.tolist() == [0, 3, 6, 9]
    assert peer.labelled.tolist() == [0, 1, 2, 3, 4, 5], "main's word"
    for place, judge in enumerate((PEER, MAIN)):
        torch.testing.assert_close(model.trust[place], clean_posterior(-judge.log()), atol=1e-4, rtol=0)
    assert plan.selected is not None
    assert plan.selected.nonzero().flatten().tolist() == main.labelled.tolist()


def test_the_plan_s_classes_are_those_of_the_mean_of_both() -> None:
    model = DivideMix(options(DivideMixOptions), Task(12, 2, False, written))
    plan = model.plan_epoch(Clock(0), Written(MAIN, PEER, LABELS))
    assert plan.predicted is not None
    assert torch.equal(plan.predicted, torch.where((MAIN + PEER) / 2 > 0.5, LABELS, 1 - LABELS))


def test_a_joint_split_is_that_of_both_networks_mean() -> None:
    model = Unicon(options(UniconOptions), Task(12, 2, False, written))
    plan = model.plan_epoch(Clock(0), Written(MAIN, PEER, LABELS))
    expected = select("jsd", predictions((MAIN + PEER) / 2, LABELS, 2), LABELS)
    for place, phase in enumerate(plan.phases):
        assert phase.labelled.tolist() == expected.mask.nonzero().flatten().tolist()
        torch.testing.assert_close(model.trust[place], expected.trust, atol=1e-5, rtol=0)


# --- UNICON: the divergence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["2", "e"])
def test_the_divergence_is_scipy_s_distance_squared(base: str) -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(5, 0.3), 40)
    probs[0], probs[1], probs[2] = np.eye(5)[0], np.eye(5)[1], np.full(5, 0.2)
    labels = np.arange(40) % 4
    labels[1] = 0
    onehots = np.eye(5)[labels]
    distances = [jensenshannon(*pair, 2 if base == "2" else np.e) for pair in zip(probs, onehots, strict=True)]
    got = divergence(torch.from_numpy(probs), torch.from_numpy(labels), base)
    np.testing.assert_allclose(got.numpy(), np.square(distances), atol=1e-9)
    assert got[0] == pytest.approx(0, abs=1e-9), "says the label"
    assert got[1] == pytest.approx(1 if base == "2" else np.log(2)), "denies it"


@pytest.mark.parametrize(
    ("values", "cutoff"),
    [
        ([0.1, 0.2, 0.6], 0.3),  # mean 0.3
        # mean 0.8, above 0.7: lowered by a fifth of its distance from the smallest value
        ([0.5, 0.9, 1.0], 0.8 - 0.3 / 5),
        ([0.75, 0.75], 0.75),
    ],
)
def test_the_cutoff_is_the_mean_and_less_where_that_is_high(values: list[float], cutoff: float) -> None:
    assert divergence_cutoff(torch.tensor(values).double(), 0.7, 5.0) == pytest.approx(cutoff)


def test_the_cutoff_s_two_numbers_are_options() -> None:
    values = torch.tensor([0.1, 0.2, 0.6]).double()
    assert divergence_cutoff(values, 0.25, 2.0) == pytest.approx(0.3 - 0.2 / 2)
    # A mean that is not above the limit is not lowered.
    assert divergence_cutoff(torch.tensor([0.5, 1.0]).double(), 0.75, 5.0) == 0.75


# Nine believed labels of 14: 5 of class 0, 3 of class 1, 1 of class 2, which has two samples.
GIVEN = torch.tensor([0.1, 0.91, 0.95, 0.92, 0.94, 0.93, 0.1, 0.9, 0.91, 0.92, 0.1, 0.1, 0.9, 0.1])
BY_CLASS = torch.tensor([0] * 6 + [1] * 6 + [2] * 2)


def test_every_class_gives_its_share_of_the_count_below_the_cutoff() -> None:
    """The count is nine over three classes: the best three of each, and of the last class both that it has."""
    split = select("jsd", predictions(GIVEN, BY_CLASS, 3), BY_CLASS)
    labelled, rest = split.indices()
    assert labelled.tolist() == [2, 4, 5, 7, 8, 9, 12, 13]
    assert sorted(torch.cat([labelled, rest]).tolist()) == list(range(14)), "none twice, none lost"
    assert split.repeats == 0


def test_the_published_quota_fills_the_gap_with_sample_0() -> None:
    split = select("jsd", predictions(GIVEN, BY_CLASS, 3), BY_CLASS, quota="published")
    labelled, rest = split.indices()
    assert split.repeats == 1
    assert labelled.tolist() == [2, 4, 5, 7, 8, 9, 12, 13, 0]
    assert rest.tolist() == [1, 3, 6, 10, 11], "and without it among the unlabelled"
    assert not split.mask[0]


def test_equal_classes_give_equal_counts() -> None:
    labels = torch.arange(60) % 3
    given = torch.rand(60, generator=torch.Generator().manual_seed(0))
    probs = predictions(given, labels, 3)
    values = divergence(probs, labels)
    below = int((values < values.mean()).sum())
    for quota in ("capped", "published"):
        split = select("jsd", probs, labels, quota=quota)
        counts = torch.bincount(labels[split.mask], minlength=3)
        assert int(counts.sum()) == below
        assert counts.max() - counts.min() <= 1
        assert split.repeats == 0, "every class has enough"
        for k in range(3):
            mine = labels == k
            assert values[mine & split.mask].max() <= values[mine & ~split.mask].min()


def test_a_high_mean_divergence_believes_fewer() -> None:
    """Divergences 0.40, 0.73, 0.88, 0.96, 0.96 in both classes: mean 0.78, lowered by a fifth of 0.39 to 0.71."""
    labels = torch.tensor([0, 1] * 5)
    probs = predictions(torch.tensor([0.4, 0.12, 0.04, 0.01, 0.01]).repeat_interleave(2), labels, 2)
    assert divergence(probs, labels)[::2].tolist() == pytest.approx([0.40, 0.73, 0.88, 0.96, 0.96], abs=0.01)
    assert select("jsd", probs, labels).mask.nonzero().flatten().tolist() == [0, 1]
    assert select("jsd", probs, labels, jsd_high=0.8).mask.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert select("jsd", probs, labels, jsd_filter=8.0).mask.nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_a_label_is_kept_whole_below_half_and_in_part_above() -> None:
    """p = 0.1 of two classes: (0.1 ld(0.1 / 0.55) + 0.9 ld 2 + ld(1 / 0.55)) / 2 = 0.7583."""
    labels = torch.zeros(4, dtype=torch.int64)
    split = select("jsd", predictions(torch.tensor([1.0, 0.5, 0.1, 0.0]), labels, 2), labels)
    assert split.trust.tolist() == pytest.approx([1, 1, 1 - 0.7583, 0], abs=1e-4)


# --- MSPL: errors ----------------------------------------------------------------------------------------------------


def test_an_error_below_the_mean_of_all_or_of_its_class_is_believed() -> None:
    """The means are 0.2 and 1.8, and 1 over all.

    In class 0 the last error is above its class's mean, in class 1 the first is above the mean of all.
    """
    errors = torch.tensor([0.1, 0.2, 0.3, 1.1, 2.0, 2.3])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    split = select("errors", predictions((-errors).exp(), labels, 2), labels)
    assert split.mask.tolist() == [True, True, True, True, False, False]
    torch.testing.assert_close(split.trust, (-errors).exp())


def test_errors_all_alike_still_leave_something_to_learn_from() -> None:
    split = select("errors", torch.full((8, 2), 0.5), torch.zeros(8, dtype=torch.int64))
    assert split.mask.tolist() == [True, True] + [False] * 6


# --- the smallest labelled set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "count", "expected"),
    [
        ([1, 1, 0, 0, 0], 2, [1, 1, 0, 0, 0]),  # enough
        ([0, 0, 0, 1, 1], 3, [0, 1, 1, 0, 1]),  # too few: the smallest values instead
        ([0, 0, 0, 0, 0], 1, [0, 1, 0, 0, 0]),  # the first of equal values
        ([0, 0, 0, 0, 0], 9, [1, 1, 1, 1, 1]),  # as many as there are
        ([1, 1, 1, 1, 1], 9, [1, 1, 1, 1, 1]),
    ],
)
def test_fewer_than_asked_for_give_way_to_the_smallest(mask: list[int], count: int, expected: list[int]) -> None:
    values = torch.tensor([0.9, 0.2, 0.5, 0.7, 0.2])
    assert _at_least(torch.tensor(mask).bool(), values, count).int().tolist() == expected


@pytest.mark.parametrize("kind", SELECTORS)
def test_equal_predictions_leave_something_labelled(kind: str) -> None:
    split = select(kind, torch.full((8, 4), 0.25), torch.arange(8) % 4)
    assert int(split.mask.sum()) >= 4
    assert bool(((split.trust >= 0) & (split.trust <= 1)).all())


# --- ERAT with each --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SELECTORS)
def test_erat_labels_what_its_selector_says(kind: str) -> None:
    chosen: Any = {"policy": "cifar10", "warmup_epochs": 0, "selector": kind}
    model = ERAT(ERATOptions(**chosen), Task(12, 2, False, lambda seed: written(1)))
    plan = model.plan_epoch(Clock(0), Written(MAIN, PEER, LABELS))
    (phase,) = plan.phases
    assert plan.selected is not None
    expected = select(kind, predictions(PEER, LABELS, 2), LABELS, eta=0.1)
    assert torch.equal(plan.selected, expected.mask)
    assert phase.labelled.tolist() == expected.mask.nonzero().flatten().tolist()
    assert phase.unlabelled is not None
    assert phase.unlabelled.tolist() == (~expected.mask).nonzero().flatten().tolist()
    assert not plan.selected[torch.tensor([0, 3, 6, 9])].any(), "whom the network doubts"
    assert torch.equal(model.selector.labelled, expected.mask)
