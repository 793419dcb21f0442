"""Look up the versions of installed packages."""

from __future__ import annotations

from importlib import metadata


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package by name; "absent" if it is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
