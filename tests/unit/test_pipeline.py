"""From a configuration to the corrupted set: split first, then corrupt; budgets kept on disk, test set untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erat.config import RunConfig
from erat.corruption import pipeline, universal, up
from erat.corruption.pipeline import corrupted_set, crafted_already, source_network
from erat.corruption.store import Store
from erat.data.base import CorruptedSet, ImageSet
from erat.data.sets import fingerprint
from erat.engine.trainer import Trainer
from erat.errors import UserError

MakeConfig = Callable[..., RunConfig]
pytestmark = pytest.mark.usefixtures("toy", "quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(universal, "STEPS", 10)
    monkeypatch.setattr(up, "MAX_ROUNDS", 2)


@pytest.fixture
def clean(toy: Any) -> ImageSet:
    """All 120 training images as they are before the split."""
    train: ImageSet = toy.load(None)[0]
    return train


@pytest.fixture
def run(make_config: MakeConfig, tmp_path: Path) -> Callable[..., CorruptedSet]:
    """The corrupted set of the toy data under some overrides, all from one store."""

    def corrupt(overrides: dict[str, Any] | None = None) -> CorruptedSet:
        return corrupted_set(configure(make_config, overrides), Store(tmp_path))

    return corrupt


def configure(make_config: MakeConfig, overrides: dict[str, Any] | None = None) -> RunConfig:
    base = {
        "data.name": "toy",
        "corruption.data": "uhp",
        "corruption.epsilon": None,
        "corruption.norm": None,
        "corruption.source": "small",
        "corruption.source_epochs": 1,
        "corruption.labels": "symmetric",
        "corruption.rate": 0.5,
        "val.fraction": 0.2,
    }
    return make_config(base | (overrides or {}))


def rows(images: ImageSet) -> set[bytes]:
    """Every image's pixels; the toy images all differ."""
    return {image.numpy().tobytes() for image in images.images}


def positions(images: ImageSet, among: ImageSet) -> list[int]:
    """Which of `among` these images are."""
    where = {image.numpy().tobytes(): i for i, image in enumerate(among.images)}
    return [where[image.numpy().tobytes()] for image in images.images]


# --- the split -------------------------------------------------------------------------------------------------------


def test_a_trusted_validation_part_is_clean_and_apart(run: Callable[..., CorruptedSet], clean: ImageSet) -> None:
    data = run({"val.trusted": True})
    assert (len(data.train), len(data.val)) == (96, 24)
    held_out = positions(data.val, clean)
    assert data.val.labels.tolist() == clean.labels[held_out].tolist()
    plain = run({"val.trusted": True, "corruption.data": "none"})
    kept = positions(plain.train, clean)
    assert sorted(kept + held_out) == list(range(120))
    assert torch.bincount(data.val.labels).tolist() == [6, 6, 6, 6]
    assert data.true_labels.tolist() == clean.labels[kept].tolist()
    assert not rows(data.train) & rows(clean), "every training image is poisoned"
    assert data.manifest["val_trusted"] is True


def test_an_untrusted_validation_part_is_corrupted_like_the_rest(
    run: Callable[..., CorruptedSet], clean: ImageSet
) -> None:
    data, plain = run({"val.trusted": False}), run({"val.trusted": False, "corruption.data": "none"})
    kept, held_out = positions(plain.train, clean), positions(plain.val, clean)
    assert sorted(kept + held_out) == list(range(120))
    assert not rows(data.val) & rows(clean)
    assert not rows(data.train) & rows(clean)
    true = clean.labels[held_out]
    wrong = int((data.val.labels != true).sum() + (data.train.labels != clean.labels[kept]).sum())
    assert wrong == 60, "half of all 120"
    assert (data.val.labels != true).any()
    assert data.true_labels.tolist() == clean.labels[kept].tolist()
    assert data.manifest["val_trusted"] is False


def test_both_ways_hold_out_the_same_images(run: Callable[..., CorruptedSet]) -> None:
    none = {"corruption.data": "none"}
    assert rows(run(none | {"val.trusted": True}).val) == rows(run(none | {"val.trusted": False}).val)
    assert rows(run(none | {"val.seed": 1}).val) != rows(run(none).val)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("kind", ["none", "urp", "uap"])
def test_the_test_set_is_untouched(run: Callable[..., CorruptedSet], toy: Any, kind: str, trusted: bool) -> None:
    data = run({"corruption.data": kind, "val.trusted": trusted})
    assert fingerprint(data.test) == fingerprint(toy.load(None)[1])


