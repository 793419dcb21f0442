"""The exported classifier: the same answers, any number of images, no pickled code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from erat.audit.crossfit import probabilities, train_on
from erat.audit.settings import robust_settings
from erat.data.base import ImageSet
from erat.defenses.base import Defense
from erat.errors import UserError
from erat.export import export_program, load_program


@pytest.fixture(scope="module")
def images(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(48, seed=1)


@pytest.fixture(scope="module")
def trained(images: ImageSet) -> Defense:
    return train_on(robust_settings(images, {"train.epochs": 1, "defense.policy": "svhn"}), images).defense


@pytest.fixture(scope="module")
def program(trained: Defense, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.pt2"
    export_program(trained, (1, 8, 8), path)
    return path


def test_the_program_answers_as_the_defense_does(program: Path, trained: Defense, images: ImageSet) -> None:
    loaded = load_program(program)
    for count in (1, 2, 48):
        some = images.images[:count]
        assert torch.allclose(loaded(some.float() / 255), probabilities(trained, some), atol=1e-6)
    assert all(parameter.requires_grad for parameter in trained.parameters()), "the defense is as it was"


def test_nothing_of_the_training_images_goes_along(program: Path, trained: Defense) -> None:
    names = set(load_program(program).state_dict())
    assert names and all(".networks." in f".{name}" for name in names)
    assert "perturber.last_delta" in trained.state_dict(), "the defense itself remembers"


class Payload:
    """What would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("/tmp/should-not-be-there"),))  # type: ignore[return-value]


def rewritten(program: Path, path: Path, ending: str, content: bytes) -> Path:
    """A copy with the one file that ends so replaced."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        replaced = 0
        for name in source.namelist():
            hit = name.endswith(ending)
            replaced += hit
            target.writestr(name, content if hit else source.read(name))
    assert replaced == 1
    return path


def test_pickled_code_is_refused(program: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(Payload(), file)
    sample = rewritten(program, tmp_path / "sample.pt2", "sample_inputs/model.pt", file.getvalue())
    with pytest.raises(UserError, match=r"holds pickled code \(data/sample_inputs/model.pt\); only weights are loaded"):
        load_program(sample)
    with zipfile.ZipFile(program) as archive:
        name = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        config = json.loads(archive.read(name))
    next(iter(config["config"].values()))["use_pickle"] = True
    marked = rewritten(program, tmp_path / "marked.pt2", "model_weights_config.json", json.dumps(config).encode())
    with pytest.raises(UserError, match=r"holds pickled code \(data/weights/model_weights_config.json\)"):
        load_program(marked)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no program")
    for name in ("text.pt2", "absent.pt2"):
        with pytest.raises(UserError, match="cannot be read as an exported program") as error:
            load_program(tmp_path / name)
        assert "\n" not in str(error.value)
