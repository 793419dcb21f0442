"""Tests that a file whose tests are said not to compute is found out if they do."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests import arithmetic, conftest
from tests.forks import prepared


@pytest.mark.parametrize(
    ("work", "seen"),
    [
        (lambda: torch.ones(2) + 1, ["aten.add.Tensor"]),
        (lambda: torch.nn.Linear(2, 2)(torch.ones(1, 2)), ["aten.t.default", "aten.addmm.default"]),
        (lambda: torch.arange(3) + 1, []),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), [arithmetic.PROCESS]),
        (lambda: subprocess.run(f"{sys.executable} -c ''", shell=True, check=True), [arithmetic.PROCESS]),
        (lambda: subprocess.run(args=["true"], check=True), []),  # such as MLflow's question for the version of git
    ],
    ids=["sum", "network", "whole numbers", "process", "by a shell", "another program"],
)
def test_what_depends_on_kernels_is_seen(work: Callable[[], object], seen: list[str]) -> None:
    with arithmetic.watched() as found:
        work()
    assert set(found) >= set(seen)
    assert bool(found) == bool(seen)


def test_a_process_of_multiprocessing_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseProcess, "start", lambda _: None)
    with arithmetic.watched() as found:
        prepared().Process(target=print).start()
    assert found == [arithmetic.PROCESS]


def test_what_an_import_does_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test that needs a module imports it, and which that is depends on the order of tests."""
    (tmp_path / "computes_when_imported.py").write_text("import torch\ntorch.zeros(2).exp()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with arithmetic.watched() as found:
        importlib.import_module("computes_when_imported")
    assert found == []


def run(item: Any, work: Callable[[], object]) -> None:
    """Take a test through what `conftest` does around its run and after it."""
    around = cast("Generator[None, None, None]", conftest.pytest_runtest_protocol(item))
    next(around)
    work()
    after = cast("Generator[None, None, None]", conftest.pytest_runtest_teardown(item))
    next(after)
    try:
        with pytest.raises(StopIteration):
            after.send(None)
    finally:
        with pytest.raises(StopIteration):
            around.send(None)


@pytest.mark.parametrize("exact", [True, False])
def test_a_test_that_is_marked_exact_and_computes_fails(exact: bool) -> None:
    item = SimpleNamespace(
        path=Path("test_x.py"), stash=pytest.Stash(), get_closest_marker=lambda name: name == "exact" and exact
    )
    run(item, lambda: torch.arange(3).sum())
    if exact:
        with pytest.raises(pytest.fail.Exception, match=r"not exact .*tests/arithmetic\.py.*: aten\.exp\.default"):
            run(item, lambda: torch.zeros(2).exp())
    else:
        run(item, lambda: torch.zeros(2).exp())


def test_what_is_said_to_be_exact_is_there() -> None:
    places = arithmetic.EXACT + arithmetic.EXACT_WITH_PROCESSES
    assert [place for place in places if not (conftest.ROOT / place).exists()] == []


@pytest.mark.parametrize(("path", "exact"), [("unit/a/test_b.py", True), ("unit/c.py", True), ("unit/d.py", False)])
def test_files_and_folders_may_be_named(path: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "EXACT", ("unit/a", "unit/c.py"))
    assert arithmetic.is_exact(Path("/tests") / path, Path("/tests")) == exact


def test_a_process_is_allowed_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "EXACT_WITH_PROCESSES", ("unit/a",))
    seen = ["aten.exp.default", arithmetic.PROCESS, arithmetic.PROCESS]
    root = Path("/tests")
    assert arithmetic.inexact(seen, root / "unit/a/test_b.py", root) == ["aten.exp.default"]
    assert arithmetic.inexact(seen, root / "unit/test_c.py", root) == [arithmetic.PROCESS, "aten.exp.default"]
