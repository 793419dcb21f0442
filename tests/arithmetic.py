"""Notices whether a test computes with torch: a test that does not gives the same on every instruction set."""

from __future__ import annotations

import multiprocessing.process
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Files and folders below `tests/` whose tests run no kernel of torch on floating-point numbers. They are marked
# `exact`, and not repeated with another instruction set. A test that no longer belongs here fails, and says so. Only
# what takes a second or more is listed; what is not here is repeated.
EXACT = (
    "contract/test_layout.py",
    "unit/orchestration/cluster",
    "unit/orchestration/report",
    *(
        f"unit/orchestration/search/test_{name}.py"
        for name in ("driver", "driver_figures", "mixed", "pruners", "queue", "sync")
    ),
    *(
        f"unit/orchestration/study/test_{name}.py"
        for name in ("config_files", "generations", "grids", "overrides", "spaces", "status")
    ),
    "unit/orchestration/test_api.py",
)
# These too, though they start processes, into which nobody looks: shells that complete words, programs that only import
# or print, MLflow's stores and servers, and the tests of `python -m tests`, which choose the kernels themselves.
EXACT_WITH_PROCESSES = (
    "contract/test_startup.py",
    "unit/orchestration/commands/test_completion.py",
    "unit/orchestration/report/test_page.py",
    "unit/orchestration/tracking",
    "unit/test_checks.py",
)
PROCESS = "a process"


class Watch(TorchDispatchMode):
    """Records in `seen` the operations of this thread on floating-point tensors, and the start of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it, if its kernel depends on the instruction set."""
        if any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in args) and not _imports():
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yield the list to which operations and processes of Python are added until the end of the block."""
    with pytest.MonkeyPatch.context() as patch, Watch() as watch:

        def noted(start: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
            @wraps(start)
            def note(*args: Any, **more: Any) -> Any:
                if counts(*args, **more) and not _imports():
                    watch.seen.append(PROCESS)
                return start(*args, **more)

            return note

        def runs_python(_: Any, args: Any, *rest: Any, **more: Any) -> bool:
            return "python" in (args if isinstance(args, str) else str(args[0]))

        patch.setattr(subprocess.Popen, "__init__", noted(subprocess.Popen.__init__, runs_python))
        process = multiprocessing.process.BaseProcess
        patch.setattr(process, "start", noted(process.start, lambda *_: True))
        yield watch.seen


def _imports() -> bool:
    """Return whether a module is being imported: which test is the first to need it depends on the order of tests."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def is_exact(path: Path, root: Path) -> bool:
    """Return whether the tests of the file `path` are exact; `root` is the folder of all tests."""
    return _is_below(path, root, EXACT + EXACT_WITH_PROCESSES)


def inexact(seen: list[str], path: Path, root: Path) -> list[str]:
    """Return what, of that which was seen in a test of an exact file, such a test may not do: sorted, each once."""
    allowed = {PROCESS} if _is_below(path, root, EXACT_WITH_PROCESSES) else set()
    return sorted(set(seen) - allowed)


def _is_below(path: Path, root: Path, places: Iterable[str]) -> bool:
    return any(root / place in (path, *path.parents) for place in places)
