"""Tests the public names of both packages: complete, described, lazy; and the examples on their page run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import erat
import orchestration
from orchestration.report.drawings import FIGURES
from orchestration.study.registries import PRUNERS, SAMPLERS
from tests.public import API, examples, run_examples

ROOT = Path(__file__).parents[2]
PACKAGES = [erat, orchestration]
NAMES = [(package.__name__, name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: value)
def test_each_name_is_there_and_says_what_it_is(package: str, name: str) -> None:
    part = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(part) or inspect.isfunction(part)):
        assert isinstance(part, erat.Registry) or name in ("Free", "Number")
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
    had = {name for names in package._MODULES.values() for name in names}  # type: ignore[attr-defined]
    assert set(package.__all__) == had == checked  # type: ignore[attr-defined]
    assert set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_each_name_is_on_the_page() -> None:
    words = set(re.findall(r"\w+", API.read_text()))
    assert [name for _, name in NAMES if name not in words] == []


def test_importing_loads_neither_torch_nor_anything_else_that_is_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "pandas", "pydantic"}
    code = f"import sys, erat, orchestration; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def private_imports(code: str) -> list[str]:
    """Return what a program imports from the two packages that is not one of their public names."""
    public = {package.__name__: set(package.__all__) for package in PACKAGES}
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in public:
            names = public.get(node.module or "", set())
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in names]
        elif isinstance(node, ast.Import):
            found += [
                alias.name for alias in node.names if alias.name.partition(".")[0] in public and "." in alias.name
            ]
    return found


def test_private_imports_are_seen() -> None:
    code = "import erat, torch.nn\nfrom erat import build, nothing\nimport erat.config\nfrom erat.losses import ramp"
    assert private_imports(code) == ["erat.nothing", "erat.config", "erat.losses.ramp"]


def test_the_page_s_examples_import_public_names_alone() -> None:
    for mark in (None, "with Ray", "not run"):
        assert examples(mark)
        for code in examples(mark):
            assert private_imports(code) == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_corruption_that_contributors_are_shown_keeps_its_budget_with_public_names(norm: str) -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## A corruption\n")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert private_imports(code) == []
    names: dict[str, object] = {"__name__": "regions"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    craft = SimpleNamespace(
        images=torch.zeros(5, 3, 8, 8),
        labels=torch.tensor([0, 1, 2, 1, 0]),
        num_classes=3,
        norm=norm,
        epsilon=0.25,
        generator=torch.Generator().manual_seed(0),
    )
    delta = names["REGIONS"].perturb(craft)  # type: ignore[attr-defined]
    sizes = delta.flatten(1).norm(dim=1) if norm == "l2" else delta.abs().flatten(1).max(dim=1).values
    torch.testing.assert_close(sizes, torch.full((5,), 0.25))
    assert torch.equal(delta[1], delta[3])
    assert not torch.equal(delta[0], delta[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_s_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERAT_HOME", raising=False)
    with erat.temporary_registrations(SAMPLERS, PRUNERS, FIGURES):
        run_examples({"__name__": "example"}, None)
    said = capsys.readouterr().out
    assert said.startswith("done 0.")
    assert "defense.smoothing" in said, "the planned trials"
    assert {path.name for path in (tmp_path / "my-run").iterdir()} >= {"config.json", "checkpoint.pt", "model.pt"}
