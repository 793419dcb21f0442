"""Tests the values of a corruption that a configuration leaves open, and the warning about settings without a use."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field, model_validator
from torch import Tensor

from erat.config import RunConfig, build
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.pipeline import poison
from erat.corruption.store import Store
from erat.data.types import ImageSet
from erat.errors import UserError
from erat.options import CorruptionOptions
from erat.registry import CORRUPTIONS
from orchestration.study.overrides import parse_overrides

Overrides = dict[str, Any]

ROBUST: Overrides = {"steps": 5000, "descents": 10, "draws": 5, "flip": None}
# The lengths in the paper, and the options that only some kinds have.
OPTIONS: dict[str, Overrides] = {
    "urp": {},
    "uhp": {"steps": 500, "images_per_class": 16},
    "uap": {"steps": 500, "images_per_class": 16},
    "up": {"steps": 100},
    "ap": {"steps": 100},
    "aa": {"steps": 100, "attack": "apgd-ce"},
    "l2c": {"steps": 500, "width": 64, "lr": 1e-4, "unet": "plain", "victim": "small", "victim_epochs": 1},
    "ops": {},
    "lsp": {"patches": 4},
    "ar": {},
    "cuda": {"blur": 0.3},
    "tue": {"steps": 200},
    "pil": {"steps": 30, "linear_epochs": 30},
    "rem": {**ROBUST, "attack_steps": 10, "attack_share": 0.5},
    "adaptive": {**ROBUST, "attack_steps": 7, "epsilon_inf": None, "epsilon_2": None, "policy": None},
}
# What the preset `paper` has of the authors' code, and what follows from its data set.
AUTHORS: dict[str, Overrides] = {
    "uhp": {"images_per_class": 256},
    "uap": {"images_per_class": 256},
    "l2c": {"unet": "official", "victim": "vgg11", "victim_epochs": 20},
    "rem": {"flip": True},
    "adaptive": {"flip": True, "epsilon_inf": 8 / 255, "epsilon_2": 0.5, "policy": "cifar10"},
}


@pytest.mark.parametrize("kind", CORRUPTIONS.names())
def test_every_kind_has_its_own_options_and_no_others(kind: str) -> None:
    everything = {"steps": None, "attack": None, "width": None, "lr": None}
    config, without = (build("paper", {"corruption.data": data}) for data in (kind, "none"))
    expected = OPTIONS[kind] | AUTHORS.get(kind, {})
    assert config.corruption.own() == expected
    flat, plain = config.flat(), without.flat()
    own = everything | expected
    assert {key: flat[f"corruption.{key}"] for key in own} == own
    assert {key: plain[f"corruption.{key}"] for key in everything} == everything
    assert [key for key in flat if key in plain] == list(plain), "in one order"
    assert {key for key in flat if key not in plain} == {
        f"corruption.{key}" for key in expected if key not in everything
    }


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_paper_s_lengths_are_the_defaults(kind: str) -> None:
    assert CORRUPTIONS[kind].Options().own() == OPTIONS[kind]


def test_steps_that_are_said_are_kept() -> None:
    for kind in ("uhp", "up", "ap", "aa", "l2c"):
        assert build("demo", {"corruption.data": kind, "corruption.steps": "7"}).flat()["corruption.steps"] == 7


def test_files_are_found_and_digested_from_where_the_user_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("weights.pt").write_bytes(b"weights")
    Path("human.pt").write_bytes(b"labels")
    files = {"corruption.source_weights": "~/weights.pt", "corruption.labels_file": "human.pt"}
    corruption = build("demo", files | {"corruption.labels": "human-worst"}).corruption
    assert corruption.source_weights == str(tmp_path / "weights.pt")
    assert corruption.labels_file == str(tmp_path / "human.pt")
    assert corruption.source_weights_digest == hashlib.sha256(b"weights").hexdigest()[:16]
    assert corruption.labels_file_digest == hashlib.sha256(b"labels").hexdigest()[:16]
    assert (corruption.source_epochs, corruption.rate) == (None, None), "the files say all"


class TestAKindOfOnesOwn:
    """Tests that a user's kind takes one class with its options, and one line of the registry."""

    @pytest.fixture(autouse=True)
    def _registered(self, register: Callable[..., None]) -> None:
        class StripesOptions(CorruptionOptions):
            width: int = Field(3, ge=1, le=8, description="of a stripe, in pixels")
            tint: Literal["red", "blue"] | None = None

            @model_validator(mode="after")
            def _together(self) -> StripesOptions:
                if self.tint == "blue" and self.width > 4:
                    raise UserError(f"corruption.width must be at most 4 for blue stripes, got {self.width}")
                return self

        class Stripes(DataCorruption):
            kind, norm, Options = "stripes", "linf", StripesOptions

            def perturb(self, craft: Craft) -> Tensor:
                bar = torch.arange(craft.images.shape[-1]) // craft.options["width"] % 2 * 2.0 - 1
                return craft.epsilon * bar.expand_as(craft.images)

        register(CORRUPTIONS, "stripes", Stripes())

    def test_its_keys_are_read_checked_and_filled(self) -> None:
        given = {"corruption.data": "stripes"}
        assert build("demo", given).corruption.own() == {"width": 3, "tint": None}
        assert build("demo", given | {"corruption.width": "5"}).corruption.own()["width"] == 5
        assert build("demo", given | {"corruption.width": None}).corruption.own()["width"] == 3
        words = [f"{key}={value}" for key, value in (given | {"corruption.tint": "none"}).items()]
        assert parse_overrides(words)["corruption.tint"] is None
        for wrong, message in [
            ({"corruption.width": 9}, r"^corruption.width: input should be less than or equal to 8, got 9$"),
            ({"corruption.tint": "green"}, r"^corruption.tint: input should be 'red' or 'blue', got 'green'$"),
            (
                {"corruption.tint": "blue", "corruption.width": 5},
                r"^corruption.width must be at most 4 for blue .*got 5$",
            ),
            (
                {"corruption.tin": "red"},
                r"^unknown key 'corruption.tin': did you mean corruption.tint.*allowed: .*corruption.tint\b",
            ),
        ]:
            with pytest.raises(UserError, match=message):
                build("demo", given | wrong)

    def test_it_makes_another_run_and_leaves_others_as_they_are(self) -> None:
        plain, striped = build("demo"), build("demo", {"corruption.data": "stripes"})
        assert "corruption.tint" not in plain.flat()
        assert striped.digest() != build("demo", {"corruption.data": "stripes", "corruption.tint": "red"}).digest()
        assert RunConfig.model_validate_json(striped.model_dump_json()) == striped
        with pytest.warns(UserWarning, match=r"^corruption.tint=red is not used: corruption.data=uhp"):
            assert build("demo", {"corruption.tint": "red"}).digest() == plain.digest()

    def test_what_it_is_told_reaches_it(self, make_images: Callable[..., ImageSet], tmp_path: Path) -> None:
        images, sets = make_images(8), []
        for width in (1, 2):
            config = build("demo", {"corruption.data": "stripes", "corruption.width": width, "data.image_size": 8})
            sets.append(poison(images, config, Store(tmp_path))[0])
        assert len(list(tmp_path.glob("images-*"))) == 2
        assert (sets[0] != sets[1]).any()


