"""Tests the poisons that need no network against calculations of their own: OPS, LSP, AR and CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import erat
from erat.config import RunConfig, build
from erat.corruption import cuda, samplewise
from erat.corruption.ar import find_coefficients, response, unroll
from erat.corruption.base import Craft
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.errors import UserError
from erat.registry import CORRUPTIONS

K = 4
KINDS = ("ops", "lsp", "ar", "cuda")


def request(kind: str, *, count: int = 60, size: int = 8, channels: int = 3, seed: int = 0, **changes: Any) -> Craft:
    """Make an order for images of random grey levels, with the kind's own norm and options and a budget of 1."""
    draw = torch.Generator().manual_seed(7)
    part = CORRUPTIONS[kind]

    def no_network() -> Any:
        raise AssertionError("no network is needed")

    order = Craft(
        images=torch.randint(256, (count, channels, size, size), generator=draw) / 255,
        labels=torch.arange(count) % K,
        num_classes=K,
        norm=part.norm,
        epsilon=1.0,
        granularity="sample",
        generator=torch.Generator().manual_seed(seed),
        build=no_network,
        source=no_network,
        options=part.Options().own(),
    )
    return replace(order, **changes)


def crafted(order: Craft, kind: str) -> Tensor:
    return CORRUPTIONS[kind].perturb(order)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_the_size_of_a_part_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = crafted(request(kind), kind)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(crafted(request(kind), kind), whole)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(samplewise.by_part, "__defaults__", (16,))  # a multiple of torch's vectors of random numbers
    assert torch.equal(crafted(request(kind), kind), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_images_is_no_hindrance(kind: str) -> None:
    labels = torch.arange(60) % 2 * 3  # classes 0 and 3
    delta = crafted(request(kind, labels=labels), kind)
    assert delta.isfinite().all()
    assert (delta != 0).flatten(1).any(1).all()


# --- OPS -------------------------------------------------------------------------------------------------------------


def changed(order: Craft, delta: Tensor, label: int) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return the pixels that a class's images share, place -> colour, after checking that nothing else changed."""
    mine = order.labels == label
    moved = order.images[mine] + delta[mine]
    places = (delta[mine] != 0).any(1).any(0).nonzero().tolist()
    found = {}
    for row, column in places:
        colours = moved[:, :, row, column]
        torch.testing.assert_close(colours, colours[:1].expand_as(colours), rtol=0, atol=1e-6)
        found[row, column] = tuple(round(float(value)) for value in colours[0])
        torch.testing.assert_close(colours[0], torch.tensor(found[row, column]).float(), rtol=0, atol=1e-6)
    return found


def by_hand(order: Craft, pixels: int) -> list[dict[tuple[int, int], tuple[int, ...]]]:
    """Return what OPS has to choose: every pixel and colour is tried, one at a time, by numpy's mean and std."""
    taken: set[tuple[tuple[int, int], tuple[int, ...]]] = set()
    size, channels = order.images.shape[-1], order.images.shape[1]
    chosen: list[dict[tuple[int, int], tuple[int, ...]]] = []
    for label in range(K):
        images = order.images[order.labels == label].double().numpy()
        values = {}
        for place in itertools.product(range(size), repeat=2):
            for colour in itertools.product((0, 1), repeat=channels):
                distance = np.abs(np.array(colour) - images[:, :, place[0], place[1]])
                values[place, colour] = distance.mean() / distance.std()
        mine: dict[tuple[int, int], tuple[int, ...]] = {}
        for place, colour in sorted(values, key=lambda pair: -values[pair]):
            if len(mine) < pixels and (place, colour) not in taken and place not in mine:
                mine[place] = colour
        taken |= set(mine.items())
        chosen.append(mine)
    return chosen


@pytest.mark.parametrize(("channels", "pixels"), [(1, 1), (3, 1), (3, 3)])
def test_ops_sets_the_pixels_that_a_search_by_hand_finds(channels: int, pixels: int) -> None:
    order = request("ops", channels=channels, epsilon=float(pixels))
    delta = crafted(order, "ops")
    expected = by_hand(order, pixels)
    assert [changed(order, delta, label) for label in range(K)] == expected
    assert all(len(mine) == pixels for mine in expected)


def test_ops_gives_no_two_classes_the_same_pixel_and_the_seed_decides_between_equals() -> None:
    """In the black margin of digits all pixels are as good; classes that look alike must not share one."""
    black = torch.zeros(40, 1, 6, 6)
    black[:, :, 2:4, 2:4] = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(3):
        order = request("ops", count=40, size=6, images=black, seed=seed)
        delta = crafted(order, "ops")
        pairs = [changed(order, delta, label) for label in range(K)]
        assert all(len(mine) == 1 and set(mine.values()) == {(1,)} for mine in pairs)
        places = [place for mine in pairs for place in mine]
        assert len(set(places)) == K
        assert all(not (2 <= row < 4 and 2 <= column < 4) for row, column in places), "the even ones are best"
        found.append(places)
    assert found[0] != found[1] != found[2]


def test_ops_has_a_pixel_for_every_class_or_says_so() -> None:
    with pytest.raises(
        UserError, match=r"^corruption.epsilon must leave pixels .* each of 40 classes: at most 0 .*got 1$"
    ):
        crafted(request("ops", size=4, channels=1, num_classes=40), "ops")
    # All 32 pairs of 16 places and two colours are given away to 32 classes.
    order = request("ops", size=4, channels=1, num_classes=32, labels=torch.arange(60) % 32)
    moved = order.images + crafted(order, "ops")
    pairs = {
        (place, int(moved[label, 0].flatten()[place]))
        for label in range(32)
        for place in (moved[label::32] != order.images[label::32]).flatten(1).any(0).nonzero().flatten().tolist()
    }
    assert len(pairs) == 32


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"corruption.epsilon": 0.5},
            "corruption.epsilon must be a whole number of pixels, at least 1, for ops, got 0.5",
        ),
        ({"corruption.epsilon": 0}, "corruption.epsilon must be a whole number of pixels, at least 1, for ops, got 0"),
        (
            {"corruption.epsilon": 197},
            "corruption.epsilon must be at most the 196 pixels of an image for ops, got 197",
        ),
        ({"corruption.norm": "linf"}, "corruption.norm must be l0 for ops, got 'linf'"),
        ({"corruption.data": "l2c", "corruption.norm": "l0"}, "corruption.norm must be linf or l2 for l2c, got 'l0'"),
        (
            {"corruption.data": "urp", "corruption.norm": "l0", "corruption.epsilon": 1.5},
            "corruption.epsilon must be a whole number of pixels, at least 1, for urp under l0, got 1.5",
        ),
        (
            {"corruption.data": "ap", "corruption.norm": "l0", "corruption.epsilon": 197},
            "corruption.epsilon must be at most the 196 pixels of an image for ap under l0, got 197",
        ),
        ({"corruption.data": "cuda", "corruption.norm": "l2"}, "corruption.norm must be unbounded for cuda, got 'l2'"),
        ({"corruption.data": "cuda", "corruption.blur": 0}, "corruption.blur: input should be greater than 0, got 0"),
        (
            {"corruption.data": "lsp", "corruption.patches": 15},
            "corruption.patches must be at most 14, the side of an image, got 15",
        ),
    ],
)
def test_what_a_poison_cannot_be_is_refused_in_one_line(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build("demo", {"corruption.data": "ops"} | keys)
    assert str(caught.value) == said


# --- LSP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (14, 1)])
def test_lsp_is_patches_of_exactly_the_budget_that_a_linear_rule_separates(size: int, channels: int, norm: str) -> None:
    order = request("lsp", count=400, size=size, channels=channels, norm=norm, epsilon=0.3)
    delta = crafted(order, "lsp")
    size_N = delta.flatten(1).norm(dim=1) if norm == "l2" else delta.abs().flatten(1).amax(1)
    torch.testing.assert_close(size_N, torch.full((400,), 0.3), rtol=1e-6, atol=0)
    starts = [size * number // 4 + (size * number % 4 > 0) for number in range(5)]  # the first pixel of each patch
    for top, bottom in itertools.pairwise(starts):
        for left, right in itertools.pairwise(starts):
            patch = delta[:, :, top:bottom, left:right].flatten(2)
            assert (patch == patch[..., :1]).all()
    flat = delta.flatten(1).numpy()
    rule = LogisticRegression(C=1e4, max_iter=1000).fit(flat[:200], order.labels[:200])
    assert rule.score(flat[200:], order.labels[200:]) > 0.98
    assert torch.pdist(delta[order.labels == 0].flatten(1)).min() > 0, "every image has its own"


def test_lsp_s_classes_lie_at_different_corners_of_one_cube() -> None:
    """The centres' coordinates, before they are scaled to the budget, are plus or minus CLASS_SEP, up to the spread."""
    order = request("lsp", count=2000, size=4, channels=1)
    delta = crafted(order, "lsp").flatten(1)
    corners = {tuple(delta[order.labels == label].mean(0).sign().tolist()) for label in range(K)}
    assert len(corners) == K
    means = torch.stack([delta[order.labels == label].mean(0) for label in range(K)]).abs()
    assert means.std() < 0.2 * means.mean()


def test_lsp_needs_as_many_values_as_tell_the_classes_apart() -> None:
    order = request("lsp", channels=1, options={"patches": 1})
    with pytest.raises(UserError, match=r"corruption.patches must give at least 2 values for 4 classes, got 1, which"):
        crafted(order, "lsp")


# --- AR --------------------------------------------------------------------------------------------------------------


def windows(channel: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each value of a channel, from the third row and column on, its eight predecessors and itself."""
    around = channel.double().unfold(0, 3, 1).unfold(1, 3, 1).reshape(-1, 9).numpy()
    return around[:, :8], around[:, 8]


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_ar_noise_follows_one_rule_for_each_class_which_regression_finds_in_one_image(channels: int) -> None:
    order = request("ar", count=24, size=16, channels=channels, epsilon=0.7)
    delta = crafted(order, "ar")
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((24,), 0.7), rtol=1e-6, atol=0)
    for channel in range(channels):
        rules = [np.linalg.lstsq(*windows(delta[label, channel]), rcond=None)[0] for label in range(K)]
        for number in range(K, 24):
            before, value = windows(delta[number, channel])
            errors = [np.linalg.norm(before @ rule - value) / np.linalg.norm(value) for rule in rules]
            assert errors[number % K] < 1e-3, "the rule of its own class"
            assert min(errors[: number % K] + errors[number % K + 1 :]) > 0.05, "and no other"
    assert torch.pdist(delta[order.labels == 0].flatten(1)).min() > 0, "every image has its own"


def test_ar_s_rules_add_up_to_one_and_their_signals_do_not_grow() -> None:
    coefficients = find_coefficients(K, (3, 12, 12), torch.Generator().manual_seed(0))
    assert coefficients.shape == (K, 3, 3, 3)
    torch.testing.assert_close(coefficients.sum((2, 3)), torch.ones(K, 3, dtype=torch.float64))
    assert (coefficients[..., 2, 2] == 0).all()
    start = torch.randn(K, 3, 14, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert unroll(start, coefficients).abs().max() < 50


@pytest.mark.slow
def test_ar_s_filters_are_silent_on_their_own_class_and_hear_every_other() -> None:
    draw = torch.Generator().manual_seed(0)
    coefficients = find_coefficients(K, (3, 12, 12), draw)
    signals = unroll(torch.randn(K, 3, 16, 16, generator=draw, dtype=torch.float64), coefficients)[..., 4:, 4:]
    signals /= signals.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    heard = response(coefficients, signals)
    own = torch.eye(K, dtype=torch.bool)
    assert heard[own].max() < 1e-12
    assert heard[~own].min() > 0.3
    chance = find_coefficients(1, (3, 12, 12), draw).expand(K, 3, 3, 3)
    assert response(chance, signals).min() > 0, "as does any filter that belongs to no class"


def test_unrolling_is_the_sum_over_the_neighbours_before() -> None:
    draw = torch.Generator().manual_seed(0)
    signal = torch.randn(2, 2, 6, 5, generator=draw, dtype=torch.float64)
    weights = torch.randn(2, 2, 3, 3, generator=draw, dtype=torch.float64)
    weights[..., 2, 2] = 0
    expected = signal.numpy().copy()
    for image, channel, row, column in itertools.product(range(2), range(2), range(2, 6), range(2, 5)):
        window = expected[image, channel, row - 2 : row + 1, column - 2 : column + 1]
        rule = weights[image, channel].numpy()
        expected[image, channel, row, column] = sum(
            rule[i, j] * window[i, j] for i in range(3) for j in range(3) if (i, j) != (2, 2)
        )
    np.testing.assert_allclose(unroll(signal, weights).numpy(), expected, rtol=1e-12)


def test_ar_s_images_do_not_depend_on_each_other() -> None:
    few = request("ar", count=8)
    delta = crafted(few, "ar")
    monkey = request("ar", count=8, labels=torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]))
    other = crafted(monkey, "ar")
    assert torch.equal(other[:4], delta[:4]), "the labels of the last four have no say in the first"
    assert not torch.equal(other[4:], delta[4:])


# --- CUDA ------------------------------------------------------------------------------------------------------------


def test_cuda_is_scipy_s_correlation_with_the_class_s_kernel_over_its_maximum() -> None:
    order = request("cuda")
    levels = (order.images + crafted(order, "cuda")).mul(255).round().numpy()
    kernels = cuda._kernels(K, 0.3, torch.Generator().manual_seed(0)).numpy()
    for number in range(12):
        kernel = kernels[number % K]
        image = order.images[number].double().numpy()
        blurred = np.stack([correlate(channel, kernel, mode="constant") for channel in image])
        np.testing.assert_allclose(levels[number], 255 * blurred / blurred.max(), atol=0.501)
        assert levels[number].max() == 255


@pytest.mark.parametrize("blur", [0.3, 0.9])
def test_cuda_s_kernels_are_small_numbers_around_a_one(blur: float) -> None:
    kernels = cuda._kernels(200, blur, torch.Generator().manual_seed(0)).flatten(1)
    ones = kernels == 1
    assert (ones.sum(1) == 1).all()
    assert torch.unique(ones.int().argmax(1)).numel() == 9, "anywhere"
    others = kernels[~ones]
    assert 0 <= others.min() < 0.01 * blur
    assert 0.99 * blur < others.max() < blur


def test_cuda_leaves_black_images_black() -> None:
    order = request("cuda", count=8, images=torch.zeros(8, 1, 8, 8))
    assert not crafted(order, "cuda").any()


def test_an_unbounded_poison_says_so_in_its_manifest(
    configure: Callable[..., RunConfig], toy: object, tmp_path: Any
) -> None:
    config = configure({"corruption.data": "cuda", "corruption.labels": "none"})
    assert (config.corruption.norm, config.corruption.epsilon) == ("unbounded", None)
    manifest = corrupted_set(config, Store(tmp_path)).manifest["images"]
    assert (manifest["kind"], manifest["norm"], manifest["epsilon"]) == ("cuda", "unbounded", None)
    assert 0 < manifest["mean_norm"] <= manifest["max_norm"]
    again = corrupted_set(config, Store(tmp_path))
    assert again.manifest["images"]["checksum"] == manifest["checksum"], "it is read again"
    with pytest.warns(UserWarning, match=r"^corruption.epsilon=0.1 is not used: corruption.data=cuda"):
        build("demo", {"corruption.data": "cuda", "corruption.epsilon": 0.1})


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_published_budgets_go_with_the_number_of_values() -> None:
    """Of ops one pixel; of lsp 6/255 in each value; of ar 1 for CIFAR-10."""
    for data, lsp, autoregressive in [
        ("cifar10", 6 / 255 * 3072**0.5, 1.0),
        ("tiny-imagenet", 12 / 255 * 3072**0.5, 2.0),
    ]:
        found = {
            kind: build("paper", {"data.name": data, "corruption.data": kind}).corruption.epsilon for kind in KINDS
        }
        assert found == {
            "ops": 1.0,
            "lsp": pytest.approx(lsp),
            "ar": pytest.approx(autoregressive),
            "cuda": None,
        }
    small = build("paper", {"data.name": "cifar10", "data.image_size": 16, "corruption.data": "ar"})
    assert small.corruption.epsilon == 0.5
    own = {"data.name": "folder", "data.root": "photos"}
    assert build("paper", own | {"corruption.data": "ar"}).corruption.epsilon == 0.5, "of unknown size: customary"
    assert build("paper", {"corruption.data": "lsp", "corruption.norm": "linf"}).corruption.epsilon == 8 / 255


# --- they are shortcuts ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plain_training_falls_for_it(kind: str) -> None:
    """It ends below 60 % of the accuracy with clean images, which is above 96 %."""
    keys = {"defense.name": "ce", "corruption.labels": "none", "corruption.data": kind, "train.epochs": 8}
    assert erat.train(build("demo", keys, quiet=True)).final_test_accuracy < 0.6 * 0.96
