"""Tests, by reading the source, in which direction imports point and where side effects are allowed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
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
        "orchestration/cluster/starting.py",
        "orchestration/search/tune.py",
    },
    "mlflow": {"orchestration/tracking/opening.py", "orchestration/tracking/sender.py"},
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


@cache
def mentioned(file: str) -> set[str]:
    return called(tree_of(file))


@cache
def tops(file: str) -> set[str]:
    """Return the top-level packages that a file imports."""
    package = ".".join(Path(file).parent.parts)
    return {name.split(".")[0] for name in imports(tree_of(file), package)}


@cache
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


def offenders(checked: Iterable[str], wrong: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    """Return every file in which something is wrong, with what that is."""
    return {file: found for file in checked if (found := sorted(wrong(file)))}


def assert_none(checked: Iterable[str], wrong: Callable[[str], Iterable[str]]) -> None:
    """Fail with the names of all files in which something is wrong, not of the first alone."""
    found = offenders(checked, wrong)
    assert not found, "\n".join(f"{file}: {', '.join(what)}" for file, what in found.items())


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


def test_the_science_knows_nothing_of_many_runs() -> None:
    others = {"orchestration", "orchestrate", "ray", "mlflow", "optuna", "typer", "rich", "tests"}
    assert_none(files("erat"), lambda file: tops(file) & others)


@pytest.mark.parametrize("package", IMPORTERS)
def test_one_place_imports(package: str) -> None:
    importers = {file for file in ["orchestrate.py", *files("erat", "orchestration")] if package in tops(file)}
    assert importers == IMPORTERS[package]


def test_one_run_needs_neither_ray_nor_mlflow() -> None:
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


def upward(file: str) -> set[str]:
    """Return the rooms of its own or a higher level from which a file imports."""
    others = {room_of(other) for other in within(file) if other.startswith("orchestration/")} - {room_of(file)}
    return {room for room in others - {"__init__"} if LEVEL_OF[room] >= LEVEL_OF[room_of(file)]}


def test_imports_point_downward() -> None:
    assert_none([file for file in files("orchestration") if file != "orchestration/__init__.py"], upward)


def circle(file: str) -> set[str]:
    """Return the modules that a file imports and that import it, at any distance; packages' re-exports do not count."""
    return {other for other in modules_within(file) if file in reachable_modules(other)}


def modules_within(file: str) -> set[str]:
    return {other for other in within(file) if not other.endswith("__init__.py")}


@cache
def reachable_modules(file: str) -> frozenset[str]:
    """Return the same as `reachable`, but without what packages only re-export."""
    found, waiting = {file}, [file]
    while waiting:
        new = modules_within(waiting.pop()) - found
        found |= new
        waiting += new
    return frozenset(found)


def test_no_module_imports_itself_in_a_circle() -> None:
    assert_none(files("erat", "orchestration"), circle)


def test_a_circle_and_a_way_up_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    code = {
        "storage/a": "storage.b",
        "storage/b": "storage.c",
        "storage/c": "storage.b",
        "run/d": "study.e",
        "study/e": "",
    }
    for name, imported in code.items():
        file = tmp_path / "orchestration" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"import orchestration.{imported}\n" if imported else "")
    for remembered in (tree_of, tops, within, reachable_modules):
        remembered.cache_clear()
    try:
        found = files("orchestration")
        assert offenders(found, upward) == {"orchestration/run/d.py": ["study"]}
        b, c = "orchestration/storage/b.py", "orchestration/storage/c.py"
        assert offenders(found, circle) == {b: [c], c: [b]}
        with pytest.raises(AssertionError, match=rf"{b}: {c}\s+{c}: {b}"):
            assert_none(found, circle)
    finally:
        for remembered in (tree_of, tops, within, reachable_modules):
            remembered.cache_clear()


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
    assert owners == {"erat/engine/trainer.py", "erat/corruption/surrogate.py"}


def test_defenses_neither_go_backward_nor_step() -> None:
    def steps(file: str) -> set[str]:
        attributes = {node.attr for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}
        return attributes & {"backward", "zero_grad", "optim"}

    assert_none(files("erat/defenses"), steps)


def test_no_library_code_seeds_globally() -> None:
    def seeds(file: str) -> set[str]:
        allowed = {"torch.default_generator"} if file == "erat/seeding.py" else set()  # in fork_rng, for weights
        return mentioned(file) & (GLOBAL_SEEDING | {"torch.default_generator"}) - allowed

    assert_none(files("erat", "orchestration"), seeds)


def test_the_science_reads_no_environment() -> None:
    environment = {"os.environ", "os.getenv", "os.putenv"}
    assert_none(files("erat"), lambda file: mentioned(file) & environment)