def test_kinds_are_known_without_crafting() -> None:
    for kind in CORRUPTIONS.names():
        known, part = CORRUPTIONS.known(kind), CORRUPTIONS[kind]
        assert isinstance(part, type(known))
        facts = ("kind", "norm", "norms", "granularities", "uses", "draws", "version", "Options")
        assert all(getattr(known, fact) == getattr(part, fact) for fact in facts)


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *[
            ("l2c", "width", 9),
            ("l2c", "lr", 0.1),
            ("l2c", "steps", 3),
            ("aa", "attack", "standard"),
            ("up", "steps", 3),
        ],
        *[("lsp", "patches", 5), ("cuda", "blur", 0.5), ("ops", "epsilon", 5)],
    ],
)
def test_the_options_of_a_kind_make_another_run(kind: str, key: str, value: Any) -> None:
    base = {"corruption.data": kind}
    assert build("demo", base | {f"corruption.{key}": value}).digest() != build("demo", base).digest()


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    """Its path, which is not part of a run, and a digest of an earlier content do not matter."""
    for name, content in (("one", b"same"), ("two", b"same"), ("three", b"other")):
        (tmp_path / name).write_bytes(content)
    keys = {"corruption.source_weights": {}, "corruption.labels_file": {"corruption.labels": "human-worst"}}
    for key, more in keys.items():
        one, two, three = (build("demo", more | {key: str(tmp_path / name)}) for name in ("one", "two", "three"))
        assert one.digest() == two.digest() != three.digest()
        assert key not in one.identity()
        assert f"{key}_digest" in one.identity()
        (tmp_path / "one").write_bytes(b"now another")
        assert build("demo", more | {key: str(tmp_path / "one")}).digest() != two.digest()
        (tmp_path / "one").write_bytes(b"same")


# --- what has no use -------------------------------------------------------------------------------------------------

