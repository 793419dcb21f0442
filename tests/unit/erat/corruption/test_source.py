"""Tests the source network: its recipe, an interrupted training, weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from erat.config import RunConfig
from erat.corruption import source
from erat.corruption.pipeline import corrupted_set
from erat.corruption.source import Traits, source_network, source_parameters
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.models import build_model

Configure = Callable[..., RunConfig]


@pytest.fixture
def clean(toy: Any) -> ImageSet:
    """Return the 120 training images."""
    train: ImageSet = toy.load(None)[0]
    return train


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def rows(images: ImageSet) -> set[bytes]:
    """Return the pixels of every image; the toy images all differ."""
    return {image.numpy().tobytes() for image in images.images}


# --- trained here ----------------------------------------------------------------------------------------------------


def test_it_is_clean_trained_frozen_in_eval_mode_and_the_same_again(
    configure: Configure, tmp_path: Path, clean: ImageSet
) -> None:
    config = configure({"corruption.source_epochs": 24})
    told: list[tuple[int, int]] = []
    network, manifest = source_network(
        clean, config, Store(tmp_path), lambda what, done, total: told.append((done, total))
    )
    assert not any(module.training for module in network.modules())
    right = network(clean.images.float() / 255).argmax(1) == clean.labels
    assert right.float().mean() > 0.8
    assert told == [(epoch, 24) for epoch in range(1, 25)]
    again, manifest_again = source_network(clean, config, Store(tmp_path))
    assert same(network, again)
    assert manifest_again == manifest
    assert manifest["architecture"] == "small"
    assert manifest["val_accuracy"] > 0.8
    assert (Path(manifest["path"]) / "manifest.json").is_file()


def test_its_recipe_and_its_best_epoch(
    configure: Configure, tmp_path: Path, clean: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is SGD 0.1, batch 128, x 0.1 at 2/3 and 5/6.

    The kept epoch is the best on the held-out tenth, the first of equally good ones.
    """
    made: list[tuple[RunConfig, CorruptedSet]] = []

    class Recorded(Trainer):
        def __init__(self, config: RunConfig, data: CorruptedSet, folder: Path) -> None:
            super().__init__(config, data, folder=folder)
            made.append((config, data))

        def run(self) -> Iterator[Any]:
            for epoch, accuracy in enumerate([0.5, 0.9, 0.9, 0.7], 1):
                with torch.no_grad():
                    for parameter in self.defense.parameters():
                        parameter.fill_(epoch)
                yield SimpleNamespace(epoch=epoch, val_accuracy=accuracy)

    monkeypatch.setattr(source, "Trainer", Recorded)
    network, manifest = source_network(clean, configure({"corruption.source_epochs": 12}), Store(tmp_path))
    assert {parameter.unique().item() for parameter in network.parameters()} == {2.0}
    assert manifest["val_accuracy"] == 0.9
    ((recipe, data),) = made
    assert (recipe.train.lr, recipe.train.batch_size, recipe.train.epochs) == (0.1, 128, 12)
    assert (recipe.train.schedule, recipe.train.milestones, recipe.train.gamma) == ("step", (8, 10), 0.1)
    assert (recipe.defense.name, recipe.model.name, recipe.corruption.data) == ("ce", "small", "none")
    assert (len(data.train), len(data.val)) == (108, 12)
    assert not rows(data.train) & rows(data.val)
    assert rows(data.test) == rows(data.val), "no test image is ever near"
    assert torch.equal(data.train.labels, data.true_labels)


def test_its_seeds_differ_from_those_of_a_run(configure: Configure, tmp_path: Path) -> None:
    """A defense must not by chance start from the same weights against which the perturbation was made."""
    config = configure()
    data = corrupted_set(config, Store(tmp_path))
    trained = Trainer(config, data).defense.networks["main"].state_dict()
    network, _ = source_network(data.train, config, Store(tmp_path))
    assert not torch.equal(trained["network.0.weight"], network.state_dict()["network.0.weight"])


# --- interrupted -----------------------------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818
    """Raised to end a training half way."""