def test_no_test_image_has_a_say_in_what_is_crafted(
    run: Callable[..., CorruptedSet], toy: Any, clean: ImageSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    first = run()
    test = toy.load(None)[1]
    toy.load = lambda config: (clean, test.take(torch.arange(len(test)).flip(0)))
    other = corrupted_set(configure(make_config), Store(tmp_path / "another store"))
    assert torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.train.labels, other.train.labels)


# --- budgets on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["up", "urp", "uhp", "uap"])
def test_what_lies_in_the_store_keeps_its_budget_and_its_labels(
    run: Callable[..., CorruptedSet], kind: str, norm: str
) -> None:
    epsilon = {"linf": 0.1, "l2": 0.77}[norm]
    options = {"corruption.norm": norm, "corruption.epsilon": epsilon, "corruption.labels": "none"}
    data = run({"corruption.data": kind} | options)
    plain = run({"corruption.data": "none"} | options)
    manifest = data.manifest["images"]
    stored = np.load(Path(manifest["path"]) / "images.npy")
    np.testing.assert_array_equal(stored, data.train.images.numpy())
    assert stored.dtype == np.uint8
    delta = torch.from_numpy(stored).double().div(255) - plain.train.images.double().div(255)
    reached = delta.flatten(1).norm(dim=1) if norm == "l2" else delta.abs().flatten(1).amax(1)
    assert reached.max() <= epsilon + 1e-6
    assert manifest["max_norm"] == pytest.approx(reached.max().item(), abs=1e-6)
    assert manifest["mean_norm"] == pytest.approx(reached.mean().item(), abs=1e-6)
    assert torch.equal(data.train.labels, data.true_labels)
    assert data.manifest["labels"]["noise_rate"] == 0
    assert (manifest["kind"], manifest["norm"], manifest["epsilon"]) == (kind, norm, epsilon)


def test_a_manifest_says_where_everything_came_from(run: Callable[..., CorruptedSet]) -> None:
    manifest = run().manifest
    assert {"path", "kind", "norm", "epsilon", "granularity", "max_norm", "mean_norm", "checksum"} <= set(
        manifest["images"]
    )
    assert manifest["labels"]["noise_rate"] == 0.5
    assert np.allclose(np.sum(manifest["labels"]["transition"], axis=1), 1)
    for part in ("images", "labels"):
        assert {"torch", "numpy", "python", "parameters"} <= set(manifest[part])


# --- what is crafted anew and what is shared -------------------------------------------------------------------------


def crafted(folder: Path, part: str) -> int:
    return len(list(folder.glob(f"{part}-*")))