UNUSED: list[tuple[Overrides, str, Any]] = [
    ({"corruption.data": "urp"}, "corruption.steps", 7),
    ({"corruption.data": "urp"}, "corruption.source", "resnet18"),
    ({"corruption.data": "l2c"}, "corruption.source", "resnet18"),
    ({"corruption.data": "up"}, "corruption.source_epochs", 3),
    ({"corruption.data": "up"}, "corruption.source_weights", "weights.pt"),
    ({"corruption.data": "uhp"}, "corruption.width", 8),
    ({"corruption.data": "ap"}, "corruption.lr", 0.1),
    ({"corruption.data": "ap"}, "corruption.attack", "standard"),
    ({"corruption.data": "aa"}, "corruption.width", 8),
    ({"corruption.data": "l2c"}, "corruption.attack", "standard"),
    ({"corruption.data": "cuda"}, "corruption.epsilon", 0.1),
    ({"corruption.data": "ops"}, "corruption.source", "resnet18"),
    ({"corruption.data": "ar"}, "corruption.patches", 2),
    ({"corruption.data": "none"}, "corruption.epsilon", 0.1),
    ({"corruption.data": "none"}, "corruption.norm", "l2"),
    ({"corruption.data": "none"}, "corruption.steps", 7),
    ({"corruption.data": "none"}, "corruption.share", 0.5),
    ({"corruption.labels": "symmetric"}, "corruption.generator", "pdn"),
    ({"corruption.labels": "symmetric"}, "corruption.labels_file", "human.pt"),
    ({"corruption.labels": "none"}, "corruption.rate", 0.3),
]


@pytest.mark.parametrize(("base", "key", "value"), UNUSED, ids=[f"{key} {base}" for base, key, _ in UNUSED])
def test_what_has_no_use_is_said_and_makes_no_other_run(base: Overrides, key: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=rf"^{key}={value} is not used: corruption.data=.*, corruption.labels="):
        config = build("demo", base | {key: value})
    assert config == build("demo", base)
    assert config.digest() == build("demo", base).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build("demo", base | {key: value}, quiet=True) == config, "it may be meant for other runs of a sweep"


@pytest.mark.parametrize("preset", ["demo", "paper"])
@pytest.mark.parametrize("labels", ["none", "symmetric", "asymmetric", "instance"])
@pytest.mark.parametrize("data", ["none", *CORRUPTIONS.names()])
def test_nothing_is_said_of_what_has_a_use(preset: str, labels: str, data: str) -> None:
    """This holds for a preset's own values, and for all values of a run given once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = build(preset, {"corruption.data": data, "corruption.labels": labels})
        again = build(preset, {key: value for key, value in config.flat().items() if key != "preset"})
    assert again == config


def test_a_file_of_weights_makes_epochs_useless(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"weights")
    given = {"corruption.source_weights": str(tmp_path / "weights.pt")}
    with pytest.warns(UserWarning, match=r"^corruption.source_epochs=9 is not used: "):
        config = build("demo", given | {"corruption.source_epochs": 9})
    assert config.digest() == build("demo", given).digest()


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uhp", {"norm": "l2", "epsilon": 1.25, "steps": 500, "source": "small", "source_epochs": 12}),
        ("urp", {"norm": "l2", "epsilon": 2.0}),
        ("l2c", {"norm": "linf", "epsilon": 0.3, "steps": 12, "width": 16, "lr": 1e-3}),
        ("uap", {"norm": "l2", "epsilon": 1.0}),
        ("ap", {"norm": "l2", "epsilon": 1.0, "steps": 100}),
        ("aa", {"norm": "linf", "epsilon": 0.1, "steps": 100}),
        ("up", {"norm": "linf", "epsilon": 0.1, "source": "small"}),
        ("tue", {"norm": "linf", "epsilon": 0.1, "steps": 10, "source": None}),
        (
            "rem",
            {"norm": "linf", "epsilon": 0.1, "steps": 100, "source": "small", "source_epochs": None, "flip": False},
        ),
        ("adaptive", {"epsilon": 0.1, "epsilon_inf": 0.1, "epsilon_2": 1.0, "policy": "digits", "flip": False}),
    ],
)
def test_the_demo_s_budgets_and_lengths(kind: str, expected: Overrides) -> None:
    flat = build("demo", {"corruption.data": kind}).flat()
    assert {key: flat[f"corruption.{key}"] for key in expected} == expected
    other = build("demo", {"corruption.data": kind, "data.name": "cifar10"})
    assert other.corruption.epsilon == (8 / 255 if CORRUPTIONS[kind].norm == "linf" else 0.5), (
        "those are for the digits"
    )


@pytest.mark.parametrize(
    ("kind", "norm", "customary"),
    [
        (kind, norm, customary)
        for kind in CORRUPTIONS.names()
        for norm, customary in (("linf", 0.1), ("l2", 1.0))
        if norm in CORRUPTIONS[kind].norms
    ],
)
def test_a_demo_s_budget_is_for_its_norm_alone(kind: str, norm: str, customary: float) -> None:
    epsilon = build("demo", {"corruption.data": kind, "corruption.norm": norm}).corruption.epsilon
    if norm == CORRUPTIONS[kind].norm:
        assert epsilon == build("demo", {"corruption.data": kind}).corruption.epsilon
    else:
        assert epsilon == customary
