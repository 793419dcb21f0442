"""Tests the run configuration: what is refused with which message, what is filled in, what identifies a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from erat.config import RunConfig, build, content_digest, load_config
from erat.corruption.base import DataCorruption
from erat.data.augment.policies import POLICIES
from erat.defenses.erat import ERATOptions
from erat.errors import UserError
from erat.keys import known_keys
from erat.options import parse_fraction
from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES
from erat.variants import defense_names

Overrides = dict[str, Any]
PAPER_NORM = dict.fromkeys(("l2c", "up", "aa", "tue", "pil", "rem", "adaptive"), "linf") | dict.fromkeys(
    ("ap", "uap", "uhp", "urp"), "l2"
)
OWN_NORM = {"ops": "l0", "lsp": "l2", "ar": "l2", "cuda": "unbounded"}  # with budgets of their own: test_shortcuts


def refusal(overrides: Overrides, preset: str = "demo") -> str:
    with pytest.raises(UserError) as caught:
        build(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message, "one line"
    return message


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "what", "got", "allowed"),
    [
        ({"defense.epsilon_in": 0.1}, "unknown key", "'defense.epsilon_in'", "did you mean defense.epsilon_inf"),
        ({"trian.epochs": 3}, "unknown key", "'trian.epochs'", "did you mean train.epochs"),
        ({"defense.name": "ert"}, "unknown defense", "'ert'", "did you mean erat or erat_2 or elr? allowed: at, "),
        (
            {"data.name": "minst"},
            "unknown data set",
            "'minst'",
            "did you mean mnist or kmnist or medmnist? allowed: cifar10, ",
        ),
        ({"corruption.data": "uhpp"}, "unknown data corruption", "'uhpp'", "did you mean uhp"),
        ({"model.name": "resnet35"}, "unknown backbone", "'resnet35'", "did you mean resnet"),
        ({"corruption.source": "smal"}, "unknown backbone", "'smal'", "did you mean small"),
        ({"corruption.labels": "symmetrical"}, "corruption.labels", "'symmetrical'", "'symmetric', 'asymmetric'"),
        ({"defense.eta": 1.4}, "defense.eta", "1.4", "less than or equal to 1"),
        ({"defense.eta": -0.1}, "defense.eta", "-0.1", "greater than or equal to 0"),
        ({"defense.eta": float("nan")}, "defense.eta", "nan", "equal to 1"),
        ({"defense.lambda_u": "nan"}, "defense.lambda_u", "'nan'", "0"),
        ({"train.lr": "inf"}, "train.lr", "'inf'", "finite"),
        ({"train.lr": 0}, "train.lr", "0", "greater than 0"),
        ({"corruption.epsilon": -0.1}, "corruption.epsilon", "-0.1", "greater than or equal to 0"),
        ({"corruption.epsilon": "nan"}, "corruption.epsilon", "'nan'", "finite"),
        ({"corruption.epsilon": 8, "corruption.norm": "linf"}, "corruption.epsilon", "8", "[0, 1] for linf"),
        ({"corruption.epsilon": "8/0"}, "corruption.epsilon", "'8/0'", "number"),
        ({"corruption.epsilon": "1.2.3/4"}, "corruption.epsilon", "'1.2.3/4'", "number"),
        ({"corruption.rate": 1.1}, "corruption.rate", "1.1", "less than or equal to 1"),
        ({"corruption.rate": None}, "corruption.rate", "none", "[0, 1] for symmetric labels"),
        ({"corruption.share": 0}, "corruption.share", "0", "greater than 0"),
        ({"corruption.share": 1.2}, "corruption.share", "1.2", "less than or equal to 1"),
        ({"corruption.share": "nan"}, "corruption.share", "'nan'", "equal to 1"),
        ({"corruption.steps": 0}, "corruption.steps", "0", "greater than or equal to 1"),
        ({"corruption.steps": 1.5}, "corruption.steps", "1.5", "integer"),
        ({"corruption.data": "l2c", "corruption.width": 0}, "corruption.width", "0", "greater than or equal to 1"),
        ({"corruption.data": "l2c", "corruption.lr": 0}, "corruption.lr", "0", "greater than 0"),
        ({"corruption.data": "aa", "corruption.attack": "square"}, "corruption.attack", "'square'", "'standard'"),
        ({"corruption.labels": "human-best"}, "corruption.labels", "'human-best'", "'human-worst'"),
        ({"corruption.labels": "human-worst"}, "corruption.labels", "human-worst", "needs corruption.labels_file"),
        ({"corruption.source_weights": "/none"}, "corruption.source_weights", "/none", "must be a readable file"),
        ({"corruption.source_weights": "/"}, "corruption.source_weights", "got /:", "must be a readable file"),
        ({"corruption.seed": 2**32}, "corruption.seed", str(2**32), f"less than {2**32}"),
        ({"defense.epsilon_inf": 8}, "defense.epsilon_inf", "8", "less than or equal to 1"),
        ({"defense.epsilon_2": "-1/255"}, "defense.epsilon_2", "'-1/255'", "greater than or equal to 0"),
        ({"defense.policy": "cifar"}, "defense.policy", "'cifar'", "'cifar10', 'svhn'"),
        ({"defense.steps": 0}, "defense.steps", "0", "greater than or equal to 1"),
        ({"defense.warmup_epochs": 1.5}, "defense.warmup_epochs", "1.5", "integer"),
        ({"corruption.data": "l2c", "corruption.norm": "l1"}, "corruption.norm", "'l1'", "must be linf or l2 for l2c"),
        ({"corruption.granularity": "sample"}, "corruption.granularity", "'sample'", "must be class for uhp"),
        ({"train.workers": 3}, "train.batch_size", "64", "a multiple of train.workers (3)"),
        ({"train.workers": 0}, "train.workers", "0", "greater than or equal to 1"),
        ({"train.epochs": "many"}, "train.epochs", "'many'", "integer"),
        ({"train.schedule": "linear"}, "train.schedule", "'linear'", "'step', 'onecycle' or 'cosine'"),
        ({"val.fraction": 0}, "val.fraction", "0", "greater than 0"),
        ({"resources.device": "tpu"}, "resources.device", "'tpu'", "'auto', 'cpu' or 'cuda'"),
        (
            {"train.workers": 2, "resources.gpu": 0.5},
            "resources.gpu",
            "0.5",
            "0 or a whole number with train.workers=2",
        ),
        ({"resources.gpu": 1.5}, "resources.gpu", "1.5", "a whole number or below 1"),
    ],
)
def test_bad_input_is_one_line_of_what_got_allowed(overrides: Overrides, what: str, got: str, allowed: str) -> None:
    message = refusal(overrides)
    assert what in message
    assert got in message
    assert allowed in message


def test_unknown_preset() -> None:
    assert (
        refusal({}, "papper") == "unknown preset 'papper': did you mean paper? allowed: demo, medium, official, paper"
    )


def test_a_key_that_only_another_defense_has() -> None:
    assert "unknown key 'defense.eta'" in refusal({"defense.name": "ce", "defense.eta": 0.1})
    assert build("demo", {"defense.name": "ce"}).defense.name == "ce", "while a preset's own such keys are left out"


def test_a_norm_that_a_kind_lacks(register: Callable[..., None]) -> None:
    class Round(DataCorruption):
        kind, norm, norms = "round", "l2", ("l2",)

    register(CORRUPTIONS, "round", Round())
    assert refusal({"corruption.data": "round", "corruption.norm": "linf"}) == (
        "corruption.norm must be l2 for round, got 'linf'"
    )


def test_every_policy_may_be_named() -> None:
    for policy in (*POLICIES, "ueraser"):
        assert build("demo", {"defense.policy": policy}).flat()["defense.policy"] == policy


def test_a_configuration_is_frozen() -> None:
    config = build()
    for section, key in ((config, "preset"), (config.train, "epochs"), (config.defense, "eta")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


# --- what is read and filled in --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.5/2", 0.25), ("-1/4", -0.25), ("8/0", "8/0"), ("x", "x"), (3, 3)],
)
def test_fractions(text: object, value: object) -> None:
    assert parse_fraction(text) == value


def test_strings_are_read_as_their_field_wants_them() -> None:
    config = build("demo", {"corruption.epsilon": "8/255", "defense.rebalance": "false", "train.epochs": "5"})
    assert config.corruption.epsilon == 8 / 255
    assert config.train.epochs == 5
    assert isinstance(config.defense, ERATOptions)
    assert config.defense.rebalance is False


@pytest.mark.parametrize(("data", "linf", "l2", "flip"), [("mnist", 0.1, 1.0, False), ("cifar10", 8 / 255, 0.5, True)])
def test_budgets_policy_and_flip_follow_the_data_set(data: str, linf: float, l2: float, flip: bool) -> None:
    for kind in CORRUPTIONS.names():
        config = build("paper", {"data.name": data, "corruption.data": kind})
        assert config.corruption.norm == (PAPER_NORM | OWN_NORM)[kind]
        if kind in OWN_NORM:
            continue
        assert config.corruption.epsilon == (linf if PAPER_NORM[kind] == "linf" else l2)
    other = build("paper", {"data.name": data, "corruption.data": "up", "corruption.norm": "l2"})
    assert other.corruption.epsilon == l2, "the budget of the norm that is used"
    assert config.data.flip is flip
    assert isinstance(config.defense, ERATOptions)
    assert (config.defense.epsilon_inf, config.defense.epsilon_2) == (linf, l2)
    assert config.defense.policy == DATASETS[data].facts.policy


def test_what_is_said_is_not_filled() -> None:
    said = {
        "data.flip": True,
        "corruption.norm": "linf",
        "corruption.epsilon": 0.0,
        "defense.epsilon_inf": 0.0,
        "defense.policy": "imagenet",
    }
    flat = build("demo", said).flat()
    assert {key: flat[key] for key in said} == said


def test_corruption_settings_of_no_corruption_are_none() -> None:
    config = build("demo", {"corruption.data": "none", "corruption.labels": "none"}).corruption
    assert (config.norm, config.epsilon, config.granularity, config.source) == (None, None, None, None)
    assert config.rate == 0
    assert build("demo", {"corruption.data": "urp"}).corruption.source is None, "URP needs no network"


def test_a_root_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers run in other folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build("demo", {"data.root": "pictures"}).data.root == str(tmp_path / "pictures")
    assert build("demo", {"data.root": "~/pictures"}).data.root == str(tmp_path / "home" / "pictures")
    assert build("demo", {"data.root": "/pictures"}).data.root == "/pictures"
    assert build("demo").data.root is None


def test_presets_do_not_disagree_with_the_method() -> None:
    """The reference is Sec. 1 of the method: the paper's schedule and defaults."""
    flat = build("paper").flat()
    expected = {
        "model.name": "resnet34",
        "train.lr": 0.05,
        "train.momentum": 0.9,
        "train.weight_decay": 5e-4,
        "train.milestones": [60],
        "train.gamma": 0.1,
        "train.batch_size": 64,
        "train.epochs": 100,
        "defense.warmup_epochs": 10,
        "defense.ramp_epochs": 16.0,
        "defense.lambda_u": 25.0,
        "defense.eta": 0.1,
        "defense.steps": 7,
        "defense.step_ratio": 0.2,
        "defense.random_start": False,
        "defense.epsilon_inf": 8 / 255,
        "defense.epsilon_2": 0.5,
    }
    assert {key: flat[key] for key in expected} == expected
    assert build("paper", {"data.name": "cifar100"}).flat()["defense.warmup_epochs"] == 30
    assert build("paper", {"data.name": "tiny-imagenet"}).flat()["defense.warmup_epochs"] == 15


