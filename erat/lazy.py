"""Provides the public names of a package without loading their modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that loads the module of a name when the name is first used.

    Args:
        package: the full name of the package.
        modules: full name of a module -> the public names that are in it.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    content = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = content[name] = getattr(import_module(module_of[name]), name)
        return found

    return find, lambda: sorted({*content, *module_of})
