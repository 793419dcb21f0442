"""Tests what the shell offers: typer's own script asks the command, which answers quickly and never with an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec

ROOT = Path(__file__).parents[4]
# The installed command, which reports at its end whether torch was loaded.
COMMAND = """
import atexit, sys
atexit.register(lambda: print("torch" if {"torch", "optuna", "ray"} & set(sys.modules) else "light", file=sys.stderr))
sys.argv = ["erat", *sys.argv[1:]]
from orchestration.cli import main
main()
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    ledger = Ledger(Workspace(root).ledger)
    for name in ("budgets", "my-sweep"):
        register(ledger, name, StudySpec(load_space("eta"), "demo", {}), trials=3)
    return root


def run(workspace: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = os.environ | {"ERAT_HOME": str(workspace), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *words], env=kept, capture_output=True, text=True, check=False
    )


def offered(workspace: Path, line: str) -> tuple[list[str], str]:
    """Return (what bash offers for the last word of a line, all other output).

    bash splits words at equals signs.
    """
    words = line.replace("=", " = ").split(" ")
    words = [word for word in words[:-1] if word] + [words[-1]]
    if line.endswith("="):
        words = words[:-1]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    said = run(workspace, _ERAT_COMPLETE="complete_bash", **asked)
    return said.stdout.split(), said.stderr.strip()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("erat sweep --space ", ["budgets", "eta", "joint", "lambda"]),
        ("erat sweep --sampler c", ["cmaes"]),
        ("erat sweep --pruner ", ["halving", "median", "none"]),
        ("erat sweep --window ", ["auto"]),
        ("erat sweep --confirm ", ["3x3", "none", "auto"]),
        ("erat matrix --grid figure", [f"figure{number}" for number in range(2, 9)]),
        ("erat train --preset p", ["paper"]),
        ("erat report my", ["my-sweep"]),
        ("erat resume ", ["budgets", "my-sweep"]),
        ("erat status b", ["budgets"]),
        ("erat config --defense at_", ["at_dividemix", "at_unicon"]),
        ("erat conf", ["config"]),
    ],
)
def test_names(line: str, expected: list[str], workspace: Path) -> None:
    assert offered(workspace, line) == (expected, "light")


EPSILONS = ("2", "inf", "l0", "l1", "lpips", "ramp", "ssim", "wasserstein")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("erat train corruption.r", ["corruption.rate="]),
        ("erat sweep train.lr=0.1 val.s", ["val.seed="]),
        ("erat sweep train.lr=0.1 train.sync_batchnorm=", ["true", "false"]),
        ("erat train train.schedule=", ["step", "onecycle", "cosine"]),
        ("erat train data.flip=t", ["true"]),
        ("erat craft corruption.data=u", ["uap", "uhp", "up", "urp"]),
        ("erat train train.lr=", []),
        ("erat train nothing=", []),
        ("erat config defense.epsilon_i", ["defense.epsilon_inf"]),
        ("erat config defense.epsilon", [f"defense.epsilon_{name}" for name in EPSILONS]),
    ],
)
def test_keys_and_their_words(line: str, expected: list[str], workspace: Path) -> None:
    assert offered(workspace, line) == (expected, "light")


def test_a_shell_that_keeps_the_word_whole_is_given_it_whole(workspace: Path) -> None:
    said = run(
        workspace,
        _ERAT_COMPLETE="complete_fish",
        _TYPER_COMPLETE_ARGS="erat train train.schedule=s",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_WORD_TO_COMPLETE="train.schedule=s",
    )
    assert said.stdout.split() == ["train.schedule=step"]


def test_a_damaged_ledger_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    Workspace(tmp_path).ledger.mkdir(parents=True)
    assert offered(tmp_path, "erat resume b") == ([], "light")


def test_looking_writes_nothing(tmp_path: Path) -> None:
    offered(tmp_path / "none", "erat resume ")
    assert not (tmp_path / "none").exists()


def test_the_script_is_typer_s(workspace: Path) -> None:
    said = run(workspace, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert said.returncode == 0, said.stderr
    assert "complete -o default -F _erat_completion erat" in said.stdout
