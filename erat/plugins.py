"""Load the parts that other packages provide as entry points of the group `erat.plugins`, once, when they are needed.

An entry point names a module, which registers its parts when it is imported (`erat.registration`), or a function that
registers them when it is called. If a plugin fails, a one-line warning is given and everything else works without it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "erat.plugins"

_lock = threading.RLock()
_waiting: list[tuple[str, Callable[[], object]]] = []
_found = False
_loading: int | None = None  # the thread that loads plugins
faults: list[str] = []  # one line for each plugin that failed


def load() -> None:
    """Load the installed plugins and the loaders given to `expect` that have not been loaded yet."""
    global _found, _loading
    with _lock:
        if _loading is not None:  # a plugin looked up a name while it registered its parts
            return
        _loading = threading.get_ident()
        try:
            if not _found:
                from importlib.metadata import entry_points  # imported here because it loads slowly

                _found = True
                points = entry_points(group=GROUP)
                # Before what `expect` was given: a part that a program sends replaces the one that is installed.
                _waiting[:0] = [(f"plugin {one.name} ({one.value})", partial(_enter, one)) for one in points]
            while _waiting:
                _attempt(*_waiting.pop(0))
        finally:
            _loading = None


def expect(origin: str, loader: Callable[[], object]) -> None:
    """Call `loader` the next time that an unknown name is looked up.

    Args:
        origin: a description of what is loaded, for the warning if it fails.
        loader: registers parts.
    """
    with _lock:
        _waiting.append((origin, loader))


def loading() -> bool:
    """Return whether this thread is loading a plugin, whose parts every process finds by itself."""
    return _loading == threading.get_ident()


def _enter(point: EntryPoint) -> None:
    found = point.load()
    if callable(found) and not isinstance(found, ModuleType):
        found()


def _attempt(origin: str, loader: Callable[[], object]) -> None:
    try:
        loader()
    except (Exception, SystemExit) as error:  # code of other packages may raise any error, or try to end the program
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        faults.append(f"the {origin} could not be loaded ({reason})")
        warnings.warn(f"{faults[-1]}; its parts are missing", stacklevel=2)
