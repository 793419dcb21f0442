"""Find the parts that other packages bring: entry points of the group `erat.plugins`, loaded once, when needed.

An entry point names a module, which registers its parts when it is imported (`erat.registration`), or a function that
registers them when it is called. A plugin that fails is warned of in one line; everything else goes on without it.
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
_found, _loading = False, False
faults: list[str] = []  # of the plugins that failed, a line each


def load() -> None:
    """Load what is installed and what was asked for with `expect`; what was loaded before is not loaded again."""
    global _found, _loading
    with _lock:
        if _loading:  # a plugin that asks for a name while it registers its own
            return
        _loading = True
        try:
            if not _found:
                from importlib.metadata import entry_points  # loads more than the rest of this file

                _found = True
                for point in entry_points(group=GROUP):
                    _waiting.append((f"plugin {point.name} ({point.value})", partial(_enter, point)))
            while _waiting:
                _attempt(*_waiting.pop(0))
        finally:
            _loading = False


def expect(origin: str, loader: Callable[[], object]) -> None:
    """Call `loader`, which registers parts, when next a name is looked for that is not known.

    Args:
        origin: what is loaded, for the warning if it fails.
    """
    with _lock:
        _waiting.append((origin, loader))


def loading() -> bool:
    """Whether a plugin is being loaded: what is registered now comes with it, in every process."""
    return _loading


def _enter(point: EntryPoint) -> None:
    found = point.load()
    if callable(found) and not isinstance(found, ModuleType):
        found()


def _attempt(origin: str, loader: Callable[[], object]) -> None:
    try:
        loader()
    except Exception as error:  # whatever code of others raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        faults.append(f"the {origin} could not be loaded ({reason})")
        warnings.warn(f"{faults[-1]}; its parts are missing", stacklevel=2)
