"""Tests accuracy, confusion, functions over whole sets, and accuracy under attack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.attacks.pgd import pgd
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense, Task
from erat.engine import evaluation
from erat.engine.evaluation import accuracy, attacked_predictions, confusion, map_images, predictions
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.options import DefenseOptions


class Bright(Defense):
    """A network that predicts 1 for images of mean above a half; its dropout would spoil that in training mode."""

    def __init__(self) -> None:
        super().__init__(DefenseOptions(name="bright"), Task(0, 2, False, lambda _: nn.Identity()))
        self.networks = nn.ModuleDict({"main": nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(16, 2))})
        linear: Any = self.layers()[2]
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
            linear.bias.copy_(torch.tensor([8.0, -8.0]))

    def layers(self) -> list[nn.Module]:
        return list(self.networks["main"].children())


def grey(count: int) -> ImageSet:
    """Make constant 4 x 4 images of grey levels 0, 1, 2, ..., with label 1 above the middle."""
    levels = torch.arange(count) % 256
    pixels = levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return ImageSet(pixels, (levels > 127).long(), ("dark", "bright"))


def test_pixels_become_numbers_in_0_1() -> None:
    values = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_a_function_over_a_set_keeps_the_order_in_bounded_batches(count: int) -> None:
    sizes: list[int] = []

    def level(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return (batch[:, 0, 0, 0] * 255).round()

    got = map_images(grey(count).images, level)
    assert got.tolist() == [i % 256 for i in range(count)]
    assert max(sizes) <= evaluation.BATCH
    assert sum(sizes) == count


def test_a_worker_without_a_share_still_knows_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "gather_rows", lambda self, rows, count: rows)
    shares = [map_images(grey(2).images, lambda x: x[:, 0, 0].repeat(1, 3), Ranks(rank, 3)) for rank in range(3)]
    assert [tuple(share.shape) for share in shares] == [(1, 12), (1, 12), (0, 12)]


def test_predictions_are_made_in_eval_mode_and_leave_the_flags() -> None:
    defense = Bright().train()
    defense.layers()[1].eval()
    got = predictions(defense, grey(256), Ranks(), nullcontext)
    assert torch.equal(got, grey(256).labels)
    assert defense.training
    assert [layer.training for layer in defense.layers()] == [True, False, True]
    assert all(parameter.requires_grad for parameter in defense.parameters())


def test_accuracy_and_confusion() -> None:
    labels, answers = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 0])
    assert accuracy(labels, answers) == 0.5
    assert confusion(labels, answers, 3).tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert confusion(labels[:1], answers[:1], 3).sum() == 1


def test_attacked_predictions_change_what_the_budget_reaches() -> None:
    """Even images may lose 0.1 of their grey, odd images an l_2 norm of 0.2, which is 0.05 on each of 16 pixels."""
    images = grey(256)
    answers = attacked_predictions(Bright().train(), images, {"linf": 0.1, "l2": 0.2})
    distance = (images.images[:, 0, 0, 0].float() / 255 - 0.5).abs()
    reach = torch.where(torch.arange(256) % 2 == 0, 0.1, 0.05)
    clear = (distance - reach).abs() > 1e-3
    assert torch.equal((answers == images.labels)[clear], (distance > reach)[clear])


def test_attacked_images_stay_in_their_budgets_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH", 100)
    images, seen = grey(256), []
    real = pgd

    def recorded(network: Any, clean: Tensor, *arguments: Any, **options: Any) -> Tensor:
        moved = real(network, clean, *arguments, **options)
        seen.append(moved - clean)
        return moved

    monkeypatch.setattr(evaluation, "pgd", recorded)
    assert len(attacked_predictions(Bright(), images, {"linf": 0.02, "l2": 0.5})) == 256
    delta = torch.cat(seen)
    assert delta[::2].abs().max() <= 0.02 * (1 + 1e-5)
    assert l2_norm(delta[1::2]).max() <= 0.5 * (1 + 1e-5)
    assert delta[1::2].abs().max() > 0.1, "the l_2 ones reach further on a pixel"


def test_a_trained_network_is_worse_under_attack(make_config: Callable[..., Any], make_data: Any) -> None:
    """With `val.objective=perturbed` the validation accuracy is that figure, and nothing else of the run changes."""
    options = {"defense.name": "ce", "train.epochs": 4, "data.name": "mnist", "train.seed": 1}
    data = make_data(96, wrong=0.0)
    clean = Trainer(make_config(options), data)
    attacked = Trainer(make_config(options | {"val.objective": "perturbed"}), data)
    plain, under_attack = list(clean.run())[-1], list(attacked.run())[-1]
    assert plain.val_accuracy > 0.8
    assert under_attack.val_accuracy < plain.val_accuracy - 0.1
    assert under_attack.train_loss == plain.train_loss
    assert under_attack.test_accuracy == plain.test_accuracy
    facts = {"linf": 0.1, "l2": 1.0}
    expected = accuracy(data.val.labels, attacked_predictions(clean.defense, data.val, facts))
    assert under_attack.val_accuracy == expected
