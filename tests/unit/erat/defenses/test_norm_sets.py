"""Tests sets of norms in a configuration: their spellings, their budgets, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from erat.config import build
from erat.errors import UserError

NORMS = "linf, l2, l1, l0, ssim, wasserstein, lpips"


def erat(**options: Any) -> Any:
    return build("demo", {f"defense.{key}": value for key, value in options.items()})


@pytest.mark.parametrize("norms", ["both", "linf,l2", "l2,linf", "l2, linf", ["linf", "l2"]])
def test_the_paper_s_two_norms_are_one_run_however_they_are_spelled(norms: Any) -> None:
    assert erat(norms=norms).digest() == build("demo").digest()
    assert erat(norms=norms).defense.norms == "both"


def test_the_order_of_a_set_makes_no_other_run() -> None:
    assert erat(norms="l1,linf").digest() == erat(norms="linf,l1").digest() != erat(norms="linf,l2,l1").digest()
    assert erat(norms="l0,l2,linf").defense.norms == "linf,l2,l0"


def test_budgets_are_customary_for_the_set_at_the_size_of_its_images() -> None:
    """Half the side has a quarter of the pixels."""

    def budgets(**data: Any) -> tuple[float, int]:
        given = {f"data.{key}": value for key, value in data.items()}
        options: Any = build("paper", {"defense.norms": "l1,l0", **given}).defense
        return options.epsilon_l1, options.epsilon_l0

    assert budgets(name="cifar10") == (12, 20)
    assert budgets(name="mnist") == (10, 10)
    assert budgets(name="mnist", image_size=28) == (10, 10)
    assert budgets(name="mnist", image_size="14") == (2.5, 2)
    assert budgets(name="cifar10", image_size=8) == (0.75, 1)
    assert erat(norms="l1").defense.epsilon_l0 is None


def test_budgets_of_ssim_and_wasserstein() -> None:
    """The one has no unit, the other is a distance, which goes with the side."""

    def budgets(**data: Any) -> tuple[float, float]:
        given = {f"data.{key}": value for key, value in data.items()}
        options: Any = build("paper", {"defense.norms": "wasserstein,ssim", **given}).defense
        assert options.norms == "ssim,wasserstein"
        return options.budget("ssim"), options.budget("wasserstein")

    assert budgets(name="cifar10") == (0.05, 0.005)
    assert budgets(name="mnist") == (0.05, 0.5)
    assert budgets(name="mnist", image_size=14) == (0.05, 0.25)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"norms": "l3"},
            f"defense.norms: input should be both (linf and l2), or some of {NORMS}, got 'l3'",
        ),
        (
            {"norms": ""},
            f"defense.norms: input should be both (linf and l2), or some of {NORMS}, got ''",
        ),
        ({"norms": "l1,l1"}, f"or some of {NORMS}, got 'l1,l1'"),
        ({"norms": "l0", "epsilon_l0": 0}, "defense.epsilon_l0: input should be greater than or equal to 1, got 0"),
        ({"norms": "l0", "epsilon_l0": 197}, "defense.epsilon_l0 must be at most the 196 pixels of an image, got 197"),
        ({"norms": "l1", "epsilon_l1": -1}, "defense.epsilon_l1: input should be greater than or equal to 0, got -1"),
        ({"epsilon_l1": 3.5}, "defense.epsilon_l1=3.5 needs l1 in defense.norms, got both"),
        ({"norms": "l1", "epsilon_l0": 3}, "defense.epsilon_l0=3 needs l0 in defense.norms, got l1"),
        ({"epsilon_ssim": 0.1}, "defense.epsilon_ssim=0.1 needs ssim in defense.norms, got both"),
        (
            {"norms": "ssim", "epsilon_wasserstein": 1},
            "defense.epsilon_wasserstein=1 needs wasserstein in",
        ),
        (
            {"norms": "ssim", "epsilon_ssim": 2.5},
            "epsilon_ssim: input should be less than or equal to 2, got 2.5",
        ),
        ({"norms": "wasserstein", "epsilon_wasserstein": -1}, "should be greater than or equal to 0, got -1"),
        ({"epsilon_lpips": 0.1}, "defense.epsilon_lpips=0.1 needs lpips in defense.norms, got both"),
        ({"norms": "lpips", "epsilon_lpips": -1}, "should be greater than or equal to 0, got -1"),
        (
            {"norms": "l1", "norm_draw": "weighted"},
            "defense.norm_draw=weighted needs several norms in defense, got l1",
        ),
        (
            {"uniform": False, "norm_draw": "weighted"},
            "defense.norm_draw=weighted needs uniform=true in defense, got both",
        ),
        ({"norm_draw": "equal"}, "defense.norm_draw: input should be 'uniform' or 'weighted', got 'equal'"),
        ({"norms": "ssim", "pgd_scale": 0.5}, "defense.pgd_scale=0.5 needs defense.norms of linf and l2, got ssim"),
        ({"norms": "linf,l1", "pgd_scale": 0.5}, "defense.pgd_scale=0.5 needs defense.norms of linf and l2, got linf"),
    ],
    ids=[
        *(
            "unknown",
            "empty",
            "twice",
            "no-pixel",
            "too-many",
            "negative",
            "no-l1",
            "no-l0",
            "no-ssim",
            "no-wasserstein",
        ),
        *("too-unlike", "backwards", "no-lpips", "negative-lpips", "one-norm", "all-norms", "no-such-draw"),
        *("shrunk-ssim", "shrunk"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        erat(**options)
    print(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_without_customary_budget_needs_one(toy: object) -> None:
    without = {"data.name": "toy", "defense.norms": "linf,l1"}
    with pytest.raises(UserError, match=r"^defense\.epsilon_l1 must be given: toy has no customary l1 budget$"):
        build("demo", without)
    assert build("demo", without | {"defense.epsilon_l1": 2}).defense.budget("l1") == 2  # type: ignore[attr-defined]


def test_a_compiled_network_cannot_be_looked_into() -> None:
    with pytest.raises(UserError, match=r"^defense\.norms with lpips needs train\.compile=false, got true"):
        build("demo", {"defense.norms": "linf,lpips", "train.compile": True})
    assert build("demo", {"train.compile": True}).train.compile
