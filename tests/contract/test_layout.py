"""Tests, by reading the source, in which direction imports point and where side effects are allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES

ROOT = Path(__file__).parents[2]

# The only files that may import these packages, at any place in the file.
IMPORTERS = {
    "ray": {
        "orchestration/cluster/autoscaling.py",
        "orchestration/cluster/crafting.py",
        "orchestration/cluster/execution.py",
        "orchestration/cluster/session.py",
        "orchestration/search/tune.py",
    },
    "mlflow": {"orchestration/tracking/opening.py", "orchestration/tracking/tracker.py"},
}
GLOBAL_SEEDING = {
    "torch.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "numpy.random.seed",
    "numpy.random.set_state",
    "random.seed",
    "random.setstate",
}
IMPORT_CALLS = ("importlib.import_module", "__import__")


def files(*folders: str) -> list[str]:
    found = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found, f"nothing in {folders}"
    return sorted(found)


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def imports(tree: ast.Module, package: str = "") -> Iterator[str]:
    """Return the full names of all modules, and of the names imported from them.

    Imports at any depth count, in functions and in strings too.
    """
    aliases = aliases_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func, aliases) in IMPORT_CALLS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)


def aliases_of(tree: ast.Module) -> dict[str, str]:
    """Return what the imported names of a file stand for: np -> numpy, F -> torch.nn.functional."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """Return the full name behind `a.b.c`, or nothing for other expressions."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        above = dotted(node.value, aliases)
        return f"{above}.{node.attr}" if above else ""
    return ""


def called(tree: ast.Module) -> set[str]:
    """Return the full names of all functions that a file mentions, whether it calls them or passes them on."""
    aliases = aliases_of(tree)
    return {dotted(node, aliases) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))}


def tops(file: str) -> set[str]:
    """Return the top-level packages that a file imports."""
    package = ".".join(Path(file).parent.parts)
    return {name.split(".")[0] for name in imports(tree_of(file), package)}


def within(file: str) -> set[str]:
    """Return the project's own files that a file imports."""
    package = ".".join(Path(file).parent.parts)
    own = set()
    for name in imports(tree_of(file), package):
        path = name.replace(".", "/")
        own |= {candidate for candidate in (f"{path}.py", f"{path}/__init__.py") if (ROOT / candidate).is_file()}
    return own


def reachable(file: str) -> set[str]:
    """Return all files of the project that may be loaded by importing this file and running its functions."""
    found, waiting = {file}, [file]
    while waiting:
        new = within(waiting.pop()) - found
        found |= new
        waiting += new
    return found


# --- the reader itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import ray.tune as t",
        "from ray.tune import Tuner",
        "def f():\n    import ray",
        "from importlib import import_module\nimport_module('ray.tune')",
        "if TYPE_CHECKING:\n    from ray import tune",
        "try:\n    import ray\nexcept ImportError:\n    pass",
    ],
)
def test_no_import_escapes(source: str) -> None:
    assert "ray" in {name.split(".")[0] for name in imports(ast.parse(source))}


def test_relative_imports_are_resolved() -> None:
    assert "erat.data.types" in set(imports(ast.parse("from . import types"), "erat.data"))
    assert "erat.losses" in set(imports(ast.parse("from ..losses import ramp"), "erat.data"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed"),
        ("from torch import manual_seed as seed\nseed(0)", "torch.manual_seed"),
        ("import numpy as np\nnp.random.seed(0)", "numpy.random.seed"),
        ("import random\ncallback(random.seed)", "random.seed"),
    ],
)
def test_no_seeding_escapes(source: str, name: str) -> None:
    assert name in called(ast.parse(source)) & GLOBAL_SEEDING


# --- imports point one way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", files("erat"))
def test_the_science_knows_nothing_of_many_runs(file: str) -> None:
    assert not tops(file) & {"orchestration", "orchestrate", "ray", "mlflow", "optuna", "typer", "rich", "tests"}


