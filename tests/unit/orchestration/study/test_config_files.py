"""Tests files of keys: --config reads what --show-config prints; words override the file, the file the preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import erat
from erat.config import build
from erat.corruption.base import DataCorruption
from erat.errors import UserError
from erat.options import CorruptionOptions
from orchestration.study.config_files import Asked, as_yaml, asked, read_config
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def made(text: str) -> str:
        path = tmp_path / "keys.yaml"
        path.write_text(text)
        return str(path)

    return made


CHOICES: dict[str, list[Any]] = {
    "defense.name": ["erat", "ce", "dividemix", "erat_no_at", "at_unicon", "mspl"],
    "data.name": ["mnist", "cifar10", "folder", "tiny-imagenet"],
    "data.root": ["/data/photos of 2024", "/none", "/données: \u201cneu\u201d", None],
    "corruption.data": ["none", "up", "uhp", "aa", "l2c"],
    "corruption.labels": ["none", "symmetric", "instance"],
    "corruption.rate": [0.1, 1 / 3, 1e-05],
    "corruption.epsilon": ["8/255", 0.3, 1e-7, None],
    "train.lr": [1e-05, 0.1, 0.30000000000000004],
    "train.milestones": [[], [3], [30, 60]],
    "train.seed": [0, 2**63 - 1],
    "train.workers": [1, 2],
    "resources.gpu": [0, 0.25],
    "defense.squeeze": ["none", "jpeg"],
    "val.trusted": [True, False],
    "storage.path": [None, "s3://bucket/runs"],
}
OVERRIDES = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in CHOICES.items()})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(preset=st.sampled_from(["demo", "paper", "official"]), overrides=OVERRIDES, as_json=st.booleans())
def test_what_is_printed_reads_back_to_the_same_run(
    preset: str, overrides: dict[str, Any], as_json: bool, tmp_path: Path
) -> None:
    assume(not (overrides.get("train.workers") == 2 and overrides.get("resources.gpu") == 0.25))  # which is refused
    config = build(preset, overrides, quiet=True)
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(indent=2) if as_json else as_yaml(config.flat()), encoding="utf-8")
    back = asked([], str(path), None)
    again = build(back.preset, back.overrides, quiet=True)
    assert again.flat() == config.flat()
    assert again.digest() == config.digest()


def test_words_win_over_the_file_and_the_file_over_the_preset(write: Any) -> None:
    file = write("preset: paper\ntrain: {lr: 1e-3, epochs: 7}\ndefense.eta: 0.3\n")
    assert asked(["train.lr=0.2"], file, None) == Asked(
        "paper", {"train.epochs": 7, "defense.eta": 0.3, "train.lr": 0.2}
    )
    assert asked([], file, "demo").preset == "demo"
    assert asked([], None, None) == Asked("demo", {})
    config = build("paper", asked([], file, None).overrides)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.001, 7, 64)


def test_values_are_read_as_words_are(write: Any) -> None:
    file = write(
        "data.flip: no\ndata.root: 2024\ndefense.jsd_log: 2\ndefense.squeeze: none\ndata.limit: none\n"
        "corruption.epsilon: 8/255\ntrain.milestones: [30, 60]\ndata.image_size: ~\ncorruption.norm:\n"
    )
    assert read_config(file)[1] == {
        "data.flip": False,
        "data.root": "2024",
        "defense.jsd_log": "2",
        "defense.squeeze": "none",
        "data.limit": None,
        "corruption.epsilon": "8/255",
        "train.milestones": [30, 60],
        "data.image_size": None,
        "corruption.norm": None,
    }


def test_what_the_preset_says_anyway_is_no_override(write: Any) -> None:
    """Otherwise a whole configuration would carry its defense's settings into the baselines of a study."""
    assert asked([], write(as_yaml(build("demo").flat())), None).overrides == {}
    changed = build("paper", {"data.name": "cifar100", "train.lr": 0.2})
    assert asked([], write(as_yaml(changed.flat())), None).overrides == {"data.name": "cifar100", "train.lr": 0.2}
    spec = StudySpec(load_space("budgets"), "demo", asked([], write(as_yaml(build("demo").flat())), None).overrides)
    assert spec.config({"defense.name": "ce"}) == build("demo", {"defense.name": "ce"})


