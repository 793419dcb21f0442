"""Tests options beyond the paper: cheaper perturbations that keep their budgets, and labelled sets that are reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.attacks.threats import THREATS
from erat.config import RunConfig
from erat.data.random import BatchRandom
from erat.data.types import CorruptedSet
from erat.defenses.base import Clock, Task
from erat.defenses.erat import ERATOptions
from erat.defenses.perturbation import Perturber
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.models import build_model

CLASSES, SAMPLES, SIDE = 4, 12, 8
Make = Callable[..., Any]


@pytest.fixture
def network() -> nn.Module:
    return build_model("small", CLASSES, 1, SIDE, [0.5], [0.25], seed=0).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


LABELS = torch.arange(SAMPLES) % CLASSES
INDICES = torch.arange(SAMPLES)


def poison(side: int = SIDE, **options: Any) -> Perturber:
    chosen = ERATOptions(epsilon_inf=0.1, epsilon_2=1.0, policy="cifar10", **options)
    return Perturber(chosen, Task(SAMPLES, CLASSES, False, lambda seed: nn.Identity(), (1, side, side)))


def random() -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(0))


def loss(network: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(network(images), LABELS).item()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("options", [{"warm_start": True}, {"pgd_scale": 0.5}, {"pgd_precision": "bf16"}])
def test_budgets_are_kept_and_the_loss_is_raised(
    network: nn.Module, images: Tensor, norm: str, options: dict[str, Any]
) -> None:
    made = poison(norms=norm, **options)
    for _ in range(2):  # a warm start has a perturbation to start from only the second time
        moved = made(network, images, LABELS, random(), INDICES)
    delta = moved - images
    assert moved.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() <= 1
    if norm == "linf":
        assert delta.abs().max() <= 0.1 + 1e-6
    else:
        assert l2_norm(delta).max() <= 1 + 1e-5
    assert loss(network, moved) > loss(network, images)


def test_two_warm_steps_twice_come_as_far_as_four(network: nn.Module, images: Tensor) -> None:
    """Under l_inf, whose sign steps have a fixed length, continuing is the same as not having stopped."""
    warm, whole = poison(norms="linf", steps=2, warm_start=True), poison(norms="linf", steps=4)
    warm(network, images, LABELS, random(), INDICES)
    again = warm(network, images, LABELS, random(), INDICES)
    expected = whole(network, images, LABELS, random(), INDICES)
    assert (again - expected).abs().max() < 1e-3, "but for the rounding of what was kept"


def test_a_warm_start_belongs_to_the_image(network: nn.Module, images: Tensor) -> None:
    """In another batch and another order, each image continues from its own perturbation."""
    made = poison(norms="linf", steps=1, warm_start=True)
    made(network, images, LABELS, random(), INDICES)
    kept = made.last_delta.clone()
    order = torch.tensor([5, 2, 9])
    moved = made(network, images[order], LABELS[order], random(), INDICES[order])
    assert torch.equal(made.last_delta[order], (moved - images[order]).half())
    others = torch.ones(SAMPLES, dtype=torch.bool)
    others[order] = False
    assert torch.equal(made.last_delta[others], kept[others])


def test_a_warm_start_keeps_to_the_norm_that_is_drawn_now(network: nn.Module, images: Tensor) -> None:
    """A perturbation of norm 1 under l_2 is cut to 0.1 per pixel when the image draws l_inf the next time."""
    made = poison(steps=1, warm_start=True)
    for seed in range(4):
        draw = BatchRandom(torch.Generator().manual_seed(seed))
        linf = BatchRandom(torch.Generator().manual_seed(seed)).randint(2, SAMPLES) == 0
        delta = made(network, images, LABELS, draw, INDICES) - images
        assert delta[linf].abs().max() <= 0.1 + 1e-6
        assert l2_norm(delta[~linf]).max() <= 1 + 1e-5


def test_shrunk_pgd_moves_blocks_and_costs_their_share(network: nn.Module, images: Tensor) -> None:
    seen: list[tuple[int, ...]] = []
    hook = network.register_forward_hook(lambda _module, inputs, _logits: seen.append(tuple(inputs[0].shape)))
    delta = poison(norms="linf", pgd_scale=0.5)(network, images, LABELS, random(), INDICES) - images
    hook.remove()
    assert seen == [(SAMPLES, 1, 4, 4)] * 7
    blocks = delta.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"random_start": True}, {"uniform": False}])
def test_what_a_warm_start_does_not_go_with(make_config: Make, options: dict[str, Any]) -> None:
    wanted = {"defense.warm_start": True} | {f"defense.{key}": value for key, value in options.items()}
    with pytest.raises(UserError, match=r"^defense.warm_start=true needs defense\.\w+=\w+, got \w+$"):
        make_config(wanted)


def test_a_warm_start_needs_one_worker(make_config: Make) -> None:
    with pytest.raises(UserError, match=r"needs train\.workers=1, got 2"):
        make_config({"defense.warm_start": True, "train.workers": 2})


def test_a_resumed_warm_start_is_bit_equal(make_config: Make, make_data: Make, tmp_path: Path) -> None:
    """The checkpoint contains the last perturbations of the images."""
    config: RunConfig = make_config({"defense.warm_start": True, "defense.steps": 2})
    data: CorruptedSet = make_data(64)
    whole = Trainer(config, data)
    list(whole.run())
    next(Trainer(config, data, folder=tmp_path).run())
    resumed = Trainer(config, data, folder=tmp_path)
    assert resumed.epochs_done == 1
    list(resumed.run())
    state, expected = resumed.defense.state_dict(), whole.defense.state_dict()
    assert "perturber.last_delta" in state
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_labelled_set_is_kept_for_as_many_epochs_as_asked(make_config: Make, make_data: Make) -> None:
    config = make_config({"defense.select_every": 2, "train.epochs": 5, "defense.warmup_epochs": 1})
    trainer = Trainer(config, make_data(64))
    scored: list[int] = []
    original = trainer._train.map

    def counted(function: Any) -> Tensor:
        scored.append(trainer.epochs_done)
        return original(function)

    trainer._train.map = counted  # type: ignore[method-assign]
    sets = []
    for report in trainer.run():
        sets.append(report.labelled_per_class)
    assert scored == [1, 3], "the first epoch after warm-up, and every second one from there"
    assert sets[1] == sets[2]
    assert sets[3] == sets[4]


def test_the_default_keeps_no_state_and_draws_nothing_more(make_config: Make, make_data: Make) -> None:
    assert not [name for name in Trainer(make_config(), make_data(64)).defense.state_dict() if "poison" in name]


@pytest.mark.parametrize(("norms", "steps"), [("both", 7), ("linf,l2,l1,l0", 7), ("ssim,wasserstein", 1)])
def test_a_step_waits_for_no_device(make_config: Make, make_data: Make, norms: str, steps: int) -> None:
    """On the meta device nothing has a value, so that reading one, for which the host would wait for a GPU, fails."""
    trainer = Trainer(make_config({"defense.norms": norms, "defense.steps": steps}), make_data(64))
    batch, _ = next(trainer._batches.of(trainer.plan(Clock(0)).phases[0], Clock(0)))
    for phase, unlabelled in (("warmup", batch.images[:0]), ("train", batch.images)):
        defense = trainer.defense.to("meta")
        moved = type(batch)(
            images=batch.images.to("meta"),
            labels=batch.labels.to("meta"),
            indices=batch.indices.to("meta"),
            unlabelled=unlabelled.to("meta"),
            unlabelled_indices=batch.indices[: len(unlabelled)].to("meta"),
            random=random(),
            phase=phase,
        )
        total = defense.loss(moved, Clock(2)).total
        grads = torch.autograd.grad(total, list(defense.parameters()))
        assert {grad.device.type for grad in grads} == {"meta"}


# --- sets of norms beyond the paper's --------------------------------------------------------------------------------

BUDGETS = {"linf": 0.1, "l2": 1.0, "l1": 2.0, "l0": 3.0, "ssim": 0.1, "wasserstein": 0.2}


def mixed(**options: Any) -> Perturber:
    """Return a perturber with budgets for all norms."""
    budgets = {f"epsilon_{norm}": BUDGETS[norm] for norm in ("l1", "ssim", "wasserstein")}
    return poison(epsilon_l0=int(BUDGETS["l0"]), **budgets, **options)


def fitting(delta: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Return for each norm which perturbations, of many images, fit its budget."""
    return {name: threat.size(delta, images) <= BUDGETS[name] * (1 + 1e-5) for name, threat in THREATS.items()}


