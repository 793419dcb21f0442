"""What a configuration leaves open of a corruption: filled by its kind; what has no use is dropped, and said so."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest

from erat.config import build
from erat.registry import CORRUPTIONS

Overrides = dict[str, Any]

# The lengths of the paper, and what else only some kinds have.
OPTIONS: dict[str, Overrides] = {
    "urp": {},
    "uhp": {"steps": 500},
    "uap": {"steps": 500},
    "up": {"steps": 100},
    "ap": {"steps": 100},
    "aa": {"steps": 100, "attack": "apgd-ce"},
    "l2c": {"steps": 500, "width": 64, "lr": 1e-4},
}


@pytest.mark.parametrize("kind", CORRUPTIONS.names())
def test_every_kind_has_its_own_options_and_no_others(kind: str) -> None:
    corruption = build("paper", {"corruption.data": kind}).corruption
    everything = {"steps": None, "attack": None, "width": None, "lr": None}
    assert {key: getattr(corruption, key) for key in everything} == everything | dict(CORRUPTIONS[kind].defaults)
    without = build("paper", {"corruption.data": "none"}).corruption
    assert all(getattr(without, key) is None for key in everything)


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_paper_s_lengths_are_the_defaults(kind: str) -> None:
    assert CORRUPTIONS[kind].defaults == OPTIONS[kind]


def test_steps_that_are_said_are_kept() -> None:
    for kind in ("uhp", "up", "ap", "aa", "l2c"):
        assert build("demo", {"corruption.data": kind, "corruption.steps": "7"}).corruption.steps == 7


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


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("l2c", "width", 9), ("l2c", "lr", 0.1), ("l2c", "steps", 3), ("aa", "attack", "standard"), ("up", "steps", 3)],
)
def test_the_options_of_a_kind_make_another_run(kind: str, key: str, value: Any) -> None:
    base = {"corruption.data": kind}
    assert build("demo", base | {f"corruption.{key}": value}).digest() != build("demo", base).digest()


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    """Not by its path, which is not part of a run, and not by a digest of another time."""
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
    """Neither of a preset's own values, nor of all values of a run said once more."""
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
    ],
)
def test_the_demo_s_budgets_and_lengths(kind: str, expected: Overrides) -> None:
    flat = build("demo", {"corruption.data": kind}).flat()
    assert {key: flat[f"corruption.{key}"] for key in expected} == expected
    other = build("demo", {"corruption.data": kind, "data.name": "cifar10"})
    assert other.corruption.epsilon == (8 / 255 if CORRUPTIONS[kind].norm == "linf" else 0.5), (
        "those are for the digits"
    )


@pytest.mark.parametrize("kind", CORRUPTIONS.names())
@pytest.mark.parametrize(("norm", "customary"), [("linf", 0.1), ("l2", 1.0)])
def test_a_demo_s_budget_is_for_its_norm_alone(kind: str, norm: str, customary: float) -> None:
    epsilon = build("demo", {"corruption.data": kind, "corruption.norm": norm}).corruption.epsilon
    if norm == CORRUPTIONS[kind].norm:
        assert epsilon == build("demo", {"corruption.data": kind}).corruption.epsilon
    else:
        assert epsilon == customary