def test_every_name_makes_a_configuration() -> None:
    for defense in DEFENSES.names():
        config = build("demo", {"defense.name": defense})
        assert set(config.flat()) <= {*known_keys(defense), "preset"}
    for backbone in BACKBONES.names():
        assert build("demo", {"model.name": backbone}).model.name == backbone


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.root": "elsewhere"},
        {"data.download": True},
        {"resources.cpu": 7},
        {"resources.gpu": 0.5},
        {"resources.device": "cpu"},
        {"defense.epsilon_inf": "1/10"},  # what the data set would fill in
        {"corruption.norm": "l2"},
        {"corruption.steps": 500},
        {"corruption.share": 1.0},
    ],
)
def test_place_and_machine_do_not_change_the_identity(overrides: Overrides) -> None:
    assert build("demo", overrides).digest() == build("demo").digest()


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.seed": 1},
        {"train.epochs": 77},
        {"train.workers": 2},
        {"defense.eta": 0.2},
        {"defense.rebalance": False},
        {"defense.name": "ce"},
        {"corruption.rate": 0.5},
        {"corruption.epsilon": 0.9},
        {"corruption.data": "uap"},
        {"corruption.seed": 1},
        {"corruption.steps": 499},
        {"corruption.share": 0.5},
        {"model.name": "resnet18"},
        {"val.trusted": False},
        {"val.objective": "perturbed"},
        {"data.limit": 100},
    ],
)
def test_everything_else_does(overrides: Overrides) -> None:
    assert build("demo", overrides).digest() != build("demo").digest()