def test_another_defense_leaves_out_what_the_file_says_of_its_own(write: Any) -> None:
    file = write(as_yaml(build("demo", {"defense.eta": 0.3, "train.epochs": 3}).flat()))
    for name in ("ce", "erat_no_at"):
        back = asked([f"defense.name={name}"], file, None)
        assert build(back.preset, back.overrides) == build("demo", {"defense.name": name, "train.epochs": 3})
    assert asked(["defense.name=erat"], file, None).overrides["defense.eta"] == 0.3


def test_a_variant_and_another_name_of_a_key(write: Any) -> None:
    back = asked([], write("defense.name: erat_no_at\ntrain.gpus_per_worker: 0.5\n"), None)
    config = build(back.preset, back.overrides)
    assert not config.defense.model_dump()["adversarial"]
    assert config.resources.gpu == 0.5


def test_keys_of_words_that_are_no_values_yet_stay_apart(write: Any) -> None:
    back = asked(["corruption.data=up,uap"], write("train.epochs: 3"), None, apart=("corruption.data",))
    assert back.overrides == {"train.epochs": 3, "corruption.data": "up,uap"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lr: [1\n", "is not valid YAML"),
        ("a: 1\n\n  b: 2\n", "line 3"),
        ("- train.lr", "must hold a mapping of keys to values, got list"),
        ("", "must hold a mapping of keys to values, got NoneType"),
        ("train.lrr: 1", "unknown key 'train.lrr': did you mean train.lr"),
        ("train: 3", "unknown key 'train'"),
        ("train: {lr: {x: 1}}", "unknown key 'train.lr.x'"),
        ("train.lr: 1\ntrain: {lr: 2}", "'train.lr' is given twice"),
        ("train.lr: 1\ntrain.lr: 2", "the key 'train.lr' is given twice in line 2"),
        ("preset: big", "unknown preset 'big'"),
        ("preset: [demo]", "unknown preset"),
        ("train.lr: much", "train.lr: input should be a valid number"),
        ("train.lr: [[1]]", "train.lr must be a value or a list of values"),
        ("train.epochs: null", "train.epochs: input should be a valid integer, got None"),
        ("defense.name: errat", "unknown defense 'errat'"),
        ("train.lr: !!python/object:os.system 1", "line 1: a value must be plain"),
        ("data.root: &a x\ndata.limit: *a", "data.limit"),
        ("train.seed: " + "9" * 500, "train.seed must have at most 100 characters"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text: str, said: str, write: Any) -> None:
    file = write(text)
    with pytest.raises(UserError) as caught:
        asked([], file, None)
    assert said in str(caught.value)
    assert file in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="No such file"):
        asked([], "/nowhere/keys.yaml", None)


def test_a_bad_word_is_not_blamed_on_the_file(write: Any) -> None:
    file = write(json.dumps({"train": {"epochs": 3}}))
    with pytest.raises(UserError) as caught:
        asked(["train.lr=much"], file, None)
    assert "train.lr" in str(caught.value) and "keys.yaml" not in str(caught.value)


def test_what_belongs_to_another_data_set_or_poison_is_not_taken_over(tmp_path: Path) -> None:
    whole = tmp_path / "whole.yaml"
    whole.write_text(as_yaml(build("demo", {"train.epochs": 3, "corruption.share": 0.5}).flat()))
    for words in ({"data.name": "cifar10"}, {"corruption.data": "up"}, {"corruption.data": "none"}):
        back = asked([f"{key}={value}" for key, value in words.items()], str(whole), None)
        expected = build(
            "demo", {"train.epochs": 3} | ({"corruption.share": 0.5} if "none" not in words.values() else {}) | words
        )
        assert build(back.preset, back.overrides, quiet=True) == expected


def test_a_file_is_read_with_its_own_corruption_s_options(tmp_path: Path) -> None:
    class MyOptions(CorruptionOptions):
        attack: bool = False

    class Mine(DataCorruption):
        kind, norm, Options = "mine", "linf", MyOptions

    path = tmp_path / "mine.yaml"
    path.write_text("corruption.data: mine\ncorruption.attack: true\n")
    with erat.temporary_registrations():
        erat.register_corruption("mine", Mine)
        assert read_config(str(path))[1]["corruption.attack"] is True