@pytest.mark.parametrize("options", [{}, {"random_start": True}, {"warm_start": True}, {"pgd_precision": "bf16"}])
@pytest.mark.parametrize("norms", ["l1", "l0", "ssim", "wasserstein", "linf,l2,l1,l0", "l1,ssim,wasserstein"])
def test_images_of_a_set_fit_one_of_its_budgets(
    network: nn.Module, images: Tensor, norms: str, options: dict[str, Any]
) -> None:
    made = mixed(norms=norms, **options)
    for _ in range(2):
        moved = made(network, images, LABELS, random(), INDICES)
    fits = fitting(moved - images, images)
    assert torch.stack([fits[name] for name in norms.split(",")]).any(0).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert loss(network, moved) > loss(network, images)


def test_every_norm_of_a_set_gets_its_share_of_the_images(network: nn.Module, images: Tensor) -> None:
    many, labels = images.repeat(50, 1, 1, 1), LABELS.repeat(50)
    fits = fitting(mixed(norms="linf,l2,l0")(network, many, labels, random()) - many, many)
    linf, l0 = fits["linf"], fits["l0"]
    for group in (linf & ~l0, l0 & ~linf, ~linf & ~l0):
        assert 0.28 < group.float().mean() < 0.39


def test_every_image_under_every_norm_of_a_set(network: nn.Module, images: Tensor) -> None:
    moved = mixed(norms="linf,l1,l0", uniform=False)(network, images, LABELS, random(), INDICES)
    assert moved.shape == (3 * SAMPLES, *images.shape[1:])
    for name, part in zip(("linf", "l1", "l0"), moved.split(SAMPLES), strict=True):
        assert fitting(part - images, images)[name].all()
        alone = mixed(norms=name)(network, images, LABELS, random(), INDICES)
        torch.testing.assert_close(part, alone, rtol=0, atol=1e-3)


