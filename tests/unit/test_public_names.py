"""Tests the public names of both packages: complete, described, lazy; and the examples on their page run."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import erat
import orchestration
from orchestration.study.registries import PRUNERS, SAMPLERS
from tests.public import API, examples, run_examples

ROOT = Path(__file__).parents[2]
PACKAGES = [erat, orchestration]
NAMES = [(package.__name__, name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: value)
def test_each_name_is_there_and_says_what_it_is(package: str, name: str) -> None:
    part = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(part) or inspect.isfunction(part)):
        assert isinstance(part, erat.Registry) or name == "Number"
        return
    words = inspect.getdoc(part) or ""
    assert words[:1].isupper(), f"{name} has no docstring"
    assert words.split("\n\n")[0].rstrip()[-1] in ".:", "whole sentences"
    for public, member in inspect.getmembers(part, inspect.isfunction):
        own = member.__qualname__.startswith(f"{part.__name__}.")
        if inspect.isclass(part) and own and not public.startswith("_"):
            assert inspect.getdoc(member), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_list_is_what_can_be_had_and_what_type_checkers_see(package: object) -> None:
    tree = ast.parse(inspect.getsource(package))  # type: ignore[arg-type]
    checked = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(package.__all__) == set(package._HOME) == checked  # type: ignore[attr-defined]
    assert set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", [name for _, name in NAMES])
def test_each_name_is_on_the_page(name: str) -> None:
    assert name in API.read_text()


def test_importing_loads_neither_torch_nor_anything_else_that_is_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "pandas", "pydantic"}
    code = f"import sys, erat, orchestration; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_s_examples_import_public_names_alone() -> None:
    for mark in (None, "with Ray", "not run"):
        assert examples(mark)
        for code in examples(mark):
            for node in ast.walk(ast.parse(code)):
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.module
                    and node.module.split(".")[0]
                    in (
                        "erat",
                        "orchestration",
                    )
                ):
                    assert node.module in ("erat", "orchestration")
                    assert {alias.name for alias in node.names} <= set(importlib.import_module(node.module).__all__)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_s_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERAT_HOME", raising=False)
    with erat.temporary_registrations(SAMPLERS, PRUNERS):
        run_examples({"__name__": "example"}, None)
    said = capsys.readouterr().out
    assert said.startswith("done 0.")
    assert "defense.smoothing" in said, "the planned trials"
    assert {path.name for path in (tmp_path / "my-run").iterdir()} >= {"config.json", "checkpoint.pt", "model.pt"}