def killed_at(epoch: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if done == epoch:
            raise Killed

    return progress


@pytest.mark.parametrize("epochs", [(1,), (3,), (6,), (2, 3, 6), (4, 4)], ids=str)
def test_a_training_goes_on_where_it_was_killed(
    configure: Configure, tmp_path: Path, clean: ImageSet, epochs: tuple[int, ...]
) -> None:
    """It is killed once, several times, or twice at one place.

    The weights are those of a training without an interruption.
    """
    config = configure({"corruption.source_epochs": 6})
    undisturbed, manifest = source_network(clean, config, Store(tmp_path / "undisturbed"))
    store = Store(tmp_path / "killed")
    workspace = store.workspace(source_parameters(Traits.of(clean), config))
    for epoch in epochs:
        with pytest.raises(Killed):
            source_network(clean, config, store, killed_at(epoch))
        assert any(workspace.iterdir()), "kept for the next one"
    told: list[int] = []
    network, manifest_then = source_network(clean, config, store, lambda what, done, total: told.append(done))
    assert told == list(range(epochs[-1], 7)), "the last epoch is looked at again"
    assert same(network, undisturbed)
    assert manifest_then["val_accuracy"] == manifest["val_accuracy"]
    assert manifest_then["checksum"] == manifest["checksum"]
    assert not workspace.exists(), "gone once the network is made"


def test_the_best_epoch_before_the_kill_is_still_the_best_after_it(
    configure: Configure, tmp_path: Path, clean: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, accuracies = Trainer._val_accuracy, iter([0.5, 0.9, 0.2, 0.8])
    monkeypatch.setattr(Trainer, "_val_accuracy", lambda trainer: (real(trainer), next(accuracies))[1])
    config = configure({"corruption.source_epochs": 4})
    with pytest.raises(Killed):
        source_network(clean, config, Store(tmp_path), killed_at(3))
    best = torch.load(
        Store(tmp_path).workspace(source_parameters(Traits.of(clean), config)) / "best.pt", weights_only=True
    )
    network, manifest = source_network(clean, config, Store(tmp_path))
    assert manifest["val_accuracy"] == best["val_accuracy"] == 0.9
    assert all(torch.equal(best["weights"][name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_of_a_training_does_not_change_the_network(
    configure: Configure, tmp_path: Path, clean: ImageSet, name: str
) -> None:
    config = configure({"corruption.source_epochs": 4})
    undisturbed, manifest = source_network(clean, config, Store(tmp_path / "undisturbed"))
    store = Store(tmp_path / "killed")
    with pytest.raises(Killed):
        source_network(clean, config, store, killed_at(3))
    file = store.workspace(source_parameters(Traits.of(clean), config)) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    told: list[int] = []
    network, manifest_then = source_network(clean, config, store, lambda what, done, total: told.append(done))
    assert told == ([2, 3, 4] if name == "checkpoint.pt" else [1, 2, 3, 4]), "the best weights so far would be missed"
    assert same(network, undisturbed)
    assert manifest_then["checksum"] == manifest["checksum"]


# --- from a file -----------------------------------------------------------------------------------------------------


def other_network(classes: int = 4) -> nn.Module:
    """Return weights that no training here would reach."""
    return build_model("small", classes, 1, 8, [0.1], [0.7], seed=123)


@pytest.mark.parametrize("prefix", ["", "main."], ids=["state dictionary", "model.pt of a run"])
def test_weights_from_a_file_are_used_and_nothing_is_trained(
    configure: Configure, tmp_path: Path, clean: ImageSet, prefix: str
) -> None:
    given = other_network()
    torch.save({prefix + name: value for name, value in given.state_dict().items()}, tmp_path / "weights.pt")
    config = configure({"corruption.source_weights": str(tmp_path / "weights.pt")})
    network, manifest = source_network(clean, config, Store(tmp_path / "crafted"))
    assert same(network, given)
    assert not network.training
    digest = config.corruption.source_weights_digest
    assert digest
    assert manifest == {"architecture": "small", "file_digest": digest}
    data = corrupted_set(config, Store(tmp_path / "crafted"))
    assert data.manifest["images"]["source"] == manifest
    assert not list((tmp_path / "crafted").glob("source-*"))
    assert config.corruption.source_epochs is None


def test_a_run_is_known_by_the_content_of_the_file_not_by_its_path(configure: Configure, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return configure({"corruption.source_weights": str(path)}).digest()

    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    (tmp_path / "c").write_bytes(b"another")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    assert digest(tmp_path / "a") != configure().digest()


def test_other_weights_make_another_set(configure: Configure, tmp_path: Path) -> None:
    poisoned = []
    for seed in (1, 2):
        torch.save(build_model("small", 4, 1, 8, [0.5], [0.25], seed).state_dict(), tmp_path / "weights.pt")
        config = configure({"corruption.source_weights": str(tmp_path / "weights.pt")})
        poisoned.append(corrupted_set(config, Store(tmp_path / "crafted")).train.images)
    assert not torch.equal(*poisoned)
    assert len(list((tmp_path / "crafted").glob("images-*"))) == 2


def refusal(clean: ImageSet, config: RunConfig, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        source_network(clean, config, Store(root))
    message = str(caught.value)
    assert "\n" not in message
    assert "corruption.source_weights" in message
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ""),
        (b"no weights" * 50, ""),
        ({"some": "words"}, ""),
        ([1, 2], ""),
        ({}, "Missing key"),
        (other_network(classes=5).state_dict(), "size mismatch for network"),
        (nn.Linear(4, 4).state_dict(), "Missing key"),
        ({f"second.{name}": value for name, value in other_network().state_dict().items()}, "Missing key"),
    ],
    ids=["empty", "garbage", "words", "list", "no weights", "classes", "architecture", "another prefix"],
)
def test_a_file_of_other_weights_is_refused(
    configure: Configure, tmp_path: Path, clean: ImageSet, content: Any, reason: str
) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    message = refusal(clean, configure({"corruption.source_weights": str(path)}), tmp_path)
    assert message.startswith(f"corruption.source_weights={path} is no file of weights that fit small: ")
    assert reason in message


def test_a_file_that_is_gone_or_changed_since_is_refused(configure: Configure, tmp_path: Path, clean: ImageSet) -> None:
    path = tmp_path / "weights.pt"
    torch.save(other_network().state_dict(), path)
    config = configure({"corruption.source_weights": str(path)})
    with path.open("ab") as file:
        file.write(b"more")
    assert "its content has changed" in refusal(clean, config, tmp_path)
    path.unlink()
    assert "must be a readable file" in refusal(clean, config, tmp_path)
    with pytest.raises(UserError, match=rf"^corruption.source_weights must be a readable file, got {path}: No such"):
        configure({"corruption.source_weights": str(path)})


def test_weights_run_no_code(configure: Configure, tmp_path: Path, clean: ImageSet) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"network.0.weight": Evil()}, tmp_path / "weights.pt")
    refusal(clean, configure({"corruption.source_weights": str(tmp_path / "weights.pt")}), tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_colour_images_need_weights_for_colour(configure: Configure, tmp_path: Path, clean: ImageSet) -> None:
    torch.save(other_network().state_dict(), tmp_path / "weights.pt")
    config = configure({"corruption.source_weights": str(tmp_path / "weights.pt")})
    colour = replace(clean, images=clean.images.expand(-1, 3, -1, -1))
    assert "size mismatch" in refusal(colour, config, tmp_path)