def test_the_preset_s_name_is_no_part_of_the_identity() -> None:
    demo = build("demo")
    same = build("paper", {key: value for key, value in demo.flat().items() if key != "preset"})
    assert same.preset == "paper"
    assert same.digest() == demo.digest()


def test_the_digest_is_the_same_in_every_process_and_order() -> None:
    overrides = {"train.seed": 3, "defense.eta": 0.3, "corruption.epsilon": "8/255"}
    here = build("demo", overrides).digest()
    assert build("demo", dict(reversed(overrides.items()))).digest() == here
    assert len(here) == 16
    assert int(here, 16) >= 0
    code = f"from erat.config import build; print(build('demo', {overrides!r}).digest())"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_content_digest_sees_values_and_not_key_order() -> None:
    assert content_digest({"a": 1, "b": [1, 2]}) == content_digest({"b": [1, 2], "a": 1})
    assert content_digest({"a": 1}) != content_digest({"a": 2})
    assert content_digest({"a": 1}) != content_digest({"a": "1"})


# --- to a file and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"defense.eta": 0.3, "corruption.epsilon": "8/255", "train.milestones": (3, 5)},
        {"defense.name": "ce", "defense.weak": "none", "corruption.data": "none", "corruption.labels": "none"},
    ],
)
def test_a_configuration_survives_its_file(tmp_path: Path, overrides: Overrides) -> None:
    config = build("demo", overrides)
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(indent=2))
    back = load_config(path)
    assert back == config
    assert type(back.defense) is type(config.defense)
    assert back.digest() == config.digest()
    assert json.loads(path.read_text())["defense"]["name"] == config.defense.name


