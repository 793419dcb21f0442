"""Tests the exported classifier: the same predictions, any number of images, no pickled code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._export.serde.schema import SCHEMA_VERSION

from erat.audit.crossfit import probabilities, train_on
from erat.audit.settings import robust_settings
from erat.config import build
from erat.data.types import ImageSet
from erat.defenses.base import Defense
from erat.engine.assembly import make_defense, network_builder
from erat.errors import UserError
from erat.export import DESCRIPTION, WEIGHTS, export_program, load_program
from erat.registry import DEFENSES


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
    """An object that would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("/tmp/should-not-be-there"),))  # type: ignore[return-value]


def rewritten(program: Path, path: Path, ending: str, content: bytes) -> Path:
    """Return a copy in which the only file with this ending is replaced."""
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


# --- files that would run code ---------------------------------------------------------------------------------------

GRAPH, CONSTANTS = "models/model.json", "data/constants/model_constants_config.json"
WEIGHT_LIST = "data/weights/model_weights_config.json"
Entries = list[tuple[str, bytes]]


class Mark:
    """An object that creates a file when it is unpickled; an attacker could do anything instead."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return (Path.touch, (self.marker,))


def code(marker: Path) -> str:
    """Return source code that does the same."""
    return f"__import__('pathlib').Path('{marker}').touch()"


def saved(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Mark(marker), file)
    return file.getvalue()


def edited(entries: Mapping[str, bytes], name: str, change: Callable[[Any], object]) -> Entries:
    """Return all entries; `change` may modify the JSON of one."""
    content = json.loads(entries[name])
    change(content)
    return [(key, json.dumps(content).encode() if key == name else value) for key, value in entries.items()]


def twice(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Store entries twice: torch reads the first entry of a name, Python's zipfile the last."""
    config = json.loads(entries[WEIGHT_LIST])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    weight = f"data/weights/{first['path_name']}"
    bad = {WEIGHT_LIST: json.dumps(config).encode(), weight: saved(marker)}
    return [*({**entries, **bad}).items(), *((name, entries[name]) for name in bad)]


