"""Tests the weighted draw of norms: what is measured, what is drawn, and that workers and resumed runs agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.config import build
from erat.data.random import BatchRandom
from erat.defenses.base import Clock, Task
from erat.defenses.erat import ERATOptions
from erat.defenses.perturbation import MEASURED, Perturber, measure_norms
from erat.engine.evaluation import map_images
from erat.engine.memory import predict
from erat.engine.trainer import Trainer

Make = Callable[..., Any]


def perturber(**options: Any) -> Perturber:
    given = {"epsilon_inf": 0.2, "epsilon_2": 0.01, "adversarial": True, "norm_draw": "weighted"} | options
    return Perturber(ERATOptions(policy="cifar10", **given), Task(12, 2, False, lambda seed: nn.Identity(), (1, 4, 4)))


class Bright(nn.Module):
    """Two classes, told apart by whether the mean of an image is above 0.5."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 2)."""
        mean = images.flatten(1).mean(1) - 0.5
        return torch.stack([-mean, mean], 1)


class Data:
    """Training images of which half are near the middle, in two shards or one."""

    def __init__(self, shards: int = 1) -> None:
        levels = torch.linspace(0, 255, 256).round().to(torch.uint8)
        self.images, self.shards = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), shards
        self.labels, self.num_classes, self.rows = torch.zeros(256, dtype=torch.int64), 2, list[Tensor]()

    def __len__(self) -> int:
        return 256

    def map(self, function: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
        """Map as `TrainingSet` does."""
        assert rows is not None
        self.rows.append(rows)
        with torch.no_grad():
            return torch.cat([map_images(part, function) for part in self.images[rows].chunk(self.shards)])


class Defended(nn.Module):
    """Stands for a defense with a perturber."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.perturber, self.network = perturber(**options), Bright()

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (N, 2)."""
        logits: Tensor = self.network(images)
        return logits


@pytest.mark.parametrize("norms", ["both", "linf,l0"])
def test_a_norm_is_drawn_as_often_as_it_fools_the_network(norms: str) -> None:
    """Within 0.2 of the middle lie 40 % of the grey levels; 0.01 / 4 under l_2, or no pixel, changes no mean."""
    made: Any = Defended(norms=norms, **({"epsilon_l0": 1, "epsilon_inf": 0.2} if "l0" in norms else {}))
    shares = measure_norms(made, Clock(0), Data())
    other = "drawn_l0" if "l0" in norms else "drawn_l2"
    fooled = {"drawn_linf": round(0.4 * MEASURED) + 1, other: 1 if "l2" in other else round(0.0625 * MEASURED) + 1}
    assert list(shares) == ["drawn_linf", other]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["drawn_linf"] == pytest.approx(fooled["drawn_linf"] / sum(fooled.values()), abs=0.06)


def test_draws_follow_the_weights() -> None:
    for norms, weights in (("both", [3.0, 1.0]), ("linf,l2,l1", [1.0, 0.0, 4.0])):
        made = perturber(norms=norms, **({"epsilon_l1": 1.0} if "l1" in norms else {}))
        made.weigh(torch.tensor(weights))
        drawn = made._drawn(len(weights), 4000, BatchRandom(torch.Generator().manual_seed(0)), torch.device("cpu"))
        shares = torch.bincount(drawn, minlength=len(weights)) / 4000
        torch.testing.assert_close(shares, torch.tensor(weights) / sum(weights), rtol=0, atol=0.03)
        assert shares[1] > 0 or weights[1] == 0


def test_before_anything_is_measured_the_draw_is_uniform() -> None:
    drawn = perturber()._drawn(2, 4000, BatchRandom(torch.Generator().manual_seed(0)), torch.device("cpu"))
    assert drawn.double().mean() == pytest.approx(0.5, abs=0.03)


def test_workers_measure_the_same() -> None:
    """Each attacks its own share of the same images; together they are those of one worker."""
    alone, together = (measure_norms(Defended(), Clock(3), Data(shards)) for shards in (1, 2))  # type: ignore[arg-type]
    assert alone == together


def test_other_images_are_measured_in_other_epochs() -> None:
    data = Data()
    for epoch in (0, 1):
        measure_norms(Defended(), Clock(epoch), data)  # type: ignore[arg-type]
    first, second = data.rows
    assert len(first) == len(set(first.tolist())) == MEASURED
    assert not set(first.tolist()) & set(second.tolist())
    few = Data()
    few.images = few.images[:5]
    assert measure_norms(Defended(norm_draw="uniform"), Clock(0), few) == {}  # type: ignore[arg-type]
    assert not few.rows, "a uniform draw measures nothing"


def test_the_weights_are_part_of_the_state_and_only_of_a_weighted_draw() -> None:
    made, other = perturber(), perturber()
    made.weigh(torch.tensor([9.0, 1.0]))
    other.load_state_dict(made.state_dict())
    draws = [
        each._drawn(2, 500, BatchRandom(torch.Generator().manual_seed(1)), torch.device("cpu"))
        for each in (made, other)
    ]
    assert torch.equal(*draws)
    assert not perturber(norm_draw="uniform").state_dict()


@pytest.mark.parametrize("norms", ["both", "linf,l0"])
def test_memory_is_predicted_without_weights_or_images(norms: str) -> None:
    found = predict(build("demo", {"defense.norms": norms, "defense.norm_draw": "weighted"}))
    plain = predict(build("demo", {"defense.norms": norms}))
    assert found.flops == plain.flops > 0


@pytest.mark.parametrize("name", ["at", "dividemix"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    make_config: Make, make_data: Make, tmp_path: Path, name: str
) -> None:
    keys = {"defense.name": name, "defense.adversarial": True, "defense.norms": "both", "defense.norm_draw": "weighted"}
    keys |= {"train.epochs": 2, "defense.warmup_epochs": 1, "defense.steps": 1}
    config, data = make_config(keys | ({"defense.epsilon_ramp": 0} if name == "at" else {})), make_data(32)
    whole = Trainer(config, data, folder=tmp_path / "whole")
    reports = list(whole.run())
    assert all(0 < report.numbers["drawn_linf"] < 1 for report in reports)
    next(Trainer(config, data, folder=tmp_path / "cut").run())
    resumed = Trainer(config, data, folder=tmp_path / "cut")
    rest = list(resumed.run())
    assert len(rest) == 1
    assert rest[0].numbers["drawn_linf"] == reports[1].numbers["drawn_linf"]
    for one, other in zip(whole.defense.state_dict().values(), resumed.defense.state_dict().values(), strict=True):
        assert torch.equal(one, other)