def test_the_paper_s_literal_l2_holds_in_a_set(network: nn.Module, images: Tensor) -> None:
    moved = mixed(norms="l2,l1", uniform=False, l2_update="literal")(network, images, LABELS, random())
    assert l2_norm(moved[:SAMPLES] - images).min() > 1.5, "signs and a clip to 1, not a ball"


def test_a_share_of_the_budget(network: nn.Module, images: Tensor) -> None:
    names = ("linf", "l1", "l0", "ssim", "wasserstein")
    made = mixed(norms=",".join(names), uniform=False)
    parts = (made(network, images, LABELS, random(), strength=0.4) - images.repeat(5, 1, 1, 1)).split(SAMPLES)
    for name, part in zip(names, parts, strict=True):
        size = THREATS[name].size(part, images)
        assert size.max() <= 0.4 * BUDGETS[name] * (1 + 1e-5)
        assert size.min() > 0


def test_more_pixels_than_an_image_has(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"^defense\.epsilon_l0 must be at most the 64 pixels of an image, got 65$"):
        poison(norms="l0", epsilon_l0=65)


def test_an_image_smaller_than_the_window_of_ssim() -> None:
    with pytest.raises(UserError, match=r"^defense\.norms with ssim needs images of at least 7 x 7 pixels, got 36"):
        poison(6, norms="linf,ssim", epsilon_ssim=0.1)
    poison(7, norms="linf,ssim", epsilon_ssim=0.1)
    poison(6, norms="wasserstein", epsilon_wasserstein=0.1)
