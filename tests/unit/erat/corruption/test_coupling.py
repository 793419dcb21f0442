"""Tests couplings of the two corruptions: what each makes, what the store shares, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erat.config import RunConfig, build
from erat.corruption.coupling import annotated, bound_to, overlapping, realised
from erat.corruption.pipeline import corrupted_set, stored_parts
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet
from erat.errors import UserError
from erat.registry import CORRUPTIONS

Configure = Callable[..., RunConfig]
Run = Callable[..., CorruptedSet]


@pytest.fixture
def run(configure: Configure, tmp_path: Path) -> Run:
    """Return a function that makes the corrupted set of the toy data, all from one store."""

    def corrupt(data: str = "urp", **keys: Any) -> CorruptedSet:
        given = {f"corruption.{key}": value for key, value in keys.items()}
        return corrupted_set(configure({"corruption.data": data} | given), Store(tmp_path))

    return corrupt


def entries(folder: Path) -> dict[str, int]:
    """Return how many images, labels and source networks a store has."""
    return {part: len(list(folder.glob(f"{part}-*"))) for part in ("images", "labels", "source")}


def worn(data: CorruptedSet, clean: CorruptedSet) -> Tensor:
    """Return the perturbation of each image in grey levels, (N, D)."""
    return (data.train.images.int() - clean.train.images.int()).flatten(1)


def patterns(delta: Tensor, classes: Tensor) -> list[Tensor]:
    """Return the perturbation of each class where pixels are not cut, by the median of its images."""
    return [delta[classes == k].float().median(0).values for k in range(4)]


def follows(delta: Tensor, classes: Tensor, by_class: list[Tensor]) -> bool:
    """Return whether each image is nearest to the pattern of its class."""
    distances = torch.stack([(delta.float() - pattern).norm(dim=1) for pattern in by_class])
    return bool((distances.argmin(0) == classes).all())


# --- labels first ----------------------------------------------------------------------------------------------------


def test_labels_first_poisons_for_the_given_labels_which_are_those_of_the_independent_case(
    run: Run, tmp_path: Path
) -> None:
    clean, independent, coupled = run("none"), run(), run(coupling="labels_first")
    assert entries(tmp_path) == {"images": 2, "labels": 1, "source": 0}, "labels are shared"
    assert torch.equal(coupled.train.labels, independent.train.labels)
    by_class = patterns(worn(independent, clean), independent.true_labels)
    assert follows(worn(independent, clean), independent.true_labels, by_class)
    assert follows(worn(coupled, clean), coupled.train.labels, by_class)
    assert coupled.manifest["labels"]["noise_rate"] == pytest.approx(0.5)
    assert coupled.manifest["coupling"]["kind"] == "labels_first"


def test_labels_first_trains_the_source_network_on_true_labels_once(run: Run, tmp_path: Path) -> None:
    run("uhp")
    run("uhp", coupling="labels_first")
    run("uap", coupling="labels_first", rate=0.25)
    assert entries(tmp_path) == {"images": 3, "labels": 2, "source": 1}
    assert len(list(tmp_path.glob("vectors-*"))) == 1, "nor do the vectors of the classes depend on labels"


def test_other_wrong_labels_make_another_set(run: Run, tmp_path: Path) -> None:
    first = run(coupling="labels_first")
    assert not torch.equal(run(coupling="labels_first", rate=0.25).train.images, first.train.images)
    assert torch.equal(run(coupling="labels_first").train.images, first.train.images)
    assert entries(tmp_path) == {"images": 2, "labels": 2, "source": 0}


# --- annotator -------------------------------------------------------------------------------------------------------


def test_an_annotator_sees_the_poison_and_is_trained_once(run: Run, tmp_path: Path) -> None:
    independent, coupled = run("uhp"), run("uhp", coupling="annotator", rate=0.25, labels="annotator")
    assert torch.equal(independent.train.images, coupled.train.images)
    labels = coupled.manifest["labels"]
    assert (labels["kind"], labels["noise_rate"]) == ("annotator", pytest.approx(0.25))
    assert 0 <= labels["annotator_accuracy"] <= 1
    run("urp", labels="annotator", rate=0.5, source_epochs=1)
    assert entries(tmp_path) == {"images": 2, "labels": 3, "source": 2}, "a network to craft against, an annotator"


def test_an_annotator_s_labels_depend_on_what_it_sees(run: Run) -> None:
    keys = {"labels": "annotator", "rate": 0.5, "source_epochs": 1}
    seen = [run("urp", epsilon=4.0, **keys), run("none", **keys), run("urp", epsilon=4.0, share=0.5, **keys)]
    assert all(data.manifest["labels"]["noise_rate"] == pytest.approx(0.5) for data in seen)
    for one in seen:
        assert sum(torch.equal(one.train.labels, other.train.labels) for other in seen) == 1
    assert "coupling" not in seen[1].manifest, "without a poison nothing is coupled"


def test_an_annotator_errs_where_it_is_least_sure() -> None:
    """The logits are the pixels: the second image is taken for class 2, the third is nearly taken for class 0."""
    pixels = torch.tensor([[250, 0, 10], [0, 100, 200], [90, 100, 0], [0, 10, 255]], dtype=torch.uint8)
    subject = ImageSet(pixels.view(4, 1, 1, 3), torch.tensor([0, 1, 1, 2]), ("a", "b", "c"))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    torch.nn.init.eye_(network[1].weight)
    found = [annotated(network, subject.images, subject, rate)[0].labels.tolist() for rate in (0, 0.25, 0.5, 1)]
    assert found == [[0, 1, 1, 2], [0, 2, 1, 2], [0, 2, 0, 2], [2, 2, 0, 1]]
    assert annotated(network, subject.images, subject, 0.5)[1] == 0.75


# --- bound -----------------------------------------------------------------------------------------------------------


def test_bound_tells_the_same_lie_twice(run: Run, tmp_path: Path) -> None:
    clean, independent, coupled = run("none"), run(), run(labels="bound", rate=0.25)
    lie = (coupled.true_labels + 3) % 4
    by_class = patterns(worn(independent, clean), independent.true_labels)
    assert follows(worn(coupled, clean), lie, by_class), "the images wear the pattern of the other class"
    wrong = coupled.train.labels != coupled.true_labels
    assert torch.equal(coupled.train.labels[wrong], lie[wrong])
    labels = coupled.manifest["labels"]
    assert (labels["kind"], labels["noise_rate"]) == ("bound", pytest.approx(0.25))
    for y, row in enumerate(labels["transition"]):
        assert row[(y + 3) % 4] == pytest.approx(0.25)
        assert row[y] == pytest.approx(0.75)
    run(labels="bound", rate=0.5)
    assert entries(tmp_path)["images"] == 2, "one poison for all rates"


def test_a_poison_that_aims_at_the_next_class_aims_three_on(run: Run) -> None:
    """UAP gives an image the vector of the class after its own, UHP that of its own: bound, both give y + 3."""
    assert (CORRUPTIONS.known("uap").towards, CORRUPTIONS.known("ap").towards) == (1, 1)
    uap, uhp = (run(kind, labels="bound").train.images for kind in ("uap", "uhp"))
    assert torch.equal(uap, uhp)


# --- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "both"), [(0.0, 0.0), (0.5, 0.125), (1.0, 0.25)])
def test_an_overlap_is_realised_without_crafting_anything(
    run: Run, tmp_path: Path, overlap: float, both: float
) -> None:
    clean, _ = run("none", rate=0.25), run(share=0.5, rate=0.25)
    stored = entries(tmp_path)
    data = run(share=0.5, rate=0.25, coupling="overlap", overlap=overlap)
    assert entries(tmp_path) == stored
    poisoned, wrong = worn(data, clean).any(1), data.train.labels != data.true_labels
    assert float(poisoned.double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((poisoned & wrong).double().mean()) == pytest.approx(both, abs=0.02)
    found = data.manifest["coupling"]
    assert (found["kind"], found["asked"]) == ("overlap", overlap)
    assert found["overlap"] == pytest.approx(overlap, abs=0.05)
    assert found["both"] == pytest.approx(float((poisoned & wrong).double().mean()))


def test_the_sets_are_those_that_were_asked_for() -> None:
    wrong = torch.arange(100) < 60
    for share, overlap, expected in [(0.6, 1, 60), (0.6, 0.5, 30), (0.4, 0, 0), (0.3, 0.5, 15), (0.9, 1, 60)]:
        poisoned = overlapping(wrong, share, overlap, torch.Generator().manual_seed(0))
        assert int(poisoned.sum()) == round(share * 100)
        assert int((poisoned & wrong).sum()) == expected
        assert realised(poisoned, wrong)["overlap"] == pytest.approx(overlap)
    assert realised(torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool))["overlap"] is None


def test_an_overlap_that_cannot_be_is_refused_with_what_can() -> None:
    wrong = torch.arange(100) < 60
    said = r"^corruption.overlap must be in \[0.334, 1\] with corruption.share=0.6 and 60% wrong labels, got 0.2$"
    with pytest.raises(UserError, match=said):
        overlapping(wrong, 0.6, 0.2, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=said):
        build("demo", {"corruption.share": 0.6, "corruption.coupling": "overlap", "corruption.overlap": 0.2})
    assert int(overlapping(wrong, 0.6, 0.34, torch.Generator()).sum()) == 60


# --- configurations --------------------------------------------------------------------------------------------------


def demo(**keys: Any) -> Any:
    return build("demo", {f"corruption.{key}": value for key, value in keys.items()}, quiet=True).corruption


@pytest.mark.parametrize("kind", ["annotator", "bound"])
def test_a_coupling_that_decides_the_labels_is_their_kind(kind: str) -> None:
    for keys in ({"coupling": kind}, {"labels": kind}, {"labels": kind, "coupling": kind}):
        assert (demo(**keys).coupling, demo(**keys).labels) == (kind, kind)
    assert build("demo", {"corruption.coupling": kind}).digest() == build("demo", {"corruption.labels": kind}).digest()
    with pytest.warns(UserWarning, match=rf"^corruption.labels=instance is not used: .*corruption.labels={kind}$"):
        build("demo", {"corruption.labels": "instance", "corruption.coupling": kind})


def test_without_one_of_the_two_nothing_is_coupled() -> None:
    for keys in (
        {"labels": "none", "coupling": "annotator"},
        {"labels": "none", "coupling": "labels_first"},
        {"data": "none", "coupling": "labels_first"},
        {"data": "none", "coupling": "overlap", "overlap": 0.5, "share": 0.5},
    ):
        assert (demo(**keys).coupling, demo(**keys).overlap) == ("independent", None), keys
    assert demo(labels="none", coupling="bound").labels == "none"
    with pytest.warns(UserWarning, match=r"^corruption.coupling=labels_first is not used: corruption.data=none"):
        build("demo", {"corruption.data": "none", "corruption.coupling": "labels_first"})
    with pytest.warns(UserWarning, match=r"^corruption.overlap=0.5 is not used"):
        build("demo", {"corruption.overlap": 0.5})


def test_what_is_not_coupled_is_the_run_that_it_was() -> None:
    plain, given = build("demo"), build("demo", {"corruption.coupling": "independent"})
    assert plain.digest() == given.digest()
    assert not [key for key in plain.identity() if "coupling" in key or "overlap" in key]
    coupled = build("demo", {"corruption.coupling": "labels_first"})
    assert coupled.digest() != plain.digest()
    assert build("demo", coupled.flat()).digest() == coupled.digest()


def test_the_architecture_of_an_annotator_is_that_of_a_source_network() -> None:
    for data in ("none", "urp", "up", "uhp"):
        options = demo(data=data, coupling="annotator")
        assert (options.source, options.source_epochs) == ("small", 12), data
    assert demo(data="urp").source is None


def test_parts_are_shared_where_nothing_depends_on_the_coupling(configure: Configure) -> None:
    given = (
        {},
        {"coupling": "labels_first"},
        {"coupling": "annotator"},
        {"coupling": "bound"},
        {"coupling": "overlap"},
    )
    keys = [{"corruption.share": 0.5} | {f"corruption.{key}": value for key, value in each.items()} for each in given]
    parts = stored_parts([configure({"corruption.data": "urp"} | each) for each in keys])
    images, labels = ([str(part) for part in column] for column in zip(*parts, strict=True))
    assert images[0] == images[2] == images[4]
    assert labels[0] == labels[1] == labels[4]
    assert len(set(images)) == 3
    assert len(set(labels)) == 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"coupling": "both"}, "corruption.coupling: input should be 'independent', 'labels_first', 'annotator', "),
        (
            {"coupling": "overlap"},
            "corruption.coupling=overlap needs corruption.share below 1, got 1: all are poisoned",
        ),
        (
            {"coupling": "overlap", "share": 0.5, "overlap": 1.5},
            "corruption.overlap: input should be less than or equal to 1, got 1.5",
        ),
        (
            {"coupling": "bound", "data": "l2c"},
            "corruption.data=l2c has no corruption.coupling=bound: it draws images to no class",
        ),
        (
            {"coupling": "labels_first", "labels": "bound"},
            "corruption.labels must not be bound with corruption.coupling='labels_first'",
        ),
        ({"coupling": "annotator", "rate": None}, "corruption.rate must be in [0, 1] for annotator labels, got none"),
    ],
    ids=["unknown", "all", "beyond", "no-class", "contradiction", "no-rate"],
)
def test_what_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        demo(**keys)
    print(error.value)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_three_classes_have_no_third_one_after_them() -> None:
    assert bound_to(4) == {0: 3, 1: 0, 2: 1, 3: 2}
    assert bound_to(2) == {0: 1, 1: 0}
    with pytest.raises(UserError, match=r"^corruption.coupling=bound needs a number of classes other than 1 and 3"):
        bound_to(3)
