"""The errors that a person can mend: each message is one line that says what, got and allowed."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Wrong input. The command line prints the message alone and exits with status 2."""


class TrainingFailedError(RuntimeError):
    """A run that started well cannot go on (its loss left the finite numbers, say)."""


# What a full, read-only or closed place says of itself.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class StorageError(OSError):
    """A place that runs write to cannot be written or read now. A run that meets it has not failed."""


def is_storage_fault(error: BaseException) -> bool:
    """Whether it is the place written to that is at fault, so that the same work may go on once that is mended."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _STORAGE)


def storage_words(error: OSError) -> str:
    """Which place, and what is wrong with it."""
    return (
        str(error.strerror) if isinstance(error, StorageError) else f"{error.filename or 'storage'}: {error.strerror}"
    )


def unknown_name(what: str, got: str, allowed: Iterable[str]) -> UserError:
    """An error for a name that is not among `allowed`, with the near matches first."""
    names = sorted(allowed)
    near = get_close_matches(got, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {what} {got!r}: {hint}allowed: {', '.join(names)}")


def shown(value: object, most: int = 80) -> str:
    """Return `value` as one line for a message: like `repr`, control characters escaped, at most `most` characters."""
    text = repr(value if not isinstance(value, str | bytes) else value[: most + 1])
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= most else text[: most - 3] + "..."