def opaque(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Add a constant with a name that torch unpickles, whatever its description says."""
    content = pickle.dumps(Mark(marker))
    meta: dict[str, Any] = {"dtype": 1, "sizes": [{"as_int": len(content)}], "strides": [{"as_int": 1}], "layout": 7}
    meta |= {"storage_offset": {"as_int": 0}, "requires_grad": False, "device": {"type": "cpu", "index": None}}
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    listed = edited(entries, CONSTANTS, lambda config: config["config"].update(x=constant))
    return [*listed, ("data/constants/opaque_obj_0", content)]


def symbols(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Put code into symbolic sizes, which torch lets sympy evaluate as Python."""

    def change(program: Any) -> None:
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = f"{code(marker)} or 2"

    return edited(entries, GRAPH, change)


def guards(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Put code into guards, which torch compiles and calls with each batch if there are sample inputs."""
    file = io.BytesIO()
    torch.save(((torch.zeros(2, 1, 8, 8),), {}), file)
    with_sample = {**entries, "data/sample_inputs/model.pt": file.getvalue()}
    return edited(with_sample, GRAPH, lambda program: program.update(guards_code=[f"{code(marker)} is None"]))


def names(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Put code into the names of inputs, which torch writes into the source that it makes from a graph."""
    bad = json.dumps(f"images=({code(marker)})")
    return [(name, c.decode().replace('"images"', bad).encode() if name == GRAPH else c) for name, c in entries.items()]


def legacy(entries: Mapping[str, bytes], marker: Path) -> Entries:
    """Add constants in one pickled file, which torch prefers."""
    return [*entries.items(), ("data/constants/model.pt", saved(marker))]


def entries_of(program: Path) -> tuple[str, dict[str, bytes]]:
    """Return (the only folder, its content)."""
    with zipfile.ZipFile(program) as archive:
        return archive.namelist()[0].partition("/")[0], {
            name.partition("/")[2]: archive.read(name) for name in archive.namelist()
        }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("attack", "refusal"),
    [
        (twice, "one name twice"),
        (opaque, "holds pickled code"),
        (legacy, "holds pickled code"),
        (symbols, None),
        (guards, "holds pickled code"),
        (names, None),
    ],
)
def test_code_in_a_program_is_not_run(
    program: Path,
    trained: Defense,
    images: ImageSet,
    tmp_path: Path,
    attack: Callable[[Mapping[str, bytes], Path], Entries],
    refusal: str | None,
) -> None:
    marker, path, some = tmp_path / "marker", tmp_path / "model.pt2", images.images[:3]
    root, entries = entries_of(program)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in attack(entries, marker):
            archive.writestr(f"{root}/{name}", content)
    with suppress(Exception):
        torch.export.load(path).module()(some.float() / 255)
    assert marker.exists(), "torch itself runs it"
    marker.unlink()
    if refusal:
        with pytest.raises(UserError, match=refusal):
            load_program(path)
    else:  # the graph is not read at all
        assert torch.allclose(load_program(path)(some.float() / 255), probabilities(trained, some), atol=1e-6)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_the_layout_of_torch_2_7_is_refused(program: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt2"
    graph = entries_of(program)[1][GRAPH]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", graph)
        archive.writestr("serialized_state_dict.pt", saved(marker))
        for name in ("serialized_constants.pt", "serialized_example_inputs.pt"):
            archive.writestr(name, b"")
    with suppress(Exception):
        torch.export.load(path)
    assert marker.exists(), "torch itself unpickles it"
    marker.unlink()
    with pytest.raises(UserError, match="only exports are loaded"):
        load_program(path)
    assert not marker.exists()


# --- files that are something else -----------------------------------------------------------------------------------


def test_other_programs_still_read_it(program: Path, trained: Defense, images: ImageSet) -> None:
    some = images.images[:5]
    module = torch.export.load(program).module()
    assert torch.allclose(module(some.float() / 255), probabilities(trained, some), atol=1e-6)


def test_images_of_another_shape_are_refused(program: Path) -> None:
    with pytest.raises(ValueError, match=r"images must be of shape \(N, 1, 8, 8\), got \(2, 1, 16, 16\)"):
        load_program(program)(torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("name", DEFENSES.names())
def test_every_defense_comes_back(name: str, images: ImageSet, tmp_path: Path) -> None:
    config = robust_settings(images, {"defense.name": name, "defense.policy": "svhn"} if name == "erat" else {})
    if name != "erat":
        kept = {
            key: value for key, value in config.flat().items() if not key.startswith("defense.") and key != "preset"
        }
        config = build("demo", kept | {"defense.name": name}, quiet=True)
    shape = (1, 8, 8)
    defense = make_defense(config, 48, 4, shape, network_builder(config, 4, shape, [0.4], [0.3])).eval()
    export_program(defense, shape, tmp_path / "model.pt2")
    drawn = torch.random.get_rng_state()
    loaded, pixels = load_program(tmp_path / "model.pt2"), images.images[:6].float() / 255
    assert torch.equal(drawn, torch.random.get_rng_state()), "no global generator moves"
    with torch.no_grad():
        assert torch.allclose(loaded(pixels), defense.predict(pixels).softmax(1), atol=1e-6)


def described(program: Path, path: Path, **changes: Any) -> Path:
    """Return a copy with another description of its network."""
    root, entries = entries_of(program)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in edited(entries, DESCRIPTION, lambda description: description.update(changes)):
            archive.writestr(f"{root}/{name}", content)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": 10**9}, "less than or equal to 65536"),
        ({"classes": 7}, "the weights are not those of small with 7 classes"),
        ({"backbone": "os:system"}, "unknown backbone"),
        ({"options": {"name": "os:system"}}, "unknown defense"),
        ({"size": "8"}, "valid integer"),
        ({"more": 1}, "Extra inputs"),
        ({"tensors": []}, "0 tensors"),
    ],
)
def test_a_description_of_something_else_is_refused(
    program: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_program(described(program, tmp_path / "model.pt2", **changes))
    assert "\n" not in str(error.value)


def test_an_archive_of_another_form_is_refused(program: Path, tmp_path: Path) -> None:
    root, entries = entries_of(program)
    path = tmp_path / "model.pt2"

    def refused(words: str, more: Mapping[str, bytes] | None = None, drop: str = "", way: int = 0) -> None:
        with zipfile.ZipFile(path, "w", way) as archive:
            for name, content in entries.items():
                if name != drop:
                    archive.writestr(f"{root}/{name}", content)
            for name, content in (more or {}).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match=words):
            load_program(path)

    refused("no classifier.json: it was not written by export_program", drop=DESCRIPTION)
    refused("no classifier.bin", drop=WEIGHTS)
    refused("compressed or encrypted", way=zipfile.ZIP_DEFLATED)
    refused("more than one folder", {"elsewhere/x": b""})
    refused("which no export does", {f"{root}/data/extra/x": b""})
    refused("compiled code", {f"{root}/data/aotinductor/model/x.so": b""})
    path.write_bytes(b"PK\x01\x02" * 20_001)
    with pytest.raises(UserError, match="at most 20000 entries"):
        load_program(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no file"):
        load_program(path)