def test_flat_is_dotted_and_plain() -> None:
    flat = build("demo").flat()
    assert flat["defense.name"] == "erat"
    assert all(isinstance(value, (str, int, float, bool, list, type(None))) for value in flat.values())
    assert build("demo", {k: v for k, v in flat.items() if k != "preset"}) == build("demo")


def test_any_defense_s_open_keys_are_filled(register: Callable[..., None]) -> None:
    class Options(ERATOptions):
        name: str = "other"  # type: ignore[assignment]

    register(DEFENSES, "other", SimpleNamespace(Options=Options))
    config: RunConfig = build("demo", {"defense.name": "other"})
    assert config.flat()["defense.epsilon_inf"] == 0.1


# --- the preset official ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", defense_names())
def test_every_defense_has_its_authors_setting_or_the_paper_s(name: str) -> None:
    official, paper = (build(preset, {"defense.name": name}) for preset in ("official", "paper"))
    assert official.identity().items() >= {k: v for k, v in paper.identity().items() if k.startswith("data.")}.items()
    assert (official.digest() == paper.digest()) == (official.defense.name in ("ce", "mspl", "erat"))


def test_what_the_authors_code_trains_with() -> None:
    names = ("at", "iss", "dividemix", "unicon", "ueraser_max")
    facts = {name: build("official", {"defense.name": name}) for name in names}
    told = {name: (c.model.name, c.train.epochs, c.train.lr, c.train.batch_size) for name, c in facts.items()}
    assert told == {
        "at": ("vgg16", 150, 0.1, 128),
        "iss": ("resnet18", 60, 0.1, 128),
        "dividemix": ("preact_resnet18", 300, 0.02, 64),
        "unicon": ("preact_resnet18", 350, 0.02, 64),
        "ueraser_max": ("resnet18", 200, 0.01, 128),
    }
    assert build("official", {"defense.name": "unicon", "train.epochs": 2}).train.epochs == 2, "what is given wins"


