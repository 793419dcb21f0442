"""Tests the way from configuration to corrupted set: split, then corruption; budgets on disk, test set untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erat.config import RunConfig
from erat.corruption import pipeline
from erat.corruption.pipeline import corrupted_set, stored_parts
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet
from erat.errors import UserError
from erat.registry import CORRUPTIONS

Configure = Callable[..., RunConfig]


@pytest.fixture
def clean(toy: Any) -> ImageSet:
    """Return all 120 training images as they are before the split."""
    train: ImageSet = toy.load(None)[0]
    return train


@pytest.fixture
def run(configure: Configure, tmp_path: Path) -> Callable[..., CorruptedSet]:
    """Return a function that makes the corrupted set of the toy data under some overrides, all from one store."""

    def corrupt(overrides: dict[str, Any] | None = None) -> CorruptedSet:
        return corrupted_set(configure(overrides), Store(tmp_path))

    return corrupt


def rows(images: ImageSet) -> set[bytes]:
    """Return the pixels of every image; the toy images all differ."""
    return {image.numpy().tobytes() for image in images.images}


def positions(images: ImageSet, among: ImageSet) -> list[int]:
    """Return the positions of the images in `among`."""
    where = {image.numpy().tobytes(): i for i, image in enumerate(among.images)}
    return [where[image.numpy().tobytes()] for image in images.images]


def crafted(folder: Path, part: str) -> int:
    return len(list(folder.glob(f"{part}-*")))


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
    assert data.test.fingerprint == toy.load(None)[1].fingerprint


def test_no_test_image_has_a_say_in_what_is_crafted(
    run: Callable[..., CorruptedSet], toy: Any, clean: ImageSet, configure: Configure, tmp_path: Path
) -> None:
    first = run()
    test = toy.load(None)[1]
    toy.load = lambda config: (clean, test.take(torch.arange(len(test)).flip(0)))
    other = corrupted_set(configure(), Store(tmp_path / "another store"))
    assert torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.train.labels, other.train.labels)


# --- budgets on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "norm"), [(kind, norm) for kind in CORRUPTIONS.names() for norm in CORRUPTIONS[kind].norms]
)
def test_what_lies_in_the_store_keeps_its_budget_and_its_labels(
    run: Callable[..., CorruptedSet], kind: str, norm: str
) -> None:
    epsilon = {"linf": 0.1, "l2": 0.77, "l1": 2.5, "l0": 2.0, "unbounded": None}[norm]
    budget = {"corruption.norm": norm, "corruption.epsilon": epsilon}
    data = run({"corruption.data": kind, "corruption.labels": "none"} | budget)
    plain = run({"corruption.data": "none", "corruption.labels": "none"})
    manifest = data.manifest["images"]
    stored = np.load(Path(manifest["path"]) / "images.npy")
    np.testing.assert_array_equal(stored, data.train.images.numpy())
    assert stored.dtype == np.uint8
    delta = torch.from_numpy(stored).double().div(255) - plain.train.images.double().div(255)
    reached = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    if norm == "l1":
        reached = delta.abs().flatten(1).sum(1)
    if norm == "l0":
        reached = (delta != 0).any(1).flatten(1).sum(1).double()
    assert 0 < reached.max() <= (np.inf if epsilon is None else epsilon + 1e-6)
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


@pytest.mark.parametrize("kind", CORRUPTIONS.names())
def test_a_manifest_names_the_trained_network_if_there_was_one(run: Callable[..., CorruptedSet], kind: str) -> None:
    source = run({"corruption.data": kind}).manifest["images"]["source"]
    if CORRUPTIONS[kind].uses != "trained network":
        assert source is None
        return
    assert source["architecture"] == "small"
    assert 0 <= source["val_accuracy"] <= 1
    kept = json.loads((Path(source["path"]) / "manifest.json").read_text())
    assert kept["checksum"] == source["checksum"]


# --- the poisoned share ----------------------------------------------------------------------------------------------


def poisoned(data: CorruptedSet, plain: CorruptedSet) -> set[int]:
    """Return which training images differ from the clean ones."""
    differ = (data.train.images != plain.train.images).flatten(1).any(1)
    return set(differ.nonzero().flatten().tolist())


@pytest.mark.parametrize("kind", ["urp", "ap"])
def test_a_share_of_the_images_is_poisoned(run: Callable[..., CorruptedSet], tmp_path: Path, kind: str) -> None:
    """The other images are clean; a larger share adds images to those of a smaller one; there is only one crafting."""
    plain = run({"corruption.data": "none"})
    whole = run({"corruption.data": kind})
    found: list[set[int]] = [set()]
    for share in (0.1, 0.33, 0.5, 0.999):
        data = run({"corruption.data": kind, "corruption.share": share})
        found.append(poisoned(data, plain))
        assert len(found[-1]) == round(share * 96)
        assert found[-2] < found[-1]
        chosen = sorted(found[-1])
        assert torch.equal(data.train.images[chosen], whole.train.images[chosen])
        manifest = data.manifest["images"]
        assert (manifest["share"], manifest["poisoned_share"]) == (share, len(chosen) / 96)
        assert torch.equal(data.train.labels, whole.train.labels)
    assert len(poisoned(whole, plain)) == 96
    assert (whole.manifest["images"]["share"], whole.manifest["images"]["poisoned_share"]) == (1.0, 1.0)
    assert crafted(tmp_path, "images") == 1


def test_which_images_are_poisoned_is_drawn_by_the_seed(run: Callable[..., CorruptedSet]) -> None:
    plain, half = run({"corruption.data": "none"}), {"corruption.data": "urp", "corruption.share": 0.5}
    first = poisoned(run(half), plain)
    assert poisoned(run(half | {"train.seed": 5, "corruption.rate": 0.2}), plain) == first
    assert poisoned(run(half | {"corruption.seed": 1}), plain) != first


def test_an_image_that_its_perturbation_leaves_as_it_was_is_not_poisoned(run: Callable[..., CorruptedSet]) -> None:
    assert run({"corruption.data": "none"}).manifest["images"]["poisoned_share"] == 0
    too_little = {"corruption.data": "urp", "corruption.norm": "linf", "corruption.epsilon": 0.4 / 255}
    manifest = run(too_little).manifest["images"]
    assert (manifest["share"], manifest["poisoned_share"]) == (1.0, 0.0)


def test_an_untrusted_validation_part_is_poisoned_by_the_same_share(run: Callable[..., CorruptedSet]) -> None:
    shared = {"val.trusted": False, "corruption.data": "urp", "corruption.share": 0.5}
    data, plain = run(shared), run({"val.trusted": False, "corruption.data": "none"})
    among_val = int((data.val.images != plain.val.images).flatten(1).any(1).sum())
    assert among_val > 0
    assert len(poisoned(data, plain)) + among_val == 60, "half of all 120"


# --- what is crafted anew and what is shared -------------------------------------------------------------------------


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


def there(config: RunConfig, store: Store) -> bool:
    """Return whether the store holds everything that `corrupted_set` would read."""
    images, labels = stored_parts([config])[0]
    return (images is None or images in store) and labels in store


@pytest.mark.parametrize("overrides", [{}, {"corruption.data": "none"}, {"val.trusted": False}])
def test_it_is_known_whether_all_is_there(
    run: Callable[..., CorruptedSet], configure: Configure, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    config = configure(overrides)
    assert not there(config, Store(tmp_path))
    run(overrides)
    assert there(config, Store(tmp_path))
    assert not there(configure(overrides | {"corruption.seed": 9}), Store(tmp_path))