def test_a_second_run_reads_what_the_first_one_made(
    run: Callable[..., CorruptedSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run()

    def refuse(*_: Any) -> None:
        raise AssertionError("crafted again")

    monkeypatch.setattr(pipeline, "_craft", refuse)
    again = run({"train.seed": 5, "defense.eta": 0.7, "train.epochs": 7})
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)
    assert crafted(tmp_path, "images") == 1
    again.train.images.zero_()
    assert run().train.images.any(), "a run's own copy"


def test_uhp_and_uap_share_a_source_network_and_a_seed_makes_another(
    run: Callable[..., CorruptedSet], tmp_path: Path
) -> None:
    run({"corruption.data": "uhp"})
    run({"corruption.data": "uap"})
    assert (crafted(tmp_path, "source"), crafted(tmp_path, "images"), crafted(tmp_path, "labels")) == (1, 2, 1)
    run({"corruption.data": "uap", "corruption.seed": 1})
    assert (crafted(tmp_path, "source"), crafted(tmp_path, "images"), crafted(tmp_path, "labels")) == (2, 3, 2)
    run({"corruption.data": "urp"})
    assert crafted(tmp_path, "source") == 2, "URP needs none"


def test_uap_wears_the_very_vectors_of_uhp(run: Callable[..., CorruptedSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """One optimisation yields both: class c of UAP has what class c + 1 of UHP has."""
    crafted_deltas: list[torch.Tensor] = []
    real = pipeline.quantize  # type: ignore[attr-defined]

    def recorded(clean: torch.Tensor, delta: torch.Tensor, *budget: Any) -> torch.Tensor:
        crafted_deltas.append(delta)
        return real(clean, delta, *budget)

    monkeypatch.setattr(pipeline, "quantize", recorded)
    labels = run({"corruption.data": "uhp"}).true_labels
    run({"corruption.data": "uap"})
    uhp, uap = crafted_deltas
    for k in range(4):
        assert torch.equal(uap[labels == k][0], uhp[labels == (k + 1) % 4][0])


def test_a_validation_part_of_nothing_is_refused(run: Callable[..., CorruptedSet]) -> None:
    with pytest.raises(UserError, match=r"^val.fraction must hold out at least one of 120 images, got 0.004$"):
        run({"val.fraction": 0.004})


def test_labels_and_images_are_corrupted_independently(run: Callable[..., CorruptedSet]) -> None:
    base = run({"corruption.data": "urp"})
    other_labels = run({"corruption.data": "urp", "corruption.rate": 0.2})
    other_images = run({"corruption.data": "uhp"})
    assert torch.equal(base.train.images, other_labels.train.images)
    assert torch.equal(base.train.labels, other_images.train.labels)
    assert not torch.equal(base.train.labels, other_labels.train.labels)


@pytest.mark.parametrize("overrides", [{}, {"corruption.data": "none"}, {"val.trusted": False}])
def test_it_is_known_whether_all_is_there(
    run: Callable[..., CorruptedSet], make_config: MakeConfig, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    config = configure(make_config, overrides)
    assert not crafted_already(config, Store(tmp_path))
    run(overrides)
    assert crafted_already(config, Store(tmp_path))
    assert not crafted_already(configure(make_config, overrides | {"corruption.seed": 9}), Store(tmp_path))


# --- the source network ----------------------------------------------------------------------------------------------


def test_the_source_network_is_clean_trained_frozen_in_eval_mode_and_the_same_again(
    make_config: MakeConfig, tmp_path: Path, clean: ImageSet
) -> None:
    config = configure(make_config, {"corruption.source_epochs": 24})
    told: list[tuple[int, int]] = []
    network = source_network(clean, config, Store(tmp_path), lambda what, done, total: told.append((done, total)))
    assert not any(module.training for module in network.modules())
    right = network(clean.images.float() / 255).argmax(1) == clean.labels
    assert right.float().mean() > 0.8
    assert told == [(epoch, 24) for epoch in range(1, 25)]
    again = source_network(clean, config, Store(tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_source_recipe_and_its_best_epoch(
    make_config: MakeConfig, tmp_path: Path, clean: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD 0.1, batch 128, x 0.1 at 2/3 and 5/6; the epoch that is best on the held-out tenth, the first of equals."""
    made: list[tuple[RunConfig, CorruptedSet]] = []

    class Recorded(Trainer):
        def __init__(self, config: RunConfig, data: CorruptedSet) -> None:
            super().__init__(config, data)
            made.append((config, data))

        def run(self) -> Iterator[Any]:
            for epoch, accuracy in enumerate([0.5, 0.9, 0.9, 0.7], 1):
                with torch.no_grad():
                    for parameter in self.defense.parameters():
                        parameter.fill_(epoch)
                yield SimpleNamespace(epoch=epoch, val_accuracy=accuracy)

    monkeypatch.setattr(pipeline, "Trainer", Recorded)
    network = source_network(clean, configure(make_config, {"corruption.source_epochs": 12}), Store(tmp_path))
    assert {parameter.unique().item() for parameter in network.parameters()} == {2.0}
    ((recipe, data),) = made
    assert (recipe.train.lr, recipe.train.batch_size, recipe.train.epochs) == (0.1, 128, 12)
    assert (recipe.train.schedule, recipe.train.milestones, recipe.train.gamma) == ("step", (8, 10), 0.1)
    assert (recipe.defense.name, recipe.model.name, recipe.corruption.data) == ("ce", "small", "none")
    assert (len(data.train), len(data.val)) == (108, 12)
    assert not rows(data.train) & rows(data.val)
    assert rows(data.test) == rows(data.val), "no test image is ever near"
    assert torch.equal(data.train.labels, data.true_labels)


def test_seeds_of_the_source_differ_from_those_of_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """A defense must not by chance start from the very weights that the perturbation was made against."""
    config = configure(make_config, {"corruption.source": "small"})
    data = corrupted_set(config, Store(tmp_path))
    trained = Trainer(config, data).defense.networks["main"].state_dict()
    source = source_network(data.train, config, Store(tmp_path)).state_dict()
    assert not torch.equal(trained["network.0.weight"], source["network.0.weight"])