def test_gpus_per_worker_is_another_name() -> None:
    assert build("demo", {"train.gpus_per_worker": 0.5}).resources.gpu == 0.5
    with pytest.raises(UserError, match=r"train.gpus_per_worker is another name for resources.gpu; give one of them"):
        build("demo", {"train.gpus_per_worker": 1, "resources.gpu": 1})


@pytest.mark.parametrize("preset", ["demo", "paper", "official"])
@pytest.mark.parametrize("defense", ["erat", "ce", "dividemix"])
def test_another_seed_is_the_run_that_it_would_have_been_built_as(preset: str, defense: str) -> None:
    settings = {"defense.name": defense, "corruption.data": "up"}
    other = build(preset, settings).with_seed(7)
    assert other == build(preset, settings | {"train.seed": 7})
    assert other.digest() == build(preset, settings | {"train.seed": 7}).digest()


@pytest.mark.parametrize("seed", [-1, "many"])
def test_what_is_no_seed_is_refused_as_elsewhere(seed: Any) -> None:
    with pytest.raises(UserError) as built:
        build("demo", {"train.seed": seed})
    with pytest.raises(UserError, match=re.escape(str(built.value))):
        build("demo").with_seed(seed)


def test_a_root_that_the_set_has_no_use_for_is_told_of() -> None:
    with pytest.warns(UserWarning, match=r"data.root=.*photos is not used: data.name=mnist is the same everywhere"):
        build("demo", {"data.root": "photos"})


@pytest.mark.parametrize("fraction", ["1/" + "9" * 400, "1.2.3/4", "./4", "1/0"])
def test_no_fraction_is_more_than_text(fraction: str) -> None:
    with pytest.raises(UserError, match=r"train\.lr: input should be a valid number"):
        build("demo", {"train.lr": fraction})


@pytest.mark.parametrize(
    "overrides",
    [
        {"corruption.data": ["up"]},
        {"corruption.norm": ["l2"]},
        {"corruption.source_weights": 5, "corruption.data": "ap"},
    ],
)
def test_a_value_of_another_kind_is_one_line(overrides: Overrides) -> None:
    with pytest.raises(UserError) as caught:
        build("demo", overrides)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("{", "holds no configuration: "),
        ('{"data": 3}', "holds no configuration: "),
    ],
)
def test_a_file_that_holds_no_configuration_is_one_line(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_medium_is_small_images_of_any_set() -> None:
    usual, photographs = build("medium"), build("medium", {"data.name": "cifar10"})
    assert (usual.data.name, usual.data.image_size, usual.data.limit) == ("fashion-mnist", 28, 10_000)
    assert (photographs.data.image_size, photographs.data.limit) == (28, 10_000)
    assert usual.flat()["corruption.epsilon"] == 1.25
    assert photographs.flat()["corruption.epsilon"] == 0.5
    assert photographs.flat()["defense.epsilon_inf"] == 8 / 255
    assert build("medium", {"corruption.norm": "linf"}).flat()["corruption.epsilon"] == 0.1
    assert build("medium", {"corruption.data": "l2c"}).flat()["corruption.width"] == 16