@pytest.mark.parametrize("package", IMPORTERS)
def test_one_place_imports(package: str) -> None:
    importers = {file for file in ["orchestrate.py", *files("erat", "orchestration")] if package in tops(file)}
    assert importers == IMPORTERS[package]


def test_one_cell_runs_without_ray_and_without_mlflow() -> None:
    loaded = reachable("orchestration/run/execute.py")
    assert "erat/engine/trainer.py" in loaded
    assert not loaded & set().union(*IMPORTERS.values())


# Rooms of orchestration/ by level: a module imports only from its own room and from lower levels.
LEVELS = (
    {"storage", "terminal"},
    {"run", "tracking"},
    {"study", "cluster"},
    {"report", "crafting"},
    {"audit", "search"},
    {"api"},
    {"commands"},
    {"cli"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(file: str) -> str:
    return Path(file).parts[1].removesuffix(".py")


def test_every_room_has_a_level() -> None:
    rooms = {room_of(file) for file in files("orchestration")} - {"__init__"}
    assert rooms == set(LEVEL_OF)


@pytest.mark.parametrize("file", [file for file in files("orchestration") if file != "orchestration/__init__.py"])
def test_imports_point_downward(file: str) -> None:
    others = {room_of(other) for other in within(file) if other.startswith("orchestration/")} - {room_of(file)}
    upward = {room for room in others - {"__init__"} if LEVEL_OF[room] >= LEVEL_OF[room_of(file)]}
    assert not upward


@pytest.mark.parametrize("file", files("erat", "orchestration"))
def test_no_module_imports_itself_in_a_circle(file: str) -> None:
    modules = {other for other in within(file) if not other.endswith("__init__.py")}
    assert file not in set().union(*map(reachable_modules, modules), set())


@cache
def reachable_modules(file: str) -> frozenset[str]:
    """Return the same as `reachable`, but without what packages only re-export."""
    found, waiting = {file}, [file]
    while waiting:
        new = {other for other in within(waiting.pop()) if not other.endswith("__init__.py")} - found
        found |= new
        waiting += new
    return frozenset(found)


def test_nothing_imports_the_command() -> None:
    assert not [file for file in files("erat", "orchestration") if "orchestrate" in tops(file)]


@pytest.mark.parametrize("file", ["erat/selection.py", "erat/losses.py", "erat/attacks/norms.py"])
def test_mathematics_is_functions_of_tensors(file: str) -> None:
    assert tops(file) == {"__future__", "torch"}


def test_registered_parts_are_the_science_s_own() -> None:
    for registry in (BACKBONES, CORRUPTIONS, DATASETS, DEFENSES):
        for name in registry.names():
            module, _, attribute = registry._targets[name].partition(":")
            assert module.startswith("erat."), name
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), name
            assert attribute, name


# --- side effects live at the edge -----------------------------------------------------------------------------------


def test_one_owner_of_the_update() -> None:
    """Crafting UP trains a separate network, which no defense and no run ever uses."""
    owners = {
        file
        for file in files("erat")
        if any(isinstance(node, ast.Attribute) and node.attr == "zero_grad" for node in ast.walk(tree_of(file)))
    }
    assert owners == {"erat/engine/trainer.py", "erat/corruption/up.py"}


@pytest.mark.parametrize("file", files("erat/defenses"))
def test_defenses_neither_go_backward_nor_step(file: str) -> None:
    attributes = {node.attr for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}
    assert not attributes & {"backward", "zero_grad", "optim"}


@pytest.mark.parametrize("file", files("erat", "orchestration"))
def test_no_library_code_seeds_globally(file: str) -> None:
    names = called(tree_of(file))
    assert not names & GLOBAL_SEEDING
    if "torch.default_generator" in names:
        assert file == "erat/seeding.py", "inside fork_rng, where weights are drawn"


@pytest.mark.parametrize("file", files("erat"))
def test_the_science_reads_no_environment(file: str) -> None:
    assert not called(tree_of(file)) & {"os.environ", "os.getenv", "os.putenv"}
