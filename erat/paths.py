"""Reads paths that a person writes: expands `~`, makes them absolute, and refuses names that no file can have."""

from __future__ import annotations

import os
from pathlib import Path

from erat.errors import UserError, shown

MOST_CHARACTERS = 4096  # Linux accepts no longer path
MOST_OF_A_NAME = 255  # bytes, on every usual file system


def user_path(text: str | Path, what: str) -> Path:
    """Return the absolute path that `text` means, without checking whether it exists.

    Args:
        what: the key or option by which it was given, for messages.

    Raises:
        UserError: it cannot be a path; the message says what is wrong.
    """
    given = str(text)
    if "\0" in given:
        raise UserError(f"{what} must be a path, got {shown(given)}, which holds a NUL character")
    require_text(given, what)
    too_long = len(given) > MOST_CHARACTERS or any(len(os.fsencode(name)) > MOST_OF_A_NAME for name in given.split("/"))
    if too_long:
        raise UserError(
            f"{what} must be a path of at most {MOST_CHARACTERS} characters and {MOST_OF_A_NAME} a name, "
            f"got {shown(given)} ({len(given)} characters)"
        )
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{what} must be a path, got {shown(given)}: there is no such user's home") from None


def require_text(given: str, what: str) -> None:
    """Refuse bytes that are not UTF-8: Python lets them through in arguments, but no JSON file can hold them.

    Raises:
        UserError: `given` contains such bytes.
    """
    try:
        given.encode()
    except UnicodeEncodeError:
        raise UserError(f"{what} must be UTF-8, got {shown(given)}") from None
