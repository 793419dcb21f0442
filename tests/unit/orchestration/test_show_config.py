"""Tests `--config` and `--show-config` of every verb that takes keys, and `config`, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from erat.audit.settings import robust_settings
from erat.config import build
from erat.data.loading import load
from orchestration import cli
from orchestration.commands import console
from orchestration.study.config_files import read_config

Command = Callable[..., tuple[int, str, str]]
VERBS = ["train", "craft", "sweep", "matrix", "audit"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs a command line here and returns (exit status, standard output, standard error)."""
    monkeypatch.setenv("ERAT_HOME", str(tmp_path / "workspace"))

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = console.guarded(lambda: cli.app(list(words), standalone_mode=False))
        return (code, *capsys.readouterr())

    return run


def run_of(text: str, tmp_path: Path) -> Any:
    """Return the run that the printed text describes."""
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    preset, values = read_config(str(path))
    return build(preset or "demo", values, quiet=True)


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "--dry-run", "--force"],
        ["craft"],
        ["craft", "--preview", "corruption.data=uhp,urp"],
        ["sweep", "--space", "eta"],
        ["matrix", "--grid", "table6"],
    ],
)
def test_it_prints_the_base_and_does_nothing_else(words: list[str], command: Command, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("preset: paper\ntrain: {epochs: 9}\n")
    code, out, _ = command(*words, "--config", str(file), "train.lr=0.2", "--show-config")
    assert code == 0
    kind = {"corruption.data": "uhp"} if "--preview" in words else {}
    expected = build("paper", {"train.epochs": 9, "train.lr": 0.2, **kind})
    assert run_of(out, tmp_path).digest() == expected.digest()
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("words", [["train"], ["sweep", "--space", "budgets"], ["matrix", "--grid", "table6"]])
def test_the_same_verb_takes_what_it_printed(words: list[str], command: Command, tmp_path: Path) -> None:
    _, first, err = command(*words, "train.epochs=3", "corruption.epsilon=1/4", "--show-config")
    assert first, err
    (tmp_path / "again.yaml").write_text(first)
    code, again, err = command(*words, "--config", str(tmp_path / "again.yaml"), "--show-config")
    assert (code, again) == (0, first), err


@pytest.mark.slow
def test_a_plain_study_from_a_file_is_the_same_study(command: Command, tmp_path: Path) -> None:
    """The study's name has no digest, because nothing was changed."""
    _, shown, _ = command("matrix", "--grid", "table6", "--show-config")
    (tmp_path / "plain.yaml").write_text(shown)
    code, out, err = command(
        "matrix", "--grid", "table6", "--config", str(tmp_path / "plain.yaml"), "--dry-run", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["name"] == "table6"


def test_json_is_one_line(command: Command) -> None:
    code, out, _ = command("train", "--show-config", "--json")
    assert code == 0
    assert json.loads(out) == yaml.safe_load(command("train", "--show-config")[1])


def test_an_audit_shows_what_it_makes_of_the_images(command: Command, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "set.npz", images=generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), labels=labels)
    root = f"data.root={tmp_path / 'set.npz'}"
    code, out, err = command("audit", root, "train.epochs=5", "--show-config")
    assert code == 0, err
    (tmp_path / "audit.yaml").write_text(out)
    values = read_config(str(tmp_path / "audit.yaml"))[1]
    images, _ = load(build("demo", {"data.name": "folder", "data.root": str(tmp_path / "set.npz")}).data)
    assert values["train.epochs"] == 5
    assert values["train.batch_size"] == robust_settings(images).train.batch_size
    code, again, err = command("audit", "--config", str(tmp_path / "audit.yaml"), "--show-config")
    assert (code, again) == (0, out), err
    assert not (tmp_path / "workspace").exists()
    (tmp_path / "preset.yaml").write_text("preset: paper")
    code, _, err = command("audit", root, "--config", str(tmp_path / "preset.yaml"))
    assert code == 2
    assert "takes no preset, got paper" in err


@pytest.mark.parametrize("verb", VERBS)
def test_a_bad_file_is_one_line(verb: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("train: {lrr: 1}")
    code, out, err = command(verb, "--config", str(tmp_path / "bad.yaml"))
    assert (code, out) == (2, "")
    assert "bad.yaml: unknown key 'train.lrr': did you mean train.lr" in err.splitlines()[-1]
    assert "--config" in command(verb, "--config", "")[2]


def test_every_verb_that_takes_keys_takes_a_file() -> None:
    for registered in cli.app.registered_commands:
        assert registered.callback is not None
        taken = registered.callback.__annotations__
        assert ("overrides" in taken) == ("config" in taken and "show_config" in taken), registered.callback.__name__


def test_config_lists_keys(command: Command) -> None:
    code, out, _ = command("config", "train.lr")
    assert (code, out.splitlines()[0]) == (0, "train.lr")
    code, out, _ = command("config", "val", "--json")
    assert [entry["key"] for entry in json.loads(out)][:2] == ["val.fraction", "val.trusted"]
    assert command("config", "--format", "md")[1].startswith("# Configuration\n")
    code, out, err = command("config", "train.lrr")
    assert (code, out) == (2, "")
    assert "did you mean train.lr" in err
